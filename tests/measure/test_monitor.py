"""Measurement of a model on the pool."""

import math
import random
import re
import subprocess
import sys
import textwrap
import warnings

import datasets
import numpy as np
import pytest
import torch
from conftest import (
    deciding,
    make_decoder,
    make_decoder_classifier,
    make_encoder,
    make_monitor,
)
from transformers import BertForSequenceClassification

from sepstop import Monitor, Patience, Plateau, h0_separability
from sepstop.bench.criteria import COMPARED
from sepstop.criteria import CRITERIA, Consistency
from sepstop.measure.embedding import embed, observe
from sepstop.measure.pooling import MeanPooling
from sepstop.measure.tokens import drop_tokens

SMALL = {"num_resamples": 6, "resample_size": 30}


@pytest.fixture
def monitor(pool, tokenizer):
    return make_monitor(pool, tokenizer=tokenizer, **SMALL)


def test_the_record_is_the_mean_over_the_resamples(monitor, encoder, pool, tokenizer):
    record = monitor.measure(encoder, step=7, epoch=0.5)
    tokens = [torch.tensor(ids) for ids in tokenizer(pool)["input_ids"]]
    points = embed(encoder, tokens, MeanPooling())
    values = [h0_separability(points[chosen]).item() for chosen in monitor.resample_indices]
    score = record.scores["separability"]
    assert score.resample_values == pytest.approx(values, abs=1e-6)
    assert score.value == pytest.approx(sum(values) / 6, abs=1e-6)
    assert score.low < score.value < score.high
    assert (record.step, record.epoch, record.pool_size, record.resample_size) == (7, 0.5, 80, 30)
    assert record.seconds > 0


def test_measuring_twice_gives_the_same_record(monitor, encoder, pool, tokenizer):
    first, second = monitor.measure(encoder, 1), monitor.measure(encoder, 1)
    again = make_monitor(pool, tokenizer=tokenizer, **SMALL).measure(encoder, 1)
    assert first.scores == second.scores == again.scores


def test_texts_tokens_and_files_are_the_same_pool(monitor, encoder, pool, tokenizer, tmp_path):
    expected = monitor.measure(encoder, 1).scores
    padded = tokenizer(pool, padding=True)
    tokens = datasets.Dataset.from_dict(dict(padded))
    (tmp_path / "pool.txt").write_text("\n".join(pool))
    for other in (tokens, tmp_path / "pool.txt", datasets.Dataset.from_dict({"text": pool})):
        given = None if other is tokens else tokenizer
        record = make_monitor(other, tokenizer=given, **SMALL).measure(encoder, 1)
        assert record.scores == expected


def test_a_tokenizer_without_padding_token_works(pool, bare_tokenizer):
    monitor = make_monitor(pool, pooling="last", tokenizer=bare_tokenizer)
    record = monitor.measure(make_decoder(), 1)
    assert monitor.decides == "component_mi"
    assert all(score.is_finite for score in record.scores.values())


def test_the_tokenizer_saved_with_the_model_is_found(pool, tokenizer, encoder, tmp_path, monitor):
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = type(encoder).from_pretrained(tmp_path)
    for given in (None, tmp_path, str(tmp_path)):
        found = make_monitor(pool, tokenizer=given, **SMALL).measure(loaded, 1)
        assert found.scores == monitor.measure(encoder, 1).scores


def test_no_tokenizer_anywhere_is_an_error(pool, encoder):
    with pytest.raises(ValueError, match=r"no tokenizer for the pool.*processing_class"):
        Monitor(pool).prepare(encoder)


def test_a_tokenizer_of_special_tokens_alone_is_none(pool, encoder, tmp_path):
    encoder.save_pretrained(tmp_path)  # transformers makes one up for a folder without
    loaded = type(encoder).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer for the pool: .* special tokens only"):
        Monitor(pool).prepare(loaded)


def test_a_tokenizer_that_does_not_tell_the_texts_apart_is_refused(encoder, tokenizer):
    foreign = [f"{word} zebra" for word in ("un", "deux", "trois", "quatre", "cinq")]
    with pytest.raises(ValueError, match="the 5 different texts of the pool become only 1 diff"):
        make_monitor(foreign, tokenizer=tokenizer).prepare(encoder)


def test_preparing_again_takes_the_tokenizer_of_now(pool, encoder, tokenizer):
    monitor = Monitor(pool)
    monitor.prepare(encoder, tokenizer)
    expected = make_monitor(pool, tokenizer=tokenizer).measure(encoder, 1).scores
    assert monitor.measure(encoder, 1).scores == expected

    def reversed_tokenizer(texts, **options):
        return {"input_ids": [ids[::-1] for ids in tokenizer(texts, **options)["input_ids"]]}

    monitor.prepare(encoder, reversed_tokenizer)
    found = monitor.measure(encoder, 1).scores
    assert found["separability"] != expected["separability"]


def test_long_texts_are_cut(encoder, tokenizer):
    pool = [f"{word} {'film ' * 200}" for word in ("good", "bad", "dull", "warm", "cold")]
    monitor = make_monitor(pool, tokenizer=tokenizer, max_length=16)
    assert deciding(monitor.measure(encoder, 1)).is_finite
    assert max(len(ids) for ids in monitor.observer.tokens(encoder)) == 16
    limited = make_monitor(pool, tokenizer=tokenizer, max_length=500)  # the tokenizer allows 64
    assert max(len(ids) for ids in limited.observer.tokens(encoder)) == 64


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_give_a_warning_and_no_score(monitor, encoder, value):
    encoder.bert.encoder.layer[1].output.dense.bias.data[0] = value
    with pytest.warns(RuntimeWarning, match="80 of 80 embeddings are NaN or infinite at step 3"):
        record = monitor.measure(encoder, 3)
    assert [math.isnan(score.value) for score in record.scores.values()] == [True, True]
    assert not Plateau()(monitor.series([record])).stop


def test_a_collapsed_model_scores_zero(monitor, encoder):
    for parameter in encoder.bert.embeddings.word_embeddings.parameters():
        parameter.data.zero_()
    encoder.bert.embeddings.position_embeddings.weight.data.zero_()
    record = monitor.measure(encoder, 1)
    assert {name: score.value for name, score in record.scores.items()} == {
        "robust_mi": 0,
        "separability": 0,
    }


def test_a_criterion_of_ones_own(pool, tokenizer, encoder):
    class Spread:
        name = "spread"
        higher_is_better = False

        def __call__(self, points):
            return points.std(dim=1).mean(dim=-1)

    monitor = make_monitor(pool, criterion=Spread(), tokenizer=tokenizer)
    record = monitor.measure(encoder, 1)
    assert list(record.scores) == ["spread", "separability"]
    assert record.scores["spread"].is_finite
    series = monitor.series([record])
    assert (series.name, series.higher_is_better) == ("spread", False)
    assert series.scores == (record.scores["spread"],)

    Spread.__call__ = lambda self, points: points.mean(dim=(1, 2)) / 0
    with pytest.warns(RuntimeWarning, match="finite number at step 1; no score for spread$"):
        record = make_monitor(pool, criterion=Spread(), tokenizer=tokenizer).measure(encoder, 1)
    assert [score.is_finite for score in record.scores.values()] == [False, True]

    Spread.__call__ = lambda self, points: points.mean()
    with pytest.raises(ValueError, match=r"'spread' to return \(20,\) scores, got \(\)"):
        make_monitor(pool, criterion=Spread(), tokenizer=tokenizer).measure(encoder, 1)
    with pytest.raises(ValueError, match="has no attribute `name`"):
        make_monitor(pool, criterion=lambda points: points)
    with pytest.raises(ValueError, match="has no attribute `name`"):
        make_monitor(pool, extra_criteria=[lambda points: points])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resample_size": 81}, "`resample_size` from 2 to the 80 texts of the pool, got 81"),
        ({"resample_size": 0}, "got 0"),
        ({"num_resamples": 0}, "expected `num_resamples` >= 1, got 0"),
        (
            {"criterion": "depth"},
            "unknown criterion 'depth'; known: component_mi, consistency,",
        ),
        ({"extra_criteria": ["auto", "depth"]}, "unknown criterion 'depth'"),
        ({"criterion": "rankme"}, "'rankme' is for comparison only, as 'sepstop.bench.crit.*Rank"),
        ({"pooling": "max"}, "unknown pooling 'max'; known: auto, cls, last, mean"),
        ({"pooling": {"name": "mean", "depth": 3}}, "does not take these settings"),
    ],
)
def test_settings_that_can_not_be(pool, options, message):
    with pytest.raises(ValueError, match=message):
        make_monitor(pool, **options)


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("make", [make_encoder, make_decoder_classifier])
def test_logits_come_from_the_same_pass_as_the_points(pool, tokenizer, make, layer):
    model = make()
    options = {"criterion": "infomax", "pooling": MeanPooling(layer), "batch_size": 64}
    monitor = make_monitor(pool, tokenizer=tokenizer, **options)
    monitor.prepare(model)  # tries what padding does
    body, calls = model.base_model, []
    first = body.encoder.layer[0] if hasattr(body, "encoder") else body.layers[0]
    first.register_forward_hook(lambda *_: calls.append(1))
    record = monitor.measure(model, 1)
    assert len(calls) == 2  # batches of 64 for 80 texts
    assert "forward" not in vars(body)

    model.eval()
    ids = [torch.tensor(row) for row in tokenizer(pool)["input_ids"]]
    with torch.no_grad():
        logits = torch.cat([model(row[None]).logits for row in ids])
    expected = CRITERIA["infomax"]()(logits[monitor.resample_indices])
    assert deciding(record).resample_values == pytest.approx(expected.tolist(), abs=1e-6)


def test_every_criterion_scores_the_model_that_it_is_for(pool, tokenizer, encoder):
    for name, criterion in (CRITERIA | COMPARED).items():
        outputs = getattr(criterion(), "outputs", None) or "auto"
        monitor = make_monitor(
            pool,
            criterion=criterion,
            extra_criteria=(),
            num_resamples=3,
            tokenizer=tokenizer,
            outputs=outputs,
        )
        model = make_decoder() if name == "pool_loss" else encoder
        monitor.measure(model, 1)
        record = monitor.measure(model, 2)
        assert list(record.scores) == [monitor.decides] == [criterion.name] == [name]
        assert record.scores[name].is_finite, name


def test_churn_starts_with_the_second_evaluation(pool, tokenizer, encoder):
    monitor = make_monitor(pool, criterion="sepstop.bench.criteria:Churn", tokenizer=tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # nothing is wrong
        assert not deciding(monitor.measure(encoder, 1)).is_finite
    assert deciding(monitor.measure(encoder, 2)).value == 0
    encoder.classifier.weight.data.neg_()
    encoder.classifier.bias.data.neg_()
    assert deciding(monitor.measure(encoder, 3)).value == 1
    monitor.prepare(encoder)
    assert not deciding(monitor.measure(encoder, 1)).is_finite


def test_consistency_looks_at_the_pool_without_some_of_its_tokens(pool, tokenizer, encoder):
    monitor = make_monitor(pool, criterion="consistency", tokenizer=tokenizer, seed=3)
    record = monitor.measure(encoder, 1)
    tokens = [torch.tensor(row) for row in tokenizer(pool)["input_ids"]]
    logits = [
        observe(encoder, ids, MeanPooling(), with_logits=True).logits[monitor.resample_indices]
        for ids in (tokens, drop_tokens(tokens, 0.3, seed=3))
    ]
    expected = Consistency()(*logits)
    assert deciding(record).resample_values == pytest.approx(expected.tolist())
    assert deciding(monitor.measure(encoder, 2)) == deciding(record)


def test_predictions_need_a_classifier(pool, tokenizer):
    monitor = make_monitor(pool, criterion="infomax", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"expected logits of shape \(1, k\), got \(1"):
        monitor.prepare(make_decoder())
    with pytest.raises(ValueError, match=r"got none from BertModel"):
        monitor.prepare(make_encoder().bert)


def test_a_criterion_s_unknown_needs_are_named(pool):
    def greedy(labels):
        return labels

    greedy.name, greedy.higher_is_better, greedy.needs = "greedy", True, ("labels",)
    with pytest.raises(ValueError, match="'greedy' needs labels; known: points, logits"):
        make_monitor(pool, criterion=greedy)


def test_logits_that_are_not_finite_give_no_score(pool, tokenizer, encoder):
    encoder.classifier.bias.data[0] = math.nan
    monitor = make_monitor(pool, extra_criteria=["infomax", "separability"], tokenizer=tokenizer)
    with pytest.warns(RuntimeWarning, match="80 of 80 logits are NaN or infinite at step 3"):
        record = monitor.measure(encoder, 3)
    finite = {name: score.is_finite for name, score in record.scores.items()}
    assert finite == {"robust_mi": False, "infomax": False, "separability": True}


def test_one_resample_has_no_interval(pool, tokenizer, encoder):
    record = make_monitor(pool, num_resamples=1, tokenizer=tokenizer).measure(encoder, 1)
    for score in record.scores.values():
        assert score.is_finite
        assert math.isnan(score.low)
        assert math.isnan(score.high)


def test_in_a_plain_loop_it_follows_the_training(pool, tokenizer, train_rows):
    """No Trainer: a score an epoch, and training stays what it is without them."""
    rows = train_rows.with_format("torch")

    def train(monitor):
        model, history = make_encoder(seed=3), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        torch.manual_seed(5)
        for step in range(1, 9):
            model.train()
            batch = {k: rows[:][k] for k in ("input_ids", "attention_mask")}
            model(**batch, labels=rows[:]["label"]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if monitor:
                history.append(monitor.measure(model, step))
        return model, history

    plain, _ = train(None)
    watched, history = train(make_monitor(pool, tokenizer=tokenizer))
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len({record.scores["separability"].value for record in history}) == 8


def test_the_loop_of_the_docstring_keeps_the_best_average(
    pool, tokenizer, train_rows, tmp_path, monkeypatch
):
    rows = train_rows.rename_column("label", "labels").with_format(
        "torch", columns=["input_ids", "attention_mask", "labels"]
    )[:]

    def run(loop):
        """The weights after each step, and the names that the loop leaves."""
        model, weights = make_encoder(seed=3), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        torch.manual_seed(5)

        def train(model, step):
            model.train()
            model(**rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            weights.append([weight.detach().clone() for weight in model.parameters()])

        names = {"model": model, "train": train, "texts": pool, "tokenizer": tokenizer}
        exec(f"from sepstop import *\n{loop}", names)
        return weights, names

    monkeypatch.chdir(tmp_path)
    documented = re.search(r"::\n\n((?: {8}.*\n)+)", Monitor.__doc__)[1]
    weights, found = run(textwrap.dedent(documented))
    plain, _ = run(f"for step in range(1, {len(weights)} + 1): train(model, step)")
    for before, after in zip(plain, weights, strict=True):
        assert all(map(torch.equal, before, after))

    best = next(one for one in found["records"] if one.step == found["decision"].best_step)
    assert best.average.name in found["averages"]
    assert (best.average.first_step, best.average.last_step) == (1, best.step)
    kept = BertForSequenceClassification.from_pretrained(tmp_path / "best")
    score = make_monitor(pool, tokenizer=tokenizer).measure(kept, 1).scores["separability"]
    assert score.resample_values == pytest.approx(best.scores["separability"].resample_values)
    assert not any(map(torch.equal, kept.parameters(), weights[best.step - 1]))


def test_random_states_are_left_alone(pool, tokenizer, encoder):
    """Even if a criterion draws: data loaders and collators draw from them."""

    def restless(points):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return points.mean(dim=(1, 2))

    restless.name, restless.higher_is_better = "restless", True
    monitor = make_monitor(pool, tokenizer=tokenizer, extra_criteria=[restless])
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    monitor.measure(encoder, 1)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002


def test_importing_sepstop_loads_no_torch():
    code = "import sys, sepstop; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_criterion_takes_no_metric_of_the_trainer_s(pool):
    def own(points):
        return points.sum(dim=(1, 2))

    own.name, own.higher_is_better = "loss", False
    with pytest.raises(ValueError, match="'loss' would replace the Trainer's own eval_loss"):
        make_monitor(pool, criterion=own)


# What decides


@pytest.mark.parametrize(
    ("outputs", "decides"),
    [("auto", "robust_mi"), ("labels", "label_mi"), ("none", "component_mi")],
)
def test_the_mutual_information_of_the_outputs_decides(outputs, decides, pool, tokenizer, encoder):
    monitor = make_monitor(pool, tokenizer=tokenizer, outputs=outputs)
    assert (monitor.decides, monitor.higher_is_better) == ("", {})
    assert not {"criterion", "extra_criteria"} & monitor.settings.keys()
    monitor.prepare(encoder)
    assert monitor.decides == decides
    assert monitor.higher_is_better == {decides: True, "separability": True}
    assert monitor.settings["criterion"]["name"] == decides
    assert [extra["name"] for extra in monitor.settings["extra_criteria"]] == ["separability"]
    assert list(monitor.measure(encoder, 1).scores) == [decides, "separability"]


def test_a_policy_of_ones_own_changes_nothing_about_what_decides(pool, tokenizer, encoder):
    monitor = make_monitor(pool, tokenizer=tokenizer, policy=Patience(2))
    assert list(monitor.measure(encoder, 1).scores) == ["robust_mi", "separability"]
    assert monitor.decides == "robust_mi"
    named = make_monitor(pool, tokenizer=tokenizer, policy=Patience(2), criterion="separability")
    assert list(named.measure(encoder, 1).scores) == ["separability"]
    given = make_monitor(pool, tokenizer=tokenizer, policy=Patience(2), extra_criteria=())
    assert list(given.measure(encoder, 1).scores) == ["robust_mi"]


def test_no_series_before_a_model_was_seen(monitor):
    with pytest.raises(RuntimeError, match="expected `prepare` or `measure` first"):
        monitor.series([])


def test_the_reference_is_the_model_before_training(pool, tokenizer, encoder):
    """Another reference gives another mutual information, the same separability."""
    found = []
    for start in (None, encoder, make_encoder(seed=9)):
        monitor = make_monitor(pool, tokenizer=tokenizer, outputs="none")
        if start is not None:
            monitor.set_reference(start)
        record = monitor.measure(encoder, 5)
        assert monitor.scorer.reference_step == (None if start is None else 0)
        assert monitor.neighborhoods.steps == ([5] if start is None else [0, 5])
        found.append(record.scores)
    alone, same, other = found
    assert alone["separability"] == same["separability"] == other["separability"]
    assert same["component_mi"] == alone["component_mi"] != other["component_mi"]


@pytest.mark.parametrize("seed", range(3))
def test_what_the_untrained_head_predicts_is_known_without_a_record(pool, tokenizer, seed):
    """It decides whether predictions refer to the start."""
    model = make_encoder(seed)
    model.classifier.bias.data.zero_()
    model.classifier.weight.data *= 100
    known, measured = (make_monitor(pool, tokenizer=tokenizer) for _ in range(2))
    known.set_reference(model)
    measured.measure(model, 0)
    found = [one.neighborhoods.start_agreement for one in (known, measured)]
    assert found[0] == found[1]
    known.set_reference(make_encoder(seed, dropout=0.0), 4)  # of a later step, says nothing
    assert known.neighborhoods.start_agreement == found[0]


def test_neighborhoods_of_before_a_resume_are_taken_up(pool, tokenizer, encoder):
    whole = make_monitor(pool, tokenizer=tokenizer)
    whole.set_reference(make_encoder(seed=9))
    expected = whole.measure(encoder, 5)
    resumed = make_monitor(pool, tokenizer=tokenizer)
    resumed.prepare(encoder)
    resumed.neighborhoods.add(0, whole.embed(make_encoder(seed=9)).points)
    assert resumed.measure(encoder, 5).scores == expected.scores
    later = make_monitor(pool, tokenizer=tokenizer)
    later.prepare(encoder)
    later.neighborhoods = whole.neighborhoods
    assert later.measure(encoder, 5).scores == expected.scores


def test_observations_scored_later_give_the_same_records(pool, tokenizer):
    monitor, replayed = (make_monitor(pool, tokenizer=tokenizer) for _ in range(2))
    for step in (1, 2, 3):
        model = make_encoder(seed=step)
        record = replayed.score(monitor.observe(model), step)
        assert record.scores == monitor.measure(model, step).scores
    assert replayed.decides == monitor.decides == "robust_mi"
