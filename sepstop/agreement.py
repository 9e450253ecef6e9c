"""Scores of checkpoints compared with those that the run itself logged at the same steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sepstop import history as rows
from sepstop.types import Record

SCORE_TOLERANCE = 1e-3
"""Absolute, of the criterion's score."""

HALF_TOLERANCE = 5e-3
"""Of the criterion's score, where weights are bfloat16 or float16."""

FLIPPED_TEXTS = 2
"""Of the information: what so many texts of a resample in another group may change."""

_SAME = ("criterion", "embedder", "resamples", "resample_size", "seed", "max_length", "pool")


def differences_from_log(
    records: Iterable[Record],
    log_history: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    in_half_precision: bool = False,
) -> dict[int, str]:
    """Step -> what differs by more than rounding, for a person.

    Only steps that the run scored on the same pool with the same settings are compared: both
    scores, whichever of them decides, and what the information is of.

    Args:
        records: of checkpoints, scored offline.
        log_history: the run's own.
        settings: of the Monitor that scored the checkpoints.
        in_half_precision: whether weights are bfloat16 or float16.
    """
    own = {
        row.record.step: row.record
        for row in rows.rows_in(log_history)
        if row.settings and all(row.settings.get(key) == settings.get(key) for key in _SAME)
    }
    tolerance = HALF_TOLERANCE if in_half_precision else SCORE_TOLERANCE
    found = {}
    for record in records:
        said = _differences(record, own[record.step], tolerance) if record.step in own else []
        if said:
            found[record.step] = (
                f"{'; '.join(said)}: the model loaded here is not the one that the run scored, or "
                "is run otherwise"
            )
    return found


def _differences(record: Record, own: Record, tolerance: float) -> Sequence[str]:
    said = []
    if not _are_close(record.score, own.score, tolerance):
        said.append(f"{record.criterion} {record.score:.4f}, in the run's log {own.score:.4f}")
    if not math.isfinite(own.information):  # of a version without it, or nothing finite
        return said
    if record.information_of != own.information_of:
        said.append(
            f"information of {record.information_of}, in the run's log of {own.information_of}"
        )
    elif not _are_close(
        record.information,
        own.information,
        max(tolerance, FLIPPED_TEXTS / max(record.resample_size, 1)),
    ):
        said.append(f"information {record.information:.4f}, in the run's log {own.information:.4f}")
    return said


def _are_close(score: float, own: float, tolerance: float) -> bool:
    if math.isnan(score) or math.isnan(own):
        return math.isnan(score) and math.isnan(own)
    return score == own or abs(score - own) <= tolerance
