"""Checkpoints that an older run left in the folder of a newer one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATE = "trainer_state.json"
_HISTORY = "sepstop_history.jsonl"
_SAME = ("step", "score", "information")  # of a record that was copied from one to the other


def of_newest_run(folder: Path, checkpoints: Mapping[int, Path]) -> dict[int, Path]:
    """Step -> folder of the checkpoints of the newest run; a warning names the others.

    Checkpoints of one run have histories of which the shorter begins the longer. Where they
    contradict each other, the newest run is the one whose scores are in the folder's history file,
    or else the one that wrote last. A checkpoint without a history stays.
    """
    logs = {step: _log(path) for step, path in checkpoints.items()}
    told = {step: log for step, log in logs.items() if log}
    longest = max(told.values(), key=len, default=[])
    if all(_agree(log, longest) for log in told.values()):
        return dict(checkpoints)
    newest = _newest_log(folder, checkpoints, told)
    if newest is None:
        warnings.warn(
            f"sepstop: {folder} has checkpoints of more than one run, and neither a history nor "
            "their times tell which is the newest; move the others elsewhere",
            stacklevel=4,
        )
        return dict(checkpoints)
    kept = {step: checkpoints[step] for step, log in logs.items() if _agree(log, newest)}
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
    times = {step: (checkpoints[step] / _STATE).stat().st_mtime_ns for step in logs}
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


def _agree(log: Sequence[str], other: Sequence[str]) -> bool:
    """True if one begins the other."""
    return all(row == known for row, known in zip(log, other, strict=False))


def _log(checkpoint: Path) -> list[str]:
    """The rows of a checkpoint's log, comparable where they hold NaN; empty if unreadable."""
    try:
        found = json.loads((checkpoint / _STATE).read_text())["log_history"]
        return [json.dumps(row, sort_keys=True) for row in found]
    except (OSError, KeyError, RecursionError, TypeError, ValueError):
        return []


def _scores_in(log: Sequence[str]) -> list[str]:
    """Those that the callback put into a log."""
    found = (json.loads(row) for row in log)
    noted = [row["sepstop"] for row in found if isinstance(row, dict) and "sepstop" in row]
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
