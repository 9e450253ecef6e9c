"""Strata of recorded runs: how far a run is from ordinary fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STRATA = ("clean", "mild", "harsh", "by rule", "unknown")
"""Strata in the order of the tables."""

_MILD_NOISE = 0.2
_HARSH_RATE = 1e-3
_HARSH_RATE_OF_FEW_WEIGHTS = 1e-2


def stratum_of(settings: Mapping[str, Any]) -> str:
    """The stratum of a run.

    - "by rule": wrong labels are always the next class, at any rate;
    - "harsh": more than 20 % wrong labels, or a harsh learning rate;
    - "mild": up to 20 % wrong labels;
    - "clean": no wrong labels;
    - "unknown": the file does not say how the run was recorded.

    Rates from 1e-3 on are harsh where all weights are trained. With ``start="lora"``, or a frozen
    backbone, the usual rates are about ten times higher, so rates from 1e-2 on are harsh.

    Args:
        settings: `sepstop.bench.recorded_run.RecordedRun.settings`.
    """
    if "learning_rate" not in settings:
        return "unknown"
    noise = float(settings.get("noise", 0.0))
    if noise > 0 and settings.get("noise_kind") == "class":
        return "by rule"
    has_few_weights = settings.get("start") in ("lora", "head")
    harsh_rate = _HARSH_RATE_OF_FEW_WEIGHTS if has_few_weights else _HARSH_RATE
    if noise > _MILD_NOISE or float(settings["learning_rate"]) >= harsh_rate:
        return "harsh"
    return "mild" if noise > 0 else "clean"
