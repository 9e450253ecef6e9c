"""The share of a run's time that scoring takes, on a clock that tests set."""

import time

import pytest
from conftest import make_encoder
from helpers.scores import NEVER, Scripted
from helpers.training import TRAINS_AGAIN, TrainerCallback, steps

from sepstop import SepStopCallback
from sepstop.callbacks.overhead import Overhead


class Clock:
    now = 0.0


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    return Clock


class SecondsAStep(TrainerCallback):
    """Each optimizer step takes a second."""

    def on_step_end(self, *_, **__):
        Clock.now += 1


class Metrics(TrainerCallback):
    """What an evaluation's metrics say of the score."""

    def __init__(self):
        self.separability = []

    def on_evaluate(self, *_, metrics, **__):
        self.separability.append(metrics["eval_separability"])


class Slow(Scripted):
    """A criterion that takes three seconds."""

    def __call__(self, points):
        Clock.now += 3
        return super().__call__(points)


def score(overhead, seconds, steps=1):
    for _ in range(steps):
        overhead.add_step()
    with overhead.counted():
        Clock.now += seconds
        overhead.add_score(seconds)


# The stopwatch


def test_a_score_is_affordable_when_the_share_after_it_is_within_the_limit(clock):
    overhead = Overhead(0.1)
    clock.now += 10
    score(overhead, 2)
    for seconds, expected in [(25.9, False), (0.2, True)]:  # 2 and 2 of 40 seconds
        clock.now += seconds
        assert overhead.allows_a_score() is expected
    overhead.start()
    assert (overhead.spent, overhead.score_seconds, overhead.elapsed) == (0, 0, 0)


def test_without_a_limit_every_score_is_affordable(clock):
    overhead = Overhead()
    score(overhead, 1e9)
    assert overhead.allows_a_score()


def test_time_spent_beside_a_score_counts_and_is_not_training(clock):
    overhead = Overhead()
    clock.now += 5
    score(overhead, 2)
    with overhead.counted():  # the average is saved
        clock.now += 1
    clock.now += 4
    score(overhead, 2)
    assert overhead.spent == 5
    assert (overhead.interval, overhead.steps) == (4, 1)


def test_time_counts_when_the_work_fails(clock):
    overhead = Overhead()

    def fails():
        with overhead.counted():
            clock.now += 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    with overhead.counted():
        clock.now += 1
    assert overhead.spent == 2


@pytest.mark.parametrize(
    ("seconds", "training", "pool", "limit", "expected"),
    [
        (1, 9, 1000, None, "a score takes 1.0 s, 10% of the time"),
        (
            2,
            6,
            1000,
            None,
            "a score takes 2.0 s, 25% of the time; for less than 10%, set max_overhead=0.1 or "
            "every_n_steps=12 or pool_size=330",
        ),
        (
            9,
            1,
            5000,
            None,
            "a score takes 9.0 s, 90% of the time; for less than 10%, set max_overhead=0.1 or "
            "every_n_steps=324",
        ),
        (2, 6, 1000, 0.05, "a score takes 2.0 s, 25% of the time; max_overhead=0.05 leaves"),
    ],
)
def test_a_costly_score_comes_with_settings_that_lower_its_share(
    clock, seconds, training, pool, limit, expected
):
    overhead = Overhead(limit)
    with overhead.counted():  # before training
        clock.now += 100
    clock.now += training
    score(overhead, seconds, steps=4)
    assert overhead.described(pool).startswith(expected)
    # The proposal does what it says: 3 s of 27 are 10 %.
    if "every_n_steps=12" in expected:
        assert seconds / (seconds + training * 3) <= 0.1


# In a Trainer


def run_of(make_trainer, pool, *, cost=Slow, resume=None, others=(), **options):
    """The callback after a run; ``options`` are its own or the Trainer's."""
    own = {name: options.pop(name) for name in ("max_overhead", "every_n_steps") if name in options}
    scores = cost([0.1 * (number + 1) for number in range(12)])
    callback = SepStopCallback(
        pool, criterion=scores, extra_criteria=[], policy=NEVER, average=False, **own
    )
    trainer = make_trainer(None, make_encoder(), **options)
    for one in (SecondsAStep(), callback, *others):
        trainer.add_callback(one)
    trainer.train(resume_from_checkpoint=resume)
    return callback


@TRAINS_AGAIN
@pytest.mark.parametrize(
    "schedule", [{}, {"eval_strategy": "no", "save_steps": 4, "every_n_steps": 2}]
)
def test_evaluations_that_exceed_the_share_are_left_out(make_trainer, pool, schedule):
    """Step 2 is scored by second 5. With 3 of 16 seconds more, 6 are within 0.4 at step 10."""
    callback = run_of(make_trainer, pool, max_overhead=0.4, **schedule)
    assert steps(callback) == [2, 10, 12]
    callback = run_of(make_trainer, pool, cost=Scripted, max_overhead=0.4, **schedule)
    assert steps(callback) == [2, 4, 6, 8, 10, 12]


def test_an_epoch_is_left_out_at_its_last_step_and_at_its_end(make_trainer, pool):
    options = {"eval_strategy": "no", "max_steps": 32, "save_steps": 8}
    callback = run_of(make_trainer, pool, max_overhead=0.21, **options)
    assert steps(callback) == [8, 24, 32]  # 6 of 22 seconds, then of 30, would be 0.27 and 0.2


def test_both_limits_hold(make_trainer, pool):
    callback = run_of(make_trainer, pool, max_overhead=0.4, every_n_steps=4)
    assert steps(callback) == [2, 10, 12]


@pytest.mark.parametrize("metric", [None, "separability"])
def test_evaluations_that_are_left_out_repeat_the_score(make_trainer, pool, metric):
    best = {"metric_for_best_model": metric, "load_best_model_at_end": True} if metric else {}
    seen = Metrics()
    run_of(make_trainer, pool, max_overhead=0.4, others=[seen], **best)
    assert seen.separability == pytest.approx([0.1] * 4 + [0.2, 0.3])


@TRAINS_AGAIN
def test_a_resumed_run_knows_what_a_score_takes(make_trainer, pool):
    run_of(make_trainer, pool, max_overhead=0.4, max_steps=4)
    callback = run_of(make_trainer, pool, max_overhead=0.4, resume=True)
    # From step 4 on: 3 of 9 seconds are 0.33 at step 10, 3 of 7 at step 8 are 0.43.
    assert steps(callback) == [2, 4, 10, 12]


def test_a_line_says_once_what_scores_take(make_trainer, pool, capsys):
    run_of(make_trainer, pool)
    lines = [line for line in capsys.readouterr().out.splitlines() if "a score takes" in line]
    assert lines == [
        "sepstop: a score takes 3.0 s, 60% of the time; for less than 10%, set max_overhead=0.1 "
        "or every_n_steps=28"
    ]


def test_the_line_waits_for_the_first_average(make_trainer, pool, capsys):
    """A score before the first step, and one of a checkpoint in the warm-up, tell too little."""
    callback = SepStopCallback(pool, criterion=Slow([0.1] * 20), extra_criteria=[], policy=NEVER)
    trainer = make_trainer(None, make_encoder(), eval_on_start=True, warmup_steps=5)
    trainer.add_callback(SecondsAStep())
    trainer.add_callback(callback)
    with pytest.warns(RuntimeWarning, match="all 6 scores"):
        trainer.train()
    lines = capsys.readouterr().out.splitlines()
    at = [place for place, line in enumerate(lines) if "a score takes" in line]
    assert len(at) == 1
    assert "step 6, " in lines[at[0] - 1]
    assert "a score takes 6.0 s, 75% of the time" in lines[at[0]]  # two averages
