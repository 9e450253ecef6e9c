"""A few labels beside a label-free score: the candidate to keep, and the texts to label.

The score proposes, and labels replace its pick only by a candidate that is clearly right more often
on them. Candidates differ only on texts on which they predict different classes, so texts to label
are drawn from those, each with the same probability. Among them, differences in the number of right
answers are unbiased without weights, and labels of randomly drawn texts count alike.

The choice by a lower bound of the gain is ours. For choosing texts on which candidates disagree see
arXiv:2010.09818 (Model Picker) and arXiv:2507.23771 (CODA), which ask for one label at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAUTION = 1.5
"""Standard errors by which right answers have to outnumber wrong ones; see docs/few_labels.md."""

MIN_CONTENDERS = 5
MIN_LABELS = 3
"""With fewer labels, no candidate can replace the score's pick."""


@dataclass(frozen=True)
class LabelChoice:
    """What labels say about the candidate that a score alone would keep.

    Attributes:
        kept: index of the candidate to keep.
        proposed: index of the one that the score alone would keep.
        rival: the candidate that ``kept`` is compared with: ``proposed`` if labels replaced it,
            else the one that came closest to replacing it; None without another candidate.
        wins: labeled texts on which ``kept`` is right and ``rival`` wrong.
        losses: labeled texts on which it is the other way around.
        num_labels: labels in all.
    """

    kept: int
    proposed: int
    rival: int | None
    wins: int
    losses: int
    num_labels: int

    @property
    def is_replaced(self) -> bool:
        """True if labels replaced the score's pick."""
        return self.kept != self.proposed

    @property
    def probability(self) -> float:
        """Probability that ``kept`` is more accurate than ``rival``, by the labels alone.

        The prior of the share of wins is flat. It is not corrected for the rival being the best of
        several.

        >>> LabelChoice(kept=1, proposed=0, rival=0, wins=3, losses=0, num_labels=9).probability
        0.9375
        """
        trials = self.wins + self.losses + 1
        return sum(math.comb(trials, i) for i in range(self.wins + 1)) / 2**trials


def contenders(scores: NDArray[np.floating[Any]], proposed: int) -> NDArray[np.int64]:
    """Candidates that labels may choose: the better half by score, at least five, and the pick.

    Args:
        scores: ``(C,)``, higher is better; candidates with NaN or infinity are left out.
        proposed: index of the candidate that the score alone would keep.

    Returns:
        Ascending indices.

    >>> contenders(np.array([0.1, 0.5, 0.4, 0.2, math.nan, 0.3, 0.6]), proposed=6)
    array([1, 2, 3, 5, 6])
    """
    finite = np.flatnonzero(np.isfinite(scores))
    best_first = finite[np.argsort(-scores[finite], kind="stable")]
    count = max(MIN_CONTENDERS, math.ceil(len(finite) / 2))
    return np.unique(np.append(best_first[:count], proposed))


def choose_by_labels(
    predictions: NDArray[np.integer[Any]],
    labels: NDArray[np.integer[Any]],
    scores: NDArray[np.floating[Any]],
    proposed: int,
    caution: float = CAUTION,
) -> LabelChoice:
    """Keep the score's pick unless labels clearly contradict it.

    A contender that is right on w texts where the pick is wrong, and wrong on l where it is right,
    replaces it if ``w - l > caution * sqrt(w + l)``, where the root is the standard error of the
    difference if both are equally good. Of several such contenders, the one for which the left side
    exceeds the right by most is kept; of equals, the one with the best score.

    Args:
        predictions: ``(C, m)`` classes that the candidates predict for the labeled texts.
        labels: ``(m,)`` right classes.
        scores, proposed: as in `contenders`.
        caution: standard errors.

    The second candidate is right on three texts more than the first, which has the best score:

    >>> predictions = np.array([[0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]])
    >>> choose_by_labels(predictions, np.array([1, 1, 1, 1]), np.array([0.9, 0.5, 0.6]), proposed=0)
    LabelChoice(kept=1, proposed=0, rival=0, wins=3, losses=0, num_labels=4)
    """
    right = predictions == labels  # (C, m)
    wins = (right & ~right[proposed]).sum(axis=1)
    losses = (~right & right[proposed]).sum(axis=1)
    bounds = wins - losses - caution * np.sqrt(wins + losses)
    others = [c for c in contenders(scores, proposed) if c != proposed]
    if not others:
        return LabelChoice(proposed, proposed, None, 0, 0, len(labels))
    best = int(max(others, key=lambda c: (bounds[c], wins[c], scores[c])))
    won, lost = int(wins[best]), int(losses[best])
    if bounds[best] > 0:
        return LabelChoice(best, proposed, proposed, won, lost, len(labels))
    return LabelChoice(proposed, proposed, best, lost, won, len(labels))


def telling_texts(
    predictions: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]], proposed: int
) -> NDArray[np.int64]:
    """Texts on which the contenders disagree: only their labels tell the contenders apart.

    Args:
        predictions: ``(C, N)`` classes that the candidates predict for the pool.
        scores, proposed: as in `contenders`.

    Returns:
        Ascending indices of texts.

    >>> predictions = np.array([[0, 1, 2, 0], [0, 1, 1, 0], [0, 0, 2, 0]])
    >>> telling_texts(predictions, np.array([0.3, 0.2, 0.1]), proposed=0)
    array([1, 2])
    """
    compared = predictions[contenders(scores, proposed)]
    return np.flatnonzero((compared != compared[0]).any(axis=0))


def draw_texts(
    telling: NDArray[np.int64], count: int, seed: int, leave_out: Collection[int] = ()
) -> NDArray[np.int64]:
    """Texts to label, each of the telling ones with the same probability.

    Args:
        telling: from `telling_texts`.
        count: number of texts; all, if there are fewer.
        seed: of the draw.
        leave_out: texts that have a label.

    Returns:
        Indices in the order of the draw, so that the first of them are a draw as well.
    """
    left = np.setdiff1d(telling, np.fromiter(leave_out, np.int64))
    return np.random.default_rng(seed).permutation(left)[:count]
