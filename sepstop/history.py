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
from typing import Any, NamedTuple

from sepstop.types import Decision, Record

KEY = "sepstop"
HISTORY_FILE = "sepstop_history.jsonl"  # of a run, in its output folder
SELECTION_FILE = "sepstop_selection.jsonl"  # of its checkpoints, scored afterwards
_FIELDS = {field.name for field in dataclasses.fields(Record)}
_KINDS = {"step": int, "epoch": float, "seconds": float, "resample_size": int, "pool_size": int}
# Settings that are whole numbers, and the most that is believed of a file.
_WHOLE = {
    "resamples": 100_000,
    "resample_size": 2**40,
    "seed": 2**63 - 1,
    "max_length": 2**40,
    "pool_size": 2**40,
}


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
        for key in ("resamples", "information_resamples"):
            known[key] = tuple(_nan_if_none(value) for value in known.get(key, ()))
        for key, kind in _KINDS.items():
            if key in known and not (key == "epoch" and known[key] is None):
                known[key] = kind(known[key])
        if not all(isinstance(known.get(key, ""), str) for key in ("criterion", "information_of")):
            raise TypeError("a name is no string")
        return Record(**known)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
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


class Row(NamedTuple):
    """What a row of a ``log_history`` has under "sepstop".

    Attributes:
        record, decision: of its step.
        settings: how it was measured, as `Monitor.settings`.
        policy: as `sepstop.names.describe` puts it; of older versions unknown, and empty.
    """

    record: Record
    settings: dict[str, Any]
    policy: dict[str, Any]
    decision: Decision


def rows_in(log_history: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of sepstop among those of a ``log_history``, in their order.

    Raises:
        ValueError: a row has something else under "sepstop".
    """
    return [_row(row[KEY]) for row in log_history if KEY in row]


def _row(values: Any) -> Row:
    try:
        record = from_dict(values["record"])
        settings, policy = values.get("settings", {}), values.get("policy", {})
        decision = values.get("decision", {})
        stop, best, why = (decision.get(key) for key in ("stop", "best_step", "reason"))
        fits = (
            all(isinstance(value, dict) for value in (settings, policy))
            and all(_fits(key, value) for key, value in settings.items())
            and isinstance(stop or False, bool)
            and isinstance(best or 0, int)
            and isinstance(why or "", str)
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"expected a sepstop record, got {values!r:.200}") from error
    if not fits:
        raise ValueError(f"expected settings and decision of sepstop, got {values!r:.400}")
    return Row(record, settings, policy, Decision(bool(stop), best, why or "", record.step))


def _fits(key: str, value: Any) -> bool:
    """Whether a setting is of the kind that `Monitor.settings` has."""
    if key in ("criterion", "embedder"):
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if key in _WHOLE:
        return type(value) is int and 0 <= value <= _WHOLE[key]
    return key != "pool" or isinstance(value, str)


def records_in(log_history: Iterable[Mapping[str, Any]]) -> list[Record]:
    """The records among the rows of a ``log_history``, in order of steps, one a step.

    Raises:
        ValueError: as `rows_in`.
    """
    by_step = {row.record.step: row.record for row in rows_in(log_history)}
    return [by_step[step] for step in sorted(by_step)]


def settings_in(log_history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How the newest record of a ``log_history`` was measured; None if there is none.

    Raises:
        ValueError: as `rows_in`.
    """
    found = rows_in(log_history)
    return found[-1].settings if found else None


def read_log_history(checkpoint: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """``log_history`` of a checkpoint's trainer_state.json; empty where there is none.

    Raises:
        ValueError: the file is not what Trainer writes, or has something else where sepstop's
            rows are.
    """
    path = Path(checkpoint) / "trainer_state.json"
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text())["log_history"]
        if not all(isinstance(row, dict) for row in rows):
            raise TypeError("a row is no object")
        rows_in(rows)
        return list(rows)
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no trainer state: {error}") from error


def write_history(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """One JSON object a line; the file is replaced as a whole or not at all."""
    _write_lines(Path(path), map(to_dict, records))


def try_to_write(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """`write_history`, where a full or forbidden disk is a warning."""
    _or_warn(Path(path), map(to_dict, records))


def try_to_write_selection(
    path: str | os.PathLike[str],
    records: Iterable[Record],
    decision: Decision,
    by_information: bool,
) -> None:
    """As `try_to_write`; the line of the checkpoint to keep says why, for `read_selection`."""
    kept = {
        "reason": decision.reason,
        "stop_step": decision.step if decision.stop else None,
        "by_information": by_information,
    }
    lines = [
        to_dict(record) | ({"kept": kept} if record.step == decision.best_step else {})
        for record in records
    ]
    _or_warn(Path(path), lines)


def _or_warn(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    try:
        _write_lines(path, rows)
    except OSError as error:
        warnings.warn(f"sepstop: could not write {path}: {error}", RuntimeWarning, stacklevel=4)


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, allow_nan=False) for row in rows]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text("".join(line + "\n" for line in lines))
    os.replace(unfinished, path)


def read_history(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a file that `write_history` wrote.

    Raises:
        ValueError: a line is no record; the message has its number.
    """
    records = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            records.append(from_dict(json.loads(line)))
        except (RecursionError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return records


def read_selection(path: str | os.PathLike[str]) -> tuple[list[Record], Decision, bool]:
    """Records, decision and whether by the information, as `try_to_write_selection` wrote them.

    Raises:
        ValueError: a line is no record, or none says that it is the one to keep.
    """
    records = read_history(path)
    for record, line in zip(records, Path(path).read_bytes().splitlines(), strict=True):
        kept = json.loads(line).get("kept")
        if kept is None:
            continue
        fits = isinstance(kept, dict) and isinstance(kept.get("reason"), str)
        stop = kept.get("stop_step") if fits else None
        if not fits or not isinstance(stop or 0, int):
            raise ValueError(f"{path}: expected why a checkpoint is kept, got {kept!r:.200}")
        step = records[-1].step if stop is None else stop
        decision = Decision(stop is not None, record.step, kept["reason"], step)
        return records, decision, bool(kept.get("by_information"))
    raise ValueError(f"{path} does not say which checkpoint to keep: run `sepstop select` again")


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
