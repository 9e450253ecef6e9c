"""Sentences of the page, and its figures in words for screen readers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from sepstop.report.candidates import candidate_label, weights_label
from sepstop.types import CHECKPOINT, Decision, Record, Score


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
    step: int,
    weights: str,
    name: str,
    score: Score | None,
    decision: Decision,
    is_kept: bool = True,
) -> str:
    """What the slider says at a step.

    Args:
        weights: what is shown; empty if all steps show their checkpoints.
        name: of the deciding score.
        score: of the weights shown; None if they were not scored.
        is_kept: False if the decision keeps other weights of its step than those shown.

    >>> decision = Decision(True, 140, "", 160)
    >>> describe_step(140, "", "robust_mi", Score(1.161), decision)
    'step 140, robust_mi 1.161, the pick'
    >>> describe_step(140, "recent average of 2 checkpoints", "robust_mi", None, decision, False)
    'step 140, recent average of 2 checkpoints, the step of the pick'
    """
    parts = [f"step {step}", *([weights] if weights else [])]
    if score is not None:
        parts.append(f"{name} {number(score.value)}" if score.is_finite else f"no {name}")
    if step == decision.best_step:
        parts.append("the pick" if is_kept else "the step of the pick")
    if decision.stop and step == decision.step:
        parts.append("the stop")
    return ", ".join(parts)


def describe_shown_weights(record: Record) -> str:
    """What a frame shows, given the record of its step in a selection.

    >>> from sepstop.types import Average
    >>> describe_shown_weights(Record(80, None, {}))
    'checkpoint'
    >>> describe_shown_weights(Record(80, None, {}, average=Average("recent", 60, 80, 2)))
    'recent average of 2 checkpoints'
    """
    average = record.average
    if average is None:
        return CHECKPOINT
    return f"{candidate_label(average.name)} of {average.count} checkpoints"


def describe_frames(shows_averages: bool, is_monitored: bool, has_averages: bool) -> str:
    """Which weights the map and the barcode are of; empty if there are only checkpoints.

    Args:
        shows_averages: True if frames are of averages of checkpoints.
        is_monitored: True if the run itself decided.
        has_averages: True if the page's scores are of averages.
    """
    if not shows_averages:
        return (
            "The map and the barcode of a step are those of its checkpoint, not of the averages "
            "that the run scored."
            if has_averages
            else ""
        )
    shown = (
        "The map and the barcode of a step are those of its best candidate: its checkpoint or an "
        "average of checkpoints."
    )
    if not is_monitored:
        return shown
    scored = "averages made during training" if has_averages else "its checkpoints"
    return f"{shown} The run's own scores are of {scored}, so they differ from those here."
