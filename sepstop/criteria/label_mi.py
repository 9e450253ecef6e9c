"""Mutual information between each label of a text and the same label of its neighbors.

It is for models whose labels do not exclude each other: each logit is a yes or no of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sepstop.criteria.neighbor_mi import CHANCE_FACTOR

_MAX_CELLS = 2**22  # texts times labels held at once


def label_mi(logits: Tensor, neighbors: Tensor, resample_indices: Tensor) -> Tensor:
    """Mutual information between each label of a text and its neighbors' label, averaged.

    A label is predicted if its logit is above 0, a probability above one half. Each label divides
    the texts into two classes, yes and no, and gets the score that
    `sepstop.criteria.neighbor_mi.neighbor_mi` gives these two classes. The result is the mean over
    the k labels, so their order does not matter. A label that is predicted for all texts, or for
    none, adds 0.

    Args:
        logits: ``(N, k)``, the pool; any float dtype, any device; k >= 1.
        neighbors: ``(N, S, m)`` int64, on the same device. Indices of each text's m nearest
            neighbors at each of the S evaluations so far, in order of evaluation.
        resample_indices: ``(B, n)`` int64, on the same device: the texts to score.

    Returns:
        ``(B,)`` float64 in nats, on the same device; from 0 to about log 2.

    References:
        Ours; see `sepstop.criteria.neighbor_mi.neighbor_mi`.

    40 texts, each with one neighbor that has the same labels. The first label divides them into
    halves: log 2, and the bias correction adds 1 / 80. The second is always predicted and adds 0.

    >>> half = torch.arange(40) // 20 * 2.0 - 1
    >>> logits = torch.stack([half, torch.ones(40)], dim=1)
    >>> neighbors = torch.arange(40).view(2, 20).roll(1, dims=1).reshape(40, 1, 1)
    >>> label_mi(logits, neighbors, torch.arange(40)[None])
    tensor([0.3528], dtype=torch.float64)
    """
    lower_bound = CHANCE_FACTOR / resample_indices.shape[1]
    scores = []
    for labels in _parts(logits):
        information = mi_of_labels(labels, neighbors, resample_indices)  # (B, S, c)
        first = information[:, 0].clamp(min=lower_bound)
        scores.append((first * information.mean(dim=1)).sqrt())
    return torch.cat(scores, dim=1).mean(dim=1)


def label_agreement(logits: Tensor, neighbors: Tensor) -> float:
    """Mean mutual information between texts' labels and their neighbors', divided by log 2.

    Args:
        logits: ``(N, k)``, any float dtype, any device.
        neighbors: ``(N, m)`` int64 indices of each text's neighbors, on the same device.

    Returns:
        From 0 to about 1.
    """
    whole = torch.arange(len(logits), device=logits.device)[None]
    information = [mi_of_labels(labels, neighbors[:, None], whole) for labels in _parts(logits)]
    return float(torch.cat(information, dim=-1).mean()) / math.log(2)


def mi_of_labels(labels: Tensor, neighbors: Tensor, resample_indices: Tensor) -> Tensor:
    """Mutual information of each label and the neighbors' label, Miller-Madow corrected.

    Args:
        labels: ``(N, c)`` bool, any device.
        neighbors: ``(N, S, m)`` int64 indices, on the same device.
        resample_indices: ``(B, n)`` int64, on the same device: the texts to score.

    Returns:
        ``(B, S, c)`` float64 in nats, at least 0, on the same device.
    """
    values = labels.double()
    size, n = resample_indices.shape
    chosen = torch.zeros(size, len(labels), dtype=values.dtype, device=labels.device)
    ones = torch.ones_like(resample_indices, dtype=values.dtype)
    chosen.scatter_add_(1, resample_indices, ones)  # (B, N)
    of_texts = chosen @ values  # (B, c); sums of whole numbers are exact
    information = []
    for near in neighbors.unbind(dim=1):
        around = labels[near].sum(dim=1).double()  # (N, c): how many of m neighbors say yes
        of_neighbors, of_both = chosen @ around, chosen @ (values * around)
        information.append(_binary_mi(of_texts, of_neighbors, of_both, n, near.shape[1]))
    return torch.stack(information, dim=1)


def _binary_mi(first: Tensor, second: Tensor, both: Tensor, n: int, m: int) -> Tensor:
    """Mutual information of two yes/no labels, from their counts of yes.

    Exactly 0 if either label is constant, despite rounding.

    Args:
        first, second, both: ``(B, c)`` counts of yes among n texts, among their n m neighbors, and
            among the n m pairs of a text and a neighbor.
    """
    rows = torch.stack([first, n - first]) / n
    columns = torch.stack([second, n * m - second]) / (n * m)
    cells = torch.stack(
        [both, m * first - both, second - both, n * m - m * first - second + both]
    ) / (n * m)
    information = sum(torch.special.entr(part).sum(dim=0) for part in (rows, columns))
    information = information - torch.special.entr(cells).sum(dim=0)
    used = [(part > 0).sum(dim=0) for part in (cells, rows, columns)]
    information = information - (used[0] - used[1] - used[2] + 1) / (2 * n)
    both_vary = (used[1] > 1) & (used[2] > 1)
    return information.clamp(min=0) * both_vary


def _parts(logits: Tensor) -> Iterator[Tensor]:
    """The predicted labels, ``(N, c)`` bool, in parts of at most `_MAX_CELLS` entries."""
    yield from (logits > 0).split(max(1, _MAX_CELLS // len(logits)), dim=1)


@dataclass(frozen=True)
class LabelMI:
    """`label_mi` as a criterion, for a model whose labels do not exclude each other.

    The first evaluation of a run is its reference, as for `sepstop.criteria.NeighborMI`.
    """

    name: ClassVar[str] = "label_mi"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits", "neighbors")
    outputs: ClassVar[str] = "labels"

    def __call__(self, logits: Tensor, neighbors: Tensor) -> Tensor:
        """``(B, n, k)`` and ``(B, n, S, m)`` -> ``(B,)``; neighbors index the same cloud."""
        whole = torch.arange(logits.shape[1], device=logits.device)[None]
        scores = [label_mi(rows, near, whole) for rows, near in zip(logits, neighbors, strict=True)]
        return torch.cat(scores)

    def on_resamples(self, logits: Tensor, neighbors: Tensor, resample_indices: Tensor) -> Tensor:
        """``(N, k)``, ``(N, S, m)`` and ``(B, n)`` -> ``(B,)``; see `label_mi`."""
        return label_mi(logits, neighbors, resample_indices)
