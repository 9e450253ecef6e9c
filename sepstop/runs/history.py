"""The history file of a run, and its copies in trainer_state.json.

``sepstop_history.jsonl`` in a run's folder is the truth. Its first line is a header under the key
"sepstop": schema version, number of records, settings, policy, and the score that decides. One line
per record follows, with the decision made at it. `read_run` reads it for every command.

A checkpoint's ``trainer_state.json`` has copies up to the checkpoint's step: a row of
``log_history`` has the plain numbers that trackers show and, under "sepstop", the record, the
decision and the header.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sepstop.decide.selection import Selection
from sepstop.runs.checkpoints import find_checkpoints
from sepstop.runs.records import (
    OLD,
    RunHistory,
    decision_from_dict,
    decision_to_dict,
    header_from_dict,
    header_to_dict,
    lines_of,
    pair_from_dict,
    record_from_dict,
    record_to_dict,
)
from sepstop.types import Decision, Record
from sepstop.utils.files import write_atomically, write_or_warn

KEY = "sepstop"
SCHEMA = 3
_READABLE = (2, 3)  # 2 knows no averages
HISTORY_FILE = "sepstop_history.jsonl"  # of a run, in its output folder
SELECTION_FILE = "sepstop_selection.jsonl"  # of its checkpoints, scored afterwards

_OLD_FILE = f"{OLD}; remove the file and score the checkpoints with `sepstop select`"


# Rows of a log_history


def scalars(record: Record) -> dict[str, float]:
    """The scores of a record, as trackers and ``metric_for_best_model`` see them.

    Each score and its bounds are ``eval_<name>``, ``eval_<name>_low``, ``eval_<name>_high``. At
    a step with several candidates, the scores of each are ``eval_<name>_of_<candidate>`` as well,
    without bounds.
    """
    values = {}
    for name, score in record.scores.items():
        values[f"eval_{name}"] = score.value
        values[f"eval_{name}_low"] = score.low
        values[f"eval_{name}_high"] = score.high
    for candidate, scores in record.candidates.items() if record.others else ():
        for name, score in scores.items():
            values[f"eval_{name}_of_{candidate}"] = score.value
    return values


class Row(NamedTuple):
    """What a row of a ``log_history`` has under "sepstop".

    Attributes:
        record: of its step.
        decision: made at it; None if the row has none.
        header: the history up to there, without its records.
    """

    record: Record
    decision: Decision | None
    header: RunHistory


def row_to_dict(record: Record, decision: Decision, run: RunHistory) -> dict[str, Any]:
    """A row's value under "sepstop", ready for JSON."""
    return {
        "record": record_to_dict(record),
        "decision": decision_to_dict(decision),
        **header_to_dict(run),
    }


def rows_in(log_history: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of sepstop among those of a ``log_history``, in their order.

    Raises:
        ValueError: a row has something else under "sepstop".
    """
    return [_row(row[KEY]) for row in log_history if KEY in row]


def _row(values: Any) -> Row:
    try:
        record = record_from_dict(values["record"])
        decision = decision_from_dict(values.get("decision"), record.step)
        return Row(record, decision, header_from_dict(values))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"expected a sepstop record, got {values!r:.400}") from error


def from_log(log_history: Iterable[Mapping[str, Any]]) -> RunHistory:
    """The history in the rows of a ``log_history``; without records if it has none.

    The newest row of a step counts. A stop in the newest row counts as the end of training.

    Raises:
        ValueError: as `rows_in`.
    """
    found = rows_in(log_history)
    if not found:
        return RunHistory()
    by_step = {row.record.step: (row.record, row.decision) for row in found}
    run = found[-1].header.with_pairs([by_step[step] for step in sorted(by_step)])
    otherwise = [row.record.step for row in found if row.header.settings != run.settings]
    if otherwise:
        run = replace(run, settings_since=max(run.settings_since, max(otherwise) + 1))
    stopped = run.decision is not None and run.decision.stop
    return replace(run, ended=run.records[-1].step if stopped else None)


def read_log_history(checkpoint: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """``log_history`` of a checkpoint's trainer_state.json; empty if there is none.

    Raises:
        ValueError: the file is not what Trainer writes, or one of sepstop's rows is broken or of an
            earlier version.
    """
    path = Path(checkpoint) / "trainer_state.json"
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text())["log_history"]
        if not all(isinstance(row, dict) for row in rows):
            raise TypeError("a row is not an object")
        rows_in(rows)
        return list(rows)
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a trainer state: {error}") from error


def newest_log_history(checkpoints: Mapping[int, Path]) -> list[dict[str, Any]]:
    """``log_history`` of the last checkpoint whose trainer_state.json can be read.

    Args:
        checkpoints: step -> folder.
    """
    for step in sorted(checkpoints, reverse=True):
        try:
            return read_log_history(checkpoints[step])
        except ValueError as error:
            warnings.warn(f"sepstop: {error}; the checkpoint before is read instead", stacklevel=3)
    return []


# Files of a run


def read_run(run_dir: str | os.PathLike[str]) -> RunHistory:
    """The scores in a run's folder and the decisions made on them.

    The history file comes first, then copies in trainer_state.json, then the file that
    `sepstop select` leaves.

    Returns:
        The history; without records if the run has begun and was not scored yet.

    Raises:
        FileNotFoundError: no folder, or no scores in it.
        ValueError: a file is broken or of another version; the message names it and the line.
    """
    online = read_online(run_dir)
    if online is not None and online.decision is not None:
        return online
    found = _chosen_afterwards(Path(run_dir)) or online
    if found is None:
        raise FileNotFoundError(
            f"no scores in {run_dir}: a run with the callback leaves {HISTORY_FILE}, and "
            f"`sepstop select` {SELECTION_FILE}"
        )
    return found


def read_online(run_dir: str | os.PathLike[str]) -> RunHistory | None:
    """What the run itself wrote down, as `read_run`; None if it wrote nothing.

    Raises:
        FileNotFoundError: no folder.
        ValueError: as `read_run`.
    """
    folder, path = Path(run_dir), Path(run_dir) / HISTORY_FILE
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    if path.is_file():
        return read_history(path)
    with suppress(FileNotFoundError):  # a run may have kept no checkpoint
        copies = from_log(newest_log_history(find_checkpoints(folder)))
        if copies.records:
            return copies
    return None


def _chosen_afterwards(folder: Path) -> RunHistory | None:
    """What `sepstop select` left, unless a run has begun in the folder since."""
    path, own = folder / SELECTION_FILE, folder / HISTORY_FILE
    if not path.is_file():
        return None
    if own.is_file() and own.stat().st_mtime_ns > path.stat().st_mtime_ns:
        return None
    chosen = replace(read_history(path), is_online=False)
    if chosen.decision is None:
        raise ValueError(
            f"{path} does not say which checkpoint to keep: run `sepstop select` again"
        )
    return chosen


def continuation(path: str | os.PathLike[str], known: RunHistory) -> RunHistory:
    """``known`` with the later records of a history file, if the file goes on from it.

    A broken file is a warning.
    """
    try:
        stored = read_history(path)
    except FileNotFoundError:
        return known
    except (OSError, ValueError) as error:
        warnings.warn(
            f"sepstop: {error}; the run goes on from what its checkpoint knows", stacklevel=3
        )
        return known
    count = len(known.records)
    # NaN is not equal to itself, but None is.
    if list(map(record_to_dict, stored.records[:count])) != list(
        map(record_to_dict, known.records)
    ):
        return known
    decisions = known.decisions + stored.decisions[count:]
    return replace(known, records=stored.records, decisions=decisions)


def read_history(path: str | os.PathLike[str]) -> RunHistory:
    """The history in a file that `write_history` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not a record, or the file is cut short or of another version.
    """
    path = Path(path)
    header, *lines = path.read_bytes().splitlines() or [b""]
    run, count = _read_header(path, header)
    pairs: list[tuple[Record, Decision | None]] = []
    for number, line in enumerate(lines, start=2):
        try:
            pairs.append(pair_from_dict(json.loads(line)))
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    steps = [record.step for record, _ in pairs]
    if count != len(steps) or steps != sorted(set(steps)):
        raise ValueError(
            f"{path} is cut short or was changed: expected {count!r} scores by step, "
            f"got {len(steps)}, at steps {steps!s:.80}"
        )
    return run.with_pairs(pairs)


def _read_header(path: Path, line: bytes) -> tuple[RunHistory, Any]:
    """The history without records, and how many there should be."""
    try:
        found = json.loads(line)
        values = found.get(KEY, {})
        schema = values.get("schema")
        if type(schema) is int and schema > SCHEMA:
            raise ValueError(
                f"schema {schema} of a newer version of sepstop, expected at most {SCHEMA}; update "
                "sepstop to read it"
            )
        if schema in range(min(_READABLE)) or "score" in found:
            raise ValueError(_OLD_FILE)
        if schema not in _READABLE:
            raise TypeError("not a header")
        return header_from_dict(values), values.get("count")
    except (AttributeError, TypeError) as error:
        what = f"expected a header of sepstop, got {line.decode(errors='replace'):.400}"
        raise ValueError(f"{path}, line 1: {what}") from error
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}, line 1: {error}") from error


def write_history(path: str | os.PathLike[str], run: RunHistory) -> None:
    """Write a header, then one JSON object per record, all or nothing.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    write_atomically(path, _content(run))


def try_to_write_history(path: str | os.PathLike[str], run: RunHistory) -> None:
    """`write_history`, with a warning instead of the error."""
    write_or_warn(path, _content(run), stacklevel=2)


def write_selection(run_dir: str | os.PathLike[str], selection: Selection) -> None:
    """Leave a selection in the run's folder, for the commands that show it."""
    try_to_write_history(Path(run_dir) / SELECTION_FILE, history_of_selection(selection))


def history_of_selection(selection: Selection) -> RunHistory:
    """The scored checkpoints as a history that was decided after the run."""
    decisions = (*[None] * (len(selection.records) - 1), selection.decision)
    return RunHistory(
        selection.records,
        decisions,
        settings=selection.settings,
        decides=selection.decides,
        higher_is_better=selection.higher_is_better,
        is_online=False,
    )


def _content(run: RunHistory) -> bytes:
    header = {"schema": SCHEMA, "count": len(run.records)} | header_to_dict(run)
    lines = [{KEY: header}, *lines_of(run)]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
