"""Points from hidden states."""

import pytest
import torch
from conftest import make_decoder, make_decoder_classifier, make_encoder
from test_embedding import some_tokens
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from sepstop.measure.embedding import embed
from sepstop.measure.pooling import (
    LastTokenPooling,
    MeanPooling,
    cls_pooling,
    hidden_states,
    last_token_pooling,
    mean_pooling,
)

HIDDEN = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
RIGHT = torch.tensor([[1, 1, 0], [1, 1, 1]])
LEFT = RIGHT.flip(1)


@pytest.mark.parametrize("mask", [RIGHT, LEFT])
def test_pooling_uses_attended_tokens_only(mask):
    attended = [HIDDEN[b][mask[b].bool()] for b in range(2)]
    assert torch.equal(mean_pooling(HIDDEN, mask), torch.stack([a.mean(0) for a in attended]))
    assert torch.equal(cls_pooling(HIDDEN, mask), torch.stack([a[0] for a in attended]))
    assert torch.equal(last_token_pooling(HIDDEN, mask), torch.stack([a[-1] for a in attended]))


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -2])
def test_a_layer_is_the_hidden_state_of_the_model(layer):
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


def test_soft_prompts_are_run_but_not_pooled():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(make_decoder(), config)
    points = embed(model, some_tokens(), LastTokenPooling())
    assert points.shape == (10, 16)
    assert (points - embed(make_decoder(), some_tokens(), LastTokenPooling())).abs().max() > 1e-4


def test_half_precision_models_give_float32_points():
    points = embed(make_encoder().to(torch.bfloat16), some_tokens(), MeanPooling())
    assert points.dtype == torch.float32


class WithoutHiddenStates(nn.Linear):
    def forward(self, input_ids, attention_mask=None, return_dict=True, output_hidden_states=True):
        return {"logits": super().forward(attention_mask.float()[:, :1])}


@pytest.mark.parametrize("model", [WithoutHiddenStates(1, 2), nn.Linear(1, 2)])
def test_a_model_without_hidden_states_is_an_error(model):
    with pytest.raises(ValueError, match=r"Linear|WithoutHiddenStates.* have no hidden states"):
        embed(model, some_tokens(), MeanPooling())


def test_a_layer_out_of_range_is_an_error_with_the_range():
    with pytest.raises(ValueError, match=r"expected `layer` from -3 to 2 .* got 7"):
        embed(make_encoder(), some_tokens(), MeanPooling(layer=7))
