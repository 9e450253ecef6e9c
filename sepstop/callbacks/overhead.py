"""The time of a run that scoring takes: its share, and whether it allows another score."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORTH_TELLING = 0.1
"""Share of the time above which a run says how to lower it."""

_FEWEST_TEXTS = 100  # a smaller pool is not worth proposing


class Overhead:
    """A stopwatch of a run, from the start of training in this process on.

    Args:
        limit: largest share of the time for scoring, between 0 and 1; None for any.

    Attributes:
        spent: seconds that went into `counted` work.
        score_seconds: what the newest score took; 0 before the first.
        interval: seconds of training between the newest score and the one before it.
        steps: optimizer steps in these seconds.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self.start()

    def start(self) -> None:
        """Training begins now; an earlier run is forgotten."""
        self._began = time.perf_counter()
        self.spent = self.score_seconds = self.interval = 0.0
        self.steps = self._steps = 0
        self._trained = self._trained_at_score = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the time within as spent. Contexts do not nest."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # training steps may wait in the device's queue
        start = self.elapsed
        self._trained = start - self.spent
        try:
            yield
        finally:
            self.spent += self.elapsed - start

    def add_step(self) -> None:
        """Count an optimizer step."""
        self._steps += 1

    def add_score(self, seconds: float) -> None:
        """Take note of a score, inside a `counted` context."""
        self.score_seconds = seconds
        self.interval, self.steps = self._trained - self._trained_at_score, self._steps
        self._trained_at_score, self._steps = self._trained, 0

    def allows_a_score(self) -> bool:
        """True if the share is within the limit after one more score like the newest."""
        seconds = self.score_seconds if math.isfinite(self.score_seconds) else 0.0  # of a file
        return self.limit is None or self.spent + seconds <= self.limit * (self.elapsed + seconds)

    def described(self, pool_size: int) -> str:
        """The cost of the newest score, in a sentence with settings that lower a high one.

        Args:
            pool_size: texts in the pool.
        """
        ratio = self.score_seconds / max(self.interval, 1e-9)
        share = ratio / (1 + ratio)
        cost = f"a score takes {self.score_seconds:.1f} s, {share:.0%} of the time"
        if share <= WORTH_TELLING:
            return cost
        if self.limit is not None:
            return f"{cost}; max_overhead={self.limit:g} leaves evaluations out"
        too_much = ratio * (1 - WORTH_TELLING) / WORTH_TELLING
        ways = [
            f"max_overhead={WORTH_TELLING:g}",
            f"every_n_steps={math.ceil(too_much) * self.steps}",
        ]
        if (texts := 10 * int(pool_size / too_much / 10)) >= _FEWEST_TEXTS:
            ways.append(f"pool_size={texts}")
        return f"{cost}; for less than {WORTH_TELLING:.0%}, set {' or '.join(ways)}"
