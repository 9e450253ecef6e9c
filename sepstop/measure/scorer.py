"""Observations to records: every criterion on the same resamples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sepstop.config import AUTO, SepStopConfig
from sepstop.criteria import CRITERIA, HINTS, INPUTS
from sepstop.measure.embedding import Observation
from sepstop.measure.neighbors import Neighborhoods
from sepstop.measure.outputs import OUTPUTS_IN_WORDS
from sepstop.measure.resampling import score_resamples
from sepstop.measure.untouched import same_randomness
from sepstop.statistics import interval
from sepstop.types import CHECKPOINT, NO_SCORE, Average, Criterion, Outputs, Record, Score
from sepstop.utils.distributed import Ranks
from sepstop.utils.registry import build

MUTUAL_INFORMATION: dict[Outputs, str] = {
    "classes": "robust_mi",
    "labels": "label_mi",
    "none": "component_mi",
}
"""The criterion "auto" of each kind of outputs."""

_OF_TRAINER = {"loss", "runtime", "samples_per_second", "steps_per_second"}  # its own metrics


class CriterionError(ValueError):
    """The criterion that decides is for other outputs than the model's."""


def build_criterion(spec: Any) -> Criterion:
    """The criterion that ``spec`` stands for.

    Args:
        spec: as `SepStopConfig.criterion`, but not "auto".

    Raises:
        ValueError: an unknown name, or an object that is not a `sepstop.types.Criterion`.
    """
    criterion: Criterion = build("criterion", spec, CRITERIA, HINTS)
    for attribute in ("name", "higher_is_better"):
        if not hasattr(criterion, attribute):
            raise ValueError(f"the criterion {spec!r} has no attribute `{attribute}`")
    _check_attributes(criterion)
    if criterion.name in _OF_TRAINER:
        raise ValueError(
            f"a criterion called {criterion.name!r} would replace the Trainer's own "
            f"eval_{criterion.name}; expected another name"
        )
    unknown = [need for need in needs_of(criterion) if need not in INPUTS]
    if unknown:
        raise ValueError(
            f"the criterion {criterion.name!r} needs {', '.join(unknown)}; "
            f"known: {', '.join(INPUTS)}"
        )
    return criterion


def _check_attributes(criterion: Criterion) -> None:
    """
    Raises:
        ValueError: an attribute has a value that would be misread.
    """
    name, higher = criterion.name, criterion.higher_is_better
    needs, outputs = needs_of(criterion), getattr(criterion, "outputs", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"expected a string as `name` of the criterion, got {name!r}")
    if name.endswith(("_low", "_high")):
        raise ValueError(
            f"a criterion called {name!r} could be confused with an end of an interval; expected "
            "another name"
        )
    if "_of_" in name:
        raise ValueError(
            f"a criterion called {name!r} could be confused with the score of one of a step's "
            "candidates; expected another name"
        )
    if higher not in (True, False):
        raise ValueError(f"expected a bool as `higher_is_better` of {name!r}, got {higher!r}")
    if isinstance(needs, str):
        raise ValueError(f"expected a tuple as `needs` of {name!r}, got {needs!r}")
    if outputs not in (None, *OUTPUTS_IN_WORDS):
        known = ", ".join(map(repr, OUTPUTS_IN_WORDS))
        raise ValueError(f"expected `outputs` of {name!r} among {known}, got {outputs!r}")


def criteria_for(
    config: SepStopConfig, outputs: Outputs, has_logits: bool = True
) -> list[Criterion]:
    """The criteria of a run; the first decides.

    Of two with the same name, the first counts. One of your own may replace a default in this way.

    Args:
        config: its criterion and extra criteria count.
        outputs: the model's outputs.
        has_logits: True if the model returns ``(b, k)`` logits, whatever they stand for.

    Raises:
        CriterionError: the criterion that decides is for other outputs.

    Warns:
        UserWarning: an extra criterion is left out: it is for other outputs, or another one has its
            name.
    """
    decides = config.criterion
    criteria: dict[str, Criterion] = {}
    is_default = list(config.extra_criteria) == list(SepStopConfig.extra_criteria)
    for spec in (decides, *config.extra_criteria):
        criterion = build_criterion(MUTUAL_INFORMATION[outputs] if spec == AUTO else spec)
        misfit = _misfit(criterion, outputs, has_logits)
        if misfit and not criteria:
            raise CriterionError(misfit)
        if misfit:
            warnings.warn(f"sepstop: {misfit}; it is left out", stacklevel=2)
        elif criteria.setdefault(criterion.name, criterion) != criterion and not is_default:
            warnings.warn(
                f"sepstop: two criteria are called {criterion.name!r}; the second, {criterion!r}, "
                "is left out",
                stacklevel=2,
            )
    return list(criteria.values())


def needs_of(criterion: Criterion) -> tuple[str, ...]:
    """The inputs that a criterion is called with, names in `INPUTS`."""
    return getattr(criterion, "needs", ("points",))


def needs_logits(criterion: Criterion) -> bool:
    """True if the criterion needs the model's predictions."""
    return any(need.endswith(("logits", "classes")) for need in needs_of(criterion))


def looks_at_neighbors(criterion: Criterion) -> bool:
    """True if the criterion needs the neighbors of the texts."""
    return not {"neighbors", "neighbor_classes"}.isdisjoint(needs_of(criterion))


def _misfit(criterion: Criterion, outputs: Outputs, has_logits: bool) -> str:
    """Why a criterion cannot score a model with these outputs; empty if it can."""
    wanted: Outputs | None = getattr(criterion, "outputs", None)
    if wanted not in (None, outputs):
        return (
            f"the criterion {criterion.name!r} is for a model whose outputs are "
            f"{OUTPUTS_IN_WORDS[wanted]}, but they are {OUTPUTS_IN_WORDS[outputs]}: use "
            f"{MUTUAL_INFORMATION[outputs]!r}, or a criterion on embeddings, such as "
            f"'separability'; or name the outputs: outputs={wanted!r} (--outputs)"
        )
    if needs_logits(criterion) and not has_logits:
        return f"the criterion {criterion.name!r} needs logits, and the model returns none"
    return ""


class Scorer:
    """Scores the observations of one run, in order of steps.

    It needs no model, pool or tokenizer, so recorded observations get the scores of their training.
    Each record depends on the observations before it: their neighbors and their logits.

    Args:
        criteria: one or more, with different names; the first decides.
        resample_indices: ``(B, n)`` int64 index sets into the pool, on any device.
        neighborhoods: neighbors of earlier steps; empty for a new run.
        ranks: processes that divide the resamples and all make the same calls.
        on_error: "skip" an extra criterion that fails, with a warning, or "raise". An error of the
            criterion that decides is always raised.

    Attributes:
        decides: name of the criterion that decides.
        higher_is_better: direction of each criterion, by name.

    Raises:
        ValueError: no criteria, or two of the same name.

    >>> scorer = Scorer([build_criterion("separability")], torch.tensor([[0, 1, 2], [1, 2, 3]]))
    >>> seen = Observation(torch.tensor([[2.0, 0], [3, 4], [-7, 0], [-7, 0]]))
    >>> scorer(seen, step=10).scores["separability"].resample_values
    (0.25, 0.5)
    """

    def __init__(
        self,
        criteria: Sequence[Criterion],
        resample_indices: Tensor,
        neighborhoods: Neighborhoods | None = None,
        ranks: Ranks | None = None,
        on_error: Literal["skip", "raise"] = "raise",
    ) -> None:
        self.criteria = list(criteria)
        names = [one.name for one in self.criteria]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"expected one or more criteria of different names, got {names}")
        self.resample_indices = resample_indices
        self.neighborhoods = Neighborhoods() if neighborhoods is None else neighborhoods
        self.ranks = Ranks() if ranks is None else ranks
        self.on_error = on_error
        self.decides = names[0]
        self.higher_is_better = {one.name: bool(one.higher_is_better) for one in self.criteria}
        self._previous_logits: dict[str, Tensor | None] = {}  # by candidate

    @property
    def uses_neighbors(self) -> bool:
        """True if a criterion looks at neighbors."""
        return any(looks_at_neighbors(criterion) for criterion in self.criteria)

    @property
    def reference_step(self) -> int | None:
        """First step whose neighbors the deciding score refers to; None if it refers to none."""
        criterion = self.criteria[0]
        if not looks_at_neighbors(criterion):
            return None
        return self.neighborhoods.first_reference(of_predictions=needs_logits(criterion))

    def __call__(self, seen: Observation, step: int, epoch: float | None = None) -> Record:
        """The record of what was observed at ``step``.

        The random states are left as they were.

        Args:
            seen: ``(N, D)`` points and ``(N, k)`` logits, any float dtype, any device.
            step: optimizer steps taken; not less than in the call before.
            epoch: epochs taken, if counted.

        Returns:
            The record, with a score of each criterion. A score is NaN if an input that its
            criterion needs is missing or not finite.

        Raises:
            ValueError: a criterion did not return ``(B,)`` scores.

        Warns:
            RuntimeWarning: criteria gave no score, except at the first call those that compare
                with the observation before; or an extra criterion failed.
        """
        return self.best_of({CHECKPOINT: seen}, step, epoch)

    def best_of(
        self,
        candidates: Mapping[str, Observation],
        step: int,
        epoch: float | None = None,
        averages: Mapping[str, Average] | None = None,
    ) -> Record:
        """The record of the best of a step's candidates, with the scores of the others.

        All are scored with the same neighbors: those of earlier steps and of the first candidate.
        The best has the best deciding score; of equals it is the first.

        Args:
            candidates: name -> observation, at least one, as in `__call__`.
            step: optimizer steps taken; not less than in the call before.
            epoch: epochs taken, if counted.
            averages: what the candidates are, by name; without one, the step's own weights.

        Raises, warns: as `__call__`.
        """
        seen = {
            # "mps" has no float64
            name: one.cpu() if one.points.device.type == "mps" else one
            for name, one in candidates.items()
        }
        first = next(iter(seen.values()))
        device = first.points.device
        full_precision = torch.autocast(device.type, enabled=False)  # the caller may be inside one
        with torch.no_grad(), full_precision, same_randomness(device):
            self.add_neighbors(first, step)
            scores = {name: self._scores(name, one, step) for name, one in seen.items()}
        self._previous_logits = {name: one.logits for name, one in seen.items()}
        best = max(scores, key=lambda name: self._rank(scores[name][self.decides]))
        return Record(
            step=step,
            epoch=epoch,
            scores=scores.pop(best),
            resample_size=self.resample_indices.shape[1],
            pool_size=len(first.points),
            average=(averages or {}).get(best),
            others=scores,
        )

    def _scores(self, name: str, seen: Observation, step: int) -> dict[str, Score]:
        """The scores of a candidate by criterion."""
        previous = self._previous_logits.get(name)
        scores = {one.name: self._try_to_score(one, seen, previous, step) for one in self.criteria}
        self._warn_of_no_score(seen, scores, previous, step)
        return scores

    def _rank(self, score: Score) -> float:
        """Higher is better; a candidate without a score is the worst."""
        sign = 1 if self.higher_is_better[self.decides] else -1
        return sign * score.value if score.is_finite else -math.inf

    def add_neighbors(self, seen: Observation, step: int = 0) -> None:
        """Add the neighbors in an observation; later scores refer to them.

        Does nothing if no criterion looks at neighbors or the points are not finite.

        Args:
            seen: as for a record; at step 0, its logits decide whether step 0 is a reference for
                criteria that read predictions.
            step: optimizer steps taken; 0 is before training.

        Warns:
            RuntimeWarning: step 0 is not a reference, because the untrained head predicts the same
                for neighboring texts.
        """
        if not self.uses_neighbors or not torch.isfinite(seen.points).all():
            return
        self.neighborhoods.add(step, seen.points, seen.logits, seen.outputs)
        if step == 0 and not self.neighborhoods.refers_back:
            warnings.warn(
                f"sepstop: the untrained head already predicts the same {seen.outputs} for "
                "neighboring texts, so the pre-training reference is disabled; memorized wrong "
                "labels may go undetected",
                RuntimeWarning,
                stacklevel=4,
            )

    def _inputs(
        self, criterion: Criterion, seen: Observation, previous: Tensor | None, step: int
    ) -> dict[str, Tensor | None]:
        """The inputs of ``criterion`` for the whole pool, by name; None if there are none."""
        known: dict[str, Tensor | None] = {
            "points": seen.points,
            "logits": seen.logits,
            "previous_logits": previous,
            "corrupted_logits": seen.corrupted_logits,
            "token_losses": seen.token_losses,
        }
        if looks_at_neighbors(criterion):
            near = self.neighborhoods.until(step, of_predictions=needs_logits(criterion))
            classes = seen.classes
            if near is not None:
                near = near.to(seen.points.device)
            known["neighbors"] = near
            known["neighbor_classes"] = None if near is None or classes is None else classes[near]
        return {need: known[need] for need in needs_of(criterion)}

    def _try_to_score(
        self, criterion: Criterion, seen: Observation, previous: Tensor | None, step: int
    ) -> Score:
        """`_score`; `NO_SCORE`, with a warning, for an extra criterion that fails."""
        try:
            return self._score(criterion, seen, previous, step)
        except Exception as error:  # a criterion of the user's own may raise anything
            if criterion is self.criteria[0] or self.on_error == "raise":
                raise
            warnings.warn(
                f"sepstop: no score for {criterion.name} at step {step}: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=4,
            )
            return NO_SCORE

    def _score(
        self, criterion: Criterion, seen: Observation, previous: Tensor | None, step: int
    ) -> Score:
        inputs = self._inputs(criterion, seen, previous, step)
        ranks, count = self.ranks, len(self.resample_indices)
        part = ranks.together(
            lambda: score_resamples(criterion, inputs, self.resample_indices[ranks.share(count)])
        )
        values = ranks.collected(part, count)
        low, high = interval(values, self.resample_indices.shape[1], len(seen.points))
        with np.errstate(invalid="ignore"):  # of infinite values, which are warned of by name
            mean = float(np.mean(values))
        return Score(mean, low, high, tuple(values))

    def _warn_of_no_score(
        self,
        seen: Observation,
        scores: Mapping[str, Score],
        previous: Tensor | None,
        step: int,
    ) -> None:
        """Warn once of all criteria without a score.

        Criteria that compare with the observation before have none at the first.
        """
        missing = [
            one.name
            for one in self.criteria
            if not np.isfinite(scores[one.name].resample_values).all()
            and not ("previous_logits" in needs_of(one) and previous is None)
        ]
        if missing:
            warnings.warn(
                f"sepstop: {_why_no_score(seen)} at step {step}; no score for {', '.join(missing)}",
                RuntimeWarning,
                stacklevel=4,
            )


def _why_no_score(seen: Observation) -> str:
    """The first of the inputs that is not finite; otherwise the criterion is to blame."""
    for what, values in (
        ("embeddings", seen.points),
        ("logits", seen.logits),
        ("corrupted logits", seen.corrupted_logits),
        ("losses", seen.token_losses),
    ):
        if values is not None:
            bad = int((~torch.isfinite(values).all(dim=-1)).sum())
            if bad:
                return f"{bad} of {len(values)} {what} are NaN or infinite"
    return "a criterion gave no finite number"
