"""Values that all of sepstop shares, and protocols of the objects that a user may pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

Outputs = Literal["classes", "labels", "none"]
"""A model's outputs: one class out of k, labels that do not exclude each other, or neither."""


@dataclass(frozen=True, slots=True)
class Score:
    """One criterion's score of the pool at one step.

    ``str(score)`` is ``"0.4123 [0.4050, 0.4196]"``, or ``"no score"``.

    Attributes:
        value: mean of ``resample_values``; NaN if the pool could not be scored.
        low, high: 95 % interval of ``value``; NaN with a single resample, or if the resamples are
            the whole pool.
        resample_values: score of each resample, ``(B,)``. A run draws its resamples once, so two
            scores can be compared resample by resample.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    resample_values: tuple[float, ...] = ()

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.value)

    def __str__(self) -> str:
        if not self.is_finite:
            return "no score"
        if not math.isfinite(self.low + self.high):
            return f"{self.value:.4f}"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


NO_SCORE = Score(math.nan)
"""The score of a pool that could not be scored."""


CHECKPOINT = "checkpoint"
"""The name of a step's own weights among the candidates of a step; the others are averages."""


@dataclass(frozen=True, slots=True)
class Average:
    """An average of a run's weights.

    ``str(average)`` is ``"cumulative average of steps 20 to 140"``.

    Attributes:
        name: how the steps are weighted; see `sepstop.measure.average.AVERAGES` and, for averages
            of checkpoints on disk, `sepstop.runs.averaging`.
        first_step, last_step: the first and the last step in it.
        count: number of steps in it.
    """

    name: str
    first_step: int
    last_step: int
    count: int

    def __str__(self) -> str:
        return f"{self.name} average of steps {self.first_step} to {self.last_step}"


def candidate_name(average: Average | None) -> str:
    """The name of a candidate: that of the average, or `CHECKPOINT`."""
    return CHECKPOINT if average is None else average.name


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement of the pool.

    At each step the candidates are the step's own weights, averages of the weights up to it, or
    both. The record is that of the best candidate.

    Attributes:
        step: optimizer steps taken; 0 is before training.
        epoch: epochs taken; None if the training loop does not count them.
        scores: one score per criterion, by the criterion's name.
        seconds: wall time of embedding the pool and scoring it.
        resample_size: points in a resample.
        pool_size: points in the pool.
        average: the average that the scores are of; None for the step's own weights.
        others: scores of the other candidates of this step, by the candidate's name, then by the
            criterion's. The step's own weights are called `CHECKPOINT`.
    """

    step: int
    epoch: float | None
    scores: Mapping[str, Score]
    seconds: float = 0.0
    resample_size: int = 0
    pool_size: int = 0
    average: Average | None = None
    others: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)

    @property
    def candidates(self) -> Mapping[str, Mapping[str, Score]]:
        """Scores of all candidates of this step, by name, the best one first."""
        return {candidate_name(self.average): self.scores, **self.others}

    @property
    def has_average_candidates(self) -> bool:
        """True if an average was a candidate, whether or not it was the best."""
        return any(name != CHECKPOINT for name in self.candidates)


@dataclass(frozen=True, slots=True)
class Series:
    """One criterion's scores over a run: what a policy gets.

    >>> first, second = Record(5, None, {"mi": Score(0.1)}), Record(10, None, {"mi": Score(0.4)})
    >>> Series.of([first, second], "mi").best_step
    10

    Attributes:
        name: of the criterion.
        higher_is_better: direction of the criterion.
        steps: ascending, ``(T,)``.
        scores: one per step, ``(T,)``.
        resample_size, pool_size: points in a resample and in the pool, of the newest record.
    """

    name: str
    higher_is_better: bool
    steps: tuple[int, ...]
    scores: tuple[Score, ...]
    resample_size: int = 0
    pool_size: int = 0

    @classmethod
    def of(cls, records: Sequence[Record], name: str, higher_is_better: bool = True) -> Series:
        """The scores of the criterion ``name``; `NO_SCORE` for records without one."""
        newest = records[-1] if records else None
        return cls(
            name,
            higher_is_better,
            tuple(record.step for record in records),
            tuple(record.scores.get(name, NO_SCORE) for record in records),
            0 if newest is None else newest.resample_size,
            0 if newest is None else newest.pool_size,
        )

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, Score]]:
        return zip(self.steps, self.scores, strict=True)

    @property
    def sign(self) -> int:
        """1 if a higher score is better, -1 if a lower one is."""
        return 1 if self.higher_is_better else -1

    @property
    def trained(self) -> Series:
        """The part after step 0."""
        return self.between(1)

    @property
    def best_step(self) -> int | None:
        """The step after step 0 with the best score, the earliest of equals; None without one."""
        finite = [(step, score.value) for step, score in self.trained if score.is_finite]
        return max(finite, key=lambda pair: (self.sign * pair[1], -pair[0]))[0] if finite else None

    def score_at(self, step: int) -> Score:
        """The score at ``step``; `NO_SCORE` for an unknown step."""
        return dict(self).get(step, NO_SCORE)

    def between(self, first: int, last: float = math.inf) -> Series:
        """The part from step ``first`` to step ``last``, both included."""
        kept = [pair for pair in self if first <= pair[0] <= last]
        steps, scores = zip(*kept, strict=True) if kept else ((), ())
        return Series(
            self.name,
            self.higher_is_better,
            steps,
            scores,
            self.resample_size,
            self.pool_size,
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy's conclusion from a series.

    Attributes:
        stop: end the training now.
        best_step: step of the checkpoint to keep; None while nothing could be scored.
        reason: why, in a sentence for a person.
        step: last step that the decision looked at; None for an empty series.
    """

    stop: bool
    best_step: int | None
    reason: str
    step: int | None = None


class Pooling(Protocol):
    """A model and a right-padded batch of tokens to one point per text.

    ``**inputs`` is needed only for pools of sentence pairs: it has their ``token_type_ids``,
    ``(b, L)`` int64.
    """

    def __call__(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **inputs: Any
    ) -> Tensor:
        """``(b, L)`` int64 token ids and 0/1 mask on the model's device -> ``(b, D)``."""


class Criterion(Protocol):
    """A label-free score of a model's embeddings or predictions on B resamples of the pool.

    It is called with the inputs that its attribute ``needs`` names, in that order; without the
    attribute, with the points, ``(B, n, D)`` float. `sepstop.criteria.INPUTS` lists the inputs.
    It may have a method ``on_resamples(*inputs, resample_indices)``, which gets the inputs of the
    whole pool, ``(N, ...)``, and ``(B, n)`` int64 index sets, to share work between resamples. An
    attribute ``outputs`` names the `Outputs` that the criterion is for. Default: any.
    """

    name: str
    higher_is_better: bool

    def __call__(self, *inputs: Any) -> Tensor:
        """-> ``(B,)`` scores; NaN where a resample has no score."""


class Policy(Protocol):
    """A pure function: the same series gives the same decision.

    It decides when to stop. The step to keep is always the one with the best score, whatever
    ``best_step`` the policy returns.
    """

    def __call__(self, series: Series) -> Decision: ...
