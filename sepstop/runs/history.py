"""Histories on disk: the history file of a run, and its copies in trainer_state.json.

``sepstop_history.jsonl`` in a run's folder is the truth. Its first line is a header under the key
"sepstop" with the schema version, the number of records, the settings, the policy and the score
that decides. Then comes a line for each record, with the decision made at it. `read_run` reads it
for every command.

A checkpoint's ``trainer_state.json`` has copies up to the checkpoint's step: a row of
``log_history`` has the plain numbers that trackers show and, under "sepstop", the record, the
decision and what the header says.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from sepstop.runs.checkpoints import find_checkpoints
from sepstop.types import Decision, Outputs, Record

KEY = "sepstop"
SCHEMA = 1
HISTORY_FILE = "sepstop_history.jsonl"  # of a run, in its output folder
SELECTION_FILE = "sepstop_selection.jsonl"  # of its checkpoints, scored afterwards
INFORMATION = "information"  # what `RunHistory.decides` says of `Record.information`

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
_MOST_STEPS = 2**63 - 1


@dataclass(frozen=True)
class RunHistory:
    """The scores of a run and the decisions made on them.

    Attributes:
        records: in order of steps.
        decisions: the decision made at each record; None where it was not written down.
        settings: how the newest records were measured, as `Monitor.settings`; empty if unknown.
        settings_since: first step measured with these settings. Earlier records were measured
            with others, which changed when the run was resumed.
        policy: as `sepstop.utils.registry.describe` gives it; empty if unknown or if no
            policy decided.
        decides: name of the score that the newest decision went by, "information" or the
            criterion's name; empty if unknown.
        ended: step at which training ended; None while it goes on, after a crash, or if unknown.
        is_online: True if the run itself decided, False if `sepstop select` did afterwards.
    """

    records: tuple[Record, ...] = ()
    decisions: tuple[Decision | None, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    settings_since: int = 0
    policy: Mapping[str, Any] = field(default_factory=dict)
    decides: str = ""
    ended: int | None = None
    is_online: bool = True

    @property
    def decision(self) -> Decision | None:
        """The newest decision; None if it was not written down, or before the first record."""
        return self.decisions[-1] if self.decisions else None

    @property
    def by_information(self) -> bool:
        """True if `Record.information` decides, False if `Record.score` does."""
        return self.decides == INFORMATION and not any(
            record.criterion == INFORMATION for record in self.records
        )

    @property
    def measured_alike(self) -> tuple[Record, ...]:
        """The records measured with `settings`; none if these are unknown."""
        since = self.settings_since if self.settings else math.inf
        return tuple(record for record in self.records if record.step >= since)

    def where(self, keep: Callable[[Record], bool]) -> RunHistory:
        """The same with only the records for which ``keep`` is true, and their decisions."""
        kept = [pair for pair in zip(self.records, self.decisions, strict=True) if keep(pair[0])]
        records, decisions = zip(*kept, strict=True) if kept else ((), ())
        return replace(self, records=records, decisions=decisions)


# Records, decisions and headers as JSON


def to_dict(record: Record) -> dict[str, Any]:
    """``record`` as JSON-ready values, NaN and infinity as None."""
    return {key: _jsonable(value) for key, value in dataclasses.asdict(record).items()}


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
        if not _is_step(known["step"]):
            raise ValueError("a step that no run takes")
        return Record(**known)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected a sepstop record, got {values!r:.200}") from error


def decision_to_dict(decision: Decision | None) -> dict[str, Any] | None:
    """``decision`` as JSON-ready values; None stays None."""
    return None if decision is None else dataclasses.asdict(decision)


def _decision_in(values: Mapping[str, Any], step: int) -> Decision | None:
    """The decision under "decision"; earlier versions did not record its step."""
    found = values.get("decision")
    if found is None:
        return None
    if isinstance(found, dict):
        stop, best, reason = (found.get(key) for key in ("stop", "best_step", "reason"))
        at = found.get("step", step)
        are_steps = all(number is None or _is_step(number) for number in (best, at))
        if isinstance(stop, bool) and isinstance(reason, str) and are_steps:
            return Decision(stop, best, reason, at)
    raise ValueError(f"expected a decision, got {found!r:.200}")


def header_of(run: RunHistory) -> dict[str, Any]:
    """What a history says of itself besides its records, ready for JSON."""
    return {
        "settings": dict(run.settings),
        "settings_since": run.settings_since,
        "policy": dict(run.policy),
        "decides": run.decides,
        "ended": run.ended,
    }


def _from_header(values: Mapping[str, Any]) -> RunHistory:
    """The history without records that `header_of` described; unknown keys are ignored."""
    settings, policy = values.get("settings", {}), values.get("policy", {})
    decides, ended = values.get("decides", ""), values.get("ended")
    since = values.get("settings_since", 0)
    if not (
        isinstance(settings, dict)
        and isinstance(policy, dict)
        and all(_fits(key, value) for key, value in settings.items())
        and isinstance(decides, str)
        and (ended is None or _is_step(ended))
        and _is_step(since)
    ):
        raise TypeError("not a header")
    return RunHistory(
        settings=settings, settings_since=since, policy=policy, decides=decides, ended=ended
    )


def _fits(key: str, value: Any) -> bool:
    """Whether a setting is of the kind that `Monitor.settings` has."""
    if key in ("criterion", "embedder"):
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if key in _WHOLE:
        return type(value) is int and 0 <= value <= _WHOLE[key]
    if key == "outputs":
        return value in get_args(Outputs)
    return key != "pool" or isinstance(value, str)


def to_state(run: RunHistory) -> dict[str, Any]:
    """``run`` as one JSON-ready mapping, for the state that another trainer saves."""
    return header_of(run) | {"history": list(_record_lines(run))}


def from_state(values: Mapping[str, Any]) -> RunHistory:
    """The history that `to_state` gave.

    Raises:
        ValueError: not a history.
    """
    try:
        pairs = [_record_and_decision(line) for line in values.get("history", [])]
        return _with_records(_from_header(values), pairs)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"expected a sepstop history, got {values!r:.200}") from error


def _record_lines(run: RunHistory) -> Iterable[dict[str, Any]]:
    for record, decision in zip(run.records, run.decisions, strict=True):
        yield to_dict(record) | {"decision": decision_to_dict(decision)}


def _record_and_decision(values: Mapping[str, Any]) -> tuple[Record, Decision | None]:
    record = from_dict(values)
    return record, _decision_in(values, record.step)


def _with_records(run: RunHistory, pairs: Sequence[tuple[Record, Decision | None]]) -> RunHistory:
    records, decisions = zip(*pairs, strict=True) if pairs else ((), ())
    return replace(run, records=records, decisions=decisions)


# Rows of a log_history


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
        record: of its step.
        decision: made at it; None if the row has none.
        header: the history up to there, without its records.
    """

    record: Record
    decision: Decision | None
    header: RunHistory

    @property
    def settings(self) -> Mapping[str, Any]:
        """How the record was measured."""
        return self.header.settings


def rows_in(log_history: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of sepstop among those of a ``log_history``, in their order.

    Raises:
        ValueError: a row has something else under "sepstop".
    """
    return [_row(row[KEY]) for row in log_history if KEY in row]


def _row(values: Any) -> Row:
    try:
        record = from_dict(values["record"])
        decision, header = _decision_in(values, record.step), _from_header(values)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"expected a sepstop record, got {values!r:.400}") from error
    return Row(record, decision, header)


def records_in(log_history: Iterable[Mapping[str, Any]]) -> list[Record]:
    """The records among the rows of a ``log_history``, in order of steps, one a step.

    Raises:
        ValueError: as `rows_in`.
    """
    return list(from_log(log_history).records)


def from_log(log_history: Iterable[Mapping[str, Any]]) -> RunHistory:
    """The history in the rows of a ``log_history``; without records if it has none.

    The newest row of a step counts. A stop in the newest row is the end of training: nothing here
    says otherwise.

    Raises:
        ValueError: as `rows_in`.
    """
    found = rows_in(log_history)
    if not found:
        return RunHistory()
    by_step = {row.record.step: (row.record, row.decision) for row in found}
    run = _with_records(found[-1].header, [by_step[step] for step in sorted(by_step)])
    if not run.decides:  # earlier versions recorded the policy alone
        informed = any(math.isfinite(record.information) for record in run.records if record.step)
        by_information = run.policy.get("name") == "auto" and informed
        run = replace(run, decides=INFORMATION if by_information else run.records[-1].criterion)
    otherwise = [row.record.step for row in found if row.settings != run.settings]
    if otherwise:
        run = replace(run, settings_since=max(run.settings_since, max(otherwise) + 1))
    stopped = run.decision is not None and run.decision.stop
    return replace(run, ended=run.records[-1].step if stopped else None)


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


def newest_log_history(checkpoints: Mapping[int, Path]) -> list[dict[str, Any]]:
    """``log_history`` of the last checkpoint whose trainer_state.json can be read.

    Args:
        checkpoints: step -> folder.
    """
    for step in sorted(checkpoints, reverse=True):
        try:
            return read_log_history(checkpoints[step])
        except ValueError as error:
            warnings.warn(f"{error}; looking into the checkpoint before", stacklevel=3)
    return []


# Files of a run


def read_run(run_dir: str | os.PathLike[str]) -> RunHistory:
    """The scores in a run's folder and the decisions made on them.

    The history file comes first, then copies in trainer_state.json, then the file that
    `sepstop select` leaves. Of a history file of an earlier version, which has no decisions, the
    scores come last, with a warning.

    Returns:
        The history; without records if the run has begun and was not scored yet.

    Raises:
        FileNotFoundError: no folder, or no scores in it.
        ValueError: a file is broken or of a newer version; the message names it and the line.
    """
    online = read_online(run_dir)
    if online is not None and online.decision is not None:
        return online
    chosen = _chosen_afterwards(Path(run_dir))
    if chosen is not None:
        return chosen
    if online is not None:
        return online
    raise FileNotFoundError(
        f"no scores in {run_dir}: a run with the callback leaves {HISTORY_FILE}, and "
        f"`sepstop select` {SELECTION_FILE}"
    )


def read_online(run_dir: str | os.PathLike[str]) -> RunHistory | None:
    """As `read_run`, but only what the run itself wrote down; None if it wrote nothing.

    Raises:
        FileNotFoundError: no folder.
        ValueError: as `read_run`.
    """
    folder, path = Path(run_dir), Path(run_dir) / HISTORY_FILE
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    found = _read_file(path) if path.is_file() else None
    if found is not None and found.decides:
        return found
    with suppress(FileNotFoundError):  # a run may have kept no checkpoint
        copies = from_log(newest_log_history(find_checkpoints(folder)))
        if copies.records:
            return copies
    if found is None or not found.records:
        return None
    warnings.warn(
        f"sepstop: {path} was written by an earlier version, which recorded neither settings nor "
        "decisions; its scores are shown without a decision",
        stacklevel=3,
    )
    return found


def _chosen_afterwards(folder: Path) -> RunHistory | None:
    """What `sepstop select` left, unless a run has begun in the folder since."""
    path, own = folder / SELECTION_FILE, folder / HISTORY_FILE
    if not path.is_file():
        return None
    if own.is_file() and own.stat().st_mtime_ns > path.stat().st_mtime_ns:
        return None
    chosen = replace(_read_file(path), is_online=False)
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
        stored = _read_file(Path(path))
    except FileNotFoundError:
        return known
    except (OSError, ValueError) as error:
        warnings.warn(
            f"sepstop: {error}; the run goes on from what its checkpoint knows", stacklevel=3
        )
        return known
    count = len(known.records)
    # NaN is not equal to itself, but None is.
    if list(map(to_dict, stored.records[:count])) != list(map(to_dict, known.records)):
        return known
    decisions = known.decisions + stored.decisions[count:]
    return replace(known, records=stored.records, decisions=decisions)


def read_history(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a file that `write_history` or `write_run` wrote.

    Raises:
        ValueError: a line is no record; the message has its number.
    """
    return list(_read_file(Path(path)).records)


def _read_file(path: Path) -> RunHistory:
    """A history file, with or without a header."""
    run = RunHistory()
    pairs: list[tuple[Record, Decision | None]] = []
    count = None
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            values = json.loads(line)
            if number == 1 and isinstance(values, dict) and KEY in values:
                run, count = _read_header(values[KEY]), values[KEY].get("count")
            else:
                pairs.append(_record_and_decision(values))
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    steps = [record.step for record, _ in pairs]
    # Earlier versions did not count them.
    if count is not None and (count != len(steps) or steps != sorted(set(steps))):
        raise ValueError(
            f"{path} is cut short or was changed: expected {count!r} scores in order of steps, "
            f"got {len(steps)}, at steps {steps!s:.80}"
        )
    return _with_records(run, pairs)


def _read_header(values: Any) -> RunHistory:
    schema = values.get("schema") if isinstance(values, dict) else None
    if type(schema) is int and schema > SCHEMA:
        raise ValueError(
            f"schema {schema} of a newer version of sepstop, expected at most {SCHEMA}; update "
            "sepstop to read it"
        )
    try:
        run = _from_header(values)
        if schema != SCHEMA or not run.decides:
            raise TypeError("no schema, or nothing that decides")
    except (AttributeError, TypeError) as error:
        raise ValueError(f"expected a header of sepstop, got {values!r:.400}") from error
    return run


def write_run(path: str | os.PathLike[str], run: RunHistory) -> None:
    """A header, then one JSON object a record; the file is replaced as a whole or not at all.

    Raises:
        OSError: a full or forbidden disk.
    """
    _write_lines(Path(path), _lines(run))


def try_to_write_run(path: str | os.PathLike[str], run: RunHistory) -> None:
    """`write_run`, where a full or forbidden disk is a warning."""
    _or_warn(Path(path), _lines(run))


def _lines(run: RunHistory) -> list[dict[str, Any]]:
    header = {"schema": SCHEMA, "count": len(run.records)} | header_of(run)
    return [{KEY: header}, *_record_lines(run)]


def write_history(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Records alone, one JSON object a line; the file is replaced as a whole or not at all.

    Raises:
        OSError: a full or forbidden disk.
    """
    _write_lines(Path(path), map(to_dict, records))


def try_to_write(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """`write_history`, where a full or forbidden disk is a warning."""
    _or_warn(Path(path), map(to_dict, records))


def _or_warn(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    try:
        _write_lines(path, lines)
    except OSError as error:
        warnings.warn(f"sepstop: could not write {path}: {error}", RuntimeWarning, stacklevel=4)


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, allow_nan=False) for row in rows]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text("".join(line + "\n" for line in lines))
    os.replace(unfinished, path)


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_STEPS


def _jsonable(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_jsonable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else float(value)
