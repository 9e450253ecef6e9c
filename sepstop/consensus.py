"""What the checkpoints of a run agree on, and which of them says it best.

Checkpoints err in different places: wrong labels are memorised one by one, steps at a high
learning rate jump about. So the class that most checkpoints give a text is right more often than
a single checkpoint is, and a checkpoint is good as far as it says the same.

References:
    arXiv:1610.02242, Temporal Ensembling; arXiv:2106.13799, Assessing Generalization of SGD via
    Disagreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.int64]

CONSENSUS = "consensus"
"""What the score is called among metrics, as ``eval_consensus``."""


def vote(predictions: Classes) -> Classes:
    """The class that most checkpoints give each text, of equals the one given last.

    ``(T, N)`` classes from 0 on -> ``(N,)``.

    >>> vote(np.array([[0, 1, 2], [0, 2, 2], [1, 2, 1]]))
    array([0, 2, 2])
    """
    texts = np.arange(predictions.shape[1])
    counts = np.zeros((len(texts), int(predictions.max()) + 1))
    for number, classes in enumerate(predictions, start=1):
        counts[texts, classes] += 1 + number / (4 * len(predictions) ** 2)
    return counts.argmax(axis=1)


def mutual_information(first: Classes, second: Classes) -> float:
    """What two labellings ``(N,)`` of the same texts tell about each other, in nats.

    Counting few texts of many classes finds information where there is none; the Miller-Madow
    term takes that off, so unrelated labellings have about 0.

    References:
        Miller (1955), Note on the bias of information estimates.
    """
    n, width = len(first), int(second.max()) + 1
    joint = np.bincount(first * width + second)
    counts = [np.bincount(first), np.bincount(second), joint]
    (rows, columns, both), (r, c, cells) = (
        [float(-(p * np.log(p)).sum()) for p in (x[x > 0] / n for x in counts)],
        [int((x > 0).sum()) for x in counts],
    )
    return rows + columns - both - (cells - r - c + 1) / (2 * n)


def consensus_scores(predictions: Sequence[Sequence[int]]) -> list[float]:
    """How much each checkpoint tells about the vote of them all, in nats.

    Args:
        predictions: T checkpoints' predicted class of each of the N texts of the pool.

    Returns:
        T scores, at most the entropy of the vote: a model that has collapsed to few classes
        tells little, however often it agrees.
    """
    return list(_scores(tuple(map(tuple, predictions)))) if predictions else []


def vote_changes(predictions: Sequence[Sequence[int]], window: int) -> list[float]:
    """Share of texts on which each checkpoint's vote differs from that ``window`` before; 1 at
    the start, where there is none."""
    known = tuple(map(tuple, predictions))
    votes = [_vote(known[:seen]) for seen in range(1, len(known) + 1)]
    pairs = zip(votes, votes[window:], strict=False)
    return [1.0] * min(window, len(votes)) + [float((a != b).mean()) for a, b in pairs]


@lru_cache(maxsize=1024)  # a replay asks for each beginning of a history again
def _vote(predictions: tuple[tuple[int, ...], ...]) -> Classes:
    return vote(np.array(predictions, dtype=np.int64))


@lru_cache(maxsize=1024)
def _scores(predictions: tuple[tuple[int, ...], ...]) -> tuple[float, ...]:
    winner = _vote(predictions)
    return tuple(mutual_information(np.array(row), winner) for row in predictions)
