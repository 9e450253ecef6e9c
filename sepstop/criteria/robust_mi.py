"""Agreement of predictions with those for corrupted copies of the texts, and with neighbors'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sepstop.criteria.neighbor_mi import mutual_information, neighbor_mi
from sepstop.criteria.predictions import decided

CONSISTENCY_WEIGHT = 2 / 3
"""Weight of `consistency` in `robust_mi`, chosen on development runs: see docs/method.md."""


def consistency(logits: Tensor, corrupted_logits: Tensor) -> Tensor:
    """Mutual information of each text's predicted class and its corrupted copy's.

    It is high if all classes are in use and predictions survive the loss of some tokens. Unlike
    `sepstop.criteria.predictions.infomax` it ignores confidence, which memorizing wrong labels
    raises as well. It is Miller-Madow corrected; see
    `sepstop.criteria.neighbor_mi.mutual_information`.

    Args:
        logits, corrupted_logits: ``(B, n, k)``, any float dtype, on one device.

    Returns:
        ``(B,)`` float64 in nats, on the same device; up to about log k.

    References:
        Ours, after the objective of arXiv:1807.06653, Invariant Information Clustering.
    """
    first, second = logits.argmax(dim=-1), corrupted_logits.argmax(dim=-1)  # (B, n)
    return mutual_information(first, second, logits.shape[-1])


def robust_mi(logits: Tensor, corrupted_logits: Tensor, neighbor_classes: Tensor) -> Tensor:
    """Weighted geometric mean of `consistency` and `sepstop.criteria.neighbor_mi.neighbor_mi`.

    The weights are `CONSISTENCY_WEIGHT` and the rest. Both scores have to be high. They fail in
    different ways: neighbors of a model that has learned little confirm its predictions, and so do
    those of a model that has memorized wrong labels; but memorized predictions do not survive the
    loss of some tokens.

    A model that has hardly begun to learn is undecided, and what it predicts is about equally
    consistent at every step. So the mean is multiplied by `sepstop.criteria.predictions.decided`.

    Args:
        logits, corrupted_logits: ``(B, n, k)``, any float dtype, on one device.
        neighbor_classes: ``(B, n, S, m)`` int64, on the same device; see `neighbor_mi`.

    Returns:
        ``(B,)`` float64 in nats, on the same device. At least 0, and about log k at best (more if
        n is below 10 k).

    Two classes of 20 texts, each text with one neighbor and a corrupted copy of its own class:

    >>> import torch
    >>> classes = torch.arange(40) // 20
    >>> logits = torch.nn.functional.one_hot(classes).float()[None]
    >>> robust_mi(logits, logits, classes[None, :, None, None])  # log 2 + 1 / 80
    tensor([0.7056], dtype=torch.float64)
    """
    stable = consistency(logits, corrupted_logits).clamp(min=0)
    confirmed = neighbor_mi(logits, neighbor_classes)
    return decided(logits) * stable**CONSISTENCY_WEIGHT * confirmed ** (1 - CONSISTENCY_WEIGHT)


@dataclass(frozen=True)
class Consistency:
    """`consistency` as a criterion, for a model that predicts one class out of k.

    It costs a second forward pass over the pool.
    """

    name: ClassVar[str] = "consistency"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits", "corrupted_logits")
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor, corrupted_logits: Tensor) -> Tensor:
        """``(B, n, k)`` twice -> ``(B,)``; see `consistency`."""
        return consistency(logits, corrupted_logits)


@dataclass(frozen=True)
class RobustMI:
    """`robust_mi` as a criterion, for a model that predicts one class out of k.

    It costs a second forward pass over the pool. The first evaluation of a run is its reference, as
    for `sepstop.criteria.neighbor_mi.NeighborMI`.
    """

    name: ClassVar[str] = "robust_mi"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits", "corrupted_logits", "neighbor_classes")
    outputs: ClassVar[str] = "classes"

    def __call__(
        self, logits: Tensor, corrupted_logits: Tensor, neighbor_classes: Tensor
    ) -> Tensor:
        """``(B, n, k)`` twice and ``(B, n, S, m)`` -> ``(B,)``; see `robust_mi`."""
        return robust_mi(logits, corrupted_logits, neighbor_classes)
