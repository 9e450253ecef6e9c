"""Conditions of `sepstop select --fail-on`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sepstop.cli.outcome import Outcome

_THRESHOLD = re.compile(r"(?P<name>[^<>\s]+)\s*(?P<sign>[<>])\s*(?P<limit>[^<>\s]+)")


@dataclass(frozen=True)
class Threshold:
    """A number that a score of the weights to keep must not be below or above."""

    name: str
    sign: str
    limit: float

    def __call__(self, outcome: Outcome) -> str:
        record = outcome.kept.best_record
        if self.name not in record.scores:
            raise ValueError(
                f"--fail-on names the score {self.name}, which was not measured; there are "
                f"{', '.join(record.scores)}. --extra-criteria adds scores"
            )
        value = record.scores[self.name].value
        is_fine = value >= self.limit if self.sign == "<" else value <= self.limit
        return "" if is_fine else f"the weights to keep have {value:.3f}"  # NaN is never fine


def _skipped(outcome: Outcome) -> str:
    return ", ".join(path.name for path, _ in outcome.skipped)


def _differs(outcome: Outcome) -> str:
    names = [
        found.paths[step].name
        for found in outcome.selections.values()
        for step in found.differences
    ]
    return f"other scores than in the run's log: {', '.join(names)}" if names else ""


def _ties(outcome: Outcome) -> str:
    kept = outcome.kept
    tied = [f"step {step}" for step in kept.ties] + list(outcome.tied)
    if not tied:
        return ""
    return f"step {kept.best_step} is not significantly better or worse than {', '.join(tied)}"


def _overtrained(outcome: Outcome) -> str:
    from sepstop.decide.selection import tied_steps

    kept = outcome.kept
    last = kept.series.steps[-1]
    if last == kept.best_step or last in tied_steps(kept.series, kept.best_step):
        return ""
    scores = f"{kept.series.score_at(last).value:.3f} after {kept.pick.value:.3f}"
    return (
        f"the last step, {last}, is significantly worse than step {kept.best_step}: "
        f"{kept.decides} {scores}"
    )


CONDITIONS: Mapping[str, Callable[[Outcome], str]] = {
    "skipped": _skipped,
    "differs": _differs,
    "ties": _ties,
    "overtrained": _overtrained,
}
"""Name -> function that says why a condition holds; it returns "" if it does not."""


def parse_conditions(
    texts: Iterable[str], criterion: str | None = None, extra_criteria: str | None = None
) -> dict[str, Callable[[Outcome], str]]:
    """The conditions in comma-separated texts.

    Args:
        texts: of the user.
        criterion, extra_criteria: of the user, whose names thresholds may have too.

    Raises:
        ValueError: a condition is unknown.

    >>> list(parse_conditions(["skipped, ties", "robust_mi<0.2"]))
    ['skipped', 'ties', 'robust_mi<0.2']
    """
    found: dict[str, Callable[[Outcome], str]] = {}
    for text in (part.strip() for one in texts for part in one.split(",")):
        if text in CONDITIONS:
            found[text] = CONDITIONS[text]
        elif text:
            found[text] = _threshold(text, criterion, extra_criteria)
    return found


def failures(
    conditions: Mapping[str, Callable[[Outcome], str]], outcome: Outcome
) -> dict[str, str]:
    """Condition -> why, of those that hold.

    Raises:
        ValueError: a threshold names a score that was not measured.
    """
    said = {name: holds(outcome) for name, holds in conditions.items()}
    return {name: why for name, why in said.items() if why}


def _threshold(text: str, criterion: str | None, extra_criteria: str | None) -> Threshold:
    from sepstop.criteria import CRITERIA
    from sepstop.measure.scorer import build_criterion

    given = [criterion or "", *(extra_criteria or "").split(",")]
    own = [build_criterion(spec.strip()).name for spec in given if ":" in spec]
    parts = _THRESHOLD.fullmatch(text)
    known = f"{', '.join(CONDITIONS)}, SCORE<NUMBER, SCORE>NUMBER"
    if parts is None:
        raise ValueError(f"--fail-on does not know {text!r}; expected {known}")
    scores = [*CRITERIA, *own]
    if parts["name"] not in scores:
        raise ValueError(
            f"--fail-on does not know the score in {text!r}; expected one of {', '.join(scores)}"
        )
    try:
        limit = float(parts["limit"])
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise ValueError(f"--fail-on expects a number after {parts['sign']} in {text!r}")
    return Threshold(parts["name"], parts["sign"], limit)
