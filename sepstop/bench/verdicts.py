"""Verdicts: one choice on a set of runs, with its regret, steps saved and rank agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepstop.bench.outcomes import Floats, Outcome

Key = tuple[str, str, str]
"""Criterion, policy and candidates of a verdict."""

DEFAULT = "default"
"""In tables: what a user gets without choosing, the default criterion and its default policy."""

HINDSIGHT = "hindsight"
"""In tables: the best step of the whole run, no policy."""

CHECKPOINTS = "checkpoints"
"""In tables: only single checkpoints are candidates."""

ALL = "all"
"""In tables: every recorded candidate."""

PLAIN = "plain"
"""In tables: a single average that needs no pool."""

RULE = "rule"
"""In tables: whatever a rule of one's own chose among."""

ORACLE = "oracle"
"""In tables: the choice by test accuracy."""

_BOOTSTRAP = 2000
_SEED = 0


@dataclass(frozen=True)
class Verdict:
    """One criterion with one policy on all runs.

    Attributes:
        criterion, policy, candidates: names in tables.
        outcomes: one per run, ``(R,)``.
        label_free: it can be used without labels.
    """

    criterion: str
    policy: str
    outcomes: tuple[Outcome, ...]
    label_free: bool = True
    candidates: str = CHECKPOINTS

    @property
    def key(self) -> Key:
        return self.criterion, self.policy, self.candidates

    @property
    def label(self) -> str:
        """A name for JSON: "infomax / plateau", "infomax of averages / hindsight"."""
        of = "" if self.candidates in (CHECKPOINTS, PLAIN, RULE) else f" of {self.candidates}"
        return f"{self.criterion}{of} / {self.policy}"

    @property
    def picks(self) -> list[int]:
        """Steps of what is kept, ``(R,)``."""
        return [outcome.step for outcome in self.outcomes]

    @property
    def regrets(self) -> Floats:
        """``(R,)``"""
        return np.array([outcome.regret for outcome in self.outcomes])

    @property
    def saved(self) -> Floats:
        """``(R,)``"""
        return np.array([outcome.saved for outcome in self.outcomes])

    def summary(self) -> dict[str, Any]:
        """Statistics over runs, the mean regret with its 95 % interval."""
        regrets = self.regrets
        agreements = [outcome.agreement for outcome in self.outcomes]
        return {
            "criterion": self.criterion,
            "policy": self.policy,
            "candidates": self.candidates,
            "label_free": self.label_free,
            **with_interval("regret", regrets),
            "regret_median": float(np.median(regrets)),
            "regret_p90": float(np.quantile(regrets, 0.9)),
            "regret_max": float(regrets.max()),
            "steps_saved_mean": float(self.saved.mean()),
            "spearman_mean": _nanmean([one.spearman for one in agreements]),
            "weighted_spearman_mean": _nanmean([one.weighted_spearman for one in agreements]),
        }


def with_interval(name: str, values: Floats) -> dict[str, float]:
    """Mean over runs, ``(R,)``, and its `bootstrap_interval`, under names that begin with ``name``.

    >>> with_interval("regret", np.array([0.25, 0.25]))
    {'regret_mean': 0.25, 'regret_low': 0.25, 'regret_high': 0.25}
    """
    low, high = bootstrap_interval(values)
    return {f"{name}_mean": float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def bootstrap_interval(values: Floats) -> tuple[float, float]:
    """95 % percentile interval of the mean over runs, ``(R,)``; NaN for a single run."""
    if len(values) < 2:
        return math.nan, math.nan
    low, high = np.percentile(values[_bootstrap_draws(len(values))].mean(axis=-1), [2.5, 97.5])
    return float(low), float(high)


@cache
def _bootstrap_draws(runs: int) -> NDArray[np.int64]:
    return np.random.default_rng(_SEED).integers(0, runs, (_BOOTSTRAP, runs))


def _nanmean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan
