"""What its neighbours tell about the predicted class of a text; for classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

_CHANCE = 10
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
    classes = logits.argmax(dim=-1)  # (B, n)
    information = torch.stack(
        [
            mutual_information(classes, neighbor_classes[..., s, :], logits.shape[-1])
            for s in range(neighbor_classes.shape[-2])
        ]
    ).clamp(min=0)  # (S, B)
    least = _CHANCE * (logits.shape[-1] - 1) / logits.shape[-2]
    return (information[0].clamp(min=least) * information.mean(dim=0)).sqrt()


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
    n = first.shape[-1]
    second = second.reshape(*first.shape, -1)  # (B, n, m)
    cells = (first[..., None] * classes + second).flatten(start_dim=-2)  # (B, n * m)
    counts = torch.zeros(len(first), classes**2, dtype=torch.float64, device=first.device)
    counts.scatter_add_(-1, cells, torch.ones_like(cells, dtype=torch.float64))
    joint = (counts / cells.shape[-1]).unflatten(-1, (classes, classes))
    parts = joint.sum(dim=-1), joint.sum(dim=-2), joint.flatten(start_dim=-2)
    rows, columns, both = (torch.special.entr(part).sum(dim=-1) for part in parts)
    used = [(part > 0).sum(dim=-1) for part in parts]
    return rows + columns - both - (used[2] - used[0] - used[1] + 1) / (2 * n)


@dataclass(frozen=True)
class Information:
    """`neighbor_information` as a criterion.

    Its reference is the first evaluation of a run: best the model before training, which the
    callback takes by itself. `sepstop.neighbors.Neighborhoods` tells when that is none.
    """

    name: ClassVar[str] = "information"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits", "neighbor_classes")

    def __call__(self, logits: Tensor, neighbor_classes: Tensor) -> Tensor:
        return neighbor_information(logits, neighbor_classes)
