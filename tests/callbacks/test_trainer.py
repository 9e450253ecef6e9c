"""The callback in real Trainer runs of a tiny model."""

import copy
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from conftest import make_encoder
from transformers import Trainer, TrainerCallback, TrainingArguments

from sepstop import Decision, Monitor, Patience, Plateau, SepStopCallback, replay
from sepstop.decide.policies import Auto
from sepstop.measure.neighbors import NEIGHBORS_FILE
from sepstop.runs.history import HISTORY_FILE, read_history, read_log_history, read_run, records_in

NEVER = Patience(patience=None)

LEARNS = {"max_steps": 80, "eval_steps": 10, "save_steps": 10, "learning_rate": 1e-2}
"""Enough for predictions that tell something."""


class StopAt:
    """Stops at a step; a policy of one's own."""

    def __init__(self, step):
        self.step = step

    def __call__(self, history):
        from sepstop.decide.policies import best_record

        best = best_record(history)
        stops = [record.step for record in history if record.step >= self.step]
        at = stops[0] if stops else None
        return Decision(bool(stops), best and best.step, "as told", at)


class Scripted:
    """A criterion whose scores are written down: reads the evaluation's number, not the points."""

    name, higher_is_better = "separability", True

    def __init__(self, scores):
        self.scores = list(scores)

    def __call__(self, points):
        return torch.full((len(points),), float(self.scores.pop(0)))


@pytest.fixture
def make_trainer(tmp_path, tokenizer, train_rows):
    def make(callback, model=None, **options):
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "logging_steps": 2,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        args = TrainingArguments(**(defaults | options))
        return Trainer(
            model=model or make_encoder(),
            args=args,
            train_dataset=train_rows,
            eval_dataset=None if args.eval_strategy == "no" else train_rows.select(range(8)),
            processing_class=tokenizer,
            callbacks=[callback] if callback else None,
        )

    return make


def steps(callback):
    return [record.step for record in callback.history]


def checkpoints(trainer):
    folder = Path(trainer.args.output_dir)
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


BEST = {
    "metric_for_best_model": "separability",
    "greater_is_better": True,
    "load_best_model_at_end": True,
}


# Training is left untouched


@pytest.mark.parametrize("schedule", [{}, {"eval_strategy": "no"}])
def test_the_weights_are_bit_identical_to_a_run_without_the_callback(make_trainer, pool, schedule):
    plain = make_trainer(None, make_encoder(dropout=0.3), **schedule)
    plain.train()
    every = {"every_n_steps": 2} if schedule else {}
    callback = SepStopCallback(pool, policy=NEVER, **every)
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
    assert records_in(saved) == callback.history
    scored = [row for row in saved if "eval_separability" in row]
    assert [row["step"] for row in scored] == steps(callback)
    assert all(row["eval_separability_low"] < row["eval_separability_high"] for row in scored)
    assert {"eval_loss", "loss"} <= {key for row in saved for key in row}


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
            [record.score for record in callback.history], rel=1e-5
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
    with pytest.raises(ValueError, match="load_best_at_end is for runs with"):
        SepStopCallback(pool, load_best_at_end=True).attach(trainer)
    SepStopCallback(pool).attach(trainer)
    with pytest.raises(ValueError, match="two SepStopCallbacks"):
        SepStopCallback(pool).attach(trainer)
    trainer.train()


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


def test_each_score_is_a_line_on_the_terminal(make_trainer, pool, capsys):
    make_trainer(SepStopCallback(pool, policy=StopAt(4))).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sepstop")]
    assert len(lines) == 2
    assert "STOP: as told" in lines[1]
    make_trainer(SepStopCallback(pool, policy=StopAt(4), verbose=False)).train()
    assert "sepstop" not in capsys.readouterr().out


# Schedules


def test_several_evaluation_sets_count_once(make_trainer, pool, train_rows):
    callback = SepStopCallback(pool, policy=NEVER)
    trainer = make_trainer(callback, **BEST)
    trainer.eval_dataset = {"a": train_rows.select(range(8)), "b": train_rows.select(range(8))}
    trainer.train()
    assert steps(callback) == [2, 4, 6, 8, 10, 12]


def test_evaluating_at_the_start_gives_a_score_but_no_candidate(make_trainer, pool):
    callback = SepStopCallback(pool, criterion=Scripted([0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
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
    callback = SepStopCallback(pool, Scripted(scores), policy)
    trainer = make_trainer(callback, **BEST)
    trainer.train()
    assert trainer.state.global_step == 8
    assert callback.decision == replay(policy, callback.history)
    assert callback.decision.stop
    assert callback.decision.best_step == 4
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")


def weights_of(trainer, step):
    return make_encoder().from_pretrained(Path(trainer.args.output_dir) / f"checkpoint-{step}")


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
        Scripted(scores),
        NEVER,
        every_n_steps=2 if own else None,
        load_best_at_end=own and "load_best_model_at_end" not in options,
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
    callback = SepStopCallback(pool, Scripted([0.1, 0.9, 0.3, 0.2, 0.2, 0.2]), NEVER)
    trainer = make_trainer(callback, save_total_limit=2)
    trainer.train()
    assert checkpoints(trainer) == [4, 12]


def test_no_saving_means_no_checkpoints(make_trainer, pool):
    trainer = make_trainer(SepStopCallback(pool, policy=StopAt(6)), save_strategy="no")
    trainer.train()
    assert checkpoints(trainer) == []


def test_the_plateau_scheduler_follows_the_score(make_trainer, pool):
    callback = SepStopCallback(pool, Scripted([0.5, 0.4, 0.4, 0.4, 0.4, 0.4]), NEVER)
    trainer = make_trainer(
        callback,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0},
        **BEST,
    )
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] < 3e-3


# Resuming


@pytest.mark.parametrize("schedule", [{}, {"eval_strategy": "no"}], ids=["evaluations", "own"])
@pytest.mark.parametrize("resume_at", [2, 4, 6])
def test_a_resumed_run_decides_like_an_uninterrupted_one(make_trainer, pool, schedule, resume_at):
    policy = Plateau(window=1, tolerance=0.3, warmup=3)
    every = {"every_n_steps": 2} if schedule else {}

    def run(**kwargs):
        callback = SepStopCallback(pool, policy=policy, **every)
        trainer = make_trainer(callback, max_steps=30, **schedule)
        trainer.train(**kwargs)
        return callback, trainer

    whole, trainer = run()
    assert whole.decision.stop
    assert trainer.state.global_step < 30
    folder = Path(trainer.args.output_dir) / f"checkpoint-{resume_at}"
    resumed, again = run(resume_from_checkpoint=str(folder))
    assert resumed.decision == whole.decision
    assert [r.resamples for r in resumed.history] == [r.resamples for r in whole.history]
    assert again.state.global_step == trainer.state.global_step


def test_a_checkpoint_saved_before_its_score_is_saved_again(make_trainer, pool):
    """An epoch ends after its last step's save, so that save would lack the epoch's score."""
    options = {"eval_strategy": "no", "save_steps": 8, "max_steps": 24}  # 8 steps an epoch
    callback = SepStopCallback(pool, policy=NEVER)
    trainer = make_trainer(callback, **options)
    trainer.train()
    assert steps(callback) == checkpoints(trainer) == [8, 16, 24]
    for step in (8, 16, 24):
        saved = read_log_history(Path(trainer.args.output_dir) / f"checkpoint-{step}")
        assert [record.step for record in records_in(saved)] == list(range(8, step + 1, 8))


@pytest.mark.parametrize(
    "options",
    [
        BEST | {"save_total_limit": 1},
        BEST | {"save_strategy": "best", "save_total_limit": 1},
        {"eval_strategy": "no", "save_total_limit": 1},
        {"eval_strategy": "no", "save_strategy": "no"},
    ],
    ids=str,
)
def test_a_run_stopped_after_its_last_checkpoint_stays_stopped(make_trainer, pool, options):
    """The checkpoint of the stop is deleted, or was never written; the best one is left."""
    own = options.get("eval_strategy") == "no"

    def run(scores, **kwargs):
        callback = SepStopCallback(
            pool,
            Scripted(scores),
            Patience(patience=2),
            every_n_steps=2 if own else None,
            load_best_at_end=own,
            **kwargs,
        )
        return callback, make_trainer(callback, max_steps=24, **options)

    first, trainer = run([0.1, 0.9, 0.3, 0.2])
    trainer.train()
    assert first.decision.stop
    assert 8 not in checkpoints(trainer)

    again, resumed = run([])
    resumed.train(resume_from_checkpoint=True)
    assert again.decision == first.decision
    assert resumed.state.global_step <= 5
    for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)

    on, resumed = run([0.4, 0.3, 0.2], continue_after_stop=True)
    resumed.train(resume_from_checkpoint=True)
    assert [record.score for record in on.history] == pytest.approx([0.1, 0.9, 0.4, 0.3, 0.2])
    assert on.decision.best_step == 4


def test_going_back_to_an_older_checkpoint_replays_from_there(make_trainer, pool):
    def run(scores):
        callback = SepStopCallback(pool, Scripted(scores), Patience(patience=2))
        return callback, make_trainer(callback, max_steps=24)

    _, trainer = run([0.1, 0.9, 0.3, 0.2])
    trainer.train()
    callback, resumed = run([0.8, 0.85, 0.7, 0.6])
    resumed.train(resume_from_checkpoint=str(Path(trainer.args.output_dir) / "checkpoint-2"))
    assert [record.score for record in callback.history] == pytest.approx(
        [0.1, 0.8, 0.85, 0.7, 0.6]
    )


def test_the_history_is_on_disk_after_each_score(make_trainer, pool):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            file = Path(args.output_dir) / HISTORY_FILE
            seen.append(len(read_history(file)) if file.is_file() else 0)

    callback = SepStopCallback(pool, policy=NEVER, every_n_steps=2)
    trainer = make_trainer(callback, eval_strategy="no", save_strategy="no", max_steps=4)
    trainer.add_callback(Look())
    trainer.train()
    assert seen == [0, 1, 1, 2]
    assert read_history(Path(trainer.args.output_dir) / HISTORY_FILE) == callback.history


def test_a_history_that_can_not_be_written_is_a_warning(make_trainer, pool):
    trainer = make_trainer(SepStopCallback(pool, policy=NEVER), max_steps=2)
    (Path(trainer.args.output_dir) / HISTORY_FILE).mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match="could not write .*sepstop_history"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_a_moved_run_loads_its_best_on_resuming(make_trainer, pool, tmp_path):
    def run(**options):
        callback = SepStopCallback(
            pool, Scripted([0.1, 0.9, 0.3]), NEVER, every_n_steps=2, load_best_at_end=True
        )
        return make_trainer(callback, eval_strategy="no", **options)

    trainer = run(max_steps=4)
    trainer.train()
    Path(trainer.args.output_dir).rename(tmp_path / "moved")
    moved = run(max_steps=6, output_dir=str(tmp_path / "moved"))
    moved.train(resume_from_checkpoint=True)
    assert moved.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-4")
    for a, b in zip(weights_of(moved, 4).parameters(), moved.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_that_is_broken_off_leaves_the_arguments_as_they_were(make_trainer, pool):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            raise KeyboardInterrupt

    callback = SepStopCallback(pool, load_best_at_end=True)
    trainer = make_trainer(callback, eval_strategy="no")
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.args.load_best_model_at_end is False


def test_a_stopped_run_stays_stopped(make_trainer, pool):
    def run(**kwargs):
        callback = SepStopCallback(pool, policy=StopAt(6), **kwargs)
        trainer = make_trainer(callback, max_steps=24)
        return callback, trainer

    _, stopped = run()
    stopped.train()
    before = [p.clone() for p in stopped.model.parameters()]

    callback, resumed = run()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step <= 7  # Trainer takes one step, which changes nothing
    assert steps(callback) == [2, 4, 6]
    assert checkpoints(resumed) == [2, 4, 6]
    for a, b in zip(before, resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_stopped_run_goes_on_if_told_so(make_trainer, pool):
    policy = Patience(patience=1, warmup=0)
    scores = [0.5, 0.4, 0.3, 0.2, 0.6, 0.1]
    make_trainer(SepStopCallback(pool, Scripted(scores), policy), max_steps=24).train()
    callback = SepStopCallback(pool, Scripted(scores[2:]), policy, continue_after_stop=True)
    trainer = make_trainer(callback, max_steps=24)
    trainer.train(resume_from_checkpoint=True)
    assert [record.score for record in callback.history] == pytest.approx([0.5, 0.4, 0.3, 0.2])
    assert callback.decision.stop  # the policy started afresh at 0.3
    assert callback.decision.best_step == 2  # the best of the whole run

    # Interrupted and resumed once more, with or without the word, it decides the same.
    again = SepStopCallback(pool, Scripted([]), policy)
    resumed = make_trainer(again, max_steps=24)
    resumed.train(resume_from_checkpoint=True)
    assert again.decision == callback.decision
    assert resumed.state.global_step <= trainer.state.global_step + 1


def test_resuming_with_another_pool_warns(make_trainer, pool):
    make_trainer(SepStopCallback(pool, policy=StopAt(4))).train()
    trainer = make_trainer(SepStopCallback(pool[:60], policy=StopAt(4)))
    with pytest.warns(UserWarning, match="measured otherwise.*pool_size was 80 and is 60"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kept", [True, False])
def test_records_that_were_measured_otherwise_are_known(make_trainer, pool, kept):
    """By the history file, and by the rows of a checkpoint."""
    for end, count in ((4, 80), (8, 60), (12, 60)):
        trainer = make_trainer(SepStopCallback(pool[:count], policy=NEVER), max_steps=end)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train(resume_from_checkpoint=end > 4)
    if not kept:
        (Path(trainer.args.output_dir) / HISTORY_FILE).unlink()
    run = read_run(trainer.args.output_dir)
    assert [record.step for record in run.records] == [2, 4, 6, 8, 10, 12]
    assert [record.step for record in run.measured_alike] == [6, 8, 10, 12]
    assert {record.pool_size for record in run.measured_alike} == {60}


def test_significance_needs_the_same_resamples_on_resuming(make_trainer, pool):
    policy = Patience(patience=9, significance=0.05)
    make_trainer(SepStopCallback(pool, policy=policy), max_steps=4).train()
    trainer = make_trainer(SepStopCallback(pool, policy=policy, resamples=7))
    with pytest.raises(ValueError, match=r"resamples was 20 and is 7.*`significance`"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


# Failures


@pytest.mark.parametrize("resume", [False, True])
def test_a_failing_policy_is_a_warning_and_training_goes_on(make_trainer, pool, resume):
    def policy(history):
        if len(history) == 2:
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


def test_a_failing_measurement_is_a_warning_and_training_goes_on(make_trainer, pool):
    calls = []

    def embedder(model, input_ids, attention_mask):
        calls.extend([1] * (len(input_ids) == len(pool)))  # less when it is tried out
        if len(calls) == 3:  # before training, step 2
            raise RuntimeError("the disk is on fire")
        return model.bert(input_ids, attention_mask).last_hidden_state[:, 0]

    callback = SepStopCallback(pool, policy=NEVER, embedder=embedder, batch_size=100)
    trainer = make_trainer(callback, **BEST)
    with pytest.warns(RuntimeWarning, match="could not measure step 4.*the disk is on fire"):
        trainer.train()
    assert trainer.state.global_step == 12
    assert [math.isnan(r.score) for r in callback.history] == [False, True, *[False] * 4]
    rows = read_log_history(trainer.state.best_model_checkpoint)
    assert json.dumps(rows)

    calls.clear()
    callback = SepStopCallback(
        pool, policy=NEVER, embedder=embedder, batch_size=100, on_error="raise"
    )
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        make_trainer(callback).train()


@pytest.mark.parametrize(("nonfinite", "end"), [("skip", 12), ("stop", 4)])
def test_a_score_that_is_no_number_skips_or_stops(make_trainer, pool, nonfinite, end):
    scores = Scripted([0.1, math.nan, 0.3, 0.4, 0.5, 0.6])
    callback = SepStopCallback(pool, scores, Patience(patience=None, nonfinite=nonfinite))
    trainer = make_trainer(callback, **BEST)
    trainer.train()
    assert trainer.state.global_step == end
    assert callback.decision.best_step == trainer.state.best_global_step == (12, 2)[end == 4]


# What is wrong is said before training


def test_two_callbacks_are_refused(make_trainer, pool):
    trainer = make_trainer(SepStopCallback(pool))
    trainer.add_callback(SepStopCallback(pool))
    with pytest.raises(ValueError, match="two SepStopCallbacks in one Trainer"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        ({}, BEST | {"greater_is_better": False}, "needs greater_is_better=True, got False"),
        ({"load_best_at_end": True}, {}, "load_best_at_end is for runs with eval_strategy='no'"),
    ],
)
def test_arguments_that_contradict_each_other(make_trainer, pool, callback, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(SepStopCallback(pool, **callback), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"policy": "patient"},
            "unknown policy 'patient'; known: auto, first_optimum, pas",
        ),
        ({"policy": Plateau(mode="min")}, "expected a policy with mode='max'"),
        ({"policy": Patience(significance=0.05), "resamples": 1}, "needs at least 2 resamples"),
        ({"every_n_steps": 0}, "expected `every_n_steps` >= 1"),
        ({"on_error": "ignore"}, "expected `on_error` 'skip' or 'raise'"),
    ],
)
def test_settings_that_can_not_be(pool, options, message):
    with pytest.raises(ValueError, match=message):
        SepStopCallback(pool, **options)


def test_options_of_a_ready_monitor_belong_to_it(pool):
    monitor = Monitor(pool)
    assert SepStopCallback(monitor).monitor is monitor
    with pytest.raises(ValueError, match=r"give \['embedder', 'resamples'\] to the Monitor"):
        SepStopCallback(monitor, resamples=3, embedder="cls")


def test_a_missing_tokenizer_is_said_before_the_first_step(make_trainer, pool):
    trainer = make_trainer(SepStopCallback(pool))
    trainer.callback_handler.processing_class = None
    with pytest.raises(ValueError, match="no tokenizer for the pool"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_model_without_hidden_states_is_said_before_the_first_step(make_trainer, pool):
    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.EmbeddingBag(30, 2)

        def forward(self, input_ids, labels=None, **_):
            logits = self.words(input_ids)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    trainer = make_trainer(SepStopCallback(pool), Bag())
    with pytest.raises(ValueError, match="outputs of Bag have no hidden states"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_another_best_metric_is_pointed_out(make_trainer, pool):
    trainer = make_trainer(SepStopCallback(pool, policy=NEVER), load_best_model_at_end=True)
    with pytest.warns(UserWarning, match="metric_for_best_model is 'loss'"):
        trainer.train()


@pytest.mark.parametrize("resume", [None, 4, 8])
def test_not_every_evaluation_needs_to_be_scored(make_trainer, pool, resume):
    """The first, the last, and those that come so many steps after a score."""

    def run(resume=None):
        callback = SepStopCallback(pool, "separability", NEVER, every_n_steps=4)
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
        assert [r.score for r in again.history] == [r.score for r in callback.history]


def test_a_classifier_is_decided_by_its_information(make_trainer, pool):
    """Trainer's best, the history and the decision name one checkpoint."""
    callback = SepStopCallback(pool)
    trainer = make_trainer(
        callback,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        max_steps=20,
        learning_rate=3e-2,
        metric_for_best_model="information",
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    trainer.train()
    best = max(callback.history, key=lambda record: record.information)
    assert callback.decision.best_step == trainer.state.best_global_step == best.step
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best.step}")
    assert trainer.state.best_metric == pytest.approx(best.information)
    logged = [row for row in trainer.state.log_history if "eval_information" in row]
    assert [row["eval_information"] for row in logged] == [
        record.information for record in callback.history
    ]


def test_a_resumed_run_has_the_information_of_an_uninterrupted_one(make_trainer, pool, tmp_path):
    """It refers to the neighbours before training, which are gone when the run goes on."""

    def run(resume=None, **options):
        callback = SepStopCallback(pool, policy=NEVER)
        trainer = make_trainer(callback, **LEARNS, **options)
        trainer.train(resume_from_checkpoint=resume)
        return [record.information for record in callback.history], trainer

    whole, trainer = run()
    assert len(set(whole)) > 3
    assert callback_file(trainer).is_file()
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-40"
    assert run(str(checkpoint))[0] == whole

    # Without the file the first evaluation from here on is the reference, and it is said.
    callback_file(trainer).unlink()
    with pytest.warns(RuntimeWarning, match="the information refers to the next evaluation"):
        without, _ = run(str(checkpoint))
    assert without[:4] == whole[:4]
    assert without != whole


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
    monitor = Monitor(pool, tokenizer=tokenizer)
    monitor.remember(start)
    own = monitor.measure(model, 80)
    alone = Monitor(pool, tokenizer=tokenizer).measure(model, 80)
    assert len({own.information, alone.information, callback.history[-1].information}) == 3


def test_a_model_that_fails_before_training_does_not_end_it(make_trainer, pool, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of luck")

    callback = SepStopCallback(pool)
    monkeypatch.setattr(callback.monitor, "remember", broken)
    trainer = make_trainer(callback, max_steps=4)
    with pytest.warns(RuntimeWarning, match="could not embed the pool before training"):
        trainer.train()
    assert steps(callback) == [2, 4]
    assert all(math.isfinite(record.information) for record in callback.history)


def callback_file(trainer):
    return Path(trainer.args.output_dir) / NEIGHBORS_FILE


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
    trainer = make_trainer(
        callback,
        Similarity(),
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        max_steps=20,
        learning_rate=3e-2,
        metric_for_best_model="information",
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    trainer.train()
    assert {record.information_of for record in callback.history} == {"components"}
    best = max(callback.history, key=lambda record: record.information)
    assert best.information > 0
    assert callback.decision.best_step == trainer.state.best_global_step == best.step
    assert trainer.state.best_metric == pytest.approx(best.information)
    assert callback_file(trainer).is_file()


def test_the_default_policy_follows_the_metric_that_trainer_keeps_by(make_trainer, pool):
    callback = SepStopCallback(pool)
    make_trainer(callback, eval_strategy="steps", metric_for_best_model="separability")
    assert callback.policy == Plateau()
    callback = SepStopCallback(pool)
    make_trainer(callback, eval_strategy="steps", metric_for_best_model="information")
    assert callback.policy == Auto()
    assert SepStopCallback(pool, criterion="infomax").policy == Plateau()
    assert SepStopCallback(Monitor(pool)).policy == Auto()
    callback = SepStopCallback(pool, policy=Patience(2))
    with pytest.raises(ValueError, match="needs policy='auto'"):
        make_trainer(callback, eval_strategy="steps", metric_for_best_model="information")
