"""When to stop: pure functions of the history.

The step to keep is the one with the best score (the earliest of equals), which is also what
transformers' ``metric_for_best_model`` keeps; but for a policy that picks by itself, as
`Auto` does. Measurements at step 0 are not candidates, for no checkpoint of them exists, and
non-finite ones are skipped or stop the run as configured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sepstop.measure.resampling import improvement_p_value
from sepstop.types import Decision, Policy, Record

Mode = Literal["max", "min"]
NonFinite = Literal["skip", "stop"]


def best_record(history: Sequence[Record], mode: Mode = "max") -> Record | None:
    """The finite record after training began with the best score, the earliest of equals."""
    candidates = [record for record in history if record.is_finite and record.step > 0]
    if not candidates:
        return None
    sign = _sign(mode)
    return max(candidates, key=lambda record: (sign * record.score, -record.step))


def decide(
    policy: Policy, history: Sequence[Record], mode: Mode | None = None, after: int = -1
) -> Decision:
    """The decision on the newest record of a run that may have gone on after a stop.

    Records after a stop mean that somebody told the run to go on: the policy starts afresh
    on them. Likewise it looks only at records after step ``after``. The best step is always that
    of the whole run. A policy that names no step looked at all records.

    Raises:
        ValueError: the policy names a step that it did not look at.
    """
    start = sum(record.step <= after for record in history)
    decision = policy(history[start:])
    while decision.stop and decision.step is not None and decision.step < history[-1].step:
        stopped = decision.step
        afresh = next(i for i, record in enumerate(history) if record.step > stopped)
        if afresh <= start:
            break  # a policy that names the same step for ever
        start, decision = afresh, policy(history[afresh:])
    direction: Mode = getattr(policy, "mode", "max") if mode is None else mode
    pick = getattr(policy, "pick", None)
    best = pick(history) if pick else best_record(history, direction)
    newest = history[-1].step if history else None
    step = newest if decision.step is None else int(decision.step)
    if step is not None and not 0 <= step <= (newest or 0):
        raise ValueError(f"the policy looked at steps up to {newest}, but says {step}")
    return Decision(
        bool(decision.stop),
        None if best is None else best.step,
        str(decision.reason or "no reason given"),
        step,
    )


def replay(policy: Policy, history: Sequence[Record]) -> Decision:
    """The decision at which a run would have ended: the first that stops, or else the last."""
    decision = decide(policy, [])
    for end in range(1, len(history) + 1):
        decision = decide(policy, history[:end])
        if decision.stop:
            break
    return decision


@dataclass(frozen=True)
class Patience:
    """Stop when the score has not improved for ``patience`` evaluations.

    What counts as an improvement only decides when to stop; the step to keep is the one
    with the best score.

    Attributes:
        patience: evaluations without an improvement that are borne; None never gives up.
        min_delta: an improvement is larger than this.
        warmup: scores at the start that are not counted and never stop the run.
        cooldown: evaluations after each improvement that are not counted.
        mode: "max" if a higher score is better, "min" if a lower one is.
        baseline: the first improvement must be over this.
        divergence: stop at once when the score is worse than this (after the warm-up).
        target: stop at once when the score is at least this good (after the warm-up).
        significance: an improvement must be significant at this level, e.g. 0.05, in a
            one-sided t-test of the paired resamples with the jackknife's standard error.
        nonfinite: "skip" an evaluation that could not be scored, or "stop" there.

    Raises:
        ValueError: a value out of range; when called, ``significance`` without resamples.
    """

    patience: int | None = 5
    min_delta: float = 0.0
    warmup: int = 0
    cooldown: int = 0
    mode: Mode = "max"
    baseline: float | None = None
    divergence: float | None = None
    target: float | None = None
    significance: float | None = None
    nonfinite: NonFinite = "skip"

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"expected `patience` >= 1 or None, got {self.patience}")
        if self.significance is not None and not 0 < self.significance < 1:
            raise ValueError(f"expected `significance` between 0 and 1, got {self.significance}")
        _check_at_least_zero(min_delta=self.min_delta, warmup=self.warmup, cooldown=self.cooldown)
        _check_choices(self.mode, self.nonfinite)

    def __call__(self, history: Sequence[Record]) -> Decision:
        sign = _sign(self.mode)
        reference: Record | None = None  # the last improvement that counted
        floor = -math.inf if self.baseline is None else sign * self.baseline
        waited = rest = seen = 0
        for record in _trained(history):
            if not record.is_finite:
                if self.nonfinite == "stop":
                    return _unscorable(history, record, self.mode)
                continue
            seen += 1
            value = sign * record.score
            warm = seen > self.warmup
            if warm and self.divergence is not None and value < sign * self.divergence:
                why = f"{_said(record)} is worse than the divergence bound {self.divergence:g}"
                return _decide(True, history, self.mode, record, why)
            if warm and self.target is not None and value >= sign * self.target:
                why = f"{_said(record)} reached the target {self.target:g}"
                return _decide(True, history, self.mode, record, why)
            if value > floor + self.min_delta and self._is_significant(reference, record):
                reference, floor, waited, rest = record, value, 0, self.cooldown
            elif rest > 0:
                rest -= 1
            elif warm:
                waited += 1
            if self.patience is not None and waited >= self.patience:
                since = "the baseline" if reference is None else f"step {reference.step}"
                why = f"no improvement on {since} in {waited} evaluations"
                if self.min_delta or self.significance:
                    why += f" ({self._counted_as()})"
                return _decide(True, history, self.mode, record, why)
        if seen == 0:
            why = "nothing measured yet"
        elif seen <= self.warmup:
            why = f"warm-up, evaluation {seen} of {self.warmup}"
        elif waited > 0:
            why = f"{waited} of {self.patience or 'any number of'} evaluations without improvement"
        else:
            why = "improving" if rest == self.cooldown else "cooling down"
        return _decide(False, history, self.mode, None, why)

    def _is_significant(self, reference: Record | None, record: Record) -> bool:
        if self.significance is None or reference is None:
            return True
        sign = _sign(self.mode)
        gains = [
            sign * (after - before)
            for before, after in zip(reference.resamples, record.resamples, strict=True)
        ]
        p = improvement_p_value(gains, record.resample_size, record.pool_size)
        return p < self.significance

    def _counted_as(self) -> str:
        parts = [f"more than {self.min_delta:g}"] if self.min_delta else []
        if self.significance:
            parts.append(f"significant at {self.significance:g}")
        return " and ".join(parts)


@dataclass(frozen=True)
class Plateau:
    """Stop when the last ``window`` evaluations added little to the whole gain so far.

    The separability of a run goes on creeping up by a little long after test accuracy is
    flat, so a plain patience never ends; and it dips in the first steps, so all gains are
    measured since the lowest score so far. A score that only falls is no plateau: the run
    goes on, as there is no evidence to stop it by (`Patience` would end it).

    Attributes:
        window: evaluations whose gain is judged.
        tolerance: they are a plateau if they brought at most this share of the whole gain.
        warmup: scores needed before a stop is possible.
        mode: "max" if a higher score is better, "min" if a lower one is.
        nonfinite: "skip" an evaluation that could not be scored, or "stop" there.

    Raises:
        ValueError: a value out of range.
    """

    window: int = 3
    tolerance: float = 0.1
    warmup: int = 5
    mode: Mode = "max"
    nonfinite: NonFinite = "skip"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"expected `window` >= 1, got {self.window}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"expected `tolerance` from 0 to below 1, got {self.tolerance}")
        _check_at_least_zero(warmup=self.warmup)
        _check_choices(self.mode, self.nonfinite)

    def __call__(self, history: Sequence[Record]) -> Decision:
        needed = max(self.warmup, self.window + 1)
        sign = _sign(self.mode)
        values: list[float] = []
        why = "nothing measured yet"
        for record in _trained(history):
            if not record.is_finite:
                if self.nonfinite == "stop":
                    return _unscorable(history, record, self.mode)
                continue
            values.append(sign * record.score)
            if len(values) < needed:
                why = f"warm-up, evaluation {len(values)} of {needed}"
                continue
            rise = values[values.index(min(values)) :]  # since the lowest score so far
            if len(rise) <= self.window:
                why = f"lowest score so far {len(rise) - 1} evaluations ago, no plateau to judge"
                continue
            best = max(rise)
            whole = best - rise[0]
            recent = best - max(rise[: -self.window])
            share = recent / whole if whole > 0 else 0.0
            why = (
                f"the last {self.window} evaluations brought {share:.1%} of the whole "
                f"gain of {whole:.3g}"
            )
            if share <= self.tolerance:
                why += f", at most {self.tolerance:.1%} is a plateau"
                return _decide(True, history, self.mode, record, why)
        return _decide(False, history, self.mode, None, why)


@dataclass(frozen=True)
class FirstOptimum:
    """Stop at the first local optimum of the moving average of the score.

    With the criterion "churn" this is Label Wave's rule, but for the step to keep, which is the
    one with the best score up to there.

    Attributes:
        window: scores in the moving average.
        mode: "max" if a higher score is better, "min" if a lower one is.
        nonfinite: "skip" an evaluation that could not be scored, or "stop" there.

    Raises:
        ValueError: a value out of range.

    References:
        arXiv:2502.07551, Label Wave.
    """

    window: int = 3
    mode: Mode = "max"
    nonfinite: NonFinite = "skip"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"expected `window` >= 1, got {self.window}")
        _check_choices(self.mode, self.nonfinite)

    def __call__(self, history: Sequence[Record]) -> Decision:
        sign = _sign(self.mode)
        values: list[float] = []
        why = "nothing measured yet"
        for record in _trained(history):
            if not record.is_finite:
                if self.nonfinite == "stop":
                    return _unscorable(history, record, self.mode)
                continue
            values.append(sign * record.score)
            if len(values) <= self.window:
                why = f"warm-up, evaluation {len(values)} of {self.window}"
                continue
            # The averages differ by the value that came and the one that left.
            change = (values[-1] - values[-1 - self.window]) / self.window
            why = f"the average of {self.window} evaluations changed by {sign * change:.3g}"
            if change < 0:
                return _decide(True, history, self.mode, record, f"{why}, its first turn")
        return _decide(False, history, self.mode, None, why)


@dataclass(frozen=True)
class PastPeak:
    """Stop when the best score lies well behind: the score fell since, or it was long ago.

    How long is counted in the steps of the run, so that more frequent evaluations do not make it
    hasty. For scores that are at least 0 and better when higher, as the information is: as long as
    none is above 0 there is no evidence to stop by.

    Attributes:
        fall: stop at once when the score is this share below the best.
        age: stop when this share of the steps so far came after the best ...
        evaluations: ... and at least so many evaluations did.
        since_lowest: the best is that since the lowest score so far, for scores that fall at first.
        nonfinite: "skip" an evaluation that could not be scored, or "stop" there.

    Raises:
        ValueError: a value out of range.
    """

    fall: float = 0.3
    age: float = 0.6
    evaluations: int = 3
    since_lowest: bool = False
    nonfinite: NonFinite = "skip"
    mode: Literal["max"] = "max"

    def __post_init__(self) -> None:
        for name, value in (("fall", self.fall), ("age", self.age)):
            if not 0 < value < 1:
                raise ValueError(f"expected `{name}` between 0 and 1, got {value}")
        if self.evaluations < 1:
            raise ValueError(f"expected `evaluations` >= 1, got {self.evaluations}")
        if self.mode != "max":
            raise ValueError(f"past_peak needs a score that is better when higher, got {self.mode}")
        _check_choices(self.mode, self.nonfinite)

    def __call__(self, history: Sequence[Record]) -> Decision:
        best: Record | None = None
        since, lowest = 0, math.inf
        why = "nothing measured yet"
        for record in _trained(history):
            if not record.is_finite:
                if self.nonfinite == "stop":
                    return _unscorable(history, record, self.mode)
                continue
            if self.since_lowest and record.score < lowest:
                lowest, best = record.score, None
            if record.score <= 0 and best is None:
                why = f"no {record.criterion} yet, so there is no evidence to stop by"
            elif best is None or record.score > best.score:
                best, since, why = record, 0, "improving"
            else:
                since += 1
                fall = 1 - record.score / best.score
                age = (record.step - best.step) / record.step
                why = f"{fall:.0%} below step {best.step}, {age:.0%} of the steps ago"
                if fall >= self.fall or (age >= self.age and since >= self.evaluations):
                    return _decide(True, history, self.mode, record, why)
        return _decide(False, history, self.mode, None, why)


@dataclass(frozen=True)
class Auto:
    """What you get by default: decides by the information, where the records have it.

    ``Record.information`` takes the place of the score. `PastPeak` judges the information of
    predicted classes or labels, `Plateau` that of components and the score of records without any.
    The information of labels is judged since its lowest: an untrained head predicts each label for
    about half of the texts, training first takes most of them back, and that fall is no peak.
    """

    mode: Mode = "max"

    def __post_init__(self) -> None:
        _check_choices(self.mode, "skip")

    def __call__(self, history: Sequence[Record]) -> Decision:
        if not has_information(history):
            return Plateau(mode=self.mode)(history)
        of = history[-1].information_of
        policy: Policy = Plateau() if of == "components" else PastPeak(since_lowest=of == "labels")
        return policy(scored_by_information(history))

    def pick(self, history: Sequence[Record]) -> Record | None:
        """The record to keep; None while there is none after step 0."""
        if not has_information(history):
            return best_record(history, self.mode)
        best = best_record(scored_by_information(history))
        return next((r for r in history if best is not None and r.step == best.step), None)


def has_information(history: Sequence[Record]) -> bool:
    """Whether there is one to decide by."""
    return any(math.isfinite(record.information) for record in _trained(history))


def scored_by_information(history: Sequence[Record]) -> list[Record]:
    """The records with their information for a score."""
    return [
        replace(
            record,
            score=record.information,
            low=record.information_low,
            high=record.information_high,
            criterion="information",
            resamples=record.information_resamples,
        )
        for record in history
    ]


POLICIES: dict[str, type] = {
    "auto": Auto,
    "patience": Patience,
    "plateau": Plateau,
    "first_optimum": FirstOptimum,
    "past_peak": PastPeak,
}


def _trained(history: Sequence[Record]) -> list[Record]:
    return [record for record in history if record.step > 0]


def _sign(mode: Mode) -> int:
    return 1 if mode == "max" else -1


def _said(record: Record) -> str:
    return f"{record.criterion} {record.score:.4f} at step {record.step}"


def _unscorable(history: Sequence[Record], record: Record, mode: Mode) -> Decision:
    why = f"{record.criterion} at step {record.step} is not a finite number"
    return _decide(True, history, mode, record, why)


def _decide(
    stop: bool, history: Sequence[Record], mode: Mode, at: Record | None, why: str
) -> Decision:
    """A decision on the history up to ``at`` (all of it for None)."""
    if not history:
        return Decision(stop, None, why)
    step = (at or history[-1]).step
    best = best_record([record for record in history if record.step <= step], mode)
    if best is None:
        return Decision(stop, None, f"{why}; nothing could be scored yet", step)
    return Decision(stop, best.step, f"{why}; best is {_said(best)}", step)


def _check_at_least_zero(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"expected `{name}` >= 0, got {value}")


def _check_choices(mode: str, nonfinite: str) -> None:
    if mode not in ("max", "min"):
        raise ValueError(f"expected `mode` 'max' or 'min', got {mode!r}")
    if nonfinite not in ("skip", "stop"):
        raise ValueError(f"expected `nonfinite` 'skip' or 'stop', got {nonfinite!r}")
