"""Mutual information between each text's predicted class and its neighbors' classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sepstop.criteria.predictions import decided

CHANCE_FACTOR = 10
"""Lower bound of the first evaluation's mutual information, in units of (k - 1) / n nats.

Unrelated classes give about one or two of these units by chance.
"""


def neighbor_mi(logits: Tensor, neighbor_classes: Tensor) -> Tensor:
    """Mutual information between each text's predicted class and its neighbors' classes.

    Neighbors are the nearest texts by cosine similarity: the edges at which the points of a cloud
    merge first in its H0 filtration. The score is high if all classes are in use and each class
    keeps to its own region. It is low after a collapse to few classes and while classes overlap.

    A model that memorizes wrong labels moves its embeddings along with its predictions, so the
    neighbors of the same evaluation confirm any prediction. The neighbors from before training
    cannot, because no label has influenced them; but they do not show what the model has learned
    since. The score is therefore the geometric mean of two terms, and both have to be high:

    - the mutual information with the neighbors of the first evaluation, but at least
      ``CHANCE_FACTOR * (k - 1) / n``, so that uninformative first neighbors (of a model with
      random weights, for example) do not decide;
    - the mean of the mutual information over the neighbors of all evaluations so far.

    Only the predicted classes count, not their probabilities, which memorizing raises as well.

    Args:
        logits: ``(B, n, k)``, any float dtype, any device.
        neighbor_classes: ``(B, n, S, m)`` int64, on the same device. The classes that the model
            predicts now for each text's m nearest neighbors at each of the S evaluations so far,
            in order of evaluation.

    Returns:
        ``(B,)`` float64 in nats, on the same device. At least 0, and about log k at best (more if
        n is below 10 k).

    References:
        Ours, after the objective of arXiv:1807.06653, Invariant Information Clustering.

    Two classes of 20 texts, each text with one neighbor of its own class: log 2, and the bias
    correction adds 1 / 80.

    >>> classes = torch.arange(40) // 20
    >>> logits = torch.nn.functional.one_hot(classes).float()
    >>> neighbor_mi(logits[None], classes[None, :, None, None])
    tensor([0.7056], dtype=torch.float64)
    """
    n, k = logits.shape[-2:]
    information = mi_of_evaluations(logits.argmax(dim=-1), neighbor_classes, k)  # (B, S)
    lower_bound = CHANCE_FACTOR * (k - 1) / n
    return (information[:, 0].clamp(min=lower_bound) * information.mean(dim=1)).sqrt()


def mi_of_evaluations(groups: Tensor, neighbor_groups: Tensor, num_groups: int) -> Tensor:
    """`mutual_information` of texts' groups and their neighbors' groups at each evaluation.

    Args:
        groups: ``(B, n)`` int64 in [0, num_groups), any device.
        neighbor_groups: ``(B, n, S, m)`` int64, on the same device: the groups of each text's m
            neighbors at each of S evaluations.
        num_groups: number of groups.

    Returns:
        ``(B, S)`` float64 in nats, at least 0, on the same device.
    """
    evaluations = neighbor_groups.shape[2]
    of_texts = groups.repeat_interleave(evaluations, dim=0)  # (B * S, n)
    of_neighbors = neighbor_groups.transpose(1, 2).flatten(end_dim=1)  # (B * S, n, m)
    information = mutual_information(of_texts, of_neighbors, num_groups)
    return information.clamp(min=0).reshape(-1, evaluations)


def mutual_information(first: Tensor, second: Tensor, num_classes: int) -> Tensor:
    """Mutual information of two labelings of the same texts, Miller-Madow corrected.

    Counts of few texts in many classes overestimate mutual information. The correction removes
    this bias, so unrelated labelings have about 0, and the result can be below 0.

    Args:
        first: ``(B, n)`` int64 in [0, num_classes), any device.
        second: ``(B, n)`` int64, or ``(B, n, m)`` for m labels per text with equal weight; on the
            same device.
        num_classes: number of classes in both labelings.

    Returns:
        ``(B,)`` float64 in nats, on the same device.

    References:
        Miller (1955), Note on the bias of information estimates.

    >>> labels = torch.tensor([[0, 0, 1, 1]])
    >>> mutual_information(labels, labels, 2)  # log 2 + 1 / 8
    tensor([0.8181], dtype=torch.float64)
    """
    size, n = first.shape
    second = second.reshape(size, n, -1)  # (B, n, m)
    offset = torch.arange(size, device=first.device)[:, None, None] * num_classes
    cells = (offset + first[..., None]) * num_classes + second
    found, counts = cells.unique(return_counts=True)
    cloud = found.div(num_classes**2, rounding_mode="floor")
    total = second[0].numel()
    # Entropy is summed over the distinct counts: they are few, and their order is fixed.
    by_count = (cloud * (total + 1) + counts).bincount(minlength=size * (total + 1))
    by_count = by_count.reshape(size, -1)  # (B, n * m + 1)
    shares = torch.arange(total + 1, device=first.device, dtype=torch.float64) / total
    joint_entropy = (by_count * torch.special.entr(shares)).sum(dim=-1)
    used = by_count.sum(dim=-1)
    information = -joint_entropy
    for labels in (first, second.flatten(start_dim=1)):
        of_class = (offset[..., 0] + labels).flatten().bincount(minlength=size * num_classes)
        share = of_class.reshape(size, num_classes).double() / labels.shape[1]
        information = information + torch.special.entr(share).sum(dim=-1)
        used = used - (share > 0).sum(dim=-1)
    return information - (used + 1) / (2 * n)


@dataclass(frozen=True)
class NeighborMI:
    """`neighbor_mi` times `sepstop.criteria.predictions.decided`, as a criterion.

    It is for a model that predicts one class out of k. What an undecided model predicts is
    confirmed by neighbors about equally at every step, so its peaks are chance.

    The first evaluation of a run is its reference. It should be the model before training: the
    callback measures it there. `sepstop.measure.neighbors.Neighborhoods` tells whether the start
    is a usable reference.
    """

    name: ClassVar[str] = "neighbor_mi"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits", "neighbor_classes")
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor, neighbor_classes: Tensor) -> Tensor:
        """``(B, n, k)`` and ``(B, n, S, m)`` -> ``(B,)``."""
        return decided(logits) * neighbor_mi(logits, neighbor_classes)
