"""A run's candidates with their scores, and the best candidate of each step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sepstop.types import CHECKPOINT, Record, Score, Series


@dataclass(frozen=True)
class Scored:
    """Scores of a run's candidates by one criterion.

    Attributes:
        name, higher_is_better: of the criterion.
        steps: ascending, ``(T,)``.
        scores: of each step's candidates, by name, ``(T,)``; of equals the first is the best.
        resample_size, pool_size: points in a resample and in the pool.
    """

    name: str
    higher_is_better: bool
    steps: tuple[int, ...]
    scores: tuple[Mapping[str, Score], ...]
    resample_size: int = 0
    pool_size: int = 0

    @classmethod
    def of_records(cls, records: Sequence[Record], name: str, higher_is_better: bool) -> Scored:
        """The scores in the records of a run that the criterion ``name`` decided."""
        return cls(
            name,
            higher_is_better,
            tuple(record.step for record in records),
            tuple(
                {candidate: scores[name] for candidate, scores in record.candidates.items()}
                for record in records
            ),
            records[-1].resample_size,
            records[-1].pool_size,
        )

    @cached_property
    def best(self) -> tuple[str, ...]:
        """Name of each step's best candidate, ``(T,)``."""
        sign = 1 if self.higher_is_better else -1

        def rank(score: Score) -> float:
            return sign * score.value if score.is_finite else -math.inf

        return tuple(
            max(scores, key=lambda candidate: rank(scores[candidate])) for scores in self.scores
        )

    @cached_property
    def series(self) -> Series:
        """The score of each step's best candidate: what a policy gets."""
        return Series(
            self.name,
            self.higher_is_better,
            self.steps,
            tuple(scores[best] for scores, best in zip(self.scores, self.best, strict=True)),
            self.resample_size,
            self.pool_size,
        )

    def best_at(self, step: int) -> str:
        """Name of the best candidate at ``step``."""
        return self.best[self.steps.index(step)]

    def among(self, candidates: Sequence[str]) -> Scored:
        """The same run with fewer candidates.

        A step without any of them, such as one before the first average, keeps its own weights.
        """
        return replace(
            self,
            scores=tuple(
                {candidate: scores[candidate] for candidate in candidates if candidate in scores}
                or {CHECKPOINT: scores[CHECKPOINT]}
                for scores in self.scores
            ),
        )
