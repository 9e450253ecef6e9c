"""Tiny encoder-decoder classifiers."""

import torch
from conftest import WORDS
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

SMALL = {"vocab_size": len(WORDS), "d_model": 16, "pad_token_id": 0, "eos_token_id": 3}


def make_encoder_decoder(kind):
    torch.manual_seed(0)
    if kind == "t5":
        config = T5Config(**SMALL, d_kv=8, d_ff=32, num_layers=1, num_heads=2, num_labels=2)
        config.decoder_start_token_id = 0
        return T5ForSequenceClassification(config)
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    return BartForSequenceClassification(
        BartConfig(**SMALL, **sides, num_labels=2, bos_token_id=2, decoder_start_token_id=3)
    )
