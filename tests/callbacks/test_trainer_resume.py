"""Trainer runs that are interrupted, resumed, stopped and continued."""

import warnings
from pathlib import Path

import pytest
import torch
from helpers.scores import NEVER, Scripted, StopAt, values
from helpers.training import BEST, checkpoints, steps, weights_of
from transformers import TrainerCallback

from sepstop import Patience, Plateau, SepStopCallback
from sepstop.measure.neighbors import NEIGHBORS_FILE
from sepstop.runs.history import HISTORY_FILE, from_log, read_history, read_log_history, read_run

LEARNS = {"max_steps": 80, "eval_steps": 10, "save_steps": 10, "learning_rate": 1e-2}
"""Enough for predictions that tell something."""


@pytest.mark.parametrize("schedule", [{}, {"eval_strategy": "no"}], ids=["evaluations", "own"])
@pytest.mark.parametrize("resume_at", [2, 4, 6])
def test_a_resumed_run_decides_like_an_uninterrupted_one(make_trainer, pool, schedule, resume_at):
    policy = Plateau(window=1, tolerance=0.3, warmup=3)
    every = {"every_n_steps": 2} if schedule else {}

    def run(**kwargs):
        callback = SepStopCallback(pool, criterion="separability", policy=policy, **every)
        trainer = make_trainer(callback, max_steps=30, **schedule)
        trainer.train(**kwargs)
        return callback, trainer

    whole, trainer = run()
    assert whole.decision.stop
    assert trainer.state.global_step < 30
    folder = Path(trainer.args.output_dir) / f"checkpoint-{resume_at}"
    resumed, again = run(resume_from_checkpoint=str(folder))
    assert resumed.decision == whole.decision
    assert [r.scores for r in resumed.history] == [r.scores for r in whole.history]
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
        assert [record.step for record in from_log(saved).records] == list(range(8, step + 1, 8))


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
            average=False,
            criterion=Scripted(scores),
            policy=Patience(patience=2),
            every_n_steps=2 if own else None,
            load_best_model_at_end=own,
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
    assert values(on.history) == pytest.approx([0.1, 0.9, 0.4, 0.3, 0.2])
    assert on.decision.best_step == 4


def test_going_back_to_an_older_checkpoint_replays_from_there(make_trainer, pool):
    def run(scores):
        callback = SepStopCallback(
            pool, average=False, criterion=Scripted(scores), policy=Patience(patience=2)
        )
        return callback, make_trainer(callback, max_steps=24)

    _, trainer = run([0.1, 0.9, 0.3, 0.2])
    trainer.train()
    callback, resumed = run([0.8, 0.85, 0.7, 0.6])
    resumed.train(resume_from_checkpoint=str(Path(trainer.args.output_dir) / "checkpoint-2"))
    assert values(callback.history) == pytest.approx([0.1, 0.8, 0.85, 0.7, 0.6])


def test_the_history_is_on_disk_after_each_score(make_trainer, pool):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            file = Path(args.output_dir) / HISTORY_FILE
            seen.append(len(read_history(file).records) if file.is_file() else 0)

    callback = SepStopCallback(pool, policy=NEVER, every_n_steps=2)
    trainer = make_trainer(callback, eval_strategy="no", save_strategy="no", max_steps=4)
    trainer.add_callback(Look())
    trainer.train()
    assert seen == [0, 1, 1, 2]
    assert (
        list(read_history(Path(trainer.args.output_dir) / HISTORY_FILE).records) == callback.history
    )


def test_a_history_that_can_not_be_written_is_a_warning(make_trainer, pool):
    trainer = make_trainer(SepStopCallback(pool, policy=NEVER), max_steps=2)
    (Path(trainer.args.output_dir) / HISTORY_FILE).mkdir(parents=True)
    with pytest.warns(RuntimeWarning, match="could not write .*sepstop_history"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_a_moved_run_loads_its_best_on_resuming(make_trainer, pool, tmp_path):
    def run(**options):
        callback = SepStopCallback(
            pool,
            average=False,
            criterion=Scripted([0.1, 0.9, 0.3]),
            policy=NEVER,
            every_n_steps=2,
            load_best_model_at_end=True,
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

    callback = SepStopCallback(pool, load_best_model_at_end=True)
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
    make_trainer(
        SepStopCallback(pool, average=False, criterion=Scripted(scores), policy=policy),
        max_steps=24,
    ).train()
    callback = SepStopCallback(
        pool, average=False, criterion=Scripted(scores[2:]), policy=policy, continue_after_stop=True
    )
    trainer = make_trainer(callback, max_steps=24)
    trainer.train(resume_from_checkpoint=True)
    assert values(callback.history) == pytest.approx([0.5, 0.4, 0.3, 0.2])
    assert callback.decision.stop  # the policy started afresh at 0.3
    assert callback.decision.best_step == 2  # the best of the whole run

    # Interrupted and resumed once more, with or without the word, it decides the same.
    again = SepStopCallback(pool, average=False, criterion=Scripted([]), policy=policy)
    resumed = make_trainer(again, max_steps=24)
    resumed.train(resume_from_checkpoint=True)
    assert again.decision == callback.decision
    assert resumed.state.global_step <= trainer.state.global_step + 1


def test_resuming_with_another_pool_warns(make_trainer, pool):
    make_trainer(SepStopCallback(pool, policy=StopAt(4))).train()
    trainer = make_trainer(SepStopCallback(pool[:60], policy=StopAt(4)))
    with pytest.warns(UserWarning, match="measured differently.*pool_size was 80 and is 60"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kept", [True, False])
def test_records_that_were_measured_differently_are_known(make_trainer, pool, kept):
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
    trainer = make_trainer(SepStopCallback(pool, policy=policy, num_resamples=7))
    with pytest.raises(ValueError, match=r"num_resamples was 20 and is 7.*`significance`"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_a_resumed_run_has_the_mutual_information_of_an_uninterrupted_one(
    make_trainer, pool, tmp_path
):
    """It refers to the neighbors before training, which are gone when the run goes on."""

    def run(resume=None, **options):
        callback = SepStopCallback(pool, policy=NEVER)
        trainer = make_trainer(callback, **LEARNS, **options)
        trainer.train(resume_from_checkpoint=resume)
        return values(callback.history, "robust_mi"), trainer

    whole, trainer = run()
    assert len(set(whole)) > 3
    assert (Path(trainer.args.output_dir) / NEIGHBORS_FILE).is_file()
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-40"
    assert run(str(checkpoint))[0] == whole

    # Without the file the first evaluation from here on is the reference, and it is said.
    (Path(trainer.args.output_dir) / NEIGHBORS_FILE).unlink()
    with pytest.warns(RuntimeWarning, match="the mutual information refers to the next evaluation"):
        without, _ = run(str(checkpoint))
    assert without[:4] == whole[:4]
    assert without != whole


def test_an_evaluation_of_a_stopped_run_that_is_resumed_changes_nothing(make_trainer, pool):
    options = BEST | {"save_total_limit": 1, "max_steps": 24, "eval_on_start": True}

    def run(scores, **kwargs):
        policy, criterion = Patience(patience=2), Scripted(scores)
        callback = SepStopCallback(
            pool, criterion=criterion, policy=policy, average=False, num_resamples=1
        )
        trainer = make_trainer(callback, **options)
        trainer.train(**kwargs)
        return callback, trainer

    stopped, _ = run([0.05, 0.1, 0.9, 0.3, 0.2])
    assert steps(stopped) == [0, 2, 4, 6, 8]
    resumed, again = run([0.5] * 9, resume_from_checkpoint=True)
    assert resumed.decision == stopped.decision
    assert steps(resumed) == steps(stopped)
    assert read_history(Path(again.args.output_dir) / HISTORY_FILE).decisions[-1].stop


@pytest.mark.filterwarnings("ignore:sepstop. .* holds checkpoints of an earlier run")
def test_another_runs_neighbors_are_not_used(make_trainer, pool, tmp_path):
    def run(folder, **kwargs):
        callback = SepStopCallback(pool, policy=NEVER, average=False)
        make_trainer(callback, output_dir=str(tmp_path / folder), max_steps=8).train(**kwargs)
        return callback

    run("other")
    run("run")
    checkpoint = str(tmp_path / "run" / "checkpoint-4")
    with pytest.warns(RuntimeWarning, match=r"is missing or belongs to another run, pool"):
        run("other", resume_from_checkpoint=checkpoint)
