"""Label equivalents: how many labeled examples a label-free pick is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from sepstop.bench.recorded_run import RecordedRun

LABELS = (5, 10, 25, 50, 100, 200, 400, 800, 1600)
"""Sizes m of the validation sets."""

_DRAWS = 200
_SEED = 0


def label_curve(run: RecordedRun) -> dict[int, float]:
    """Mean regret of picking by accuracy on m labeled examples of the pool, by m.

    The examples are drawn 200 times. Empty without logits; sizes above the pool's are left out.
    """
    if not run.has_logits:
        return {}
    y = run.arrays["y"]
    right = run.arrays["pool_l"].argmax(axis=-1) == y  # (T, N)
    trained = np.flatnonzero(np.array(run.steps) > 0)
    lost = run.best_accuracy - run.test_accuracy[trained]
    rng = np.random.default_rng(_SEED)
    orders = rng.permuted(np.tile(np.arange(len(y)), (_DRAWS, 1)), axis=1)  # (draws, N)
    curve = {}
    for m in LABELS:
        if m <= len(y):
            counts = right[trained][:, orders[:, :m]].sum(axis=-1)  # (T, draws)
            curve[m] = float(lost[counts.argmax(axis=0)].mean())  # the earliest of equals
    return curve


def label_equivalent(regret: float, curve: Mapping[int, float]) -> float:
    """The m at which the curve has this regret, interpolated on a log scale.

    Args:
        regret: in accuracy from 0 to 1.
        curve: m -> mean regret, see `label_curve`.

    Returns:
        0 if the regret is above the whole curve, the largest m if it is below; NaN for an empty
        curve.
    """
    if not curve:
        return math.nan
    sizes = sorted(curve)
    # More labels cannot hurt: a rise is noise of the draws.
    falling = np.minimum.accumulate([curve[m] for m in sizes])
    if regret > falling[0]:
        return 0.0
    if regret <= falling[-1]:
        return float(sizes[-1])
    return float(np.exp(np.interp(-regret, -falling, np.log(sizes))))
