"""Tables of a judgement."""

import math

import numpy as np
import pytest
from helpers.recorded import toy_run, with_average

from sepstop.bench.judge import judge
from sepstop.bench.recorded_run import RecordedRun
from sepstop.bench.tables import (
    candidates_table,
    criteria_table,
    interval,
    labels,
    name_of,
    question_tables,
    strata_table,
)
from sepstop.criteria import InfoMax
from sepstop.decide.policies import Patience


@pytest.fixture(scope="module")
def judgement():
    """Two clean runs and a harsh one; the average beats the best checkpoint by 0.05."""
    runs = []
    for number, noise in enumerate((0.0, 0.0, 0.4)):
        run = with_average(toy_run(), "cumulative", (0.1, 0.6, 0.95, 0.8), scores=(0, 1, 5, 2))
        settings = {"learning_rate": 1e-4, "noise": noise, "plain": ["EMA 0.99"]}
        arrays = run.arrays | {"plain_te_acc": np.array([0.8])}
        runs.append(RecordedRun(f"run {number}", arrays, settings))
    return judge(runs, [InfoMax()], {"patience 1": Patience(1)})


def test_the_question_by_stratum(judgement):
    tables = question_tables(judgement)
    assert [table.title for table in tables] == [
        "clean, 2 runs",
        "harsh, 1 run",
        "all runs, 3 runs",
    ]
    kept = [[row[0] for row in table.rows] for table in tables]
    assert kept[0] == kept[1] == kept[2]
    clean, harsh, _ = ({row[0]: row[1] for row in table.rows} for table in tables)
    assert clean["infomax of cumulative"] == "-5.0 [-5.0, -5.0]"
    assert harsh["infomax of cumulative"] == "-5.0"  # no interval of one run
    assert clean["EMA 0.99"] == "10.0 [10.0, 10.0]"
    assert clean["last checkpoint"] == "20.0 [20.0, 20.0]"


def test_strata_are_columns(judgement):
    table = strata_table(judgement)
    assert table.header == ["what is kept", "clean (2)", "harsh (1)", "all runs (3)"]
    assert ["oracle", "0.0 [0.0, 0.0]", "0.0", "0.0 [0.0, 0.0]"] in table.rows


def test_criteria_by_candidates(judgement):
    table = candidates_table(judgement)
    assert table.header == ["criterion", "checkpoints", "cumulative", "all"]
    assert table.rows == [["infomax", "20.0", "-5.0", "-5.0"]]


def test_all_criteria_choose_among_checkpoints(judgement):
    rows = criteria_table(judgement).rows
    assert {(row[0], row[1]) for row in rows if row[0] == "infomax"} == {
        ("infomax", "hindsight"),
        ("infomax", "patience 1"),
        ("infomax", "auto"),
    }
    assert {row[0] for row in rows} >= {"default", "oracle", "last checkpoint"}


def test_cells():
    row = {"criterion": "infomax", "policy": "plateau", "candidates": "all", "label_free": True}
    assert name_of(row) == "infomax of all, plateau"
    assert name_of(row | {"criterion": "default", "policy": "auto"}) == "default, stopped"
    points = {"regret_mean": -0.012, "regret_low": -0.02, "regret_high": 0.01}
    assert interval(points, "regret", signed=True) == "-1.2 [-2.0, +1.0]"
    assert interval(points | {"regret_low": math.nan}, "regret") == "-1.2"
    assert interval({}, "regret") == ""
    assert labels(row | {"label_equivalent": 25.0}, {5: 0.2, 25: 0.1}) == ">= 25"
    assert labels(row | {"label_equivalent": 7.2}, {5: 0.2, 25: 0.1}) == "7"
    assert labels(row | {"label_free": False}, {5: 0.2}) == ""
