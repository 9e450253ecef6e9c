"""Minimum spanning forests of edge lists, and the nested components that they describe.

Nothing here walks points or edges one by one: every step is a tensor operation over all of them,
repeated a logarithmic number of times, on whatever device the edges are.
"""

from __future__ import annotations

import torch
from torch import Tensor


def spanning_forest(points: int, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Edges of a minimum spanning forest by Borůvka's algorithm.

    Args:
        points: how many; edges join two of ``0 ... points - 1``.
        first, second: ``(M,)`` int64 ends, different in each edge.
        weights: ``(M,)``; of equal ones the earlier edge counts as the shorter.

    Returns:
        ``(F,)`` int64 places of the forest's edges, F at most ``points - 1``.
    """
    place = weights.argsort(stable=True)
    first, second = first[place], second[place]
    rank = torch.arange(len(place), device=place.device)
    everyone = torch.arange(points, device=place.device)
    chosen = [rank[:0]]
    while len(rank):
        nearest = torch.full((points,), len(place), device=place.device)
        nearest.scatter_reduce_(0, first, rank, "amin")
        nearest.scatter_reduce_(0, second, rank, "amin")
        component = (nearest < len(place)).nonzero().squeeze(1)
        picked = nearest[component]
        at = torch.searchsorted(rank, picked)
        parent = everyone.clone()
        parent[component] = first[at] + second[at] - component  # the other end
        # Ranks differ, so the picks make no cycles but the pairs that picked one another.
        mutual = (parent[parent] == everyone) & (everyone < parent)
        parent = _roots(torch.where(mutual, everyone, parent))
        chosen.append(picked.unique())
        first, second = parent[first], parent[second]
        apart = first != second
        first, second, rank = first[apart], second[apart], rank[apart]
    return place[torch.cat(chosen)]


def merged(label: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Component labels ``(N,)`` after joining the components at the ends of the edges.

    A component goes by the smallest of the labels that it is made of, which is that of a point.
    """
    while True:
        first, second = label[first], label[second]
        apart = first != second
        if not apart.any():
            return label
        first, second = first[apart], second[apart]
        parent = torch.arange(len(label), device=label.device)
        parent.scatter_reduce_(
            0, torch.maximum(first, second), torch.minimum(first, second), "amin"
        )
        label = _roots(parent)[label]


def nested_order(
    first: Tensor, second: Tensor, weights: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    """Points in an order in which the components at each scale are runs, and the gaps in it.

    Args:
        first, second, weights: the N - 1 edges of a spanning tree.
        levels: scales that are told apart; each of the largest few, and quantiles below.

    Returns:
        ``order``, ``(N,)`` int64, and ``gaps``, ``(N - 1,)``: the largest gap between two places is
        at least the longest edge on the tree path between the points there, and no more than
        the next scale that is told apart.
    """
    place = weights.argsort()
    first, second, weights = first[place], second[place], weights[place]
    edges = len(weights)
    quantiles = torch.linspace(0, edges - 1, levels // 2 + 1)[1:].long()
    largest = torch.arange(max(0, edges - levels // 2), edges)
    ends = torch.cat([quantiles, largest]).unique().tolist()
    label = torch.arange(edges + 1, device=place.device)
    order, labels, start = label, [], 0
    for end in ends:
        label = merged(label, first[start : end + 1], second[start : end + 1])
        labels.append(label)
        order = order[label[order].argsort(stable=True)]
        start = end + 1
    gaps = weights[ends[-1]].repeat(edges)
    for end, label in zip(reversed(ends), reversed(labels), strict=True):
        here = label[order]
        gaps = torch.where(here[1:] == here[:-1], weights[end], gaps)
    return order, gaps


def _roots(parent: Tensor) -> Tensor:
    """Where following ``parent`` ends; there is no cycle in it but of length one."""
    while True:
        above = parent[parent]
        if torch.equal(above, parent):
            return parent
        parent = above
