"""Unknown answers: what a model says first, grouped by what it says most often."""

import pytest
import torch
from conftest import WORDS, make_decoder, make_encoder, make_monitor
from torch import nn

from sepstop import SepStopConfig
from sepstop.measure.answers import read_answers
from sepstop.measure.embedding import Batching, observe
from sepstop.measure.first_tokens import MOST_LIKELY, first_tokens, frequent, grouped
from sepstop.measure.monitor import Monitor
from sepstop.measure.pooling import LastTokenPooling
from sepstop.measure.tokens import Tokens

PROMPTS = [[2, 5, 9, 12], [2, 7], [2, 15, 16, 17, 8, 6, 9], [2, 10, 11]]


@torch.no_grad()
def probabilities(model, prompts):
    """``(N, V)`` of the next token, a prompt at a time."""
    rows = [model.eval()(input_ids=torch.tensor([ids])).logits[0, -1] for ids in prompts]
    return torch.stack(rows).double().softmax(dim=-1)


@pytest.mark.parametrize("size", [1, 4])
def test_groups_are_of_the_next_tokens_probabilities(size):
    model = make_decoder()
    prompts = Tokens([torch.tensor(ids) for ids in PROMPTS], are_prompts=True)
    options = {"with_logits": True, "head": first_tokens}
    first = observe(model, prompts, LastTokenPooling(), Batching(size), **options).logits
    expected = probabilities(model, PROMPTS)
    tokens = expected.mean(dim=0).argsort(descending=True)[:3]
    assert frequent(first, 3).tolist() == tokens.tolist()
    found = grouped(first, tokens).double().exp()
    assert torch.allclose(found[:, :3], expected[:, tokens], atol=1e-6)
    assert torch.allclose(found.sum(dim=1), torch.ones(4, dtype=torch.float64), atol=1e-6)


def test_a_token_that_no_prompt_is_likely_to_get_has_a_probability_of_about_zero():
    first = torch.tensor([[0.9, 0.1, 7, 5]])
    first[:, :2] = first[:, :2].log()
    assert grouped(first, torch.tensor([3])).exp().tolist() == [pytest.approx([1e-12, 1.0])]


def test_one_pass_makes_logits_at_the_last_token_only(pool, tokenizer):
    model, read, made = make_decoder(), [], []
    options = {"answers": 4, "criterion": "entropy", "batch_size": 64}
    monitor = make_monitor(pool, tokenizer=tokenizer, **options)
    monitor.prepare(model)
    model.model.layers[0].register_forward_hook(lambda *_: read.append(1))
    model.lm_head.register_forward_hook(lambda _, args, out: made.append(out.shape[1]))
    monitor.observe(model)
    assert len(read) == -(-len(pool) // 64)
    assert set(made) == {1}


def test_a_model_whose_answers_are_unknown_is_scored_as_a_classifier(pool, tokenizer):
    model = make_decoder()
    monitor = make_monitor(
        pool,
        tokenizer=tokenizer,
        answers=5,
        num_resamples=3,
        extra_criteria=["infomax", "self_consistency"],
    )
    monitor.set_reference(model)
    record = monitor.measure(model, 1)
    assert monitor.decides == "robust_mi"
    assert all(score.is_finite for score in record.scores.values())
    assert monitor.settings["answers"] == 5
    assert monitor.settings["pooling"]["name"] == "last"
    seen = monitor.observe(model)
    assert seen.logits.shape == seen.corrupted_logits.shape == (len(pool), 6)


def test_clean_and_corrupted_texts_have_the_same_groups(pool, tokenizer):
    """A model that always says one word is consistent, whatever is dropped."""
    model = make_decoder()
    model.lm_head = nn.Linear(16, len(WORDS))
    model.lm_head.bias.data[WORDS.index("film")] = 30
    seen = make_monitor(pool, tokenizer=tokenizer, answers=3).observe(model)
    assert (seen.logits.argmax(dim=-1) == 0).all()
    assert (seen.corrupted_logits.argmax(dim=-1) == 0).all()


def test_padding_is_not_blamed_for_tokens_of_equal_probability(pool, tokenizer):
    """Where many tokens are equally likely, their order depends on rounding."""
    model = make_decoder()
    model.lm_head.weight.data[::2] = model.lm_head.weight.data[1::2]
    monitor = make_monitor(pool, tokenizer=tokenizer, answers=3)
    monitor.measure(model, 1)
    assert monitor.observer.padding is True


@pytest.mark.parametrize("given", [0, 65, "0"])
def test_numbers_out_of_range(given, pool):
    said = rf"expected a number of answers from 1 to {MOST_LIKELY}, got {given}"
    with pytest.raises(ValueError, match=said):
        Monitor(pool, SepStopConfig(answers=given))


def test_a_number_on_the_command_line():
    assert read_answers("10") == read_answers(10) == 10
    with pytest.raises(ValueError, match="expected a list of answers, or their number, got bool"):
        read_answers(True)


def test_first_tokens_are_of_causal_language_models(pool, tokenizer):
    with pytest.raises(ValueError, match="answers= is for causal language models"):
        make_monitor(pool, tokenizer=tokenizer, answers=3).measure(make_encoder(), 1)
