"""A run followed in a terminal, and in a pipe."""

import io
import json
import math
import threading
import time

import pytest
from rich.console import Console

from sepstop import Decision, Record
from sepstop.report.live import follow, view
from sepstop.runs.history import HISTORY_FILE, KEY, RunHistory, to_dict, write_history, write_run

HISTORY = [
    Record(step, None, score, low=score - 0.05, high=score + 0.05, information=information)
    for step, score, information in ((10, 0.2, 0.5), (20, 0.4, 1.5), (30, math.nan, math.nan))
]


def console(terminal, width=100):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def shown(history, decision, by_information=True, width=100, ended=None):
    out = console(False, width)
    out.print(view(history, decision, by_information, "a run", ended=ended))
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
    assert "no score" in shown([], None, ended=40)
    unscored = [Record(1, None, math.nan)]
    assert "no score" in shown(unscored, None)


def run_until(end, ended=None, stops=()):
    records = tuple(HISTORY[:end])
    decisions = tuple(
        Decision(record.step in stops, 10, f"reason {record.step}", record.step)
        for record in records
    )
    return RunHistory(records, decisions, decides="separability", ended=ended)


class Followed:
    """`follow` in a thread."""

    def __init__(self, folder, terminal):
        self.folder, self.out = folder, console(terminal)
        self.thread = threading.Thread(
            target=follow, args=(folder, self.out), kwargs={"every": 0.02}
        )
        self.thread.start()

    def waits_for(self, wanted):
        for _ in range(500):
            if wanted in self.out.file.getvalue():
                return
            time.sleep(0.02)
        pytest.fail(f"{wanted!r} never came: {self.out.file.getvalue()}")

    def ends(self):
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()
        return self.out.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_scores_appear_as_they_come_until_training_ends(tmp_path, terminal):
    seen = Followed(tmp_path, terminal)
    if terminal:
        seen.waits_for("waiting for the first score")
    for end in (0, 1, 2, 3):
        write_run(tmp_path / HISTORY_FILE, run_until(end, stops=[20]))
        if end:
            seen.waits_for(f"{end} scores" if terminal else f"step {HISTORY[end - 1].step} ")
    if terminal:
        seen.waits_for("as of step 30: reason 30")  # it went on after the stop
    assert seen.thread.is_alive()
    write_run(tmp_path / HISTORY_FILE, run_until(3, ended=35, stops=[20]))
    text = seen.ends()
    assert "training ended at step 35" in text
    if terminal:
        assert "STOP: as of step 20: reason 20" in text
        assert "STOP: as of step 30" not in text
    else:
        assert text.count("step 10 ") == 1
        assert text.count("stopped: reason 20\n") == 1
        assert "\x1b" not in text


def test_a_run_that_goes_back_or_starts_anew(tmp_path):
    write_run(tmp_path / HISTORY_FILE, run_until(3))
    seen = Followed(tmp_path, terminal=False)
    seen.waits_for("step 30 ")
    write_run(tmp_path / HISTORY_FILE, run_until(1))
    seen.waits_for("back to step 10\n")
    write_run(tmp_path / HISTORY_FILE, run_until(2))
    seen.waits_for("back to step 10\nstep 20 ")
    write_run(tmp_path / HISTORY_FILE, run_until(0))
    seen.waits_for("a new run\n")
    write_run(tmp_path / HISTORY_FILE, run_until(0, ended=0))
    assert seen.ends().endswith("a new run\ntraining ended at step 0\n")


def test_a_run_of_an_earlier_version_shows_no_decision(tmp_path):
    write_history(tmp_path / HISTORY_FILE, HISTORY)
    out = console(False)
    with pytest.warns(UserWarning, match="was written by an earlier version"):
        follow(tmp_path, out, once=True)
    assert "3 scores" in out.file.getvalue()
    assert "as of step" not in out.file.getvalue()
    assert "best" not in out.file.getvalue()


def test_a_stop_that_only_a_checkpoint_knows(tmp_path):
    decision = {"stop": True, "best_step": 20, "reason": "enough"}
    rows = [{KEY: {"record": to_dict(record), "decision": decision}} for record in HISTORY]
    (tmp_path / "checkpoint-30").mkdir()
    (tmp_path / "checkpoint-30" / "trainer_state.json").write_text(
        json.dumps({"log_history": rows})
    )
    assert "training ended at step 30" in Followed(tmp_path, terminal=True).ends()


def test_a_run_that_is_over(tmp_path):
    write_run(tmp_path / HISTORY_FILE, run_until(3, ended=30))
    for once in (True, False):
        out = console(False)
        follow(tmp_path, out, once=once)
        assert "training ended at step 30" in out.file.getvalue()
        assert ("3 scores" in out.file.getvalue()) is once
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match="no scores in"):
        follow(tmp_path / "other", out, once=True)
    with pytest.raises(FileNotFoundError, match="no folder at"):
        follow(tmp_path / "none", out)
