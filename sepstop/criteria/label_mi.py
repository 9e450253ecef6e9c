"""Mutual information between each label of a text and the same label of its neighbors.

For heads whose labels do not exclude each other: each logit is a yes or no of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sepstop.criteria.neighbor_mi import CHANCE

_CELLS = 2**22  # texts times labels that are held at once


def label_information(logits: Tensor, neighbors: Tensor, resamples: Tensor) -> Tensor:
    """Mean over the labels of what a text's neighbors tell about that label, in nats.

    A label is predicted where its logit is above 0, a probability above one half. Each label
    divides the texts into two classes, yes and no, and has the
    `sepstop.criteria.neighbor_mi.neighbor_information` of these: the geometric mean of the mutual
    information with the first neighbors' label, at least `CHANCE` / n, and of the average over the
    neighbors of all evaluations so far. The score is the mean over all k labels, so it does not
    depend on their order. A label that is predicted for every text or for none adds 0.

    Args:
        logits: ``(N, k)``, any float dtype; k >= 1.
        neighbors: ``(N, S, m)`` int64, each text's m nearest neighbors at each of the S
            evaluations so far, the first first; same device.
        resamples: ``(B, n)`` int64, the texts to score; same device.

    Returns:
        ``(B,)`` float64, from 0 to about log 2.
    """
    least = CHANCE / resamples.shape[1]
    scores = []
    for yes in _by_labels(logits):
        told = told_by_label(yes, neighbors, resamples)  # (B, S, c)
        scores.append((told[:, 0].clamp(min=least) * told.mean(dim=1)).sqrt())
    return torch.cat(scores, dim=1).mean(dim=1)


def label_agreement(logits: Tensor, neighbors: Tensor) -> float:
    """Mutual information of texts' labels and their neighbors', averaged, as a part of log 2.

    Args:
        logits: ``(N, k)``.
        neighbors: ``(N, m)`` int64.
    """
    everything = torch.arange(len(logits), device=logits.device)[None]
    told = [told_by_label(yes, neighbors[:, None], everything) for yes in _by_labels(logits)]
    return float(torch.cat(told, dim=-1).mean()) / math.log(2)


def told_by_label(yes: Tensor, neighbors: Tensor, resamples: Tensor) -> Tensor:
    """Mutual information of each label and of its neighbors' at each evaluation.

    Miller-Madow corrected and at least 0, as `sepstop.criteria.neighbor_mi.told_by_neighbors`.

    Args:
        yes: ``(N, c)`` bool.
        neighbors: ``(N, S, m)`` int64.
        resamples: ``(B, n)`` int64.

    Returns:
        ``(B, S, c)`` float64, in nats.
    """
    labels = yes.double()
    size, n = resamples.shape
    chosen = torch.zeros(size, len(yes), dtype=labels.dtype, device=yes.device)
    chosen.scatter_add_(1, resamples, torch.ones_like(resamples, dtype=labels.dtype))  # (B, N)
    of_texts = chosen @ labels  # (B, c); sums of whole numbers are exact
    told = []
    for near in neighbors.unbind(dim=1):
        around = yes[near].sum(dim=1).double()  # (N, c): of the m neighbors, those with the label
        of_neighbors, of_both = chosen @ around, chosen @ (labels * around)
        told.append(_information(of_texts, of_neighbors, of_both, n, near.shape[1]))
    return torch.stack(told, dim=1)


def _information(first: Tensor, second: Tensor, both: Tensor, n: int, m: int) -> Tensor:
    """Of the table of two yes/no labels, from the numbers of yes among n texts and n m neighbors.

    0 where either label is constant, whatever rounding makes of it.
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


def _by_labels(logits: Tensor) -> Iterator[Tensor]:
    """The predicted labels, ``(N, c)`` bool, as many at once as memory should hold."""
    yield from (logits > 0).split(max(1, _CELLS // len(logits)), dim=1)


@dataclass(frozen=True)
class LabelInformation:
    """`label_information` as a criterion, for labels that do not exclude each other.

    Its reference is the first evaluation of a run, as for `sepstop.criteria.Information`.
    """

    name: ClassVar[str] = "label_information"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits", "neighbors")
    outputs: ClassVar[str] = "labels"

    def __call__(self, logits: Tensor, neighbors: Tensor) -> Tensor:
        """``(B, n, k)``, ``(B, n, S, m)`` -> ``(B,)``; neighbors are of the same cloud."""
        whole = torch.arange(logits.shape[1], device=logits.device)[None]
        scores = [
            label_information(rows, near, whole)
            for rows, near in zip(logits, neighbors, strict=True)
        ]
        return torch.cat(scores)

    def on_resamples(self, logits: Tensor, neighbors: Tensor, resamples: Tensor) -> Tensor:
        return label_information(logits, neighbors, resamples)
