"""Scored checkpoints to the one to keep; reads records only."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from sepstop.decide.policies import (
    Auto,
    Mode,
    best_record,
    has_information,
    replay,
    scored_by_information,
)
from sepstop.measure.resampling import improvement_p_value
from sepstop.types import Decision, Policy, Record

K = TypeVar("K")

Rule = Literal["best", "earliest", "latest"]
"""Which is kept of the best checkpoint and those that it cannot be told apart from."""

_LEVEL = 0.05


@dataclass(frozen=True)
class Selection:
    """The checkpoints of a run, scored.

    Attributes:
        decision: which to keep and why.
        records: one a checkpoint, in order of steps.
        paths: step -> folder of the checkpoint.
        skipped: folder -> why it could not be scored.
        higher_is_better: direction of the score.
        online_best_step: what the run itself kept, if it was monitored; else None.
        by_information: whether the information and not the score decided.
        ties: steps of the other checkpoints that the best cannot be told apart from, or of the best
            itself where another is kept.
        settings: how all were measured.
        width: dimensions of the embeddings.
        since: the first step whose neighbours the information refers to, 0 for the model before
            training; None where each checkpoint has its own neighbours alone.
        differences: step -> how its scores differ from those in the run's own log, where they
            do by more than rounding.
    """

    decision: Decision
    records: tuple[Record, ...]
    paths: dict[int, Path]
    skipped: dict[Path, str]
    higher_is_better: bool
    online_best_step: int | None
    by_information: bool = False
    ties: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    width: int = 0
    since: int | None = None
    differences: Mapping[int, str] = field(default_factory=dict)

    @property
    def best_step(self) -> int:
        assert self.decision.best_step is not None  # select_checkpoint raises otherwise
        return self.decision.best_step

    @property
    def best(self) -> Path:
        """Folder of the checkpoint to keep."""
        return self.paths[self.best_step]

    @property
    def deciding(self) -> list[Record]:
        """The records with what decided for a score."""
        return scored_by_information(self.records) if self.by_information else list(self.records)

    @property
    def mode(self) -> Mode:
        """Direction of what decided."""
        return "max" if self.higher_is_better or self.by_information else "min"

    @property
    def pick(self) -> Record:
        """The record of the checkpoint to keep, with what decided for a score."""
        return next(record for record in self.deciding if record.step == self.best_step)

    @property
    def ranking(self) -> list[Record]:
        """Records from best to worst by what decided, those without it last."""
        sign = 1 if self.mode == "max" else -1
        values = {record.step: sign * record.score for record in self.deciding}
        return sorted(
            self.records,
            key=lambda r: (
                not math.isfinite(values[r.step]),
                -values[r.step] if math.isfinite(values[r.step]) else 0.0,
                r.step,
            ),
        )


def choose(
    history: Sequence[Record],
    policy: Policy | None,
    mode: Mode,
    by_score: bool,
    rule: Rule | None,
    own: int | None,
) -> tuple[Decision, bool, tuple[int, ...]]:
    """The checkpoint to keep, whether the information decided, and the others tied with it.

    Args:
        policy: replayed; where it stops, later checkpoints are no candidates.
        by_score: the score decides, and not the information; a policy knows by itself.
        rule: which of the tied is kept; None is the best if a policy chose, else ``own``, or the
            earliest where that is none of them.
        own: the step that the run itself kept.
    """
    informed = has_information(history)
    if policy is None:
        by_information = informed and not by_score
        deciding = scored_by_information(history) if by_information else history
        decision = _pick(deciding, mode)
    else:
        by_information = informed and isinstance(policy, Auto)
        deciding = scored_by_information(history) if by_information else history
        decision = replay(policy, history)
    until = decision.step if decision.stop and decision.step is not None else math.inf
    candidates = [record for record in deciding if record.step <= until]
    best = next((record for record in candidates if record.step == decision.best_step), None)
    if best is None:
        return decision, by_information, ()
    tied = ties_of(best, candidates, "max" if by_information else mode)
    if not tied:
        return decision, by_information, ()
    together = sorted((best.step, *tied))
    if rule is None and policy is None and own in together:
        kept, which = own, "the run's own pick"
    else:
        rule = rule or ("best" if policy is not None else "earliest")
        kept = {"best": best.step, "earliest": together[0], "latest": together[-1]}[rule]
        which = f"the {rule}"
    steps = f"step{'s' * (len(tied) > 1)} {', '.join(map(str, tied))}"
    why = f"{decision.reason}; step {best.step} is not significantly better than {steps}"
    if kept != best.step:
        why += f", of all which {which} is kept, step {kept}"
    others = tuple(step for step in together if step != kept)
    return replace(decision, best_step=kept, reason=why), by_information, others


def _pick(history: Sequence[Record], mode: Mode) -> Decision:
    best = best_record(history, mode)
    if best is None:
        return Decision(False, None, "nothing could be scored")
    why = f"best {best.criterion} of {len(history)} checkpoints"
    return Decision(False, best.step, why, history[-1].step)


def ties_of(best: Record, others: Sequence[Record], mode: Mode) -> tuple[int, ...]:
    """Steps of the other records that ``best`` does not beat significantly (5 %, paired)."""
    return tuple(
        record.step
        for record in others
        if record.step != best.step and record.is_finite and not is_above(best, record, mode)
    )


def is_above(best: Record, other: Record, mode: Mode) -> bool:
    """Whether ``best`` beats ``other`` significantly on the paired resamples."""
    sign = 1 if mode == "max" else -1
    gains = [sign * (high - low) for high, low in zip(best.resamples, other.resamples, strict=True)]
    try:
        return improvement_p_value(gains, best.resample_size, best.pool_size) < _LEVEL
    except ValueError:  # one resample: nothing to tell them apart by
        return not math.isclose(best.score, other.score)


def best_run(selections: Mapping[K, Selection]) -> K:
    """The run whose pick is best, the first of equals; a warning says why they may not compare.

    Args:
        selections: by the run, of one pool.

    Raises:
        ValueError: the runs were decided by different criteria, which do not compare at all.
    """
    deciders = {_decider(found) for found in selections.values()}
    if len(deciders) > 1:
        raise ValueError(
            f"the runs are decided by different scores, {' and '.join(sorted(deciders))}; name one "
            "for all: criterion= (--criterion)"
        )
    compared = [_comparable(found) for found in selections.values()]
    for what in compared[0]:
        if len({found[what] for found in compared}) > 1:
            warnings.warn(
                f"the runs have {what}, so their scores may not compare; those of `infomax` do, "
                "which looks at the predictions alone",
                stacklevel=2,
            )
    picks = {run: found.pick for run, found in selections.items()}
    sign = 1 if next(iter(selections.values())).mode == "max" else -1
    return max(picks, key=lambda run: sign * picks[run].score)


def tied_runs(selections: Mapping[K, Selection], best: K) -> list[K]:
    """Other runs whose pick the best one's does not beat significantly, on the same resamples."""
    first = selections[best]
    paired = ("pool", "seed", "resamples", "resample_size")
    return [
        run
        for run, found in selections.items()
        if run != best
        and all(found.settings.get(key) == first.settings.get(key) for key in paired)
        and not is_above(first.pick, found.pick, first.mode)
    ]


def _decider(selection: Selection) -> str:
    record = selection.records[0]
    if selection.by_information:
        return f"information of {record.information_of}"
    return record.criterion


def _comparable(selection: Selection) -> dict[str, Any]:
    return {
        "embeddings of another width": selection.width,
        "another embedder": json.dumps(selection.settings.get("embedder")),
        "resamples of another size": selection.settings.get("resample_size"),
        "other first neighbors to refer to (name the model before training: base_model=, "
        "--base-model)": (selection.since if selection.by_information else None),
    }
