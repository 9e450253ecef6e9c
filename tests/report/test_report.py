import math

import pytest

from sepstop import Record
from sepstop.report.figures import draw_curve, score_text

HISTORY = [
    Record(10, None, 0.3, low=0.2, high=0.4),
    Record(20, None, math.nan),
    Record(30, None, 0.6, low=0.5, high=0.7),
]


@pytest.mark.parametrize("name", ["curve.png", "curve.svg"])
def test_a_curve_is_drawn(tmp_path, name):
    path = draw_curve(
        HISTORY,
        tmp_path / name,
        best_step=30,
        stop_step=30,
        accuracy={10: 0.5, 30: 0.9},
        max_steps=100,
        title="a run",
    )
    assert path.stat().st_size > 5000


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no record of the history has a score"):
        draw_curve([Record(1, None, math.nan)], tmp_path / "x.png")


def test_scores_as_text():
    assert score_text(HISTORY[0]) == "0.3000 [0.2000, 0.4000]"
    assert score_text(HISTORY[1]) == "no score"
