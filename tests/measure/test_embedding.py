"""The forward pass over texts: batches, wrappers, memory."""

import pytest
import torch
from conftest import make_decoder, make_decoder_classifier, make_encoder
from torch import nn

from sepstop.measure.embedding import TOKENS_IN_A_BATCH, Batching, embed, observe
from sepstop.measure.pooling import CLSPooling, LastTokenPooling, MeanPooling


def some_tokens(count=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (count,), generator=generator).tolist()
    return [torch.randint(4, 20, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("make", [make_encoder, make_decoder, make_decoder_classifier])
@pytest.mark.parametrize(
    "pooling", [MeanPooling(), CLSPooling(), LastTokenPooling(), MeanPooling(layer=1)]
)
def test_batching_and_padding_do_not_change_the_points(make, pooling):
    model, tokens = make(), some_tokens()
    together = embed(model, tokens, pooling, batch_size=4)
    alone = torch.cat([embed(model, [ids], pooling) for ids in tokens])
    assert together.shape == (10, 16)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_peft_adapters_are_active():
    peft = pytest.importorskip("peft")
    tokens, base = some_tokens(), make_decoder_classifier()
    before = embed(base, tokens, LastTokenPooling())
    config = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False
    )
    model = peft.get_peft_model(base, config)
    after = embed(model, tokens, LastTokenPooling())
    with model.disable_adapter():
        off = embed(model, tokens, LastTokenPooling())
    torch.testing.assert_close(off, before)
    assert (after - before).abs().max() > 1e-3


def test_compiled_and_wrapped_models_are_unwrapped():
    model, tokens = make_encoder(), some_tokens()
    expected = embed(model, tokens, MeanPooling())
    assert torch.equal(embed(torch.compile(model), tokens, MeanPooling()), expected)
    assert torch.equal(embed(nn.DataParallel(model), tokens, MeanPooling()), expected)


def test_training_after_embedding_works():
    model = make_decoder().train()
    embed(model, some_tokens(), LastTokenPooling())
    ids = some_tokens(1)[0][None]
    model(ids, labels=ids).loss.backward()
    assert model.lm_head.weight.grad is not None


def test_out_of_memory_halves_the_batch():
    sizes = []

    def hungry(model, input_ids, attention_mask):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("too much")
        return MeanPooling()(model, input_ids, attention_mask)

    model = make_encoder()
    points = embed(model, some_tokens(), hungry, batch_size=8)
    assert sizes[:3] == [8, 4, 2]
    expected = embed(model, some_tokens(), MeanPooling())
    torch.testing.assert_close(points, expected, atol=1e-5, rtol=1e-4)


def test_batches_have_as_many_texts_as_the_tokens_allow():
    """Nothing is padded beyond the longest text of its batch."""
    shapes = []

    def seen(model, input_ids, attention_mask):
        shapes.append(tuple(input_ids.shape))
        return MeanPooling()(model, input_ids, attention_mask)

    lengths = [3, 30, 4, 11, 9, 4, 50, 4]
    tokens = [torch.arange(length) % 20 for length in lengths]
    together = observe(make_encoder(), tokens, seen, Batching(tokens=36)).points
    assert shapes == [(1, 50), (1, 30), (3, 11), (3, 4)]
    alone = observe(make_encoder(), tokens, MeanPooling(), Batching(1)).points
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_batches_fill_the_device_by_default():
    sizes = []

    def seen(model, input_ids, attention_mask):
        sizes.append(len(input_ids))
        return MeanPooling()(model, input_ids, attention_mask)

    length, most = 16, TOKENS_IN_A_BATCH["cpu"]
    observe(make_encoder(), [torch.arange(length)] * (most // length + 3), seen)
    assert sizes == [most // length, 3]


def test_out_of_memory_halves_the_tokens_of_a_batch():
    smaller = []

    def hungry(model, input_ids, attention_mask):
        if input_ids.numel() > 30:
            raise torch.OutOfMemoryError("too much")
        return MeanPooling()(model, input_ids, attention_mask)

    tokens = [torch.arange(10)] * 9
    observe(make_encoder(), tokens, hungry, Batching(tokens=100), on_smaller_batch=smaller.append)
    assert [one.tokens for one in smaller] == [40, 20]
    assert [one.size for one in smaller] == [None, None]


def test_points_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r"points of shape \(10, D\) from .*, got \(10, \d+, 1\)"):
        embed(make_encoder(), some_tokens(), lambda m, ids, mask: mask[..., None])
