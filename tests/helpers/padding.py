"""A model whose outputs depend on its closing token, and logits without padding."""

import torch
from conftest import WORDS
from transformers import BartConfig, BartForSequenceClassification


def bart(**more):
    torch.manual_seed(0)
    return BartForSequenceClassification(
        BartConfig(
            vocab_size=len(WORDS),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_labels=3,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=3,
            forced_eos_token_id=None,
            **more,
        )
    ).eval()


def alone(model, rows, **inputs):
    """The logits of each text by itself, with nothing padded."""
    found = []
    for place, row in enumerate(rows):
        more = {key: torch.tensor(values[place])[None] for key, values in inputs.items()}
        with torch.no_grad():
            found.append(model(input_ids=torch.tensor(row)[None], **more).logits[0])
    return torch.stack(found)
