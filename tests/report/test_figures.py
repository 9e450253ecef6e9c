"""Figures of recorded scores."""

import math

import matplotlib as mpl
import pytest
from helpers.averaged import averaged_run

from sepstop import Decision, Record
from sepstop.report.figures import draw_scores
from sepstop.runs.records import RunHistory
from sepstop.types import Score

RECORDS = (
    Record(10, None, {"entropy": Score(0.3, 0.2, 0.4), "neighbor_mi": Score(0.1)}),
    Record(20, None, {"entropy": Score(math.nan), "neighbor_mi": Score(0.2)}),
    Record(30, None, {"entropy": Score(0.6, 0.5, 0.7), "neighbor_mi": Score(0.3)}),
)


def run_with(*records, decides="neighbor_mi", decision=None):
    decisions = (*[None] * (len(records) - 1), decision)
    return RunHistory(records, decisions, decides=decides)


def svg(run, path, **options):
    """The picture as text."""
    with mpl.rc_context({"svg.fonttype": "none"}):
        return draw_scores(run, path, **options).read_text()


@pytest.mark.parametrize("name", ["curve.png", "curve.svg", "curve.pdf"])
def test_scores_are_drawn(tmp_path, name):
    path = draw_scores(run_with(*RECORDS), tmp_path / name)
    assert path.stat().st_size > 5000


def test_a_panel_per_score_the_deciding_one_first(tmp_path):
    text = svg(run_with(*RECORDS), tmp_path / "x.svg")
    assert text.index("neighbor_mi (decides)") < text.index(">entropy<")
    assert "entropy (decides)" not in text
    assert text.count("95 % interval") == 1  # the other score has none
    other = svg(run_with(*RECORDS, decides="entropy"), tmp_path / "x.svg")
    assert other.index("entropy (decides)") < other.index(">neighbor_mi<")


def test_accuracy_title_and_marks(tmp_path):
    run = run_with(*RECORDS, decision=Decision(True, 10, "enough", 30))
    text = svg(run, tmp_path / "x.svg", title="my run", accuracy={10: 0.5, 30: 0.9}, max_steps=100)
    for label in ("my run", "test accuracy", "pick: step 10", "stop: step 30", ">100<"):
        assert label in text
    run = run_with(*RECORDS, decision=Decision(True, 30, "enough", 30))
    assert "pick and stop: step 30" in svg(run, tmp_path / "x.svg")
    run = run_with(*RECORDS, decision=Decision(False, 30, "improving", 30))
    assert "stop" not in svg(run, tmp_path / "x.svg")
    assert "pick" not in svg(run_with(*RECORDS), tmp_path / "x.svg")


def test_a_line_per_candidate_and_the_average_that_is_kept(tmp_path):
    text = svg(averaged_run(), tmp_path / "x.svg")
    for label in (
        "best candidate (checkpoint, recent average, cumulative average)",
        ">recent average<",
        ">checkpoint<",
        "pick: cumulative average of steps 11 to 40",
        "stop: step 50",
    ):
        assert text.count(label) == 1
    assert text.count("stroke-dasharray") > 4
    plain = svg(run_with(*RECORDS, decision=Decision(True, 10, "so", 30)), tmp_path / "x.svg")
    for label in ("candidate", "average", "checkpoint"):
        assert label not in plain


def test_a_score_that_never_was_has_no_panel(tmp_path):
    records = [Record(1, None, {"a": Score(0.5), "b": Score(math.nan)})]
    assert ">b<" not in svg(run_with(*records, decides="a"), tmp_path / "x.svg")


def test_nothing_to_draw_is_an_error(tmp_path):
    run = run_with(Record(1, None, {"a": Score(math.nan)}), decides="a")
    with pytest.raises(ValueError, match="no record of the run has a score to draw"):
        draw_scores(run, tmp_path / "x.png")
