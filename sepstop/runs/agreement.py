"""Scores of checkpoints compared with those that the run itself logged at the same steps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sepstop.criteria import CRITERIA
from sepstop.types import CHECKPOINT, Record, Score

SCORE_TOLERANCE = 1e-3
"""Absolute tolerance of a score."""

HALF_TOLERANCE = 5e-3
"""Absolute tolerance if weights are bfloat16 or float16."""

FLIPPED_TEXTS = 2
"""Tolerance of mutual information: this many texts of a resample may change groups."""

COUNTS_TEXTS = ("robust_mi", "neighbor_mi", "consistency", "label_mi", "component_mi")
"""Criteria that count texts in groups, so rounding can change them in jumps."""

_SAME = ("pooling", "num_resamples", "resample_size", "seed", "max_length", "pool")


def differences_from_log(
    records: Iterable[Record],
    own_records: Iterable[Record],
    settings: Mapping[str, Any],
    own_settings: Mapping[str, Any],
    in_half_precision: bool = False,
    left_out: Collection[str] = (),
) -> dict[int, str]:
    """Differences larger than rounding, as text, by step.

    Compares the checkpoints that the run scored on the same pool with the same settings: all scores
    that both have by the same criterion. Averages are not compared: the run's own hold each step,
    those made afterwards only the checkpoints.

    Args:
        records: of checkpoints, scored offline.
        own_records: the run's own.
        settings, own_settings: how they were measured, as `Monitor.settings`.
        in_half_precision: True if weights are bfloat16 or float16.
        left_out: names of scores that also depend on something else than in the run, such as other
            checkpoints; they are not compared.
    """
    if any(settings.get(key) != own_settings.get(key) for key in _SAME):
        return {}
    tolerance = HALF_TOLERANCE if in_half_precision else SCORE_TOLERANCE
    own_by_step = {record.step: record.candidates.get(CHECKPOINT, {}) for record in own_records}
    found = {}
    for record in records:
        own = own_by_step.get(record.step, {})
        said = [
            f"{name} {score.value:.4f}, in the run's log {own[name].value:.4f}"
            for name, score in record.candidates.get(CHECKPOINT, {}).items()
            if name in own
            and _descriptions(name, settings) == _descriptions(name, own_settings)
            and name not in left_out
            and not _are_close(score, own[name], _tolerance_of(name, record, tolerance))
        ]
        if said:
            found[record.step] = (
                f"{'; '.join(said)}: the model loaded here is not the one that the run scored, or "
                "runs differently"
            )
    return found


def _descriptions(name: str, settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The criterion with the score ``name`` as the settings describe it.

    They describe a criterion of the user's own by its class, not by its score: for such a score,
    these are all criteria that are not sepstop's.
    """
    described = [settings.get("criterion", {}), *settings.get("extra_criteria", ())]
    known = [one for one in described if one.get("name") == name]
    return known or [one for one in described if one.get("name") not in CRITERIA]


def _tolerance_of(name: str, record: Record, tolerance: float) -> float:
    if name not in COUNTS_TEXTS:
        return tolerance
    return max(tolerance, FLIPPED_TEXTS / max(record.resample_size, 1))


def _are_close(score: Score, own: Score, tolerance: float) -> bool:
    if not (score.is_finite and own.is_finite):
        return score.is_finite == own.is_finite
    return abs(score.value - own.value) <= tolerance
