"""Tokens that the model can read."""

import pytest
import torch
from conftest import WORDS, deciding, make_decoder_classifier, make_encoder, make_monitor
from helpers.padding import alone, bart
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma3Config,
    Gemma3Model,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

SMALL = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def test_an_id_without_an_embedding_is_an_error_with_its_row(pool, tokenizer):
    ids = tokenizer(pool)["input_ids"]
    ids[7] = [2, len(WORDS), 3]  # short, so not among the texts that `prepare` tries
    message = f"row 7 of the pool has the token id {len(WORDS)}, but BertForSequenceClassification"
    with pytest.raises(ValueError, match=message):
        make_monitor(ids).prepare(make_encoder())


def gpt2(positions):
    return GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=len(WORDS),
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=positions,
            pad_token_id=0,
        )
    )


def roberta(positions):
    config = RobertaConfig(**SMALL, max_position_embeddings=positions + 2, pad_token_id=1)
    return RobertaForSequenceClassification(config)


def bert(positions):
    return BertForSequenceClassification(BertConfig(**SMALL, max_position_embeddings=positions))


def bart_of(positions):
    return bart(max_position_embeddings=positions)


@pytest.mark.parametrize("make", [bert, gpt2, roberta, bart_of])
def test_a_text_longer_than_the_positions_is_an_error_with_its_row(make, pool, tokenizer):
    ids = tokenizer(pool)["input_ids"]
    ids[11] = [2, *([9] * 14), 3]
    with pytest.raises(
        ValueError, match=r"row 11 of the pool has 16 tokens.* 15 positions; set max_length=15"
    ):
        make_monitor(ids).prepare(make(15))
    make_monitor(ids).prepare(make(16))
    make_monitor(ids, max_length=15).prepare(make(15))


def test_positions_of_images_do_not_limit_texts(pool, tokenizer):
    text = dict(SMALL, num_key_value_heads=1, head_dim=8, pad_token_id=0)
    image = {"image_size": 28, "patch_size": 14, **{k: v for k, v in SMALL.items() if k[0] != "v"}}
    config = Gemma3Config(
        text_config=text,
        vision_config=image,
        mm_tokens_per_image=1,
        boi_token_index=1,
        eoi_token_index=2,
        image_token_index=5,
    )
    record = make_monitor(pool, tokenizer=tokenizer).measure(Gemma3Model(config), 1)
    assert deciding(record).is_finite


def test_relative_positions_have_no_limit(pool, tokenizer):
    make_monitor([*pool, " ".join(pool[:20])], tokenizer=tokenizer).prepare(
        make_decoder_classifier()
    )


def test_an_invalid_padding_token_is_not_used(pool, tokenizer):
    """With an id that it cannot find, the head would read the last position, padded or not."""
    model = make_decoder_classifier().eval()
    model.config.pad_token_id = -1
    seen = make_monitor(pool, tokenizer=tokenizer).observe(model)
    torch.testing.assert_close(seen.logits, alone(model, tokenizer(pool)["input_ids"]))
