"""Records on disk: rows of trainer_state.json's log_history, and JSON Lines.

A row in log_history has the plain numbers that trackers show and, under the key "sepstop",
the whole record with the settings it was measured with.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sepstop.types import Record

KEY = "sepstop"
HISTORY_FILE = "sepstop_history.jsonl"  # of a run, in its output folder
SELECTION_FILE = "sepstop_selection.jsonl"  # of its checkpoints, scored afterwards
_FIELDS = {field.name for field in dataclasses.fields(Record)}


def to_dict(record: Record) -> dict[str, Any]:
    """``record`` as JSON-ready values, NaN and infinity as None."""
    values = dataclasses.asdict(record)
    return {key: _jsonable(value) for key, value in values.items()}


def from_dict(values: Mapping[str, Any]) -> Record:
    """The record that `to_dict` wrote; unknown keys of newer versions are ignored.

    Raises:
        ValueError: not a record.
    """
    try:
        known = {key: value for key, value in values.items() if key in _FIELDS}
        known.setdefault("epoch", None)
        known["score"] = _nan_if_none(known["score"])
        for key in ("low", "high", "information", "information_low", "information_high"):
            known[key] = _nan_if_none(known.get(key))
        known["step"] = int(known["step"])
        for key in ("resamples", "information_resamples"):
            known[key] = tuple(_nan_if_none(value) for value in known.get(key, ()))
        return Record(**known)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected a sepstop record, got {values!r:.200}") from error


def scalars(record: Record) -> dict[str, float]:
    """What trackers and ``metric_for_best_model`` see: ``eval_<criterion>`` and its bounds, and
    ``eval_information`` and its bounds."""
    values = {}
    if math.isfinite(record.information):
        values = _scalars(
            "information", record.information, record.information_low, record.information_high
        )
    return values | _scalars(record.criterion, record.score, record.low, record.high)


def _scalars(name: str, score: float, low: float, high: float) -> dict[str, float]:
    return {f"eval_{name}": score, f"eval_{name}_low": low, f"eval_{name}_high": high}


def records_in(log_history: Iterable[Mapping[str, Any]]) -> list[Record]:
    """The records among the rows of a ``log_history``, in order of steps, one a step.

    Raises:
        ValueError: a row has something else under "sepstop".
    """
    by_step = {}
    for row in log_history:
        if KEY in row:
            try:
                record = from_dict(row[KEY]["record"])
            except (KeyError, TypeError) as error:
                raise ValueError(f"expected a sepstop record, got {row[KEY]!r:.200}") from error
            by_step[record.step] = record
    return [by_step[step] for step in sorted(by_step)]


def settings_in(log_history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How the newest record of a ``log_history`` was measured; None if there is none."""
    for row in reversed(log_history):
        if KEY in row:
            return dict(row[KEY]["settings"])
    return None


def read_log_history(checkpoint: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """``log_history`` of a checkpoint's trainer_state.json; empty where there is none.

    Raises:
        ValueError: the file is not what Trainer writes.
    """
    path = Path(checkpoint) / "trainer_state.json"
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text())["log_history"]
        if not all(isinstance(row, dict) for row in rows):
            raise TypeError("a row is no object")
        return list(rows)
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no trainer state: {error}") from error


def write_history(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """One JSON object a line; the file is replaced as a whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(to_dict(record), allow_nan=False) for record in records]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text("".join(line + "\n" for line in lines))
    os.replace(unfinished, path)


def try_to_write(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """`write_history`, where a full or forbidden disk is a warning."""
    try:
        write_history(path, records)
    except OSError as error:
        warnings.warn(f"sepstop: could not write {path}: {error}", RuntimeWarning, stacklevel=3)


def read_history(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a file that `write_history` wrote.

    Raises:
        ValueError: a line is no record; the message has its number.
    """
    records = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        try:
            records.append(from_dict(json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return records


def continuation(path: str | os.PathLike[str], history: list[Record]) -> list[Record]:
    """The records of a file that goes on from ``history``; or ``history`` if it doesn't."""
    try:
        stored = read_history(path)
    except (OSError, ValueError):
        return history
    prefix = stored[: len(history)]
    # NaN is not equal to itself, but None is.
    return stored if list(map(to_dict, prefix)) == list(map(to_dict, history)) else history


def _jsonable(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_jsonable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else float(value)
