"""Sentences of the page, and its figures in words for screen readers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from sepstop.report.candidates import weights_label
from sepstop.types import Decision, Record, Score


def number(value: float | None) -> str:
    """Four significant digits, or "no score".

    >>> number(0.82366), number(12345.6), number(float("nan"))
    ('0.8237', '1.235e+04', 'no score')
    """
    if value is None or not math.isfinite(value):
        return "no score"
    return f"{value:.4g}"


def score_text(score: Score) -> str:
    """A score with its interval, if it has one.

    >>> score_text(Score(0.82366, 0.8, 0.85)), score_text(Score(0.5))
    ('0.8237 [0.8, 0.85]', '0.5')
    """
    if not (score.is_finite and math.isfinite(score.low + score.high)):
        return number(score.value)
    return f"{number(score.value)} [{number(score.low)}, {number(score.high)}]"


def describe_decision(decision: Decision, is_monitored: bool, kept: Record | None = None) -> str:
    """What was decided, as a sentence.

    Args:
        is_monitored: True if the run itself decided.
        kept: record of the weights to keep. Default: those of the best step.

    >>> describe_decision(Decision(True, 80, "", 140), is_monitored=True)
    'The run was stopped at step 140. Keep the checkpoint of step 80.'
    """
    if decision.best_step is None:
        return "There is no checkpoint to recommend."
    keep = f"Keep the {weights_label(kept or Record(decision.best_step, None, {}))}."
    if decision.stop:
        what = "The run was stopped" if is_monitored else "The run could have stopped"
        return f"{what} at step {decision.step}. {keep}"
    return f"The run was not stopped. {keep}" if is_monitored else keep


def describe_curve(name: str, values: Mapping[int, float], marks: Mapping[str, int | None]) -> str:
    """A line over steps in words.

    Args:
        values: step -> value.
        marks: what is marked -> its step; None if it is not there.

    >>> describe_curve("score", {10: 0.5, 20: 0.75, 30: float("nan")}, {"pick": 20, "stop": None})
    'score from step 10 to 30: first 0.5, last 0.75, lowest 0.5 at step 10, highest 0.75 at step \
20. 1 of 3 steps has no score. The pick is step 20.'
    """
    finite = {step: value for step, value in values.items() if math.isfinite(value)}
    if not finite:
        return f"{name}: no step has a score."
    low, high = min(finite, key=lambda s: finite[s]), max(finite, key=lambda s: finite[s])
    sentences = [
        f"{name} from step {min(values)} to {max(values)}: first {number(finite[min(finite)])}, "
        f"last {number(finite[max(finite)])}, lowest {number(finite[low])} at step {low}, highest "
        f"{number(finite[high])} at step {high}."
    ]
    missing = len(values) - len(finite)
    if missing:
        verb = "has" if missing == 1 else "have"
        sentences.append(f"{missing} of {len(values)} steps {verb} no score.")
    sentences += [f"The {mark} is step {step}." for mark, step in marks.items() if step is not None]
    return " ".join(sentences)


def describe_groups(groups: Sequence[str]) -> str:
    """Sizes of groups, the largest first.

    >>> describe_groups(["a", "b", "a"])
    'a 2, b 1'
    """
    return ", ".join(f"{name} {count}" for name, count in Counter(groups).most_common(12))


def describe_step(
    step: int, name: str, score: Score | None, decision: Decision, is_average: bool = False
) -> str:
    """What the slider says at a checkpoint.

    Args:
        name: of the deciding score.
        score: of the checkpoint; None if it was not scored.
        is_average: True if the pick is an average of the weights up to its step.

    >>> describe_step(140, "robust_mi", Score(1.161), Decision(True, 140, "", 160))
    'step 140, robust_mi 1.161, the pick'
    """
    parts = [f"step {step}"]
    if score is not None:
        parts.append(f"{name} {number(score.value)}" if score.is_finite else f"no {name}")
    if step == decision.best_step:
        parts.append("the pick is an average up to here" if is_average else "the pick")
    if decision.stop and step == decision.step:
        parts.append("the stop")
    return ", ".join(parts)
