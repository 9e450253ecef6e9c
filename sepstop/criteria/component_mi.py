"""Mutual information between each text's H0 component and its neighbors' components.

A component is a connected set of points at one scale of the H0 filtration. It counts only if it has
a minimum number of points: smaller ones have not merged with their cluster yet. At the smallest
scales no component counts, and at the largest there is one; in between, a cloud of separate
clusters has a scale at which its components are these clusters. The score is taken at the best
scale, so it contains no distance, and a single outlier hardly moves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize

from sepstop.criteria.neighbor_mi import mi_of_evaluations
from sepstop.homology import h0_tree

_NUM_SCALES = 40  # scales that are tried


def component_mi(
    points: Tensor, neighbors: Tensor, resample_indices: Tensor, min_size: int = 3
) -> Tensor:
    """Mutual information between each text's H0 component and its neighbors' components.

    It is Miller-Madow corrected, averaged over the neighbors of all evaluations so far, and taken
    at the scale of the H0 filtration of the L2-normalized embeddings where it is highest. All
    texts in components of fewer than ``min_size`` points count as one component. The scale is
    chosen once, on the whole pool, among those with 2 to 0.8 N components.

    The score is high if the cloud has many large components that still hold together the texts
    that were neighbors at all evaluations. It is low after a collapse to few components, and if
    texts are torn from their earlier neighbors, as memorizing does. Without an earlier evaluation
    it says little: the components of any cloud hold its present neighbors together.

    Args:
        points: ``(N, D)``, the pool; any float dtype, any device.
        neighbors: ``(N, S, m)`` int64, on the same device. Indices of each text's m nearest
            neighbors at each of the S evaluations so far, in order of evaluation.
        resample_indices: ``(B, n)`` int64, on the same device: the texts to score.
        min_size: smallest number of points in a component that counts.

    Returns:
        ``(B,)`` float64 in nats, at least 0, on the same device.

    Raises:
        ValueError: ``points`` is not a finite floating tensor with N >= 2; see
            `sepstop.homology.h0_tree`.

    References:
        Ours.

    Two clusters of five points, where each point's neighbor is in its own cluster: log 2, and the
    bias correction adds 1 / 20.

    >>> degrees = torch.tensor([0.0, 1, 2, 3, 4, 90, 91, 92, 93, 94])
    >>> points = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)
    >>> neighbors = torch.arange(10).view(2, 5).roll(1, dims=1).reshape(10, 1, 1)
    >>> component_mi(points, neighbors, torch.arange(10)[None], min_size=5)
    tensor([0.7431], dtype=torch.float64)
    """
    return _score(best_components(points, neighbors, min_size), neighbors, resample_indices)


def best_components(points: Tensor, neighbors: Tensor, min_size: int = 3) -> Tensor:
    """The component of each point at the scale that `component_mi` chooses.

    Args:
        points, neighbors, min_size: as in `component_mi`.

    Returns:
        ``(N,)`` int64, on the device of ``points``: numbers from 1, and 0 for all points in
        components of fewer than ``min_size`` points.

    Raises:
        ValueError: as in `component_mi`.
    """
    whole = torch.arange(len(points), device=points.device)[None]
    candidates = _components_by_scale(points, min_size)
    return max(candidates, key=lambda components: float(_score(components, neighbors, whole)))


def _score(components: Tensor, neighbors: Tensor, texts: Tensor) -> Tensor:
    """``(N,)`` components, ``(N, S, m)`` neighbors and ``(B, n)`` texts -> ``(B,)``."""
    near = components[neighbors[texts]]  # (B, n, S, m)
    count = int(components.max()) + 1
    return mi_of_evaluations(components[texts], near, count).mean(dim=1)


def _components_by_scale(points: Tensor, min_size: int) -> Iterator[Tensor]:
    """The component of each point, ``(N,)`` int64, at a range of scales; 0 for the small ones."""
    n = len(points)
    edges, lengths = h0_tree(normalize(points.double(), dim=-1))
    first, second = edges.cpu().numpy().T
    for pieces in np.unique(np.geomspace(2, max(2, 0.8 * n), _NUM_SCALES).astype(int)):
        kept = int((lengths <= lengths[n - pieces - 1]).sum()) if pieces < n else 0
        graph = coo_array((np.ones(kept, bool), (first[:kept], second[:kept])), shape=(n, n))
        components = connected_components(graph, directed=False)[1]
        counts = np.bincount(components)
        large = np.flatnonzero(counts >= min_size)
        number = np.zeros(len(counts), np.int64)
        number[large] = np.arange(1, len(large) + 1)
        yield torch.from_numpy(number[components]).to(points.device)


@dataclass(frozen=True)
class ComponentMI:
    """`component_mi` as a criterion, for any model.

    The neighbors of all evaluations so far are its reference.

    Args:
        min_size: as in `component_mi`.

    Raises:
        ValueError: ``min_size`` is below 2.
    """

    min_size: int = 3
    name: ClassVar[str] = "component_mi"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("points", "neighbors")

    def __post_init__(self) -> None:
        if self.min_size < 2:
            raise ValueError(f"expected `min_size` >= 2, got {self.min_size}")

    def __call__(self, points: Tensor, neighbors: Tensor) -> Tensor:
        """``(B, n, D)`` and ``(B, n, S, m)`` -> ``(B,)``; neighbors index the same cloud."""
        whole = torch.arange(points.shape[1], device=points.device)[None]
        scores = [
            component_mi(cloud, near, whole, self.min_size)
            for cloud, near in zip(points, neighbors, strict=True)
        ]
        return torch.cat(scores)

    def on_resamples(self, points: Tensor, neighbors: Tensor, resample_indices: Tensor) -> Tensor:
        """``(N, D)``, ``(N, S, m)`` and ``(B, n)`` -> ``(B,)``; see `component_mi`."""
        return component_mi(points, neighbors, resample_indices, self.min_size)
