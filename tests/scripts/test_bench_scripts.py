"""Parts of the scripts that measure and judge: what their tables are made of."""

import json
import sys
import time

import bench_average_steps
import bench_first_tokens
import bench_labels
import bench_pool_loss
import bench_pool_size
import bench_robust_mi
import bench_stops
import bench_ties
import numpy as np
import pytest
import record_suite
import torch
import yaml
from bench_overhead import watching_clock
from conftest import make_decoder, make_encoder, make_monitor, make_texts
from helpers.recorded import save_model, short_settings, toy_run, with_average

from sepstop import Score
from sepstop.bench.record import record_run
from sepstop.bench.recorded_run import RecordedRun, load_run, save_run
from sepstop.bench.scored import Scored
from sepstop.criteria import InfoMax
from sepstop.decide.policies import PastPeak, replay
from sepstop.measure.monitor import Monitor
from sepstop.measure.observer import Observer
from sepstop.measure.scorer import Scorer
from sepstop.types import CHECKPOINT, Decision, Series


@pytest.fixture
def clock(monkeypatch):
    """A clock whose watch over the methods ends with the test."""
    methods = {
        Monitor: ("prepare", "measure", "set_reference"),
        Observer: ("observe_pool",),
        Scorer: ("best_of", "add_neighbors"),
    }
    for owner, names in methods.items():
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))  # undone at the end
    return watching_clock()


def test_the_clock_sees_all_of_scoring(monkeypatch, tokenizer, clock):
    spent = []
    score = Scorer._scores

    def slow(*arguments):
        start = time.perf_counter()
        time.sleep(0.05)
        found = score(*arguments)
        spent.append(time.perf_counter() - start)
        return found

    monkeypatch.setattr(Scorer, "_scores", slow)
    monitor, model = make_monitor(make_texts(40)[0], tokenizer=tokenizer), make_encoder()
    for step in (1, 2):
        monitor.measure(model, step)
    assert len(spent) == 2
    assert sum(spent) <= clock.seconds["scoring"] <= clock.seconds["callback"]
    assert 0 < clock.seconds["embedding"] < clock.seconds["callback"]


def from_step_10(run):
    """``run`` without its first evaluation, which is of the untrained model."""
    arrays = {key: values if key == "y" else values[1:] for key, values in run.arrays.items()}
    return RecordedRun(run.name, arrays, run.settings)


def scored(run, values):
    scores = tuple({CHECKPOINT: Score(value)} for value in values)
    return Scored("toy", True, tuple(run.steps), scores)


@pytest.mark.parametrize("has_step_0", [True, False])
def test_regret_of_a_variant_is_to_the_best_checkpoint_after_step_0(has_step_0):
    run, values = toy_run(accuracy=(0.95, 0.9, 0.5, 0.7)), (0.1, 0.2, 0.4, 0.3)
    if not has_step_0:
        run, values = from_step_10(run), values[1:]
    end, stopped, saved = bench_robust_mi.outcome(run, scored(run, values))
    assert end == pytest.approx(0.9 - 0.5)
    assert (stopped, saved) == (end, 0)


def test_ties_lose_against_the_best_checkpoint_after_step_0():
    run = toy_run(accuracy=(0.95, 0.5, 0.9, 0.7))
    *losses, tied = bench_ties.lost(run, scored(run, (0.1, 0.2, 0.3, 0.4)).series)
    assert losses == pytest.approx([20, 20, 20])  # the untrained model is no checkpoint
    assert tied == 1


@pytest.fixture
def suite(tmp_path, tokenizer):
    """Arguments that record a suite of three short runs, and the folder of the runs."""
    model = save_model(tmp_path / "model", tokenizer)
    defaults = {
        "labeled_rows": 32,
        "learning_rate": 3e-3,
        "steps": 4,
        "evaluate_every": 2,
        "max_length": 16,
        "pool_rows": 60,
        "validation_rows": 20,
        "test_rows": 40,
    }
    content = {
        "defaults": defaults,
        "data": {"toy": {"files": ["toy.jsonl"]}},
        "runs": [{"data": "toy", "seed": seed} for seed in (3, 4, 5)],
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(content))
    write_data(tmp_path / "toy.jsonl")
    folder = tmp_path / "runs"
    arguments = [tmp_path / "suite.yaml", tmp_path, "--out", folder, "--model", model]
    return arguments, folder


def write_data(path, flipped=False):
    texts, labels = make_texts(160)
    rows = [{"text": t, "label": str(y ^ flipped)} for t, y in zip(texts, labels, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))


def call(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
    script.main()


def test_the_runs_of_a_suite_are_dealt_out(suite):
    (path, data_dir, *_, model), _ = suite

    def seeds(**options):
        runs = record_suite.runs_of(path, data_dir, str(model), **options)
        return [settings.seed for settings, _, _ in runs]

    assert seeds() == [3, 4, 5]
    assert seeds(worker="0/2") == [3, 5]
    assert seeds(worker="1/2") == [4]
    assert seeds(seeds=[4, 5], worker="1/2") == [5]
    settings, texts, labels = next(record_suite.runs_of(path, data_dir, str(model)))
    assert (settings.learning_rate, settings.model) == (3e-3, str(model))
    assert len(texts) == len(labels) == 160


def test_a_suite_is_recorded_once_and_not_with_other_data(suite, monkeypatch, capsys):
    arguments, folder = suite
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # of the whole process
    call(monkeypatch, record_suite, *arguments, "--worker", "1/2")
    (path,) = folder.iterdir()
    assert capsys.readouterr().out == f"{path}\n"
    call(monkeypatch, record_suite, *arguments, "--worker", "1/2")
    assert capsys.readouterr().out == f"{path.stem} is already recorded\n"
    write_data(arguments[1] / "toy.jsonl", flipped=True)
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, record_suite, *arguments, "--worker", "1/2")
    assert end.value.code == 2
    assert f"{path} was recorded with other texts or labels" in capsys.readouterr().err


def test_averages_of_schedules_are_recorded_in_the_precision_of_the_suite(suite, monkeypatch):
    arguments, folder = suite
    call(monkeypatch, bench_average_steps, "record", *arguments, "--seeds", 4)
    (path,) = folder.iterdir()
    run = load_run(path)
    assert len(run.averages) == 2 * len(bench_average_steps.SCHEDULES)
    texts, labels = make_texts(160)
    points = []
    for bf16 in (False, True):
        settings = short_settings(arguments[-1], steps=1, bf16=bf16)
        recorded = bench_average_steps.record(texts, labels, settings)
        points.append(recorded.arrays["pool_e"][0])  # before the first step
    assert not np.array_equal(*points)
    np.testing.assert_allclose(*points, atol=0.1)


def test_the_cost_of_a_stop_is_to_what_the_whole_run_would_have_kept():
    run = toy_run(accuracy=(0.1, 0.5, 0.9, 0.7), scores=(0, 1, 3, 2))

    def policy(series):
        return Decision(series.steps[-1:] >= (10,), series.best_step, "")

    found = bench_stops.costs(run, "checkpoints", InfoMax(), policy)
    assert found == pytest.approx((0, 0.4, 2 / 3))
    assert bench_stops.costs(run, "averages", InfoMax(), policy) is None


def test_the_earlier_rule_does_not_wait_after_a_drop():
    scores = tuple(Score(value) for value in (0.2, 1.0, 0.5, 1.5))
    series = Series("mi", True, (10, 20, 30, 40), scores)
    stopped = replay(bench_stops.AtOnce(0.0), series)
    assert (stopped.stop, stopped.step) == (True, 30)
    assert not replay(PastPeak(), series).stop


def test_smaller_pools_and_fewer_scores_of_a_recorded_run(suite, monkeypatch, capsys):
    arguments, folder = suite
    call(monkeypatch, record_suite, *arguments)
    run = load_run(min(folder.iterdir()))
    indices = np.array([7, 3, 59])
    part = bench_pool_size.with_texts(run, indices)
    assert part.pool_size == 3
    for name in run.candidates:
        whole, some = run.observation(2, name), part.observation(2, name)
        for mine, its in zip(some, whole, strict=True):
            if isinstance(its, torch.Tensor):
                assert torch.equal(mine, its[indices])
    np.testing.assert_array_equal(part.test_accuracy, run.test_accuracy)
    long = RecordedRun(
        "long", {"steps": np.arange(8), "y": np.arange(8), "te_acc": np.arange(8) / 8}
    )
    assert bench_pool_size.thinned(long, 3).steps == [0, 3, 6, 7]
    assert bench_pool_size.thinned(long, 3).pool_size == 8
    monkeypatch.setattr(bench_pool_size, "SIZES", (20, 60, 1000))
    call(monkeypatch, bench_pool_size, folder)
    printed = capsys.readouterr().out
    assert "2 classes (3)" in printed
    assert all(name in printed for name in ("20 texts", "60 texts", "every 4"))
    assert "1000 texts" not in printed


@pytest.fixture
def decoder(tmp_path, tokenizer):
    """The folder of a causal language model."""
    make_decoder().save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


def test_first_tokens_stand_for_the_answers_of_a_recorded_run(
    decoder, tmp_path, monkeypatch, capsys
):
    texts, labels = make_texts(160)
    words = [("awful", "great")[label] for label in labels]
    settings = short_settings(decoder, prompt="the {text} film", pooling="last", learning_rate=2e-2)
    run = record_run(texts, words, settings, progress=False)
    found = bench_first_tokens.by_first_tokens(run, 2)
    assert found.arrays["recent_pool_l"].shape == (4, 60, 3)
    first = found.arrays["pool_l"][-1]
    np.testing.assert_allclose(np.exp(first).sum(axis=1), 1, atol=1e-5)
    known = run.arrays["pool_l"][-1].argmax(axis=1)  # the answers, of one token each
    agree = [(first.argmax(axis=1) == np.array(order)[known]).mean() for order in ([0, 1], [1, 0])]
    assert max(agree) > 0.9
    save_run(tmp_path / "runs", run)
    call(monkeypatch, bench_first_tokens, tmp_path / "runs", "--groups", 2)
    printed = capsys.readouterr().out
    assert "2 first tokens" in printed
    assert "known" in printed


def test_continued_pre_training_is_measured_on_the_pool_and_on_other_text(
    decoder, tmp_path, monkeypatch, capsys
):
    texts = make_texts(90)[0]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sizes = {"train": 30, "pool": 25, "test": 30}
    options = [f"--{part}-texts={size}" for part, size in sizes.items()]
    call(monkeypatch, bench_pool_loss, decoder, data, *options, "--steps=24", "--evaluate-every=8")
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    assert [
        (step.strip(), name.strip()) for step, name, *_ in rows if name.strip() == "checkpoint"
    ] == [(step, "checkpoint") for step in ("0", "8", "16", "24")]
    assert sum(name.strip() == "recent" for _, name, *_ in rows) == 1
    assert any(line.startswith("kept by pool_loss: ") for line in lines)
    for *_, pool, test in rows:
        assert float(pool) == pytest.approx(float(test), rel=0.05)


def candidates(scores):
    """Three candidates: right on 9, 15 and 18 of 20 texts; the third wins against the first."""
    right = np.array([[i < count for i in range(20)] for count in (9, 15, 18)])
    predictions = np.where(right, 1, 0)
    return bench_labels.Candidates(
        predictions, np.ones(20, int), np.array(scores), np.array([9.0, 3.0, 0.0])
    )


def test_labels_that_agree_with_the_score_change_nothing_and_others_help():
    agrees = bench_labels.regrets_of(candidates([0.1, 0.2, 0.3]))
    assert agrees["the score alone", 0] == agrees["the score and 10 asked", 10] == 0
    # Nine texts tell them apart, and all are asked for: the third is right on each.
    wrong = bench_labels.regrets_of(candidates([0.3, 0.2, 0.1]))
    assert wrong["the score alone", 0] == 9
    assert wrong["the score and 10 asked", 10] == wrong["10 asked alone", 10] == 0
    assert 0 < wrong["the score and 10 random", 10] < 9
    assert wrong["the best candidate", 0] == wrong["the best contender", 0] == 0


def test_turned_scores_are_those_of_the_better_half_the_other_way_around():
    found = bench_labels.turned(np.array([0.1, 0.5, 0.4, 0.2, 0.3]))
    assert found.tolist() == [0.1, 0.3, 0.4, 0.2, 0.5]


def test_the_stratum_of_a_run_whose_file_has_no_settings():
    def of(name):
        return bench_labels.stratum(RecordedRun(name, {}))

    assert of("trec-n300-lr0.0002-noise0.4-base-seed1") == "harsh"
    assert of("trec-n300-lr0.0002-noise0.1-base-seed1") == "mild"
    assert of("trec-n300-lr0.0002-noise0.0-reset-seed4") == "clean"
    assert of("trec-n300-lr0.002-noise0.0-base-seed4") == "harsh"


def test_few_labels_of_recorded_runs(tmp_path, monkeypatch, capsys):
    one = with_average(toy_run("one"), "cumulative", (0.1, 0.6, 0.8, 0.95))
    one = with_average(one, "recent", (0.1, 0.5, 0.9, 0.9))
    found = bench_labels.candidates_of(one)
    assert found.predictions.shape == (3, 40)  # step 0 is no candidate
    np.testing.assert_allclose(
        100 * (one.best_accuracy - (found.predictions == found.labels).mean(axis=1)), found.regrets
    )
    save_run(tmp_path, one)
    save_run(tmp_path, toy_run("two"))
    monkeypatch.setattr(bench_labels, "DRAWS", 5)
    call(monkeypatch, bench_labels, tmp_path)
    printed = capsys.readouterr().out
    assert "unknown (2)" in printed
    assert all(f"the score and {m} asked" in printed for m in bench_labels.SIZES)
