"""Recording of a language model that answers in words."""

import copy

import numpy as np
import pytest
import torch
from conftest import make_decoder, make_texts
from helpers.recorded import short_settings

from sepstop.bench.record import learner_and_split, record_run, train
from sepstop.bench.run_settings import RunSettings

TEXTS, NUMBERS = make_texts(160)
NAMES = [("awful", "great_film")[number] for number in NUMBERS]


@pytest.fixture(scope="module")
def settings(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("decoder")
    make_decoder().save_pretrained(folder)
    ending = copy.deepcopy(tokenizer)
    ending.eos_token = "[SEP]"
    ending.save_pretrained(folder)
    prompt = "the {text} film"
    return short_settings(folder, prompt=prompt, pooling="last", learning_rate=2e-2)


def test_a_run_has_the_inputs_of_all_criteria(settings):
    run = record_run(TEXTS, NAMES, settings, progress=False)
    shapes = {key: value.shape for key, value in run.arrays.items()}
    vocabulary = make_decoder().config.vocab_size
    likely = min(64, vocabulary)
    for prefix in ("", "cumulative_", "recent_"):
        assert shapes[f"{prefix}pool_e"] == (4, 60, 16)
        assert shapes[f"{prefix}pool_l"] == shapes[f"{prefix}pool_d"] == (4, 60, 2)
        first = (4, 60, 2 * likely)
        assert shapes[f"{prefix}pool_f"] == shapes[f"{prefix}pool_g"] == first
        assert shapes[f"{prefix}te_acc"] == shapes[f"{prefix}te_gen"] == (4,)
    assert run.averages == ("cumulative", "recent")
    assert run.test_accuracy[-1] > 0.65  # it has learned
    assert run.arrays["te_gen"][-1] > 0.5  # and says so, and no more
    assert run.arrays["te_gen"][0] < 0.2
    right = (run.arrays["pool_l"].argmax(-1) == run.arrays["y"]).mean(axis=1)
    assert right == pytest.approx(run.arrays["pool_acc"])
    assert "-words-base-last-" in run.name
    again = record_run(TEXTS, NAMES, settings, progress=False)
    for key, values in run.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], values)


@torch.no_grad()
def test_the_loss_is_that_of_the_answers_tokens(settings, tokenizer):
    """As transformers computes it, a text at a time; prompts and padding do not count."""
    model, split = learner_and_split(TEXTS, NAMES, settings)
    model.eval()
    rows = torch.tensor([3, 0, 17])
    total = count = 0
    for row in map(int, rows):
        prompt, label = split.tokens["train"].ids[row].tolist(), split.labels["train"][row]
        assert tokenizer.decode(prompt).endswith(" film")
        said = ("awful [SEP]", "great film [SEP]")[label]
        answer = tokenizer(said, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([prompt + answer])
        wanted = ids.clone()
        wanted[:, : len(prompt)] = -100
        total += float(model.model(input_ids=ids, labels=wanted).loss) * len(answer)
        count += len(answer)
    assert float(model.loss(split, rows)) == pytest.approx(total / count, rel=1e-4)


def test_an_average_generates_its_own_answers_in_bfloat16(settings):
    """Autocast would keep the weights that it cast before the average was put into the model."""
    bf16 = short_settings(settings.model, prompt=settings.prompt, bf16=True, learning_rate=2e-2)
    model, split = learner_and_split(TEXTS, NAMES, bf16)
    training = train(model, split, bf16)
    for _ in range(40):
        next(training)
    with torch.autocast("cpu", torch.bfloat16):
        seen = {part: model.observe(split.tokens[part]) for part in ("pool", "corrupted")}
        assert model.more_arrays(split, seen)["te_gen"] > 0.5
        with torch.no_grad():
            model.model.lm_head.weight.mul_(-1)
        assert model.more_arrays(split, seen)["te_gen"] < 0.2


def test_long_texts_are_cut_before_they_are_put_into_the_prompt(settings, tokenizer):
    short = short_settings(settings.model, prompt="the {text} film", max_length=2)
    _, split = learner_and_split(TEXTS, NAMES, short)
    for ids in split.tokens["pool"]:
        words = tokenizer.decode(ids).split()
        assert len(words) == 5  # [CLS] the, two words, film
        assert words[-1] == "film"


def test_a_prompt_without_a_place_for_the_text():
    with pytest.raises(ValueError, match=r"expected \{text\} in `prompt`, got 'Which\?'"):
        RunSettings("toy", labeled_rows=32, prompt="Which?")
