"""Checkpoints that an older run left in the folder of a newer one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

_STATE = "trainer_state.json"
_HISTORY = "sepstop_history.jsonl"
_SAME = ("step", "score", "information")  # of a record that was copied from one to the other


def of_newest_run(folder: Path, checkpoints: Mapping[int, Path]) -> dict[int, Path]:
    """Step -> folder of the checkpoints of the newest run; a warning names the others.

    Each checkpoint of a run has a history that begins those of the later ones. Where histories
    contradict each other, the newest run is the one whose scores are in the folder's history file,
    or else the one that wrote last. A checkpoint whose history cannot be read stays. Where nothing
    was logged yet, only the time tells, which copying changes: a warning then, and all stay.
    """
    logs = {step: _log(path) for step, path in sorted(checkpoints.items())}
    readable = {step: log for step, log in logs.items() if log is not None}
    silent = [step for step, log in readable.items() if not log]
    if all(_are_of_one_run(*pair) for pair in pairwise(readable.items())):
        _warn_of_times(folder, checkpoints, silent)
        return dict(checkpoints)
    told = {step: log for step, log in readable.items() if log}
    newest = _newest_log(folder, checkpoints, told)
    last_told = max(_time(checkpoints[step]) for step in told)
    if any(_time(checkpoints[step]) > last_told for step in silent):
        newest = None  # it may be a run that logged nothing yet
    if newest is None:
        warnings.warn(
            f"sepstop: {folder} has checkpoints of more than one run, and neither a history nor "
            "their times tell which is the newest; move the others elsewhere",
            stacklevel=4,
        )
        return dict(checkpoints)
    kept = {
        step: checkpoints[step]
        for step, log in logs.items()
        if log is None or (_agree(log, newest) and len(log) >= _rows_before(step, newest))
    }
    others = [checkpoints[step].name for step in sorted(checkpoints) if step not in kept]
    warnings.warn(
        f"sepstop: {', '.join(others)} in {folder} left out: by their histories they are not of "
        "the newest run there",
        stacklevel=4,
    )
    return kept


def of_unwatched_run(checkpoints: Mapping[int, Path], scored: Collection[int]) -> list[str]:
    """Names of checkpoints whose log has no score, though the run was ``scored`` before them."""
    names = []
    for step, path in sorted(checkpoints.items()):
        with suppress(OSError, KeyError, RecursionError, TypeError, ValueError):
            log = json.loads((path / _STATE).read_text())["log_history"]
            if min(scored) < step and not any("sepstop" in row for row in log):
                names.append(path.name)
    return names


def _newest_log(
    folder: Path, checkpoints: Mapping[int, Path], logs: Mapping[int, Sequence[str]]
) -> Sequence[str] | None:
    """The longest log of the newest run; None if it is not known which that is."""
    times = {step: _time(checkpoints[step]) for step in logs}
    last = [logs[step] for step in logs if times[step] == max(times.values())]
    written_last = max(last, key=len)
    if not all(_agree(log, written_last) for log in last):
        written_last = []
    scores = _scores(folder)
    scored = {step: _scores_in(logs[step]) for step in logs}
    recorded = [logs[step] for step, own in scored.items() if own and own == scores[: len(own)]]
    # A run without the callback leaves the history file of the one before as it is.
    if recorded and (not written_last or _scores_in(written_last)):
        return max(recorded, key=len)
    return written_last or None


def _warn_of_times(folder: Path, checkpoints: Mapping[int, Path], silent: Sequence[int]) -> None:
    """Warn of checkpoints that are older than an earlier one whose history says nothing.

    Args:
        silent: steps of those without a row in their log.
    """
    times = {step: _time(path) for step, path in checkpoints.items() if (path / _STATE).is_file()}
    newest = max(silent, key=lambda step: times[step], default=0)
    older = [step for step in sorted(times) if step > newest and times[step] < times.get(newest, 0)]
    if older:
        names = ", ".join(checkpoints[step].name for step in older)
        warnings.warn(
            f"sepstop: {names} in {folder} were written before {checkpoints[newest].name}, which "
            "has no log to compare; if they are of an older run, move them elsewhere",
            stacklevel=5,
        )


def _time(checkpoint: Path) -> int:
    return (checkpoint / _STATE).stat().st_mtime_ns


def _are_of_one_run(earlier: tuple[int, Sequence[str]], later: tuple[int, Sequence[str]]) -> bool:
    """True if the first log begins the second and has all of its rows from before its own step."""
    (step, log), (_, longer) = earlier, later
    return log == longer[: len(log)] and len(log) >= _rows_before(step, longer)


def _rows_before(step: int, log: Sequence[str]) -> int:
    """How many rows a run had logged before a step."""
    steps = (json.loads(row).get("step") for row in log)
    return sum(isinstance(at, int) and at < step for at in steps)


def _agree(log: Sequence[str], other: Sequence[str]) -> bool:
    """True if one begins the other."""
    return all(row == known for row, known in zip(log, other, strict=False))


def _log(checkpoint: Path) -> list[str] | None:
    """The rows of a checkpoint's log, comparable where they hold NaN; None if unreadable."""
    try:
        found = json.loads((checkpoint / _STATE).read_text())["log_history"]
        return [json.dumps(row, sort_keys=True) for row in found if isinstance(row, dict)]
    except (OSError, KeyError, RecursionError, TypeError, ValueError):
        return None


def _scores_in(log: Sequence[str]) -> list[str]:
    """Those that the callback put into a log."""
    found = (json.loads(row) for row in log)
    noted = [row["sepstop"] for row in found if "sepstop" in row]
    return [_comparable(own.get("record")) for own in noted if isinstance(own, dict)]


def _scores(folder: Path) -> list[str]:
    """Those in the history file of a run; lines that are no records are passed over."""
    try:
        lines = [json.loads(line) for line in (folder / _HISTORY).read_text().splitlines()]
    except (OSError, RecursionError, ValueError):
        return []
    return [_comparable(line) for line in lines if isinstance(line, dict) and "score" in line]


def _comparable(record: Any) -> str:
    known = record if isinstance(record, dict) else {}
    return json.dumps([known.get(key) for key in _SAME])
