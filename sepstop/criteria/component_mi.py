"""Scores of how the points of a cloud are divided among the components of its H0 filtration.

A component counts from a least number of points on: smaller ones have not met their cluster yet.
At the smallest scales nothing counts, at the largest all is one component; in between, a cloud
of separate clusters has a scale at which its components are those clusters. The score is taken at
the best scale, so no length enters it: an outlier, however far, moves it by its own share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize, one_hot, pad

from sepstop.criteria.neighbor_mi import told_by_neighbors
from sepstop.homology import h0_dendrogram, h0_tree

_SCALES = 40  # at which the components are looked at


def cluster_entropy(points: Tensor, least: int = 5) -> Tensor:
    """The largest entropy, over all scales, of the sizes of the components.

    ``max_s -sum |C| / n log(|C| / n)`` over the components C of at least ``least`` points at
    scale s, on L2-normalised embeddings, in nats: log k for k clusters of equal size, and near 0
    for one blob with outliers, which the mean of the normalised deaths takes for separation.

    ``(B, n, D)`` -> ``(B,)`` float64.
    """
    n = points.shape[-2]

    def entropy(start: Tensor, end: Tensor) -> Tensor:
        return torch.special.entr((end - start) / n) * (end - start >= least)

    merges = _merges(points)
    return merges.best(merges.total(entropy))


def cluster_information(points: Tensor, logits: Tensor, least: int = 3) -> Tensor:
    """The most, over all scales, that a text's component tells about its predicted class.

    The mutual information, in nats, of the predicted class and the component at scale s, where
    all points in components below ``least`` points are taken as one. It is high where the classes
    in use are clusters of their own: not after a collapse to few classes, nor while predictions
    cut through clusters. Counting few texts of many classes finds information where there is
    none; the Miller-Madow term takes that off.

    ``(B, n, D)``, ``(B, n, k)`` -> ``(B,)`` float64.

    References:
        Miller (1955), Note on the bias of information estimates.
    """
    entr = torch.special.entr
    merges = _merges(points)
    n, classes = logits.shape[-2:]
    labels = one_hot(logits.argmax(dim=-1), classes).double()  # (B, n, k)
    in_order = labels.gather(1, merges.order[:, :, None].expand_as(labels))
    before = pad(in_order.cumsum(dim=1), (0, 0, 1, 0))  # (B, n + 1, k)

    def tally(start: Tensor, end: Tensor) -> Tensor:
        """Entropies, components, cells in use and texts of each class: ``(B, n - 1, 4 + k)``."""
        first, beyond = (at[:, :, None].expand(-1, -1, classes) for at in (start, end))
        texts = before.gather(1, beyond) - before.gather(1, first)
        share = (end - start)[:, :, None] / n
        joint = entr(texts / n).sum(dim=-1, keepdim=True)
        cells = (texts > 0).sum(dim=-1, keepdim=True)
        found = torch.cat([entr(share), joint, torch.ones_like(share), cells, texts], dim=-1)
        return found * (end - start >= least)[:, :, None]

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


def component_information(
    points: Tensor, neighbors: Tensor, resamples: Tensor, least: int = 3
) -> Tensor:
    """What its neighbours of all evaluations so far tell about the component of a text.

    The mutual information, in nats and Miller-Madow corrected, of the component of a text and of
    its nearest neighbours, averaged over the neighbourhoods of all evaluations; at the scale of
    the H0 filtration at which that is most, on L2-normalised embeddings. All texts in
    components below ``least`` points are taken as one. It is high where the manifold falls into
    many large components that keep together what lay together all along: not after a collapse to
    few, nor where texts are torn from the neighbours of before, as memorising does. Without
    any from before it says little, since the fragments of any cloud keep to neighbours of today.

    The scale is chosen on the whole pool, among those that leave from 2 to 0.8 N pieces.

    Args:
        points: ``(N, D)``, the pool.
        neighbors: ``(N, S, m)`` int64, each text's m nearest neighbours at each of the S
            evaluations so far.
        resamples: ``(B, n)`` int64, the texts to score.
        least: points of a component that counts.

    Returns:
        ``(B,)`` float64, at least 0.
    """
    return _told(best_components(points, neighbors, least), neighbors, resamples)


def best_components(points: Tensor, neighbors: Tensor, least: int = 3) -> Tensor:
    """The component of each point at the scale at which `component_information` is most.

    Args:
        points, neighbors, least: as for `component_information`.

    Returns:
        ``(N,)`` int64: from 1 on, and 0 for all points in components below ``least``.
    """
    everything = torch.arange(len(points), device=points.device)[None]
    cuts = _cuts(points, least)
    return max(cuts, key=lambda components: float(_told(components, neighbors, everything)))


def _told(components: Tensor, neighbors: Tensor, texts: Tensor) -> Tensor:
    """What the neighbours of ``texts``, ``(B, n)``, tell about their components, ``(B,)``."""
    near = components[neighbors[texts]]  # (B, n, S, m)
    count = int(components.max()) + 1
    return told_by_neighbors(components[texts], near, count).mean(dim=1)


def _cuts(points: Tensor, least: int) -> Iterator[Tensor]:
    """The component of each point at some scales, ``(N,)`` int64; 0 for the small ones."""
    n = len(points)
    edges, lengths = h0_tree(normalize(points.double(), dim=-1))
    first, second = edges.cpu().numpy().T
    for pieces in np.unique(np.geomspace(2, max(2, 0.8 * n), _SCALES).astype(int)):
        kept = int((lengths <= lengths[n - pieces - 1]).sum()) if pieces < n else 0
        graph = coo_array((np.ones(kept, bool), (first[:kept], second[:kept])), shape=(n, n))
        components = connected_components(graph, directed=False)[1]
        counts = np.bincount(components)
        large = np.flatnonzero(counts >= least)
        number = np.zeros(len(counts), np.int64)
        number[large] = np.arange(1, len(large) + 1)
        yield torch.from_numpy(number[components]).to(points.device)


class _Merges(NamedTuple):
    """What merges in the H0 filtration, from the smallest scale on.

    Attributes:
        order: ``(B, n)``, of `h0_dendrogram`; a component is a run of it.
        start, middle, end: ``(B, n - 1)``: the runs from start to middle and from there to end,
            which is left out, become one.
        is_scale: ``(B, n - 1)``, False for a merge that another follows at the same scale.
    """

    order: Tensor
    start: Tensor
    middle: Tensor
    end: Tensor
    is_scale: Tensor

    def total(self, of_run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum over all components after each merge, if single points have 0."""
        change = of_run(self.start, self.end)
        change = change - of_run(self.start, self.middle) - of_run(self.middle, self.end)
        return change.cumsum(dim=1)

    def best(self, scores: Tensor) -> Tensor:
        """The highest score at any scale: ``(B, n - 1)`` -> ``(B,)``."""
        return scores.masked_fill(~self.is_scale, -torch.inf).amax(dim=-1)


def _merges(points: Tensor) -> _Merges:
    order, gaps = h0_dendrogram(normalize(points.double(), dim=-1))
    sorted_gaps, by_scale = gaps.sort(dim=-1, stable=True)
    rank = by_scale.argsort(dim=-1)
    middle = torch.arange(1, order.shape[1], device=order.device)  # gap i is before leaf i + 1
    start, end = [], []
    for ranks in rank:  # a table of n^2 for each cloud, like its distances
        longer = ranks[None, :] > ranks[:, None]  # [i, j]: gap j closes after gap i
        start.append((longer & (middle < middle[:, None])).mul(middle).amax(dim=-1))
        behind = longer & (middle > middle[:, None])
        end.append(middle.where(behind, len(ranks) + 1).amin(dim=-1))
    bounds = [torch.stack(start), middle.expand_as(rank), torch.stack(end)]
    start_, middle_, end_ = (bound.gather(1, by_scale) for bound in bounds)
    is_scale = pad(sorted_gaps.diff(dim=-1) > 0, (0, 1), value=True)
    return _Merges(order, start_, middle_, end_, is_scale)


@dataclass(frozen=True)
class ClusterEntropy:
    """`cluster_entropy` as a criterion."""

    least: int = 5
    name: ClassVar[str] = "cluster_entropy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_least(self.least)

    def __call__(self, points: Tensor) -> Tensor:
        return cluster_entropy(points, self.least)


@dataclass(frozen=True)
class ClusterInformation:
    """`cluster_information` as a criterion."""

    least: int = 3
    name: ClassVar[str] = "cluster_information"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("points", "logits")
    outputs: ClassVar[str] = "classes"

    def __post_init__(self) -> None:
        _check_least(self.least)

    def __call__(self, points: Tensor, logits: Tensor) -> Tensor:
        return cluster_information(points, logits, self.least)


@dataclass(frozen=True)
class ComponentInformation:
    """`component_information` as a criterion."""

    least: int = 3
    name: ClassVar[str] = "component_information"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("points", "neighbors")

    def __post_init__(self) -> None:
        _check_least(self.least)

    def __call__(self, points: Tensor, neighbors: Tensor) -> Tensor:
        """``(B, n, D)``, ``(B, n, S, m)`` -> ``(B,)``; neighbours are of the same cloud."""
        whole = torch.arange(points.shape[1], device=points.device)[None]
        scores = [
            component_information(cloud, near, whole, self.least)
            for cloud, near in zip(points, neighbors, strict=True)
        ]
        return torch.cat(scores)

    def on_resamples(self, points: Tensor, neighbors: Tensor, resamples: Tensor) -> Tensor:
        return component_information(points, neighbors, resamples, self.least)


def _check_least(least: int) -> None:
    if least < 2:
        raise ValueError(f"expected `least` >= 2, got {least}")
