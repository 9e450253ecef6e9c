"""A run followed in a terminal, and in a pipe."""

import io
import json
import math
import threading
import time

import pytest
from rich.console import Console

from sepstop import Decision, Record
from sepstop.history import HISTORY_FILE, KEY, to_dict, write_history
from sepstop.live import follow, view

HISTORY = [
    Record(step, None, score, low=score - 0.05, high=score + 0.05, information=information)
    for step, score, information in ((10, 0.2, 0.5), (20, 0.4, 1.5), (30, math.nan, math.nan))
]


def console(terminal, width=100):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def shown(history, decision, by_information=True, width=100):
    out = console(False, width)
    out.print(view(history, decision, by_information, "a run"))
    return out.file.getvalue()


def test_scores_with_bars_and_the_decision():
    text = shown(HISTORY, Decision(False, 20, "improving", 20))
    assert [line.split()[1] for line in text.splitlines() if "no score" in line] == ["30"]
    assert "information of classes" in text
    assert "◀ best" in next(line for line in text.splitlines() if " 20 " in line)
    assert "as of step 20: improving" in text
    bars = [sum(c in "█▉▊▋▌▍▎▏▐" for c in line) for line in text.splitlines()]
    assert max(bars) >= 1
    by_score = shown(HISTORY, Decision(False, 20, "improving", 20), by_information=False)
    heading = next(line for line in by_score.splitlines() if " step " in line)
    assert heading.index("separability") < heading.index("information")
    stopped = shown(HISTORY, Decision(True, 20, "flat", 20))
    assert "STOP: as of step 20: flat" in stopped


def test_nothing_yet():
    assert "waiting for the first score" in shown([], None)
    unscored = [Record(1, None, math.nan)]
    assert "no score" in shown(unscored, None)


@pytest.mark.parametrize("terminal", [True, False])
def test_scores_appear_as_they_come_until_the_run_is_stopped(tmp_path, terminal):
    out = console(terminal)
    following = threading.Thread(target=follow, args=(tmp_path, out), kwargs={"every": 0.02})
    following.start()
    for end in (1, 2, 3):
        write_history(tmp_path / HISTORY_FILE, HISTORY[:end])
        wanted = f"step {HISTORY[end - 1].step} " if not terminal else f"{end} scores"
        for _ in range(500):
            if wanted in out.file.getvalue():
                break
            time.sleep(0.02)
        else:
            pytest.fail(f"{wanted!r} never came: {out.file.getvalue()}")
    decision = {"stop": True, "best_step": 20, "reason": "enough"}
    rows = [{KEY: {"record": to_dict(record), "decision": decision}} for record in HISTORY]
    (tmp_path / "checkpoint-30").mkdir()
    state = json.dumps({"log_history": rows})
    (tmp_path / "checkpoint-30" / "unfinished").write_text(state)
    (tmp_path / "checkpoint-30" / "unfinished").rename(
        tmp_path / "checkpoint-30" / "trainer_state.json"
    )
    following.join(timeout=20)
    assert not following.is_alive()
    text = out.file.getvalue()
    assert "enough" in text
    if not terminal:
        assert text.count("step 10 ") == 1
        assert "\x1b" not in text


def test_a_run_that_is_over(tmp_path):
    write_history(tmp_path / HISTORY_FILE, HISTORY)
    out = console(False)
    follow(tmp_path, out, once=True)
    assert "3 scores" in out.file.getvalue()
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match="no scores in"):
        follow(tmp_path / "other", out, once=True)
    with pytest.raises(FileNotFoundError, match="no folder at"):
        follow(tmp_path / "none", out)
