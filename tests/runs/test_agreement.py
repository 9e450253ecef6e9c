"""Scores of checkpoints beside those of the run's own log."""

import math
from dataclasses import replace

import pytest
from conftest import make_encoder
from helpers.training import train
from safetensors.torch import load_file, save_file

from sepstop import Record, Score, SepStopCallback, select_checkpoint
from sepstop.runs.agreement import differences_from_log
from sepstop.runs.history import read_online
from sepstop.types import CHECKPOINT, Average

SETTINGS = {
    "criterion": {"name": "neighbor_mi"},
    "extra_criteria": [{"name": "separability"}, {"name": "mine:Own", "power": 2}],
    "pooling": {"name": "auto"},
    "num_resamples": 10,
    "resample_size": 40,
    "seed": 0,
    "max_length": 128,
    "pool": "abc",
}
VALUES = {"neighbor_mi": 0.8, "separability": 0.4, "own": 0.1}


def record(step=5, **values):
    scores = {name: Score(value) for name, value in (VALUES | values).items()}
    return Record(step, 0.5, scores, resample_size=40)


OWN = record()


@pytest.mark.parametrize(
    ("values", "half", "said"),
    [
        ({}, False, None),
        ({"separability": 0.4009}, False, None),
        ({"separability": 0.4011}, False, "separability 0.4011, in the run's log 0.4000"),
        ({"separability": 0.4049}, True, None),
        ({"separability": 0.4051}, True, "separability 0.4051, in the run's log 0.4000"),
        ({"separability": math.nan}, False, "separability nan, in the run's log 0.4000"),
        ({"separability": math.inf}, False, "separability inf, in the run's log 0.4000"),
        ({"neighbor_mi": 0.849}, False, None),  # two of 40 texts
        ({"neighbor_mi": 0.851}, False, "neighbor_mi 0.8510, in the run's log 0.8000"),
        ({"own": 0.102}, False, "own 0.1020, in the run's log 0.1000"),
        ({"recorded_only_here": 0.3}, False, None),
        ({"step": 6, "separability": 0.1}, False, None),  # the run has no score there
    ],
    ids=str,
)
def test_what_differs_by_more_than_rounding(values, half, said):
    found = differences_from_log([record(**values)], [OWN], SETTINGS, SETTINGS, half)
    assert list(found) == ([5] if said else [])
    assert said is None or found[5].startswith(f"{said}: the model loaded here is not the one")


def test_all_scores_are_compared_whichever_decides():
    other = record(separability=0.1, neighbor_mi=0.1, own=0.2)
    chosen = SETTINGS | {
        "criterion": SETTINGS["extra_criteria"][0],
        "extra_criteria": [SETTINGS["extra_criteria"][1], SETTINGS["criterion"]],
    }
    for settings in (SETTINGS, chosen):
        (said,) = differences_from_log([other], [OWN], settings, SETTINGS).values()
        assert "neighbor_mi 0.1000, in the run's log 0.8000" in said
        assert "separability 0.1000, in the run's log 0.4000" in said
        assert "own 0.2000, in the run's log 0.1000" in said


@pytest.mark.parametrize("setting", ["pool", "seed", "max_length", "pooling", "num_resamples"])
def test_only_what_was_measured_alike_is_compared(setting):
    other = record(separability=0.1)
    assert differences_from_log([other], [OWN], SETTINGS | {setting: "another"}, SETTINGS) == {}
    assert differences_from_log([other], [OWN], SETTINGS, {}) == {}


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("separability", [{"name": "separability", "log_base": 2}, {"name": "mine:Own"}]),
        ("own", [{"name": "separability"}, {"name": "mine:Own", "power": 3}]),
        ("own", [{"name": "separability"}, {"name": "another:Own", "power": 2}]),
        ("own", [{"name": "separability"}]),
    ],
)
def test_scores_of_a_criterion_with_other_parameters_are_not_compared(name, extra):
    settings = SETTINGS | {"extra_criteria": extra}
    assert differences_from_log([record(**{name: 9.0})], [OWN], settings, SETTINGS) == {}
    assert differences_from_log([record(neighbor_mi=9.0)], [OWN], settings, SETTINGS)


def test_scores_that_depend_on_more_than_the_model_can_be_left_out():
    other, left_out = record(neighbor_mi=0.1), ["neighbor_mi"]
    assert differences_from_log([other], [OWN], SETTINGS, SETTINGS, left_out=left_out) == {}
    other = record(neighbor_mi=0.1, separability=0.1)
    (said,) = differences_from_log([other], [OWN], SETTINGS, SETTINGS, left_out=left_out).values()
    assert "neighbor_mi" not in said


def test_checkpoints_are_compared_wherever_they_stand_and_averages_never():
    average, scores = Average("cumulative", 1, 5, 5), {"separability": Score(0.1)}
    here = replace(record(separability=0.9), average=average, others={CHECKPOINT: scores})
    (said,) = differences_from_log([here], [OWN], SETTINGS, SETTINGS).values()
    assert said.startswith("separability 0.1000, in the run's log 0.4000: the model")
    without = replace(here, others={"recent": scores})
    assert differences_from_log([without], [OWN], SETTINGS, SETTINGS) == {}
    assert (
        differences_from_log([without], [replace(OWN, average=average)], SETTINGS, SETTINGS) == {}
    )
    own = replace(OWN, average=average, others={CHECKPOINT: OWN.scores})
    assert differences_from_log([record(separability=0.1)], [own], SETTINGS, SETTINGS)


@pytest.mark.parametrize("value", [math.nan, math.inf])  # both are null in the log
def test_scores_that_were_not_finite_are_the_same(value):
    nothing = record(**dict.fromkeys(VALUES, math.nan))
    here = record(**dict.fromkeys(VALUES, value))
    assert differences_from_log([here], [nothing], SETTINGS, SETTINGS) == {}


def test_weights_that_are_not_those_of_the_run_are_noticed(tmp_path, tokenizer, train_rows, pool):
    extra = ["entropy", "sepstop.bench.criteria:StableRank"]
    callback = SepStopCallback(pool, extra_criteria=extra, every_n_steps=4, average=False)
    train(tmp_path, tokenizer, train_rows, callback, make_encoder(), max_steps=12)
    names = {"robust_mi", "entropy", "stable_rank"}
    assert read_online(tmp_path).records[0].scores.keys() == names

    def select():
        return select_checkpoint(
            tmp_path, pool, extra_criteria=extra, progress=False, average=False
        )

    assert select().differences == {}
    path = tmp_path / "checkpoint-8" / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.encoder.layer.1.output.dense.weight"] *= 5
    tensors["classifier.weight"] *= 5
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"^sepstop: checkpoint-8: .* in the run's log") as caught:
        selection = select()
    assert caught[0].filename == __file__  # select() above
    assert list(selection.differences) == [8]
    for name in ("entropy", "stable_rank"):  # none of them decided
        assert (
            f"{name} {selection.series_of(name).score_at(8).value:.4f}, in the run's log"
            in (selection.differences[8])
        )
