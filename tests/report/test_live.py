"""A run followed in a terminal, and in a pipe."""

import io
import json
import math
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console

from sepstop import Decision, Record
from sepstop.report.live import follow, view
from sepstop.runs.history import HISTORY_FILE, KEY, row_to_dict, write_history
from sepstop.runs.records import RunHistory
from sepstop.types import Score

RECORDS = tuple(
    Record(
        step,
        None,
        {
            "separability": Score(score, score - 0.05, score + 0.05),
            "neighbor_mi": Score(information, information - 0.1, information + 0.1),
        },
    )
    for step, score, information in ((10, 0.2, 0.5), (20, 0.4, 1.5), (30, math.nan, math.nan))
)
DIRECTIONS = {"separability": True, "neighbor_mi": True}


def console(terminal, width=100):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def history(end=3, decision=None, decides="neighbor_mi", ended=None):
    decisions = (*[None] * (end - 1), *[decision] * (end > 0))
    return RunHistory(
        RECORDS[:end], decisions, decides=decides, higher_is_better=DIRECTIONS, ended=ended
    )


def shown(run, width=100, height=100):
    out = console(False, width)
    out.print(view(run, "a run", height))
    return out.file.getvalue()


def test_scores_with_bars_and_the_decision():
    text = shown(history(decision=Decision(False, 20, "improving", 20)))
    assert [line.split()[0] for line in text.splitlines() if "no score" in line] == ["30"]
    heading = next(line for line in text.splitlines() if " step " in line)
    assert heading.index("neighbor_mi (decides)") < heading.index("separability")
    best = next(line for line in text.splitlines() if " 20 " in line)
    assert "◀ best" in best
    assert "1.5000 [1.4000, 1.6000]" in best
    assert "0.4000" in best
    assert "as of step 20: improving" in text
    bars = [sum(c in "█▉▊▋▌▍▎▏▐" for c in line) for line in text.splitlines()]
    assert max(bars) >= 1
    stopped = shown(history(decision=Decision(True, 20, "flat", 20)))
    assert "STOP: as of step 20: flat" in stopped


def test_the_deciding_score_comes_first():
    text = shown(history(decision=Decision(False, 20, "so", 20), decides="separability"))
    heading = next(line for line in text.splitlines() if " step " in line)
    assert heading.index("separability (decides)") < heading.index("neighbor_mi")


def test_a_narrow_terminal_shrinks_the_bars_only():
    text = shown(history(decision=Decision(False, 20, "so", 20)), width=72)
    for whole in ("step", "neighbor_mi (decides)", "separability", "1.5000 [1.4000, 1.6000]"):
        assert whole in text
    assert text.count("◀ best") == 1


def test_only_the_newest_scores_fit_into_few_lines():
    text = shown(history(decision=Decision(False, 20, "so", 20)), height=10)
    assert " 10 " not in text
    assert " 20 " in text
    assert "3 scores" in text


def test_nothing_yet():
    assert "waiting for the first score" in shown(RunHistory())  # no model was seen
    assert "no score" in shown(history(0, ended=40))
    unscored = Record(1, None, {"a": Score(math.nan)})
    assert "no score" in shown(RunHistory((unscored,), (None,), decides="a"))


def run_until(end, ended=None, stops=()):
    decisions = tuple(
        Decision(record.step in stops, 10, f"reason {record.step}", record.step)
        for record in RECORDS[:end]
    )
    return replace(history(end, ended=ended), decisions=decisions)


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
        write_history(tmp_path / HISTORY_FILE, run_until(end, stops=[20]))
        if end:
            seen.waits_for(f"{end} scores" if terminal else f"step {RECORDS[end - 1].step} ")
    if terminal:
        seen.waits_for("as of step 30: reason 30")  # it went on after the stop
    assert seen.thread.is_alive()
    write_history(tmp_path / HISTORY_FILE, run_until(3, ended=35, stops=[20]))
    text = seen.ends()
    assert "training ended at step 35" in text
    if terminal:
        assert "STOP: as of step 20: reason 20" in text
        assert "STOP: as of step 30" not in text
    else:
        assert text.startswith("neighbor_mi decides\nstep 10  neighbor_mi 0.5000 [")
        assert "  separability 0.2000 [0.1500, 0.2500]\n" in text
        assert "step 30  neighbor_mi no score  separability no score\n" in text
        assert text.count("step 10 ") == 1
        assert text.count("stopped: reason 20\n") == 1
        assert "\x1b" not in text


def test_a_run_that_goes_back_or_starts_anew(tmp_path):
    write_history(tmp_path / HISTORY_FILE, run_until(3))
    seen = Followed(tmp_path, terminal=False)
    seen.waits_for("step 30 ")
    write_history(tmp_path / HISTORY_FILE, run_until(1))
    seen.waits_for("back to step 10\n")
    write_history(tmp_path / HISTORY_FILE, run_until(2))
    seen.waits_for("back to step 10\nstep 20 ")
    write_history(tmp_path / HISTORY_FILE, run_until(0))
    seen.waits_for("a new run\n")
    write_history(tmp_path / HISTORY_FILE, run_until(0, ended=0))
    assert seen.ends().endswith("a new run\ntraining ended at step 0\n")


def test_a_history_of_a_development_version_is_an_error(tmp_path):
    header = {"schema": 1, "count": 0, "settings": {}, "policy": {}, "decides": "separability"}
    (tmp_path / HISTORY_FILE).write_text(json.dumps({KEY: header}) + "\n")
    for once in (True, False):
        with pytest.raises(ValueError, match="line 1: written by an earlier development version"):
            follow(tmp_path, console(False), once=once)


def test_a_stop_that_only_a_checkpoint_knows(tmp_path):
    run = run_until(3, stops=[30])
    rows = [
        {KEY: row_to_dict(record, decision, run)}
        for record, decision in zip(run.records, run.decisions, strict=True)
    ]
    (tmp_path / "checkpoint-30").mkdir()
    (tmp_path / "checkpoint-30" / "trainer_state.json").write_text(
        json.dumps({"log_history": rows})
    )
    assert "training ended at step 30" in Followed(tmp_path, terminal=True).ends()


def test_a_run_that_is_over(tmp_path):
    write_history(tmp_path / HISTORY_FILE, run_until(3, ended=30))
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
