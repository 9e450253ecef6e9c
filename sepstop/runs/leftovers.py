"""Leftover checkpoints: those of an older run in the folder of a newer one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

_STATE = "trainer_state.json"
_HISTORY = "sepstop_history.jsonl"  # sepstop.runs.history, which defines it, imports this module

Log = list[str]
"""Rows of a checkpoint's ``log_history`` as JSON, which is comparable even if it holds NaN."""


def without_leftovers(
    folder: Path, checkpoints: Mapping[int, Path], has_times: bool = True
) -> tuple[dict[int, Path], bool]:
    """The checkpoints of the newest run in a folder, and whether they are surely of one run.

    Checkpoints of one run have logs that begin each other. If logs contradict each other, the
    newest run is the one whose scores are in the folder's history file, or else the one that wrote
    last. A checkpoint without a readable log stays. If it can't be told which run is the newest,
    all checkpoints stay.

    Args:
        folder: output folder of the runs.
        checkpoints: step -> folder of each checkpoint in it.
        has_times: False if the files' times are not those of the run, as after a download.

    Returns:
        Step -> folder of those that stay, and False if they may be of several runs.

    Warns:
        UserWarning: checkpoints were left out or may belong to another run; the message names them.
    """
    logs = {step: _log(path) for step, path in sorted(checkpoints.items())}
    readable = {step: log for step, log in logs.items() if log is not None}
    silent = [step for step, log in readable.items() if not log]
    if all(_are_of_one_run(*pair) for pair in pairwise(readable.items())):
        if not has_times:
            return dict(checkpoints), True
        if not readable:
            return dict(checkpoints), _are_in_order(checkpoints)
        return dict(checkpoints), not _warn_of_times(folder, checkpoints, silent)
    logged = {step: log for step, log in readable.items() if log}
    newest = _newest_log(folder, checkpoints, logged) if has_times else None
    last_logged = max(_time(checkpoints[step]) for step in logged)
    if any(_time(checkpoints[step]) > last_logged for step in silent):
        newest = None  # a run that has logged nothing yet may be the newest
    if newest is None:
        warnings.warn(
            f"sepstop: {folder} has checkpoints of several runs, and neither the history nor the "
            "file times tell which run is the newest; move the others elsewhere",
            stacklevel=4,
        )
        return dict(checkpoints), False
    kept = {
        step: checkpoints[step]
        for step, log in logs.items()
        if log is None or (_agree(log, newest) and len(log) >= _rows_before(step, newest))
    }
    others = [checkpoints[step].name for step in sorted(checkpoints) if step not in kept]
    if others:
        warnings.warn(
            f"sepstop: {', '.join(others)} in {folder} left out: their logs do not belong to the "
            "newest run there",
            stacklevel=4,
        )
    return kept, True


def unmonitored(checkpoints: Mapping[int, Path], scored: Collection[int]) -> list[str]:
    """Names of checkpoints whose log has no score, although earlier steps were scored.

    Args:
        checkpoints: step -> folder of each checkpoint.
        scored: steps with a score in the run's history.
    """
    names = []
    for step, path in sorted(checkpoints.items()):
        log = _log(path)
        follows_score = any(at < step for at in scored)
        if log is not None and follows_score and not any("sepstop" in row for row in _rows(log)):
            names.append(path.name)
    return names


def _newest_log(
    folder: Path, checkpoints: Mapping[int, Path], logs: Mapping[int, Log]
) -> Log | None:
    """The longest log of the newest run; None if it is not known which run that is."""
    times = {step: _time(checkpoints[step]) for step in logs}
    last = [logs[step] for step in logs if times[step] == max(times.values())]
    written_last = max(last, key=len)
    if not all(_agree(log, written_last) for log in last):
        written_last = []
    history = _scores_in_history(folder)
    scores = {step: _scores_in_log(log) for step, log in logs.items()}
    recorded = [logs[step] for step, own in scores.items() if own and own == history[: len(own)]]
    # A run without the callback leaves the history file of the run before it unchanged.
    if recorded and (not written_last or _scores_in_log(written_last)):
        return max(recorded, key=len)
    return written_last or None


def _warn_of_times(folder: Path, checkpoints: Mapping[int, Path], silent: Sequence[int]) -> bool:
    """Warn of checkpoints that are older than one of an earlier step whose log is empty.

    Args:
        silent: steps of the checkpoints whose log is empty.

    Returns:
        True if there are such checkpoints.
    """
    times = {step: _time(path) for step, path in checkpoints.items() if (path / _STATE).is_file()}
    newest = max(silent, key=lambda step: times[step], default=0)
    older = [step for step in sorted(times) if step > newest and times[step] < times.get(newest, 0)]
    if older:
        names = ", ".join(checkpoints[step].name for step in older)
        warnings.warn(
            f"sepstop: {names} in {folder} were written before {checkpoints[newest].name}, whose "
            "log is empty; if they belong to an older run, move them elsewhere",
            stacklevel=5,
        )
    return bool(older)


def _are_in_order(checkpoints: Mapping[int, Path]) -> bool:
    """True if the folders were first written in the order of their steps."""
    files = [[*path.rglob("*")] for _, path in sorted(checkpoints.items())]
    written = [min(file.stat().st_mtime_ns for file in found) for found in files if found]
    return written == sorted(written)


def _time(checkpoint: Path) -> int:
    return (checkpoint / _STATE).stat().st_mtime_ns


def _are_of_one_run(earlier: tuple[int, Log], later: tuple[int, Log]) -> bool:
    """True if the first log begins the second and has all of its rows from before its own step."""
    (step, log), (_, longer) = earlier, later
    return log == longer[: len(log)] and len(log) >= _rows_before(step, longer)


def _rows_before(step: int, log: Log) -> int:
    """Number of rows that a run logged before a step."""
    steps = (row.get("step") for row in _rows(log))
    return sum(isinstance(at, int) and at < step for at in steps)


def _agree(log: Log, other: Log) -> bool:
    """True if one log begins the other."""
    return all(row == known for row, known in zip(log, other, strict=False))


def _log(checkpoint: Path) -> Log | None:
    """The log in a checkpoint; None if it can't be read."""
    try:
        found = json.loads((checkpoint / _STATE).read_text())["log_history"]
        return [json.dumps(row, sort_keys=True) for row in found if isinstance(row, dict)]
    except (OSError, KeyError, RecursionError, TypeError, ValueError):
        return None


def _rows(log: Log) -> list[dict[str, Any]]:
    return [json.loads(row) for row in log]


def _scores_in_log(log: Log) -> list[str]:
    """The scores that the callback added to a log."""
    added = [row["sepstop"] for row in _rows(log) if "sepstop" in row]
    return [_comparable(own.get("record")) for own in added if isinstance(own, dict)]


def _scores_in_history(folder: Path) -> list[str]:
    """The scores in a run's history file; empty if it can't be read."""
    try:
        lines = [json.loads(line) for line in (folder / _HISTORY).read_text().splitlines()]
    except (OSError, RecursionError, ValueError):
        return []
    return [_comparable(line) for line in lines if isinstance(line, dict) and "scores" in line]


def _comparable(record: Any) -> str:
    """The step and the scores of a record, which its copies share."""
    known = record if isinstance(record, dict) else {}
    return json.dumps([known.get("step"), known.get("scores")], sort_keys=True)
