"""Records, decisions and histories as JSON values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from sepstop.types import Average, Decision, Outputs, Record, Score, Series

_WHOLE = {  # whole-number settings and the largest value accepted from a file
    "num_resamples": 100_000,
    "resample_size": 2**40,
    "seed": 2**63 - 1,
    "max_length": 2**40,
    "pool_size": 2**40,
}
_MOST_STEPS = 2**63 - 1

OLD = "written by an earlier development version of sepstop"


@dataclass(frozen=True)
class RunHistory:
    """The scores of a run and the decisions made on them.

    Attributes:
        records: by step.
        decisions: the decision made at each record; None for those scored after the run, and for a
            record without a decision.
        settings: how the newest records were measured, as
            `sepstop.measure.monitor.Monitor.settings`; empty if unknown.
        settings_since: first step measured with these settings. Earlier records were measured with
            others, which changed when the run was resumed.
        policy: as `sepstop.utils.registry.describe` gives it; empty if no policy decided.
        decides: name of the score that decides.
        higher_is_better: direction of each score, by name.
        ended: step at which training ended; None while it goes on, after a crash, or if unknown.
        is_online: True if the run itself decided, False if `sepstop select` did afterwards.
    """

    records: tuple[Record, ...] = ()
    decisions: tuple[Decision | None, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    settings_since: int = 0
    policy: Mapping[str, Any] = field(default_factory=dict)
    decides: str = ""
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    ended: int | None = None
    is_online: bool = True

    @property
    def decision(self) -> Decision | None:
        """The newest decision; None without one."""
        return self.decisions[-1] if self.decisions else None

    @property
    def series(self) -> Series:
        """The score that decides."""
        return self.series_of(self.decides)

    def series_of(self, name: str) -> Series:
        return Series.of(self.records, name, self.higher_is_better.get(name, True))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all scores, the one that decides first."""
        found = dict.fromkeys(name for record in self.records for name in record.scores)
        return tuple(dict.fromkeys([*([self.decides] if self.decides in found else []), *found]))

    @property
    def measured_alike(self) -> tuple[Record, ...]:
        """The records measured with `settings`; none if these are unknown."""
        since = self.settings_since if self.settings else math.inf
        return tuple(record for record in self.records if record.step >= since)

    def where(self, keep: Callable[[Record], bool]) -> RunHistory:
        """The same with only the records for which ``keep`` is true, and their decisions."""
        pairs = zip(self.records, self.decisions, strict=True)
        return self.with_pairs([pair for pair in pairs if keep(pair[0])])

    def with_pairs(self, pairs: Sequence[tuple[Record, Decision | None]]) -> RunHistory:
        """The same with these records and the decisions made at them."""
        records, decisions = zip(*pairs, strict=True) if pairs else ((), ())
        return replace(self, records=records, decisions=decisions)


# To JSON


def record_to_dict(record: Record) -> dict[str, Any]:
    """``record`` as JSON-ready values, NaN and infinity as None."""
    return {
        "step": record.step,
        "epoch": _jsonable(record.epoch),
        "scores": _scores_to_dict(record.scores),
        "seconds": _jsonable(record.seconds),
        "resample_size": record.resample_size,
        "pool_size": record.pool_size,
        "average": None if record.average is None else dataclasses.asdict(record.average),
        "others": {name: _scores_to_dict(scores) for name, scores in record.others.items()},
    }


def _scores_to_dict(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {
        name: {
            "value": _jsonable(score.value),
            "low": _jsonable(score.low),
            "high": _jsonable(score.high),
            "resample_values": [_jsonable(value) for value in score.resample_values],
        }
        for name, score in scores.items()
    }


def decision_to_dict(decision: Decision | None) -> dict[str, Any] | None:
    """``decision`` as JSON-ready values; None stays None."""
    return None if decision is None else dataclasses.asdict(decision)


def header_to_dict(run: RunHistory) -> dict[str, Any]:
    """``run`` without its records, ready for JSON."""
    return {
        "settings": dict(run.settings),
        "settings_since": run.settings_since,
        "policy": dict(run.policy),
        "decides": run.decides,
        "higher_is_better": dict(run.higher_is_better),
        "ended": run.ended,
    }


def lines_of(run: RunHistory) -> Iterable[dict[str, Any]]:
    """One JSON-ready mapping per record, with the decision made at it."""
    for record, decision in zip(run.records, run.decisions, strict=True):
        yield record_to_dict(record) | {"decision": decision_to_dict(decision)}


def to_state(run: RunHistory) -> dict[str, Any]:
    """``run`` as one JSON-ready mapping, for the state that another trainer saves."""
    return header_to_dict(run) | {"history": list(lines_of(run))}


# From JSON


def record_from_dict(values: Mapping[str, Any]) -> Record:
    """The record that `record_to_dict` wrote; unknown keys of newer versions are ignored.

    Raises:
        ValueError: not a record, or one of an earlier version.
    """
    if isinstance(values, Mapping) and "score" in values and "scores" not in values:
        raise ValueError(
            f"a record {OLD}; start the run again, or score its checkpoints with `sepstop select`"
        )
    try:
        step, epoch = values["step"], values.get("epoch")
        if not is_step(step):
            raise ValueError(f"expected a step from 0 to {_MOST_STEPS}")
        return Record(
            step=step,
            epoch=None if epoch is None else float(epoch),
            scores=_scores(values["scores"]),
            seconds=_number(values.get("seconds", 0.0)),
            resample_size=int(values.get("resample_size", 0)),
            pool_size=int(values.get("pool_size", 0)),
            average=_average(values.get("average")),
            others={
                _name(name): _scores(scores) for name, scores in values.get("others", {}).items()
            },
        )
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected a sepstop record, got {values!r:.200}") from error


def pair_from_dict(values: Mapping[str, Any]) -> tuple[Record, Decision | None]:
    """The record and the decision of one of `lines_of`.

    Raises:
        ValueError: not a record with its decision.
    """
    record = record_from_dict(values)
    return record, decision_from_dict(values.get("decision"), record.step)


def decision_from_dict(found: Any, step: int) -> Decision | None:
    """The decision that `decision_to_dict` wrote; None for None.

    Raises:
        ValueError: not a decision.
    """
    if found is None:
        return None
    if isinstance(found, dict):
        stop, best, reason = (found.get(key) for key in ("stop", "best_step", "reason"))
        at = found.get("step", step)
        are_steps = all(number is None or is_step(number) for number in (best, at))
        if isinstance(stop, bool) and isinstance(reason, str) and are_steps:
            return Decision(stop, best, reason, at)
    raise ValueError(f"expected a decision, got {found!r:.200}")


def header_from_dict(values: Mapping[str, Any]) -> RunHistory:
    """The history without records that `header_to_dict` wrote; unknown keys are ignored.

    Raises:
        TypeError: not a header.
    """
    settings, policy = values.get("settings", {}), values.get("policy", {})
    decides, directions = values.get("decides"), values.get("higher_is_better", {})
    since, ended = values.get("settings_since", 0), values.get("ended")
    if not (
        isinstance(settings, dict)
        and isinstance(policy, dict)
        and all(_fits(key, value) for key, value in settings.items())
        and isinstance(decides, str)
        and decides
        and isinstance(directions, dict)
        and decides in directions
        and all(isinstance(value, bool) for value in directions.values())
        and (ended is None or is_step(ended))
        and is_step(since)
    ):
        raise TypeError("not a header")
    return RunHistory(
        settings=settings,
        settings_since=since,
        policy=policy,
        decides=decides,
        higher_is_better=directions,
        ended=ended,
    )


def from_state(values: Mapping[str, Any]) -> RunHistory:
    """The history that `to_state` gave.

    Raises:
        ValueError: not a history.
    """
    try:
        pairs = [pair_from_dict(line) for line in values.get("history", [])]
        return header_from_dict(values).with_pairs(pairs)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"expected a sepstop history, got {values!r:.200}") from error


def is_step(value: Any) -> bool:
    """True for a number of steps that a run can take."""
    return type(value) is int and 0 <= value <= _MOST_STEPS


def _fits(key: str, value: Any) -> bool:
    """True if a setting is of the kind that `Monitor.settings` has."""
    if key in ("criterion", "pooling"):
        return _is_described(value)
    if key == "extra_criteria":
        return isinstance(value, list) and all(map(_is_described, value))
    if key in _WHOLE:
        return type(value) is int and 0 <= value <= _WHOLE[key]
    if key == "outputs":
        return value in get_args(Outputs)
    if key in ("average", "score_checkpoints"):
        return isinstance(value, bool)
    if key == "answers":
        return type(value) is int or (
            isinstance(value, list) and all(isinstance(one, (str, list)) for one in value)
        )
    if key == "answer_end":
        return isinstance(value, str)
    return key != "pool" or isinstance(value, str)


def _is_described(value: Any) -> bool:
    """True for a mapping of names, as `describe` gives it."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        return False
    return all(isinstance(value.get(key, ""), str) for key in ("name", "custom"))


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("the name of a score is not a string")
    return value


def _scores(values: Mapping[str, Any]) -> dict[str, Score]:
    return {_name(name): _score(score) for name, score in values.items()}


def _average(values: Mapping[str, Any] | None) -> Average | None:
    if values is None:
        return None
    steps = [values[key] for key in ("first_step", "last_step", "count")]
    if not all(map(is_step, steps)):
        raise ValueError("expected the steps of an average as whole numbers")
    return Average(_name(values["name"]), *steps)


def _score(values: Mapping[str, Any]) -> Score:
    return Score(
        _number(values["value"]),
        _number(values.get("low")),
        _number(values.get("high")),
        tuple(_number(value) for value in values.get("resample_values", ())),
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _jsonable(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
