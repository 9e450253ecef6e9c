"""The two values that travel through sepstop, and the three things a user may replace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Outputs = Literal["classes", "labels", "none"]
"""A model's outputs: one class out of k, labels that do not exclude each other, or neither."""


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement of the pool.

    Attributes:
        step: optimizer steps taken when the model was measured; 0 is before training.
        epoch: epochs taken, or None where the loop does not count them.
        score: mean of ``resamples``; NaN when the pool could not be scored.
        low, high: 95 % interval of ``score`` (NaN when there is a single resample).
        seconds: wall time of embedding the pool and scoring it.
        criterion: name of the score.
        resamples: score of each resample, ``(B,)``. The index sets are the same at every
            step, so two records can be compared pair by pair.
        resample_size: points in a resample.
        pool_size: points in the pool.
        information: mutual information between each text's group and its neighbors' groups. The
            default policy uses it. NaN where the outputs are not finite.
        information_of: what the groups are: predicted "classes" (`sepstop.criteria.Information`),
            predicted "labels" that do not exclude each other
            (`sepstop.criteria.LabelInformation`), or "components" of the embeddings
            (`sepstop.criteria.ComponentInformation`).
        information_low, information_high, information_resamples: as of the score.
    """

    step: int
    epoch: float | None
    score: float
    low: float = math.nan
    high: float = math.nan
    seconds: float = 0.0
    criterion: str = "separability"
    resamples: tuple[float, ...] = ()
    resample_size: int = 0
    pool_size: int = 0
    information: float = math.nan
    information_of: str = "classes"
    information_low: float = math.nan
    information_high: float = math.nan
    information_resamples: tuple[float, ...] = ()

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.score)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy concludes from a history.

    Attributes:
        stop: end the training now.
        best_step: step of the checkpoint to keep; None while nothing could be scored.
        reason: why, in a sentence for a person.
        step: last step that the decision looked at; None for an empty history.
    """

    stop: bool
    best_step: int | None
    reason: str
    step: int | None = None


class Embedder(Protocol):
    """Model and a right-padded batch of tokens to one point per text.

    It needs ``**inputs`` only for pools of sentence pairs, which have ``token_type_ids``,
    ``(b, L)`` int64.
    """

    def __call__(
        self, model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, **inputs: Any
    ) -> Tensor:
        """``(b, L)`` int64 token ids and 0/1 mask on the model's device -> ``(b, D)``."""


class Criterion(Protocol):
    """A label-free score of a model on B resamples of the pool.

    It is called with what its attribute ``needs`` names, in that order; without the attribute
    with the points, ``(B, n, D)`` float. See `sepstop.criteria.INPUTS`. It may have a method
    ``on_resamples(*inputs, resamples)`` that gets those of the whole pool, ``(N, ...)``, and
    ``(B, n)`` index sets, if it can share work between them.
    """

    name: str
    higher_is_better: bool

    def __call__(self, *inputs: Any) -> Tensor:
        """-> ``(B,)`` scores; NaN where a resample has no score."""


class Policy(Protocol):
    """A pure function of the history: the same records give the same decision.

    The step to keep is the one with the best score, unless the policy has a method
    ``pick(history) -> Record | None`` of its own, as `Auto` has.
    """

    def __call__(self, history: Sequence[Record]) -> Decision: ...
