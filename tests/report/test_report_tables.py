"""Tables of scored checkpoints and runs."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sepstop import Decision, Record
from sepstop.decide.selection import Selection
from sepstop.report.tables import ranking_table, runs_table
from sepstop.types import Average, Score

STEPS, EPOCHS = (10, 20, 30), (0.5, None, 1.5)
DIRECTIONS = {"neighbor_mi": True, "churn": False}


def selection(values, churn=(), decides="neighbor_mi", best_step=20, **options):
    records = tuple(
        Record(
            step,
            epoch,
            {
                "neighbor_mi": Score(value, value - 0.01, value + 0.01),
                "churn": Score(churn[i] if churn else math.nan),
            },
        )
        for i, (step, epoch, value) in enumerate(zip(STEPS, EPOCHS, values, strict=True))
    )
    return Selection(
        Decision(False, best_step, "best", 30),
        decides,
        DIRECTIONS,
        records,
        {record.step: Path(f"checkpoint-{record.step}") for record in records},
        **options,
    )


def shown(table):
    out = Console(file=io.StringIO(), width=150)
    out.print(table)
    return out.file.getvalue()


def rows_of(table):
    """Title, and the words of each row."""
    lines = shown(table).splitlines()
    heading = next(i for i, line in enumerate(lines) if " step " in line)
    title = " ".join(" ".join(lines[:heading]).split())  # wrapped to the table's width
    return title, [line.split() for line in lines[heading + 1 :]]


def test_checkpoints_from_best_to_worst():
    found = selection((0.2, 0.9, math.nan), (0.3, 0.2, 0.1), ties=(10,), differences={20: "so"})
    title, heading, *rows = shown(ranking_table(found)).splitlines()
    assert title.strip() == "neighbor_mi decides, higher is better, with 95 % interval"
    assert heading.split() == ["rank", "step", "epoch", "neighbor_mi", "churn"]
    assert [row.split() for row in rows] == [
        ["1", "20", "0.9000", "[0.8900,", "0.9100]", "0.2000", "◀", "pick", "≠", "log"],
        ["2", "10", "0.50", "0.2000", "[0.1900,", "0.2100]", "0.3000", "≈", "tie"],
        ["3", "30", "1.50", "no", "score", "0.1000", "◀"],  # the lowest churn
    ]
    assert len(shown(ranking_table(found, top=2)).splitlines()) == 4


def test_a_score_that_is_better_when_lower():
    found = selection((0.2, 0.9, 0.1), (0.3, 0.2, 0.1), decides="churn", best_step=30)
    title, rows = rows_of(ranking_table(found))
    assert "churn decides, lower is better" in title
    assert [row[1] for row in rows] == ["30", "20", "10"]
    assert ["◀" in row for row in rows] == [True, True, False]  # the pick; best neighbor_mi


@pytest.mark.parametrize("decides", ["neighbor_mi", "churn"])
def test_runs_from_best_to_worst(decides):
    runs = {
        "low": selection((0.2, 0.3, 0.1), (0.4, 0.3, 0.2), decides),
        "high": selection((0.2, 0.9, 0.1), (0.4, 0.9, 0.2), decides),
        "other": selection((0.2, 0.5, 0.1), (0.4, 0.5, 0.2), decides),
    }
    order = ["high", "other", "low"] if decides == "neighbor_mi" else ["low", "other", "high"]
    title, rows = rows_of(runs_table(runs, order[0], [order[1]]))
    assert f"{decides} decides" in title
    assert [row[0] for row in rows] == order
    assert ["best" in row for row in rows] == [True, False, False]
    assert ["tie" in row for row in rows] == [False, True, False]


def averaged(found, name="last-3"):
    """The same, but each record after the first is of an average."""
    first, *later = found.records
    later = [replace(r, average=Average(name, 10, r.step, r.step // 10)) for r in later]
    return replace(found, records=(first, *later))


def test_averages_of_checkpoints_say_of_which_steps():
    found = averaged(selection((0.2, 0.9, 0.1)))
    heading, *rows = shown(ranking_table(found)).splitlines()[1:]
    assert "average of steps" in heading
    assert ["last-3" in row for row in rows] == [True, False, True]
    assert "10 to 20, last-3" in rows[0]
    runs = {"high": found, "low": selection((0.2, 0.3, 0.1))}
    high, low = (row for row in shown(runs_table(runs, "high", [])).splitlines() if " 20 " in row)
    assert "10 to 20, last-3" in high
    assert "last-3" not in low
    assert "average" not in shown(ranking_table(runs["low"]))
    hostile = averaged(found, "[/]" + "x" * 100)
    assert "10 to 20, [/]xxx" in shown(ranking_table(hostile))
    assert "x" * 41 not in shown(ranking_table(hostile))
