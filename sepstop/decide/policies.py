"""Stopping policies: pure functions of a series of scores.

The step to keep is always the one with the best score, the earliest of equals, which is also what
transformers' ``metric_for_best_model`` keeps. Step 0 is not a candidate, because it has no
checkpoint. Scores that are not finite are skipped, or stop the run if ``nonfinite="stop"``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from sepstop.config import AUTO
from sepstop.statistics import improvement_p_value
from sepstop.types import Decision, Policy, Score, Series
from sepstop.utils.registry import build

NonFinite = Literal["skip", "stop"]


def decide(policy: Policy, series: Series, restart_step: int = -1) -> Decision:
    """The decision at the end of a series that may have gone on after a stop.

    Scores after a stop mean that training was continued: the policy starts afresh on them.

    Args:
        restart_step: the policy looks only at the scores after this step.

    Returns:
        The policy's decision, with the best step of the whole series.

    Raises:
        ValueError: the policy names a step that it did not look at.
    """
    start = restart_step + 1
    decision = policy(series.between(start))
    while decision.stop and decision.step is not None and decision.step < series.steps[-1]:
        if decision.step < start:
            break  # a policy that names the same step forever
        start = decision.step + 1
        decision = policy(series.between(start))
    newest = series.steps[-1] if len(series) else None
    step = newest if decision.step is None else int(decision.step)
    if step is not None and not 0 <= step <= (newest or 0):
        raise ValueError(
            f"expected a decision on a step from 0 to {newest}, got one on step {step}"
        )
    reason = str(decision.reason or "no reason given")
    return Decision(bool(decision.stop), series.best_step, reason, step)


def replay(policy: Policy, series: Series) -> Decision:
    """The decision at which a run would have ended: the first that stops, or else the last."""
    decision = decide(policy, series.between(0, -1))
    for step in series.steps:
        decision = decide(policy, series.between(0, step))
        if decision.stop:
            break
    return decision


@dataclass(frozen=True)
class Patience:
    """Stop when the score has not improved for ``patience`` evaluations.

    An improvement only decides when to stop: the step to keep is the one with the best score.

    Args:
        patience: evaluations without improvement before stopping. None disables the check.
        min_delta: minimum improvement.
        warmup: scores at the start that are not counted and never stop the run.
        cooldown: evaluations after each improvement that are not counted.
        baseline: the first improvement must exceed this score.
        divergence_threshold: stop at once when the score is worse than this, after the warm-up.
        stopping_threshold: stop at once when the score is at least this good, after the warm-up.
        significance: level, such as 0.05, at which an improvement must be significant in a
            one-sided t-test of the paired resamples with the jackknife's standard error.
        nonfinite: "skip" an evaluation that could not be scored, or "stop" there.

    Raises:
        ValueError: a value out of range; when called, ``significance`` without resamples.
    """

    patience: int | None = 5
    min_delta: float = 0.0
    warmup: int = 0
    cooldown: int = 0
    baseline: float | None = None
    divergence_threshold: float | None = None
    stopping_threshold: float | None = None
    significance: float | None = None
    nonfinite: NonFinite = "skip"

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"expected `patience` >= 1 or None, got {self.patience}")
        if self.significance is not None and not 0 < self.significance < 1:
            raise ValueError(f"expected `significance` between 0 and 1, got {self.significance}")
        _check_at_least_zero(min_delta=self.min_delta, warmup=self.warmup, cooldown=self.cooldown)
        _check_nonfinite(self.nonfinite)

    def __call__(self, series: Series) -> Decision:
        sign = series.sign
        reference: tuple[int, Score] | None = None  # the last improvement that counted
        floor = -math.inf if self.baseline is None else sign * self.baseline
        waited = rest = seen = 0
        finite, stop = _finite_part(series, self.nonfinite)
        for step, score in finite:
            seen += 1
            value = sign * score.value
            is_warm = seen > self.warmup
            passed = self._threshold_passed(series, step, value) if is_warm else ""
            if passed:
                return _decision(series, step, passed)
            if value > floor + self.min_delta and self._is_significant(series, reference, score):
                reference, floor, waited, rest = (step, score), value, 0, self.cooldown
            elif rest > 0:
                rest -= 1
            elif is_warm:
                waited += 1
            if self.patience is not None and waited >= self.patience:
                since = "the baseline" if reference is None else f"step {reference[0]}"
                why = f"no improvement on {since} in {waited} evaluations{self._counted_as()}"
                return _decision(series, step, why)
        if seen == 0:
            why = "nothing measured yet"
        elif seen <= self.warmup:
            why = f"warm-up, evaluation {seen} of {self.warmup}"
        elif waited > 0:
            why = f"{waited} of {self.patience or 'any number of'} evaluations without improvement"
        else:
            why = "improving" if rest == self.cooldown else "cooling down"
        return stop or _decision(series, None, why)

    def _threshold_passed(self, series: Series, step: int, value: float) -> str:
        """Why a score stops the run at once; empty if it does not."""
        worst, good = self.divergence_threshold, self.stopping_threshold
        if worst is not None and value < series.sign * worst:
            return f"{_score_text(series, step)} is worse than the divergence threshold {worst:g}"
        if good is not None and value >= series.sign * good:
            return f"{_score_text(series, step)} reached the stopping threshold {good:g}"
        return ""

    def _is_significant(
        self, series: Series, reference: tuple[int, Score] | None, score: Score
    ) -> bool:
        if self.significance is None or reference is None:
            return True
        gains = [
            series.sign * (after - before)
            for before, after in zip(
                reference[1].resample_values, score.resample_values, strict=True
            )
        ]
        p = improvement_p_value(gains, series.resample_size, series.pool_size)
        return p < self.significance

    def _counted_as(self) -> str:
        parts = [f"more than {self.min_delta:g}"] if self.min_delta else []
        if self.significance:
            parts.append(f"significant at {self.significance:g}")
        return f" ({' and '.join(parts)})" if parts else ""


@dataclass(frozen=True)
class Plateau:
    """Stop when the last ``window`` evaluations added little to the whole gain so far.

    Separability goes on rising slowly long after test accuracy is flat, so a plain patience never
    ends. It dips in the first steps, so gains are measured since the lowest score so far. A score
    that only falls is not a plateau, so the run goes on; `Patience` would stop it.

    Args:
        window: evaluations whose gain is judged.
        tolerance: they are a plateau if they brought at most this share of the whole gain.
        warmup: scores needed before a stop is possible.
        nonfinite: "skip" an evaluation that could not be scored, or "stop" there.

    Raises:
        ValueError: a value out of range.
    """

    window: int = 3
    tolerance: float = 0.1
    warmup: int = 5
    nonfinite: NonFinite = "skip"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"expected `window` >= 1, got {self.window}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"expected `tolerance` from 0 to below 1, got {self.tolerance}")
        _check_at_least_zero(warmup=self.warmup)
        _check_nonfinite(self.nonfinite)

    def __call__(self, series: Series) -> Decision:
        needed = max(self.warmup, self.window + 1)
        values: list[float] = []
        why = "nothing measured yet"
        finite, stop = _finite_part(series, self.nonfinite)
        for step, score in finite:
            values.append(series.sign * score.value)
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
                return _decision(series, step, f"{why}, at most {self.tolerance:.1%} is a plateau")
        return stop or _decision(series, None, why)


@dataclass(frozen=True)
class FirstOptimum:
    """Stop at the first local optimum of the moving average of the score.

    With the criterion ``churn`` this is Label Wave's rule, except for the step to keep, which is
    the one with the best score so far.

    Args:
        window: scores in the moving average.
        nonfinite: "skip" an evaluation that could not be scored, or "stop" there.

    Raises:
        ValueError: a value out of range.

    References:
        arXiv:2502.07551, Label Wave.
    """

    window: int = 3
    nonfinite: NonFinite = "skip"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"expected `window` >= 1, got {self.window}")
        _check_nonfinite(self.nonfinite)

    def __call__(self, series: Series) -> Decision:
        values: list[float] = []
        why = "nothing measured yet"
        finite, stop = _finite_part(series, self.nonfinite)
        for step, score in finite:
            values.append(series.sign * score.value)
            if len(values) <= self.window:
                why = f"warm-up, evaluation {len(values)} of {self.window}"
                continue
            # The averages differ by the value that came and the one that left.
            change = (values[-1] - values[-1 - self.window]) / self.window
            why = f"the average of {self.window} evaluations changed by {series.sign * change:.3g}"
            if change < 0:
                return _decision(series, step, f"{why}, its first turn")
        return stop or _decision(series, None, why)


@dataclass(frozen=True)
class PastPeak:
    """Stop when the peak is past: the score is well below the best, or the best was long ago.

    One low score is not enough: a model that has just begun to learn, above all at a high learning
    rate, has early peaks that it exceeds later. So the best has to stand for some evaluations.

    Age is a share of the steps so far, so more frequent evaluations do not stop the run earlier.
    For scores that are at least 0 and better when higher, such as mutual information. While no
    score is above `min_best`, the run goes on.

    Args:
        max_drop: stop when the score is this share below the best, ...
        max_age: ... or when this share of the steps so far came after the best, ...
        min_evaluations: ... and at least this many evaluations did.
        min_best: a best score up to this is no evidence to stop by.
        since_lowest: take the best since the lowest score so far, for scores that fall at first.
        nonfinite: "skip" an evaluation that could not be scored, or "stop" there.

    Raises:
        ValueError: a value out of range; when called, a score that is better when lower.
    """

    max_drop: float = 0.3
    max_age: float = 0.6
    min_evaluations: int = 3
    min_best: float = 0.0
    since_lowest: bool = False
    nonfinite: NonFinite = "skip"

    def __post_init__(self) -> None:
        for name, value in (("max_drop", self.max_drop), ("max_age", self.max_age)):
            if not 0 < value < 1:
                raise ValueError(f"expected `{name}` between 0 and 1, got {value}")
        if self.min_evaluations < 1:
            raise ValueError(f"expected `min_evaluations` >= 1, got {self.min_evaluations}")
        _check_at_least_zero(min_best=self.min_best)
        _check_nonfinite(self.nonfinite)

    def __call__(self, series: Series) -> Decision:
        if not series.higher_is_better:
            raise ValueError(
                f"past_peak needs a score that is better when higher, got {series.name!r}"
            )
        best: tuple[int, float] | None = None
        since, lowest = 0, math.inf
        why = "nothing measured yet"
        finite, stop = _finite_part(series, self.nonfinite)
        for step, score in finite:
            value = score.value
            if self.since_lowest and value < lowest:
                lowest, best = value, None
            if value <= self.min_best and best is None:
                above = f" above {self.min_best:g}" if self.min_best else ""
                why = f"no {series.name}{above} yet, so there is no evidence to stop by"
            elif best is None or value > best[1]:
                best, since, why = (step, value), 0, "improving"
            else:
                since += 1
                drop = 1 - value / best[1]
                age = (step - best[0]) / step
                why = f"{drop:.0%} below step {best[0]}, {age:.0%} of the steps ago"
                is_past = drop >= self.max_drop or age >= self.max_age
                if is_past and since >= self.min_evaluations:
                    return _decision(series, step, why)
        return stop or _decision(series, None, why)


POLICIES: dict[str, type] = {
    "patience": Patience,
    "plateau": Plateau,
    "first_optimum": FirstOptimum,
    "past_peak": PastPeak,
}


def default_policy(name: str) -> Policy:
    """The policy that fits the score ``name``.

    `PastPeak` for "robust_mi", "neighbor_mi" and "label_mi", `Patience` for "pool_loss", which can
    rise from the first evaluation on, else `Plateau`.

    >>> default_policy("robust_mi").min_best
    0.2
    """
    if name in ("robust_mi", "neighbor_mi"):
        # They are near 0 while the model is undecided, and their peaks there are chance.
        return PastPeak(min_best=0.2)
    if name == "label_mi":
        # An untrained head predicts each label for about half of the texts, and training first
        # takes most of them back: that fall is not a peak.
        return PastPeak(since_lowest=True)
    if name == "pool_loss":
        return Patience()
    return Plateau()


def policy_for(spec: Any, name: str, higher_is_better: bool) -> Policy:
    """The policy that a configuration asks for, fit to decide by the score ``name``.

    Raises:
        ValueError: an unknown name, or a policy that cannot decide by this score.
    """
    policy: Policy = default_policy(name) if spec == AUTO else build("policy", spec, POLICIES)
    if isinstance(policy, PastPeak):
        policy(Series(name, higher_is_better, (), ()))  # raises for a lower-is-better score
    return policy


def _score_text(series: Series, step: int) -> str:
    return f"{series.name} {series.score_at(step).value:.4f} at step {step}"


def _finite_part(
    series: Series, nonfinite: NonFinite
) -> tuple[list[tuple[int, Score]], Decision | None]:
    """The finite scores after step 0, and the stop at the first that is not finite, if asked for.

    With such a stop, only the scores before it.
    """
    finite: list[tuple[int, Score]] = []
    for step, score in series.trained:
        if score.is_finite:
            finite.append((step, score))
        elif nonfinite == "stop":
            why = f"{series.name} at step {step} is not a finite number"
            return finite, _decision(series, step, why)
    return finite, None


def _decision(series: Series, stop_step: int | None, why: str) -> Decision:
    """A decision to stop at ``stop_step``, or to go on at the end of the series if it is None."""
    stop = stop_step is not None
    if not len(series):
        return Decision(stop, None, why)
    step = series.steps[-1] if stop_step is None else stop_step
    best = series.between(0, step).best_step
    if best is None:
        return Decision(stop, None, f"{why}; nothing could be scored yet", step)
    return Decision(stop, best, f"{why}; best is {_score_text(series, best)}", step)


def _check_at_least_zero(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"expected `{name}` >= 0, got {value}")


def _check_nonfinite(nonfinite: str) -> None:
    if nonfinite not in ("skip", "stop"):
        raise ValueError(f"expected `nonfinite` 'skip' or 'stop', got {nonfinite!r}")
