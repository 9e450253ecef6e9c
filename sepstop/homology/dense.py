"""Exact minimum spanning trees of many small clouds at once: all distances, then Prim's algorithm.

Prim's algorithm runs on all clouds of a batch at once, on their device. For lengths alone
of a few clouds on a CPU, scipy's single linkage does the same in C.

Everything is computed in float64, u = 2^-53. The product form ``|x|^2 + |y|^2 - 2xy`` of points
centred to norms of at most R has an absolute error below ``4 (D + 8) u R^2``: three dot products of
D u R^2 each (two counted once, one twice), and at most 32 u R^2 for the centring and the sums. That
is harmless for far pairs and ruinous for near ones, so every pair whose squared distance is below
that error divided by ``_TOLERANCE`` is measured again from the difference of its uncentred points,
where only relative errors of some D u remain. All distances then hold to about 1e-8 relative, and
so do the sorted edges of the tree, because the k-th shortest is a minimax of distances.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

_TOLERANCE = 2e-8  # relative, on squared distances
_MANY = 4  # clouds from which on Prim's steps on all at once are faster than single linkage on each
_PAIRS = 2**20  # float64 coordinates of the differences held at once: 8 MiB, near a cache
_UNIT_ROUNDOFF = 2.0**-53


def memory(points: int) -> int:
    """Bytes that a cloud of so many points takes at most."""
    return 32 * points**2


def deaths(clouds: Tensor) -> Tensor:
    """Edge lengths ``(B, N - 1)`` of the trees, in no order, for `dendrograms`' argument."""
    squared, unit = _measured(clouds)
    if clouds.device.type == "cpu" and len(clouds) < _MANY:
        condensed = [squareform(cloud, checks=False) for cloud in squared.numpy()]
        heights = [linkage(cloud, "single")[:, 2] for cloud in condensed]
        gaps = torch.from_numpy(np.stack(heights))
    else:
        gaps = _prim(squared.shape[:2], lambda row, point: squared[row, point], clouds)[1]
    return gaps.sqrt() * unit


def dendrograms(clouds: Tensor) -> tuple[Tensor, Tensor]:
    """The order in which Prim's algorithm reaches the points, and the gaps in it.

    Args:
        clouds: finite float64 ``(B, N, D)``, N >= 2.

    Returns:
        ``(B, N)`` int64 and ``(B, N - 1)`` float64.
    """
    squared, unit = _measured(clouds)
    order, gaps, _ = _prim(squared.shape[:2], lambda row, point: squared[row, point], clouds)
    return order, gaps.sqrt() * unit


def spanning_trees(clouds: Tensor) -> tuple[Tensor, Tensor]:
    """Edges ``(B, N - 1, 2)`` int64, lengths ``(B, N - 1)``; the argument is `dendrograms`'."""
    squared, unit = _measured(clouds)
    order, gaps, parents = _prim(
        squared.shape[:2], lambda row, point: squared[row, point], clouds, with_parents=True
    )
    return torch.stack([parents, order[:, 1:]], dim=-1), gaps.sqrt() * unit


def resampled_deaths(points: Tensor, resamples: Tensor) -> Tensor:
    """Edge lengths ``(B, n - 1)`` of the trees of subsets that share their distances, in no order.

    Args:
        points: finite float64 ``(N, D)``.
        resamples: ``(B, n)`` int64 places in it, n >= 2.
    """
    squared, unit = _measured(points[None])

    def row_of(row: Tensor, point: Tensor) -> Tensor:
        return squared[0, resamples[row, point]].gather(1, resamples)

    return _prim(resamples.shape, row_of, points)[1].sqrt() * unit


def _measured(clouds: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances ``(B, N, N)`` in units ``(B, 1)``."""
    # A power of two near the largest coordinate: exact, and no square overflows.
    extent = clouds.abs().amax(dim=(1, 2), keepdim=True)  # (B, 1, 1)
    unit = torch.ldexp(torch.ones_like(extent), torch.frexp(extent).exponent - 1)
    return _squared_distances(clouds / unit), unit[:, :, 0]


def _squared_distances(clouds: Tensor) -> Tensor:
    """``(B, N, D)`` -> ``(B, N, N)``, relative error about ``_TOLERANCE``."""
    centred = clouds - clouds.mean(dim=1, keepdim=True)
    norms = centred.square().sum(dim=-1)  # (B, N)
    squared = norms[:, :, None] + norms[:, None, :] - 2 * centred @ centred.mT
    error = 4 * (clouds.shape[-1] + 8) * _UNIT_ROUNDOFF * norms.amax(dim=-1)  # (B,)

    near = (squared <= (error / _TOLERANCE)[:, None, None]).triu(diagonal=1)
    # Many near pairs are cheapest as one direct pass over their cloud, few are as a list.
    crowded = near.sum(dim=(1, 2)) > near.shape[1] ** 2 / 16  # (B,)
    if crowded.any():
        direct = "donot_use_mm_for_euclid_dist"
        squared[crowded] = torch.cdist(
            clouds[crowded], clouds[crowded], compute_mode=direct
        ).square()
        near &= ~crowded[:, None, None]
    batch, row, column = near.nonzero(as_tuple=True)
    pairs = max(1, _PAIRS // clouds.shape[-1])
    for b, i, j in zip(batch.split(pairs), row.split(pairs), column.split(pairs), strict=True):
        exact = (clouds[b, i] - clouds[b, j]).square().sum(dim=-1)
        squared[b, i, j] = exact
        squared[b, j, i] = exact
    return squared


def _prim(
    shape: tuple[int, int] | torch.Size,
    row_of: Callable[[Tensor, Tensor], Tensor],
    like: Tensor,
    with_parents: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prim's algorithm on B graphs of N points each.

    Args:
        shape: (B, N).
        row_of: graphs and a point of each, ``(B,)``, to the weights ``(B, N)`` of its edges.
        like: a tensor whose device and dtype the weights have.

    Returns:
        The points in the order in which they join the tree, ``(B, N)`` from point 0 on, the weights
        ``(B, N - 1)`` by which they do, and the points they join, ``(B, N - 1)``, if asked for.
    """
    size, n = shape
    rows = torch.arange(size, device=like.device)
    inside = torch.zeros(size, n, dtype=torch.bool, device=like.device)
    order = torch.zeros(size, n, dtype=torch.long, device=like.device)
    lengths = like.new_empty(size, n - 1)
    parents = torch.zeros(size, n - 1 if with_parents else 0, dtype=torch.long, device=like.device)
    nearest = torch.zeros_like(order)  # (B, N): the point of the tree at the distance `reach`
    newest = order[:, 0]
    inside[:, 0] = True
    reach = row_of(rows, newest).clone()
    for k in range(n - 1):
        reach.masked_fill_(inside, torch.inf)
        lengths[:, k], newest = reach.min(dim=-1)
        order[:, k + 1] = newest
        inside[rows, newest] = True
        weights = row_of(rows, newest)
        if with_parents:
            parents[:, k] = nearest[rows, newest]
            nearest = torch.where(weights < reach, newest[:, None], nearest)
        torch.minimum(reach, weights, out=reach)
    return order, lengths, parents
