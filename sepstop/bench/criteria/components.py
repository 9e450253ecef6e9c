"""Scores of how the H0 filtration divides a cloud into components.

A component counts only if it has a minimum number of points, and the score is taken at the best
scale; see `sepstop.criteria.component_mi`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot, pad

from sepstop.homology import h0_dendrogram


def cluster_entropy(points: Tensor, min_size: int = 5) -> Tensor:
    """Largest entropy of the component sizes over all scales.

    ``max_s -sum |C| / n log(|C| / n)`` over the components C of at least ``min_size`` points at
    scale s, on L2-normalized embeddings. It is log k for k clusters of equal size. It is near 0 for
    one blob with outliers, which `sepstop.criteria.h0_separability` takes for separate clusters.

    Args:
        points: ``(B, n, D)``, any float dtype, any device.
        min_size: smallest number of points in a component that counts.

    Returns:
        ``(B,)`` float64 in nats, on the same device.

    Raises:
        ValueError: as `sepstop.homology.h0_dendrogram`.

    References:
        Ours.
    """
    n = points.shape[-2]

    def size_entropy(start: Tensor, end: Tensor) -> Tensor:
        return torch.special.entr((end - start) / n) * (end - start >= min_size)

    merges = _merges(points)
    return merges.best(merges.total(size_entropy))


def cluster_information(points: Tensor, logits: Tensor, min_size: int = 3) -> Tensor:
    """Largest mutual information of component and predicted class over all scales.

    All points in components of fewer than ``min_size`` points count as one component. The score is
    high if the classes in use are separate clusters. It is low after a collapse to few classes and
    while predictions cut through clusters. It is Miller-Madow corrected; see
    `sepstop.criteria.neighbor_mi.mutual_information`.

    Args:
        points: ``(B, n, D)``, any float dtype, any device.
        logits: ``(B, n, k)``, on the same device.
        min_size: smallest number of points in a component that counts.

    Returns:
        ``(B,)`` float64 in nats, on the same device.

    Raises:
        ValueError: as `sepstop.homology.h0_dendrogram`.

    References:
        Ours; Miller (1955), Note on the bias of information estimates.
    """
    entr = torch.special.entr
    merges = _merges(points)
    n, classes = logits.shape[-2:]
    labels = one_hot(logits.argmax(dim=-1), classes).double()  # (B, n, k)
    in_order = labels.gather(1, merges.order[:, :, None].expand_as(labels))
    before = pad(in_order.cumsum(dim=1), (0, 0, 1, 0))  # (B, n + 1, k)

    def tally(start: Tensor, end: Tensor) -> Tensor:
        """Two entropies, components, used cells and texts of each class: ``(B, n - 1, 4 + k)``."""
        first, beyond = (at[:, :, None].expand(-1, -1, classes) for at in (start, end))
        texts = before.gather(1, beyond) - before.gather(1, first)
        share = (end - start)[:, :, None] / n
        joint = entr(texts / n).sum(dim=-1, keepdim=True)
        cells = (texts > 0).sum(dim=-1, keepdim=True)
        found = torch.cat([entr(share), joint, torch.ones_like(share), cells, texts], dim=-1)
        return found * (end - start >= min_size)[:, :, None]

    totals = merges.total(tally)
    component_entropy, joint_entropy, components, cells = totals[..., :4].unbind(dim=-1)
    of_class = labels.sum(dim=1)[:, None]  # (B, 1, k)
    rest = of_class - totals[..., 4:]  # (B, n - 1, k)
    component_entropy = component_entropy + entr(rest.sum(dim=-1) / n)
    joint_entropy = joint_entropy + entr(rest / n).sum(dim=-1)
    components = components + (rest > 0).any(dim=-1)
    cells = cells + (rest > 0).sum(dim=-1)
    information = entr(of_class / n).sum(dim=-1) + component_entropy - joint_entropy
    bias = (cells - components - (of_class > 0).sum(dim=-1) + 1) / (2 * n)
    return merges.best(information - bias)


class _Merges(NamedTuple):
    """The merges of the H0 filtration, from the smallest scale up.

    Attributes:
        order: ``(B, n)``, from `h0_dendrogram`; a component is a run of it.
        start, middle, end: ``(B, n - 1)``; the runs [start, middle) and [middle, end) merge.
        is_scale: ``(B, n - 1)``, False if another merge follows at the same scale.
    """

    order: Tensor
    start: Tensor
    middle: Tensor
    end: Tensor
    is_scale: Tensor

    def total(self, of_run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Sum of ``of_run`` over all components after each merge; single points count 0."""
        change = of_run(self.start, self.end)
        change = change - of_run(self.start, self.middle) - of_run(self.middle, self.end)
        return change.cumsum(dim=1)

    def best(self, scores: Tensor) -> Tensor:
        """Highest score over all scales: ``(B, n - 1)`` -> ``(B,)``."""
        return scores.masked_fill(~self.is_scale, -torch.inf).amax(dim=-1)


def _merges(points: Tensor) -> _Merges:
    order, gaps = h0_dendrogram(normalize(points.double(), dim=-1))
    sorted_gaps, by_scale = gaps.sort(dim=-1, stable=True)
    rank = by_scale.argsort(dim=-1)
    middle = torch.arange(1, order.shape[1], device=order.device)  # gap i is before leaf i + 1
    start, end = [], []
    for ranks in rank:  # one n by n table at a time
        longer = ranks[None, :] > ranks[:, None]  # [i, j]: gap j closes after gap i
        start.append((longer & (middle < middle[:, None])).mul(middle).amax(dim=-1))
        behind = longer & (middle > middle[:, None])
        end.append(middle.where(behind, len(ranks) + 1).amin(dim=-1))
    bounds = [torch.stack(start), middle.expand_as(rank), torch.stack(end)]
    start_, middle_, end_ = (bound.gather(1, by_scale) for bound in bounds)
    is_scale = pad(sorted_gaps.diff(dim=-1) > 0, (0, 1), value=True)
    return _Merges(order, start_, middle_, end_, is_scale)


@dataclass(frozen=True)
class _OfComponents:
    """Smallest number of points in a component that counts."""

    min_size: int
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.min_size < 2:
            raise ValueError(f"expected `min_size` >= 2, got {self.min_size}")


@dataclass(frozen=True)
class ClusterEntropy(_OfComponents):
    """`cluster_entropy` as a criterion.

    Args:
        min_size: as in `cluster_entropy`.

    Raises:
        ValueError: ``min_size`` is below 2.
    """

    min_size: int = 5
    name: ClassVar[str] = "cluster_entropy"

    def __call__(self, points: Tensor) -> Tensor:
        """``(B, n, D)`` -> ``(B,)``; see `cluster_entropy`."""
        return cluster_entropy(points, self.min_size)


@dataclass(frozen=True)
class ClusterInformation(_OfComponents):
    """`cluster_information` as a criterion, for a model that predicts one class out of k.

    Args:
        min_size: as in `cluster_information`.

    Raises:
        ValueError: ``min_size`` is below 2.
    """

    min_size: int = 3
    name: ClassVar[str] = "cluster_information"
    needs: ClassVar[tuple[str, ...]] = ("points", "logits")
    outputs: ClassVar[str] = "classes"

    def __call__(self, points: Tensor, logits: Tensor) -> Tensor:
        """``(B, n, D)`` and ``(B, n, k)`` -> ``(B,)``; see `cluster_information`."""
        return cluster_information(points, logits, self.min_size)
