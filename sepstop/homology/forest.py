"""Minimum spanning forests of edge lists, and the nested components that they describe.

Nothing here walks points or edges one by one: every step is a tensor operation over all of them,
repeated a logarithmic number of times, on whatever device the edges are.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LABELS = 2**22  # component labels held at once, of several scales: 32 MiB


def spanning_forest(points: int, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Edges of a minimum spanning forest by Borůvka's algorithm.

    Args:
        points: number of points; edges join two of ``0 ... points - 1``.
        first, second: ``(M,)`` int64 ends, different in each edge.
        weights: ``(M,)``; of equal ones the earlier edge counts as the shorter.

    Returns:
        ``(F,)`` int64 places of the forest's edges, F at most ``points - 1``.
    """
    place = weights.argsort(stable=True)
    first, second = first[place], second[place]
    never = len(place)
    rank = torch.arange(never, device=place.device)
    everyone = torch.arange(points, device=place.device)
    rounds = torch.zeros(never + 1, dtype=torch.long, device=place.device)  # 0: never picked
    count = 0
    while len(rank):
        count += 1
        nearest = torch.full((points,), never, device=place.device)
        nearest.scatter_reduce_(0, first, rank, "amin")
        nearest.scatter_reduce_(0, second, rank, "amin")
        rounds.scatter_(0, nearest, count)
        at = torch.searchsorted(rank, nearest).clamp_(max=len(rank) - 1)
        parent = (first[at] + second[at] - everyone).where(nearest < never, everyone)
        # Ranks differ, so the picks make no cycles but the pairs that picked one another.
        mutual = parent[parent] == everyone
        parent = _roots(torch.minimum(parent, everyone).where(mutual, parent))
        first, second = parent[first], parent[second]
        apart = (first != second).nonzero().squeeze(1)
        first, second, rank = first[apart], second[apart], rank[apart]
    chosen = rounds[:never].nonzero().squeeze(1)
    return place[chosen[rounds[chosen].argsort(stable=True)]]


def merged(label: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Component labels ``(N,)`` after joining the components at the ends of the edges.

    A component goes by the smallest of the labels that it is made of, which is that of a point.
    """
    while True:
        first, second = label[first], label[second]
        apart = (first != second).nonzero().squeeze(1)
        if not len(apart):
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
    ends = torch.cat([quantiles, largest]).unique().to(place.device)
    label = torch.arange(edges + 1, device=place.device)
    order, labels, start = label, [], 0
    for part in ends.split(_scales_at_once(edges, place.device)):
        stop = int(part[-1]) + 1
        found = _labels_at(part - start, label, first[start:stop], second[start:stop])
        labels.append(found)
        order = order[_rank_outer_first(found)[order].argsort(stable=True)]
        label, start = found[-1], stop
    gaps = weights[-1].repeat(edges)
    for part, found in zip(ends.split(len(labels[0])), labels, strict=True):
        here = found[:, order]
        within = weights[part][:, None].where(here[:, 1:] == here[:, :-1], torch.inf)
        gaps = torch.minimum(gaps, within.amin(dim=0))
    return order, gaps


def _scales_at_once(points: int, device: torch.device) -> int:
    """On a CPU one scale at a time is fastest; on a GPU fewer kernel launches are."""
    return 1 if device.type == "cpu" else max(1, _LABELS // points)


def _labels_at(ends: Tensor, label: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Labels ``(S, N)``: ``label`` merged along the edges up to each of the ends ``(S,)``.

    All S scales are solved as one graph that has a copy of the points for each scale.
    """
    if len(ends) == 1:
        return merged(label, first, second)[None]
    points = len(label)
    copies = points * torch.arange(len(ends), device=label.device)[:, None]
    places = torch.arange(len(first), device=label.device)
    scale, edge = (places <= ends[:, None]).nonzero(as_tuple=True)
    offset = copies[scale, 0]
    found = merged((label + copies).flatten(), first[edge] + offset, second[edge] + offset)
    return found.view(len(ends), points) - copies


def _rank_outer_first(labels: Tensor) -> Tensor:
    """Ranks ``(N,)`` of the points, sorted by their last label, then the one before, and so on.

    Args:
        labels: ``(S, N)``, from 0 to N - 1.
    """
    points = labels.shape[1]
    while len(labels) > 1:
        inner, outer = labels[0:-1:2], labels[1::2]
        pairs = torch.arange(len(outer), device=labels.device)[:, None] * points**2
        keys, place = (pairs + outer * points + inner).flatten().sort()
        steps = torch.ones_like(keys)
        steps[1:] = keys[1:] != keys[:-1]
        ranks = torch.empty_like(keys).scatter_(0, place, steps.cumsum(dim=0))
        ranks = ranks.view(-1, points)
        ranks -= ranks.amin(dim=1, keepdim=True)
        labels = torch.cat([ranks, labels[2 * len(outer) :]])
    return labels[0]


def _roots(parent: Tensor) -> Tensor:
    """The end of each path along ``parent``; its only cycles have length one."""
    while True:
        above = parent[parent]
        if torch.equal(above, parent):
            return parent
        parent = above
