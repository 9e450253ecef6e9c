"""The checkpoint to keep, ties with it, and the best of several runs, on series made by hand."""

import math
import re
from pathlib import Path

import pytest

from sepstop import Decision, Patience, Record, Score
from sepstop.decide.selection import Selection, best_run, choose, tied_runs, tied_steps
from sepstop.types import Series

NAN = math.nan
NOISE = (-0.03, -0.01, 0.01, 0.03)  # of the resamples, the same at each step: it cancels


def score(value, noise=NOISE):
    """A score whose resamples differ from those of another by the same amount."""
    return Score(value, resample_values=tuple(value + shift for shift in noise))


def series_of(*scores, higher=True, start=10):
    """At steps 10, 20, ...; a plain number differs significantly from any other one."""
    made = tuple(one if isinstance(one, Score) else score(one) for one in scores)
    steps = tuple(range(start, start + 10 * len(made), 10))
    # Half of the pool: the jackknife's factor is 1.
    return Series("mi", higher, steps, made, resample_size=20, pool_size=40)


def near(value):
    """A score that no other nearby beats: its resamples are all over the place."""
    return score(value, noise=(0.3, -0.3, 0.2, -0.2))


TIED_STEPS = [
    # scores, higher is better, best step, tied steps
    ((0.1, 0.3, 0.2), True, 20, ()),
    ((0.1, 0.3, 0.3), True, 20, (30,)),
    ((0.3, 0.3, 0.3), True, 10, (20, 30)),
    ((0.1, 0.3, near(0.25)), True, 20, (30,)),
    ((near(0.1), near(0.3), 0.25), True, 20, (30,)),  # near(0.1) and near(0.3) share their noise
    ((0.3, 0.1, 0.2), False, 20, ()),
    ((0.3, 0.1, near(0.15)), False, 20, (30,)),
    ((0.3, NAN, 0.3), True, 10, (30,)),
    ((0.3,), True, 10, ()),
]


@pytest.mark.parametrize(("scores", "higher", "best", "tied"), TIED_STEPS)
def test_tied_steps(scores, higher, best, tied):
    assert tied_steps(series_of(*scores, higher=higher), best) == tied


def test_tied_by_the_t_test_of_the_paired_resamples():
    # Gains of mean 0.15 and error sqrt(0.01 / 3): t = 2.598, p = 0.040 with 3 degrees of freedom,
    # for half the gains as well. With one of them turned around, p > 0.05.
    base = (0.5, 0.6, 0.4, 0.7)

    def after(*gains):
        values = tuple(value + gain for value, gain in zip(base, gains, strict=True))
        return Score(sum(values) / 4, resample_values=values)

    first = after(0, 0, 0, 0)
    assert tied_steps(series_of(first, after(0.1, 0.2, 0.2, 0.1)), 20) == ()
    assert tied_steps(series_of(first, after(0.05, 0.1, 0.1, 0.05)), 20) == ()
    assert tied_steps(series_of(first, after(0.1, 0.2, 0.2, -0.1)), 20) == (10,)


def test_with_one_resample_only_equal_scores_are_tied():
    one = series_of(*(Score(value, resample_values=(value,)) for value in (0.3, 0.2, 0.3)))
    assert tied_steps(one, 10) == (30,)


CHOICES = [
    # scores, policy, ties, the run's own pick, step kept, others tied with it
    ((0.1, 0.3, 0.2), None, None, None, 20, ()),
    ((0.3, 0.3, 0.3), None, None, None, 10, (20, 30)),
    ((0.2, near(0.3), 0.25), None, None, None, 10, (20, 30)),
    ((0.2, near(0.3), 0.25), None, "earliest", None, 10, (20, 30)),
    ((0.2, near(0.3), 0.25), None, "best", None, 20, (10, 30)),
    ((0.2, near(0.3), 0.25), None, "latest", None, 30, (10, 20)),
    ((0.2, near(0.3), 0.25), None, None, 30, 30, (10, 20)),  # the run's own
    ((0.2, near(0.3), 0.25), None, None, 20, 20, (10, 30)),
    ((0.2, near(0.3), 0.25), None, "latest", 20, 30, (10, 20)),  # unless it is said which
    ((0.2, near(0.3), 0.25), None, None, 40, 10, (20, 30)),  # not one of them
    ((0.1, 0.3, 0.2), None, None, 30, 20, ()),  # not tied
    ((0.2, near(0.3), 0.25), Patience(5), None, 30, 20, (10, 30)),  # a policy chose: the best
    ((0.2, near(0.3), 0.25), Patience(5), "earliest", 30, 10, (20, 30)),
    ((0.1, 0.3, 0.2, 0.3, 0.9), Patience(1), "latest", None, 20, ()),  # stops at 30
    ((0.1, 0.3, near(0.2), 0.3, 0.9), Patience(1), "latest", None, 30, (20,)),
    ((0.1, 0.3, 0.2, 0.9), None, None, None, 40, ()),
    ((NAN, 0.3, NAN), None, None, None, 20, ()),
]


@pytest.mark.parametrize(("scores", "policy", "ties", "online", "kept", "tied"), CHOICES)
def test_choose(scores, policy, ties, online, kept, tied):
    decision, others = choose(series_of(*scores), policy, ties, online)
    assert (decision.best_step, others) == (kept, tied)


def test_choose_where_lower_is_better():
    falling = series_of(5, near(0.2), 0.3, 9, higher=False)
    assert choose(falling, None, "best", None)[0].best_step == 20
    assert choose(falling, None, "latest", None) == (
        Decision(
            False,
            30,
            "best mi of 4 checkpoints; step 20 is not significantly better than step 30; of these "
            "the latest is kept, step 30",
            40,
        ),
        (20,),
    )


def test_step_0_is_never_kept():
    assert choose(series_of(0.9, 0.1, 0.2, start=0), None, None, None)[0].best_step == 20


@pytest.mark.parametrize("policy", [None, Patience(1)])
def test_nothing_to_choose_from(policy):
    for series in (series_of(), series_of(NAN, NAN)):
        decision, tied = choose(series, policy, None, None)
        assert (decision.best_step, tied) == (None, ())
    assert "nothing could be scored" in decision.reason


REASONS = [
    # scores, policy, ties, the run's own pick, reason
    ((0.1, 0.3), None, None, None, "best mi of 2 checkpoints"),
    (
        (0.1, 0.3, 0.3),
        None,
        None,
        None,
        "best mi of 3 checkpoints; step 20 is not significantly better than step 30",
    ),
    (
        (0.2, near(0.3), 0.25),
        None,
        None,
        None,
        "best mi of 3 checkpoints; step 20 is not significantly better than steps 10, 30; of these "
        "the earliest is kept, step 10",
    ),
    (
        (0.2, near(0.3), 0.25),
        None,
        None,
        30,
        "best mi of 3 checkpoints; step 20 is not significantly better than steps 10, 30; of these "
        "the run's own pick is kept, step 30",
    ),
    (
        (0.1, 0.3, 0.2, 0.9),
        Patience(1),
        None,
        None,
        "no improvement on step 20 in 1 evaluations; best is mi 0.3000 at step 20",
    ),
    (
        (0.1, 0.3, near(0.2), 0.9),
        Patience(1),
        "latest",
        None,
        "no improvement on step 20 in 1 evaluations; best is mi 0.3000 at step 20; step 20 is not "
        "significantly better than step 30; of these the latest is kept, step 30",
    ),
]


@pytest.mark.parametrize(("scores", "policy", "ties", "online", "reason"), REASONS)
def test_the_reason_of_a_choice(scores, policy, ties, online, reason):
    assert choose(series_of(*scores), policy, ties, online)[0].reason == reason


# Selections

SETTINGS = {
    "pooling": {"name": "mean"},
    "num_resamples": 4,
    "resample_size": 20,
    "seed": 0,
    "pool": "abc",
}


def selection(*values, higher=True, decides="mi", best=None, **changed):
    """The scored checkpoints 10, 20, ... of a run."""
    scores = [value if isinstance(value, Score) else score(value) for value in values]
    records = tuple(
        Record(step, None, {decides: one, "beside": Score(-one.value)}, 0.0, 20, 40)
        for step, one in zip(range(10, 10 + 10 * len(scores), 10), scores, strict=True)
    )
    directions = {decides: higher, "beside": True}
    series = Series.of(records, decides, higher)
    fields = {"settings": SETTINGS, "dimensions": 8, "reference_step": 0} | changed
    return Selection(
        Decision(False, best or series.best_step, "why", series.steps[-1]),
        decides,
        directions,
        records,
        {step: Path(f"checkpoint-{step}") for step in series.steps},
        **fields,
    )


def test_a_selection_names_its_pick():
    found = selection(0.1, 0.3, 0.2)
    assert (found.best_step, found.best) == (20, Path("checkpoint-20"))
    assert found.pick == score(0.3)
    assert found.series == Series.of(found.records, "mi")
    assert found.series_of("beside").best_step == 10


@pytest.mark.parametrize(
    ("values", "higher", "steps"),
    [
        ((0.1, 0.3, 0.2), True, [20, 30, 10]),
        ((0.1, 0.3, 0.2), False, [10, 30, 20]),
        ((0.3, NAN, 0.3, 0.4), True, [40, 10, 30, 20]),  # the earliest of equals; none is last
        ((0.3, NAN, 0.3, 0.4), False, [10, 30, 40, 20]),
    ],
)
def test_ranking_is_from_best_to_worst(values, higher, steps):
    ranking = selection(*values, higher=higher).ranking
    assert [record.step for record in ranking] == steps


def test_the_best_run_has_the_best_pick():
    runs = {"a": selection(0.1, 0.3), "b": selection(0.4, 0.2), "c": selection(0.4)}
    assert best_run(runs) == "b"  # the first of equals
    lower = {name: selection(value, higher=False) for name, value in (("a", 0.3), ("b", 0.2))}
    assert best_run(lower) == "b"
    # By what is kept, which may be another than the best of a run.
    assert best_run({"a": selection(0.1, 0.3, best=10), "b": selection(0.2)}) == "b"
    assert best_run({"a": selection(0.1)}) == "a"


def test_runs_decided_by_different_scores_do_not_compare():
    runs = {"a": selection(0.1), "b": selection(0.2, decides="label_mi")}
    message = "decided by different scores, label_mi and mi; name one for all: criterion= (--crit"
    with pytest.raises(ValueError, match=re.escape(message)):
        best_run(runs)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"dimensions": 16}, "embeddings of different dimensions"),
        ({"settings": SETTINGS | {"pooling": {"name": "cls"}}}, "different pooling"),
        (
            {"settings": SETTINGS | {"criterion": {"name": "mi", "min_size": 9}}},
            "different settings of the criterion",
        ),
        ({"settings": SETTINGS | {"max_length": 9}}, "texts truncated to different lengths"),
        ({"settings": SETTINGS | {"resample_size": 10}}, "resamples of different sizes"),
        ({"reference_step": 10}, "different reference neighbors .name the model before training"),
        ({"reference_step": None}, "different reference neighbors"),
    ],
    ids=str,
)
def test_a_warning_says_why_runs_may_not_compare(changed, what):
    runs = {"a": selection(0.1), "b": selection(0.2, **changed)}
    with pytest.warns(UserWarning, match=f"^sepstop: the runs have {what}.*, so their") as caught:
        assert best_run(runs) == "b"
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_tied_runs():
    runs = {
        "a": selection(0.1, 0.3),
        "b": selection(near(0.29)),
        "c": selection(0.29),
        "d": selection(0.3),
    }
    assert tied_runs(runs, "a") == ["b", "d"]
    assert tied_runs({"a": runs["a"]}, "a") == []
    lower = {"a": selection(0.1, higher=False), "b": selection(near(0.15), higher=False)}
    assert tied_runs(lower, "a") == ["b"]


@pytest.mark.parametrize("key", ["pool", "seed", "num_resamples", "resample_size"])
def test_runs_on_other_resamples_are_not_paired(key):
    other = selection(0.3, settings=SETTINGS | {key: "another"})
    assert tied_runs({"a": selection(0.3), "b": other}, "a") == []
