"""The callback in real Trainer runs of a tiny model."""

import copy
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from conftest import make_encoder
from helpers.scores import NEVER, Scripted, StopAt, values
from helpers.training import BEST, TRAINS_AGAIN, checkpoints, steps, weights_of

from sepstop import (
    Decision,
    Monitor,
    PastPeak,
    Patience,
    Plateau,
    SepStopCallback,
    SepStopConfig,
    replay,
)
from sepstop.decide.policies import POLICIES
from sepstop.measure.neighbors import NEIGHBORS_FILE
from sepstop.runs.history import from_log, read_log_history, read_run
from sepstop.utils.registry import describe

LEARNS = {"max_steps": 80, "eval_steps": 10, "save_steps": 10, "learning_rate": 1e-2}
"""Enough for predictions that tell something."""


# Training is left untouched


@TRAINS_AGAIN
@pytest.mark.parametrize(
    "config", [{}, {"score_checkpoints": True, "average_every_n_steps": 2}, {"average": False}]
)
@pytest.mark.parametrize("schedule", [{}, {"eval_strategy": "no"}])
def test_the_weights_are_bit_identical_to_a_run_without_the_callback(
    make_trainer, pool, schedule, config
):
    plain = make_trainer(None, make_encoder(dropout=0.3), **schedule)
    plain.train()
    every = {"every_n_steps": 2} if schedule else {}
    callback = SepStopCallback(pool, policy=NEVER, **every, **config)
    watched = make_trainer(callback, make_encoder(dropout=0.3), **schedule)
    watched.train()
    assert len(callback.history) == 6
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)


# Scores and where they go


def test_scores_reach_the_log_history_and_come_back_as_the_same_records(make_trainer, pool):
    callback = SepStopCallback(pool, policy=NEVER)
    trainer = make_trainer(callback)
    trainer.train()
    assert steps(callback) == [2, 4, 6, 8, 10, 12]
    saved = read_log_history(Path(trainer.args.output_dir) / "checkpoint-12")
    assert list(from_log(saved).records) == callback.history
    for name in ("separability", "robust_mi"):
        scored = [row for row in saved if f"eval_{name}" in row]
        assert {row["step"] for row in scored} == set(steps(callback))
        assert all(row[f"eval_{name}_low"] <= row[f"eval_{name}_high"] for row in scored)
    assert {"eval_loss", "loss"} <= {key for row in saved for key in row}


@TRAINS_AGAIN
def test_attached_scores_reach_tensorboard(make_trainer, pool, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    for schedule in ({}, {"eval_strategy": "no"}):
        every = {"every_n_steps": 2} if schedule else {}
        callback = SepStopCallback(pool, policy=NEVER, **every)
        trainer = make_trainer(callback, report_to=["tensorboard"], **schedule)
        assert callback.attach(trainer) is callback
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="sepstop: the scores go to")
            trainer.train()
        events = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
        scores = events.Scalars("eval/separability")
        assert [event.step for event in scores][-6:] == [2, 4, 6, 8, 10, 12]
        assert [event.value for event in scores][-6:] == pytest.approx(
            values(callback.history, "separability"), rel=1e-5
        )
        assert len(events.Scalars("train/loss")) >= 6  # logging the score loses no loss


def test_unattached_with_trackers_says_so_once(make_trainer, pool, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make_trainer(SepStopCallback(pool, policy=NEVER), report_to=["tensorboard"])
    with pytest.warns(UserWarning, match="attach") as caught:
        trainer.train()
    told = [str(w.message) for w in caught if "attach" in str(w.message)]
    assert len(told) == 1
    assert "not to tensorboard; call callback.attach(trainer)" in told[0]


def test_attach_adds_a_callback_that_is_not_there_yet(make_trainer, pool):
    trainer = make_trainer(None)
    callback = SepStopCallback(pool, policy=NEVER).attach(trainer)
    trainer.train()
    assert len(callback.history) == 6


def test_a_failed_attach_leaves_the_trainer_as_it_was(make_trainer, pool):
    trainer = make_trainer(None)
    with pytest.raises(ValueError, match=r"load_best_model_at_end=True\) is for runs with"):
        SepStopCallback(pool, load_best_model_at_end=True).attach(trainer)
    SepStopCallback(pool).attach(trainer)
    with pytest.raises(ValueError, match="two SepStopCallbacks"):
        SepStopCallback(pool).attach(trainer)
    trainer.train()


@TRAINS_AGAIN
def test_a_callback_used_again_logs_to_the_trainer_of_now(make_trainer, pool):
    callback = SepStopCallback(pool, policy=NEVER)
    first = make_trainer(callback, max_steps=2)
    callback.attach(first)
    first.train()
    before = list(first.state.log_history)
    second = make_trainer(callback, max_steps=2)
    second.train()
    assert first.state.log_history == before
    assert any("eval_separability" in row for row in second.state.log_history)


@TRAINS_AGAIN
def test_each_score_is_a_line_on_the_terminal(make_trainer, pool, capsys):
    make_trainer(SepStopCallback(pool, average=False, policy=StopAt(4))).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sepstop")]
    assert lines[0] == (
        "sepstop: robust_mi decides (separability recorded beside it); policy "
        "helpers.scores:StopAt; the best checkpoint is kept on disk"
    )
    first, cost, second = lines[1:]
    assert cost.startswith("sepstop: a score takes 0.")
    assert first.startswith("sepstop: step 2  robust_mi 0.")
    assert "  separability 0." in first
    assert first.endswith("  go on: as told")
    assert second.endswith("  STOP: as told")
    make_trainer(SepStopCallback(pool, average=False, policy=StopAt(4), verbose=False)).train()
    assert "sepstop" not in capsys.readouterr().out


# Schedules


def test_several_evaluation_sets_count_once(make_trainer, pool, train_rows):
    callback = SepStopCallback(pool, policy=NEVER)
    trainer = make_trainer(callback, **BEST)
    trainer.eval_dataset = {"a": train_rows.select(range(8)), "b": train_rows.select(range(8))}
    trainer.train()
    assert steps(callback) == [2, 4, 6, 8, 10, 12]


def test_evaluating_at_the_start_gives_a_score_but_no_candidate(make_trainer, pool):
    callback = SepStopCallback(
        pool, average=False, criterion=Scripted([0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    )
    trainer = make_trainer(callback, eval_on_start=True, **BEST)
    trainer.train()
    assert steps(callback) == [0, 2, 4, 6, 8, 10, 12]
    assert callback.decision.best_step == trainer.state.best_global_step == 12


def test_evaluating_outside_of_training_scores_nothing(make_trainer, pool):
    callback = SepStopCallback(pool, policy=NEVER)
    trainer = make_trainer(callback)
    assert "eval_separability" not in trainer.evaluate()
    trainer.train()
    assert "eval_separability" not in trainer.evaluate()
    assert len(callback.history) == 6


@pytest.mark.parametrize(
    ("every", "expected"), [(None, [8, 12]), (5, [5, 10, 12]), (4, [4, 8, 12])]
)
def test_own_schedule(make_trainer, pool, every, expected):
    callback = SepStopCallback(pool, policy=NEVER, every_n_steps=every)
    make_trainer(callback, eval_strategy="no").train()  # 8 steps an epoch
    assert steps(callback) == expected


@TRAINS_AGAIN
def test_a_second_training_starts_a_new_history(make_trainer, pool):
    callback = SepStopCallback(pool, policy=NEVER)
    trainer = make_trainer(callback)
    trainer.train()
    first = callback.history
    trainer.train()
    assert steps(callback) == [2, 4, 6, 8, 10, 12]
    assert callback.history != first


# Stopping and keeping the best


def test_stops_where_the_policy_says_and_replay_agrees(make_trainer, pool):
    scores = [0.1, 0.5, 0.4, 0.3, 0.2, 0.1]
    policy = Patience(patience=2, warmup=0)
    callback = SepStopCallback(pool, average=False, criterion=Scripted(scores), policy=policy)
    trainer = make_trainer(callback, **BEST)
    trainer.train()
    assert trainer.state.global_step == 8
    assert callback.decision == replay(policy, callback.session.recorded().series)
    assert callback.decision.stop
    assert callback.decision.best_step == 4
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")


@pytest.mark.parametrize(
    "options",
    [
        BEST,
        BEST | {"save_total_limit": 1},
        BEST | {"save_strategy": "best", "save_total_limit": 1},
        BEST | {"save_steps": 4},  # evaluations between the saves
        BEST | {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 6},
        {"eval_strategy": "no", "save_strategy": "no"},
        {"eval_strategy": "no", "save_steps": 100, "save_total_limit": 1},
        {"eval_strategy": "no", "save_strategy": "epoch"},
        {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": True},
    ],
    ids=str,
)
def test_the_best_checkpoint_is_on_disk_and_loaded(make_trainer, pool, options):
    scores = [0.1, 0.3, 0.5, 0.4, 0.3, 0.2]
    own = options.get("eval_strategy") == "no"
    callback = SepStopCallback(
        pool,
        average=False,
        criterion=Scripted(scores),
        policy=NEVER,
        every_n_steps=2 if own else None,
        load_best_model_at_end=own and "load_best_model_at_end" not in options,
    )
    if options.get("eval_strategy") == "epoch":
        options = options | {"max_steps": -1, "per_device_train_batch_size": 32}  # 2 an epoch
    trainer = make_trainer(callback, **options)
    asked = trainer.args.load_best_model_at_end
    trainer.train()
    assert len(callback.history) == 6
    assert callback.decision.best_step == trainer.state.best_global_step == 6
    assert trainer.state.best_metric == pytest.approx(0.5)
    best = weights_of(trainer, 6)
    for a, b in zip(best.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)
    if options.get("save_total_limit") == 1:
        assert len(checkpoints(trainer)) == 1
    assert trainer.args.load_best_model_at_end is asked


def test_without_a_metric_the_best_is_protected_from_the_save_limit(make_trainer, pool):
    callback = SepStopCallback(
        pool, average=False, criterion=Scripted([0.1, 0.9, 0.3, 0.2, 0.2, 0.2]), policy=NEVER
    )
    trainer = make_trainer(callback, save_total_limit=2)
    trainer.train()
    assert checkpoints(trainer) == [4, 12]


def test_no_saving_means_no_checkpoints(make_trainer, pool):
    trainer = make_trainer(
        SepStopCallback(pool, average=False, policy=StopAt(6)), save_strategy="no"
    )
    trainer.train()
    assert checkpoints(trainer) == []


def test_the_plateau_scheduler_follows_the_score(make_trainer, pool):
    callback = SepStopCallback(
        pool, average=False, criterion=Scripted([0.5, 0.4, 0.4, 0.4, 0.4, 0.4]), policy=NEVER
    )
    trainer = make_trainer(
        callback,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0},
        **BEST,
    )
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] < 3e-3


@pytest.mark.parametrize("resume", [None, 4, 8])
def test_not_every_evaluation_needs_to_be_scored(make_trainer, pool, resume):
    """The first, the last, and those that come so many steps after a score."""

    def run(resume=None):
        callback = SepStopCallback(pool, policy=NEVER, every_n_steps=4)
        trainer = make_trainer(
            callback,
            max_steps=13,
            eval_steps=1,
            save_steps=1,
            metric_for_best_model="separability",
            load_best_model_at_end=True,
        )
        folder = Path(trainer.args.output_dir)
        trainer.train(resume_from_checkpoint=resume and str(folder / f"checkpoint-{resume}"))
        return trainer, callback

    trainer, callback = run()
    assert steps(callback) == [1, 5, 9, 13]
    assert trainer.state.best_global_step == callback.decision.best_step
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert len(rows) == 13
    if resume is not None:
        again = run(resume)[1]
        assert values(again.history) == values(callback.history)


# What decides


DECIDED = {
    "eval_steps": 4,
    "save_steps": 4,
    "max_steps": 20,
    "learning_rate": 3e-2,
    "load_best_model_at_end": True,
    "save_total_limit": 1,
}
MORE = ["auto", "separability", "infomax", "sepstop.bench.criteria:ClusterEntropy"]


@pytest.mark.parametrize("policy", ["auto", NEVER], ids=["auto", "own"])
@pytest.mark.parametrize("name", ["robust_mi", "separability", "infomax"])
def test_the_score_that_trainer_keeps_by_decides(make_trainer, pool, name, policy):
    """Trainer's best, the history and the decision name one checkpoint."""
    callback = SepStopCallback(pool, average=False, policy=policy, extra_criteria=MORE)
    trainer = make_trainer(callback, metric_for_best_model=name, **DECIDED)
    trainer.train()
    run = read_run(trainer.args.output_dir)
    assert run.decides == callback.session.decides == name
    best = run.series.best_step
    assert callback.decision.best_step == trainer.state.best_global_step == best
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert trainer.state.best_metric == pytest.approx(run.series.score_at(best).value)
    assert {"robust_mi", "separability", "infomax", "cluster_entropy"} == set(run.names)
    for each in run.names:
        logged = [row[f"eval_{each}"] for row in trainer.state.log_history if "sepstop" in row]
        assert logged == values(callback.history, each)


@TRAINS_AGAIN
def test_the_policy_follows_what_decides(make_trainer, pool):
    for metric, policy in (("robust_mi", PastPeak(min_best=0.2)), ("separability", Plateau())):
        callback = SepStopCallback(pool)
        trainer = make_trainer(callback, metric_for_best_model=metric, max_steps=2)
        trainer.train()
        assert callback.session.policy == policy
        assert read_run(trainer.args.output_dir).policy == describe(policy, POLICIES)


@pytest.mark.parametrize(("decides", "expected"), [("neighbor_mi", 1), ("robust_mi", 2)])
def test_all_scores_are_from_the_same_forward_passes(make_trainer, pool, decides, expected):
    """One over the pool, and one over its corrupted copies if a criterion needs them."""
    passes, model = [], make_encoder()
    model.bert.encoder.layer[0].register_forward_hook(
        lambda module, inputs, output: passes.append(len(inputs[0]))
    )
    callback = SepStopCallback(
        pool,
        average=False,
        criterion=decides,
        policy=NEVER,
        batch_size=100,
        padding=True,
        extra_criteria=MORE[1:],
    )
    make_trainer(callback, model).train()
    assert all(len(record.scores) == 4 for record in callback.history)
    # One before training, for the reference.
    assert passes.count(len(pool)) == 1 + expected * len(callback.history)


def test_criteria_that_do_not_fit_are_left_out(make_trainer, pool):
    callback = SepStopCallback(pool, extra_criteria=["label_mi", "component_mi", "infomax"])
    trainer = make_trainer(callback, max_steps=2)
    with pytest.warns(UserWarning, match="sepstop: the criterion 'label_mi' .* is left out"):
        trainer.train()
    assert list(callback.history[0].scores) == ["robust_mi", "component_mi", "infomax"]


@TRAINS_AGAIN
def test_the_model_before_training_is_the_reference(make_trainer, pool, tokenizer):
    def run(**options):
        callback = SepStopCallback(pool, policy=NEVER)
        trainer = make_trainer(callback, **LEARNS, **options)
        start = copy.deepcopy(trainer.model)
        trainer.train()
        return callback, start, trainer.model

    callback, start, model = run()
    assert callback.monitor.neighborhoods.steps == list(range(0, 81, 10))
    evaluated, _, _ = run(eval_on_start=True)
    assert evaluated.monitor.neighborhoods.steps == list(range(0, 81, 10))
    config = SepStopConfig(tokenizer=tokenizer)
    monitor = Monitor(pool, config)
    monitor.set_reference(start)
    own = monitor.measure(model, 80)
    alone = Monitor(pool, config).measure(model, 80)
    found = values([own, alone, callback.history[-1]], "robust_mi")
    assert len(set(found)) == 3


class Similarity(torch.nn.Module):
    """A model without predictions: it learns that texts of one label lie together."""

    def __init__(self):
        super().__init__()
        self.body = make_encoder().bert

    @property
    def config(self):
        return self.body.config

    def forward(self, input_ids, attention_mask, labels=None, **options):
        out = self.body(input_ids, attention_mask, **options)
        if labels is not None:
            points = torch.nn.functional.normalize(out.last_hidden_state.mean(dim=1), dim=-1)
            same = (labels[:, None] == labels).float()
            out["loss"] = torch.nn.functional.mse_loss(points @ points.T, same)
        return out


def test_a_model_without_predictions_is_decided_by_its_components(make_trainer, pool):
    callback = SepStopCallback(pool)
    trainer = make_trainer(callback, Similarity(), metric_for_best_model="component_mi", **DECIDED)
    trainer.train()
    assert list(callback.history[0].scores) == ["component_mi", "separability"]
    series = callback.session.recorded().series
    best = series.best_step
    assert series.score_at(best).value > 0
    assert callback.decision.best_step == trainer.state.best_global_step == best
    assert trainer.state.best_metric == pytest.approx(series.score_at(best).value)
    assert (Path(trainer.args.output_dir) / NEIGHBORS_FILE).is_file()


# Failures


@TRAINS_AGAIN
@pytest.mark.parametrize("resume", [False, True])
def test_a_failing_policy_is_a_warning_and_training_goes_on(make_trainer, pool, resume):
    def policy(series):
        if len(series) == 2:
            raise ZeroDivisionError("nothing to divide by")
        return Decision(False, None, "fine")

    if resume:
        make_trainer(SepStopCallback(pool, policy=NEVER), max_steps=4).train()
    callback = SepStopCallback(pool, policy=policy)
    trainer = make_trainer(callback, max_steps=6, **BEST)
    with pytest.warns(RuntimeWarning, match="could not decide at step 4.*nothing to divide by"):
        trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == 6
    assert callback.decision.reason == "fine"
    callback = SepStopCallback(pool, policy=policy, on_error="raise")
    with pytest.raises(ZeroDivisionError):
        make_trainer(callback, max_steps=6, **BEST).train()


@TRAINS_AGAIN
def test_a_failing_measurement_is_a_warning_and_training_goes_on(make_trainer, pool):
    calls = []

    def pooling(model, input_ids, attention_mask):
        calls.extend([1] * (len(input_ids) == len(pool)))  # less when it is tried out
        if len(calls) == 2:  # step 2, step 4
            raise RuntimeError("the disk is on fire")
        return model.bert(input_ids, attention_mask).last_hidden_state[:, 0]

    callback = SepStopCallback(pool, average=False, policy=NEVER, pooling=pooling, batch_size=100)
    trainer = make_trainer(callback, **BEST)
    with pytest.warns(RuntimeWarning, match="could not measure step 4.*the disk is on fire"):
        trainer.train()
    assert trainer.state.global_step == 12
    assert [math.isnan(value) for value in values(callback.history)] == [False, True, *[False] * 4]
    rows = read_log_history(trainer.state.best_model_checkpoint)
    assert json.dumps(rows)

    calls.clear()
    callback = SepStopCallback(
        pool, average=False, policy=NEVER, pooling=pooling, batch_size=100, on_error="raise"
    )
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        make_trainer(callback).train()


@pytest.mark.parametrize(("nonfinite", "end"), [("skip", 12), ("stop", 4)])
def test_a_score_that_is_no_number_skips_or_stops(make_trainer, pool, nonfinite, end):
    callback = SepStopCallback(
        pool,
        average=False,
        criterion=Scripted([0.1, math.nan, 0.3, 0.4, 0.5, 0.6]),
        policy=Patience(patience=None, nonfinite=nonfinite),
    )
    trainer = make_trainer(callback, **BEST)
    with pytest.warns(
        RuntimeWarning, match="no finite number at step 4; no score for separability"
    ):
        trainer.train()
    assert trainer.state.global_step == end
    assert callback.decision.best_step == trainer.state.best_global_step == (12, 2)[end == 4]


def test_a_model_that_fails_before_training_does_not_end_it(make_trainer, pool, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of luck")

    callback = SepStopCallback(pool)
    monkeypatch.setattr(callback.monitor, "set_reference", broken)
    trainer = make_trainer(callback, max_steps=4)
    with pytest.warns(RuntimeWarning, match="could not embed the pool before training"):
        trainer.train()
    assert steps(callback) == [2, 4]
    assert all(map(math.isfinite, values(callback.history, "robust_mi")))
