"""What the nearest neighbour of a text tells about its predicted class; for classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot


def neighbor_information(points: Tensor, logits: Tensor) -> Tensor:
    """Mutual information of the predicted classes of a text and of its nearest neighbour, in nats.

    High where all classes are in use and each keeps to its own part of the space: not after a
    collapse to few classes, which leaves nothing to tell, nor while classes lie mixed. Neighbours
    are the nearest by cosine. They are the edges at which the points of a cloud merge first in its
    H0 filtration, so this reads the shortest of the scales that separability takes the mean of,
    together with what they join.

    It looks at the classes alone and not at how sure the model is, which memorising raises as well.
    Counting few texts of many classes finds information where there is none; the Miller-Madow term
    takes that off, so that unrelated classes have about 0.

    Args:
        points: ``(B, n, D)`` embeddings, any float dtype; n >= 2.
        logits: ``(B, n, k)``, same device.

    Returns:
        ``(B,)`` float64, at most log k + (k - 1) / 2n.

    References:
        The objective of arXiv:1807.06653 (Invariant Information Clustering), on hard classes of
        neighbours; Miller (1955), Note on the bias of information estimates.
    """
    rows = normalize(points.float(), dim=-1)
    similar = rows @ rows.mT  # (B, n, n)
    similar.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    classes = logits.argmax(dim=-1)  # (B, n)
    return mutual_information(classes, classes.gather(1, similar.argmax(dim=-1)), logits.shape[-1])


def mutual_information(first: Tensor, second: Tensor, classes: int) -> Tensor:
    """Of two labellings of the same texts, ``(B, n)`` int64 from 0 on; Miller-Madow corrected.

    ``-> (B,)`` float64, in nats.
    """
    n = first.shape[-1]
    joint = one_hot(first, classes).double().mT @ one_hot(second, classes).double() / n
    rows, columns = joint.sum(dim=-1), joint.sum(dim=-2)  # (B, k)
    entropy, cells = (
        [measure(x) for x in (rows, columns, joint.flatten(-2))]
        for measure in (
            lambda p: torch.special.entr(p).sum(dim=-1),
            lambda p: (p > 0).sum(dim=-1),
        )
    )
    bias = (cells[2] - cells[0] - cells[1] + 1) / (2 * n)
    return entropy[0] + entropy[1] - entropy[2] - bias


@dataclass(frozen=True)
class Information:
    """`neighbor_information` as a criterion."""

    name: ClassVar[str] = "information"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("points", "logits")

    def __call__(self, points: Tensor, logits: Tensor) -> Tensor:
        return neighbor_information(points, logits)
