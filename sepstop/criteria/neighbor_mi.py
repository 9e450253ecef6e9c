"""What its neighbours tell about the predicted class of a text; for classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

CHANCE = 10
"""Times (k - 1) / n that first neighbours must tell to have a say; chance tells one or two."""


def neighbor_information(logits: Tensor, neighbor_classes: Tensor) -> Tensor:
    """Mutual information of the predicted classes of a text and of its neighbours, in nats.

    Neighbours are the nearest by cosine: the edges at which the points of a cloud merge first in
    its H0 filtration. The information is high where all classes are in use and each keeps to its
    own part of the space: not after a collapse to few classes, which leaves nothing to tell, nor
    while classes lie mixed.

    A model that memorises wrong labels pulls its embeddings along with its predictions, so its
    neighbours of today vouch for it. Those from before the training can not, since no label had a
    part in them; but they know nothing of what the training has brought to light. So the two have
    to agree: the score is the geometric mean of the information from the first neighbours and
    the average over the neighbours of all evaluations so far. First neighbours that tell less than
    ten times what chance may, as those of a model with random weights, have no say.

    It looks at the classes alone and not at how sure the model is, which memorising raises as well.

    Args:
        logits: ``(B, n, k)``.
        neighbor_classes: ``(B, n, S, m)`` int64 predicted classes of each text's m nearest
            neighbours at each of the S evaluations so far, the first first; same device.

    Returns:
        ``(B,)`` float64, at least 0; about log k at best, or more where n is less than 10 k.

    References:
        The objective of arXiv:1807.06653 (Invariant Information Clustering), on hard classes of
        neighbours.
    """
    n, k = logits.shape[-2:]
    information = told_by_neighbors(logits.argmax(dim=-1), neighbor_classes, k)
    least = CHANCE * (k - 1) / n
    return (information[:, 0].clamp(min=least) * information.mean(dim=1)).sqrt()


def told_by_neighbors(groups: Tensor, neighbor_groups: Tensor, count: int) -> Tensor:
    """`mutual_information`, at least 0, of texts' groups and their neighbours' of each evaluation.

    Args:
        groups: ``(B, n)`` int64 from 0 to below ``count``.
        neighbor_groups: ``(B, n, S, m)`` of the m neighbours at each of S evaluations.

    Returns:
        ``(B, S)`` float64, in nats.
    """
    evaluations = neighbor_groups.shape[2]
    of_texts = groups.repeat_interleave(evaluations, dim=0)  # (B * S, n)
    of_neighbors = neighbor_groups.transpose(1, 2).flatten(end_dim=1)  # (B * S, n, m)
    information = mutual_information(of_texts, of_neighbors, count)
    return information.clamp(min=0).reshape(-1, evaluations)


def mutual_information(first: Tensor, second: Tensor, classes: int) -> Tensor:
    """Of two labellings of the same texts, Miller-Madow corrected.

    Counting few texts of many classes finds information where there is none; the correction takes
    that off, so that unrelated labellings have about 0.

    Args:
        first: ``(B, n)`` int64 from 0 to below ``classes``.
        second: ``(B, n)``, or ``(B, n, m)`` for m labels a text that share its weight.

    Returns:
        ``(B,)`` float64, in nats.

    References:
        Miller (1955), Note on the bias of information estimates.
    """
    size, n = first.shape
    second = second.reshape(size, n, -1)  # (B, n, m)
    each = torch.arange(size, device=first.device)[:, None, None] * classes
    cells = (each + first[..., None]) * classes + second
    found, counts = cells.unique(return_counts=True)
    where = found.div(classes**2, rounding_mode="floor")
    total = second[0].numel()
    # Sums go by the values of the counts, which are few and in a fixed order.
    by_count = (where * (total + 1) + counts).bincount(minlength=size * (total + 1))
    by_count = by_count.reshape(size, -1)
    shares = torch.arange(total + 1, device=first.device, dtype=torch.float64) / total
    both = (by_count * torch.special.entr(shares)).sum(dim=-1)
    used = by_count.sum(dim=-1)
    information = -both
    for labels in (first, second.flatten(start_dim=1)):
        of_class = (each[..., 0] + labels).flatten().bincount(minlength=size * classes)
        share = of_class.reshape(size, classes).double() / labels.shape[1]
        information = information + torch.special.entr(share).sum(dim=-1)
        used = used - (share > 0).sum(dim=-1)
    return information - (used + 1) / (2 * n)


@dataclass(frozen=True)
class Information:
    """`neighbor_information` as a criterion.

    Its reference is the first evaluation of a run: best the model before training, which the
    callback takes by itself. `sepstop.measure.neighbors.Neighborhoods` tells when that is none.
    """

    name: ClassVar[str] = "information"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits", "neighbor_classes")
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor, neighbor_classes: Tensor) -> Tensor:
        return neighbor_information(logits, neighbor_classes)
