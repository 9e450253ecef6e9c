import pytest
import torch
from conftest import make_decoder, make_decoder_classifier, make_encoder
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from sepstop.measure.embedding import (
    CLSToken,
    LastToken,
    MeanPooling,
    cls_pooling,
    embed,
    hidden_states,
    last_token_pooling,
    mean_pooling,
)
from sepstop.measure.tokens import drop_tokens

HIDDEN = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
RIGHT = torch.tensor([[1, 1, 0], [1, 1, 1]])
LEFT = RIGHT.flip(1)


def some_tokens(count=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (count,), generator=generator).tolist()
    return [torch.randint(4, 20, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("mask", [RIGHT, LEFT])
def test_pooling_looks_at_attended_tokens_only(mask):
    attended = [HIDDEN[b][mask[b].bool()] for b in range(2)]
    assert torch.equal(mean_pooling(HIDDEN, mask), torch.stack([a.mean(0) for a in attended]))
    assert torch.equal(cls_pooling(HIDDEN, mask), torch.stack([a[0] for a in attended]))
    assert torch.equal(last_token_pooling(HIDDEN, mask), torch.stack([a[-1] for a in attended]))


@pytest.mark.parametrize("make", [make_encoder, make_decoder, make_decoder_classifier])
@pytest.mark.parametrize("embedder", [MeanPooling(), CLSToken(), LastToken(), MeanPooling(layer=1)])
def test_batching_and_padding_do_not_change_the_points(make, embedder):
    model, tokens = make(), some_tokens()
    together = embed(model, tokens, embedder, batch_size=4)
    alone = torch.cat([embed(model, [ids], embedder) for ids in tokens])
    assert together.shape == (10, 16)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -2])
def test_a_layer_is_the_models_own_hidden_state(layer):
    model = make_decoder().eval()
    ids = some_tokens(1)[0][None]
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states[layer]
        got = hidden_states(model, ids, torch.ones_like(ids), layer)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("make", [make_decoder, make_decoder_classifier, make_encoder])
def test_the_head_is_not_run(make):
    model = make()
    head = next(m for n, m in model.named_modules() if n in ("lm_head", "score", "classifier"))
    head.register_forward_hook(lambda *_: pytest.fail("the head was run"))
    embed(model, some_tokens(), MeanPooling())


def test_encoder_decoder_models_are_embedded_by_their_encoder():
    torch.manual_seed(0)
    config = T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    model = T5ForConditionalGeneration(config)
    assert embed(model, some_tokens(), MeanPooling()).shape == (10, 16)


def test_peft_adapters_take_part():
    peft = pytest.importorskip("peft")
    tokens, base = some_tokens(), make_decoder_classifier()
    before = embed(base, tokens, LastToken())
    config = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False
    )
    model = peft.get_peft_model(base, config)
    after = embed(model, tokens, LastToken())
    with model.disable_adapter():
        off = embed(model, tokens, LastToken())
    torch.testing.assert_close(off, before)
    assert (after - before).abs().max() > 1e-3


def test_soft_prompts_are_run_but_not_pooled():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(make_decoder(), config)
    points = embed(model, some_tokens(), LastToken())
    assert points.shape == (10, 16)
    assert (points - embed(make_decoder(), some_tokens(), LastToken())).abs().max() > 1e-4


def test_compiled_and_wrapped_models_are_reached():
    model, tokens = make_encoder(), some_tokens()
    expected = embed(model, tokens, MeanPooling())
    assert torch.equal(embed(torch.compile(model), tokens, MeanPooling()), expected)
    assert torch.equal(embed(nn.DataParallel(model), tokens, MeanPooling()), expected)


def test_half_precision_models_give_float32_points():
    points = embed(make_encoder().to(torch.bfloat16), some_tokens(), MeanPooling())
    assert points.dtype == torch.float32


def test_training_after_embedding_works():
    model = make_decoder().train()
    embed(model, some_tokens(), LastToken())
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


class WithoutHiddenStates(nn.Linear):
    def forward(self, input_ids, attention_mask=None, return_dict=True, output_hidden_states=True):
        return {"logits": super().forward(attention_mask.float()[:, :1])}


@pytest.mark.parametrize("model", [WithoutHiddenStates(1, 2), nn.Linear(1, 2)])
def test_a_model_without_hidden_states_is_named(model):
    with pytest.raises(ValueError, match=r"Linear|WithoutHiddenStates.* have no hidden states"):
        embed(model, some_tokens(), MeanPooling())


def test_a_layer_out_of_range_names_the_range():
    with pytest.raises(ValueError, match=r"expected `layer` from -3 to 2 .* got 7"):
        embed(make_encoder(), some_tokens(), MeanPooling(layer=7))


def test_an_embedder_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"return points of shape \(10, D\), got \(10, \d+\, 1\)"):
        embed(make_encoder(), some_tokens(), lambda m, ids, mask: mask[..., None])


def test_dropped_tokens_are_the_same_every_time_and_never_the_ends():
    tokens = [torch.arange(length) for length in (1, 2, 3, 400)]
    dropped = drop_tokens(tokens, 0.3, seed=1)
    for ids, kept in zip(tokens, dropped, strict=True):
        assert kept[0] == ids[0]
        assert kept[-1] == ids[-1]
        assert torch.equal(kept, kept.sort().values)
    assert len(dropped[3]) / 400 == pytest.approx(0.7, abs=0.07)
    again = drop_tokens(tokens, 0.3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(dropped, again, strict=True))
    assert not torch.equal(dropped[3], drop_tokens(tokens, 0.3, seed=2)[3])
