"""Judgements: all verdicts on a set of runs, over all of them and by stratum."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sepstop.bench.label_curve import label_equivalent
from sepstop.bench.strata import STRATA
from sepstop.bench.verdicts import (
    CHECKPOINTS,
    DEFAULT,
    HINDSIGHT,
    ORACLE,
    PLAIN,
    Key,
    Verdict,
    with_interval,
)
from sepstop.config import AUTO

OURS = (
    DEFAULT,
    "robust_mi",
    "neighbor_mi",
    "component_mi",
    "consistency",
    "cluster_entropy",
    "cluster_information",
)
"""Criteria of this project; all others are peers."""

REFERENCES = (
    ORACLE,
    "last checkpoint",
    "training loss",
    "validation accuracy",
)
"""In tables: choices of a single checkpoint to compare with."""

_BEST = 3  # choices shown beside the default, of each kind


@dataclass(frozen=True)
class Judgement:
    """All verdicts on a set of runs.

    Attributes:
        runs: names, ``(R,)``.
        verdicts: references first, the default last, if it was judged.
        label_curves: of each run, m -> regret of picking a checkpoint by validation accuracy on m
            labels, ``(R,)``.
        strata: of each run, ``(R,)``; see `sepstop.bench.strata`.
        decides: the default's criterion; empty if it differs between runs.
    """

    runs: Sequence[str]
    verdicts: Sequence[Verdict]
    label_curves: Sequence[Mapping[int, float]]
    strata: Sequence[str] = ()
    decides: str = ""

    @property
    def label_regrets(self) -> dict[int, float]:
        """m -> mean regret, for each m that all runs have."""
        first, *others = self.label_curves
        sizes = [m for m in first if all(m in curve for curve in others)]
        return {m: float(np.mean([curve[m] for curve in self.label_curves])) for m in sizes}

    def find(self, criterion: str, policy: str = HINDSIGHT, candidates: str = "") -> Verdict:
        """The verdict on a criterion with a policy.

        Args:
            candidates: default: the first that the criterion was judged on, single checkpoints.

        Raises:
            KeyError: it was not judged.
        """
        for verdict in self.verdicts:
            if verdict.key == (criterion, policy, candidates or verdict.candidates):
                return verdict
        of = f" of {candidates}" if candidates else ""
        raise KeyError(f"{criterion}{of} with {policy} was not judged")

    def within(self, stratum: str) -> Judgement:
        """The same on the runs of one stratum."""
        kept = [i for i, found in enumerate(self.strata) if found == stratum]
        return replace(
            self,
            runs=[self.runs[i] for i in kept],
            verdicts=[
                replace(verdict, outcomes=tuple(verdict.outcomes[i] for i in kept))
                for verdict in self.verdicts
            ],
            label_curves=[self.label_curves[i] for i in kept],
            strata=[self.strata[i] for i in kept],
        )

    @property
    def by_stratum(self) -> dict[str, Judgement]:
        """Stratum -> the judgement on its runs; strata without runs are left out."""
        return {name: self.within(name) for name in STRATA if name in self.strata}

    def summaries(self, keys: Sequence[Key] | None = None) -> list[dict[str, Any]]:
        """One row per verdict.

        Beside the statistics of `Verdict.summary` a row has the label equivalent; the paired
        difference in regret to the best label-free choice of others among single checkpoints
        ("difference", against "against"); and that of the default to this row ("default_less",
        below 0 if the default keeps better weights).

        Args:
            keys: of the verdicts to show, in this order. Default: all.
        """
        best = self.best_checkpoint_pick(leave_out=OURS)
        default = self._default()
        curve = self.label_regrets
        by_key = {verdict.key: verdict for verdict in self.verdicts}
        rows = []
        for verdict in self.verdicts if keys is None else [by_key[key] for key in keys]:
            row = verdict.summary()
            row["label_equivalent"] = label_equivalent(row["regret_mean"], curve)
            if best is not None and verdict is not best:
                row["against"] = best.criterion
                row |= with_interval("difference", verdict.regrets - best.regrets)
            if default is not None and verdict is not default:
                row |= with_interval("default_less", default.regrets - verdict.regrets)
            rows.append(row)
        return rows

    def question(self) -> list[Key]:
        """The verdicts that say what to keep, best mean regret first.

        These are the default, with and without its stop; the references; the default's criterion on
        single checkpoints; and, chosen in hindsight on these very runs, the best label-free choices
        among single checkpoints and among candidates with averages.
        """
        hindsight = [verdict for verdict in self.verdicts if verdict.policy == HINDSIGHT]
        references = [v for v in hindsight if v.criterion in REFERENCES or v.candidates == PLAIN]
        ours = [v for v in self.verdicts if v.criterion == DEFAULT]
        ours += [v for v in hindsight if v.key[::2] == (self.decides, CHECKPOINTS)]
        others = [v for v in hindsight if v.label_free and v not in ours and v not in references]
        others.sort(key=_mean_regret)
        single = [v for v in others if v.candidates == CHECKPOINTS][:_BEST]
        averages = [v for v in others if v.candidates != CHECKPOINTS][:_BEST]
        chosen = {v.key: v for v in [*ours, *references, *single, *averages]}
        return [v.key for v in sorted(chosen.values(), key=_mean_regret)]

    def as_json(self) -> dict[str, Any]:
        """What `sepstop bench judge --json` prints; NaN and infinity are None.

        So is "default" if it was not judged.
        """
        question = self.question()
        hindsight = [v.key for v in self.verdicts if v.policy == HINDSIGHT or v.key in question]
        return _finite(
            {
                "default": self._summary_of_default(),
                "label_regrets": _with_text_keys(self.label_regrets),
                "rows": self.summaries(),
                "runs": {
                    run: {
                        verdict.label: {
                            "regret": verdict.outcomes[i].regret,
                            "pick": verdict.outcomes[i].step,
                            "candidate": verdict.outcomes[i].candidate,
                            "steps_saved": verdict.outcomes[i].saved,
                        }
                        for verdict in self.verdicts
                    }
                    for i, run in enumerate(self.runs)
                },
                "question": self.summaries(question),
                "strata": {
                    name: {
                        "runs": list(part.runs),
                        "label_regrets": _with_text_keys(part.label_regrets),
                        "question": part.summaries(question),
                        "rows": part.summaries(hindsight),
                    }
                    for name, part in self.by_stratum.items()
                },
            }
        )

    def best_checkpoint_pick(self, leave_out: Collection[str] = ()) -> Verdict | None:
        """The label-free choice of a single checkpoint with the lowest mean regret."""
        picks = [
            verdict
            for verdict in self.verdicts
            if verdict.label_free
            and verdict.policy == HINDSIGHT
            and verdict.candidates == CHECKPOINTS
            and verdict.criterion not in leave_out
        ]
        return min(picks, key=_mean_regret, default=None)

    def _default(self) -> Verdict | None:
        found = (v for v in self.verdicts if (v.criterion, v.policy) == (DEFAULT, HINDSIGHT))
        return next(found, None)

    def _summary_of_default(self) -> dict[str, Any] | None:
        found, curve = self._default(), self.label_regrets
        if found is None:
            return None
        pick, stop = found.summary(), self.find(DEFAULT, AUTO).summary()
        return {
            "criterion": DEFAULT,
            "policy": AUTO,
            "candidates": found.candidates,
            **{key: pick[key] for key in ("regret_mean", "regret_p90", "regret_max")},
            "regret_stop_mean": stop["regret_mean"],
            "steps_saved_mean": stop["steps_saved_mean"],
            "label_equivalent": label_equivalent(pick["regret_mean"], curve),
            "label_equivalent_stop": label_equivalent(stop["regret_mean"], curve),
        }


def _mean_regret(verdict: Verdict) -> float:
    return float(verdict.regrets.mean())


def _with_text_keys(curve: Mapping[int, float]) -> dict[str, float]:
    return {str(m): regret for m, regret in curve.items()}


def _finite(value: Any) -> Any:
    """``value`` with None for each NaN or infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
