"""Scores of checkpoints compared with those that the run itself logged at the same steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sepstop.types import Record

SCORE_TOLERANCE = 1e-3
"""Absolute, of the criterion's score."""

HALF_TOLERANCE = 5e-3
"""Of the criterion's score, where weights are bfloat16 or float16."""

FLIPPED_TEXTS = 2
"""Of the information: what so many texts of a resample in another group may change."""

_SAME = ("embedder", "resamples", "resample_size", "seed", "max_length", "pool")


def differences_from_log(
    records: Iterable[Record],
    own_records: Iterable[Record],
    settings: Mapping[str, Any],
    own_settings: Mapping[str, Any],
    in_half_precision: bool = False,
    same_neighbors: bool = True,
) -> dict[int, str]:
    """Step -> what differs by more than rounding, for a person.

    Only steps that the run scored on the same pool with the same settings are compared: both
    scores, whichever of them decides, and what the information is of. The criterion's score is
    left out where the run had another criterion.

    Args:
        records: of checkpoints, scored offline.
        own_records: the run's own.
        settings, own_settings: of the Monitors that scored them.
        in_half_precision: whether weights are bfloat16 or float16.
        same_neighbors: whether the information refers to the neighbors that the run left; its value
            is not compared if it refers to others.
    """
    if any(settings.get(key) != own_settings.get(key) for key in _SAME):
        return {}
    own = {record.step: record for record in own_records}
    same_criterion = settings.get("criterion") == own_settings.get("criterion")
    tolerance = HALF_TOLERANCE if in_half_precision else SCORE_TOLERANCE
    found = {}
    for record in records:
        if record.step not in own:
            continue
        said = [
            *(_of_score(record, own[record.step], tolerance) if same_criterion else []),
            *_of_information(record, own[record.step], tolerance, same_neighbors),
        ]
        if said:
            found[record.step] = (
                f"{'; '.join(said)}: the model loaded here is not the one that the run scored, or "
                "is run otherwise"
            )
    return found


def _of_score(record: Record, own: Record, tolerance: float) -> list[str]:
    if _are_close(record.score, own.score, tolerance):
        return []
    return [f"{record.criterion} {record.score:.4f}, in the run's log {own.score:.4f}"]


def _of_information(
    record: Record, own: Record, tolerance: float, same_neighbors: bool
) -> list[str]:
    if not math.isfinite(own.information):  # of a version without it, or nothing finite
        return []
    mine, its = record.information_of, own.information_of
    if mine != its:
        return [f"information of {mine}, in the run's log of {its}"]
    least = max(tolerance, FLIPPED_TEXTS / max(record.resample_size, 1))
    if not same_neighbors or _are_close(record.information, own.information, least):
        return []
    return [f"information {record.information:.4f}, in the run's log {own.information:.4f}"]


def _are_close(score: float, own: float, tolerance: float) -> bool:
    if math.isnan(score) or math.isnan(own):
        return math.isnan(score) and math.isnan(own)
    return score == own or abs(score - own) <= tolerance
