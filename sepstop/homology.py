"""Exact H0 persistence of point clouds, batched, on the device of the points.

The finite H0 death times of the Vietoris-Rips filtration are the edge lengths of the
Euclidean minimum spanning tree, so this file builds that tree: all squared distances of a
cloud from one matrix product, then Prim's algorithm over the batch.

Exactness. Everything is computed in float64, u = 2^-53. The product form
``|x|^2 + |y|^2 - 2xy`` of points centred to norms of at most R has an absolute error below
``4 (D + 8) u R^2``: three dot products of D u R^2 each (two counted once, one twice), and
at most 32 u R^2 for the centring and the sums. That is harmless for far pairs and ruinous
for near ones, so every pair whose squared distance is below that error divided by
``_TOLERANCE`` is measured again from the difference of its uncentred points, where only
relative errors of some D u remain. All distances then hold to about 1e-8 relative, and so
do the sorted edges of the tree, because the k-th shortest is a minimax of distances.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TOLERANCE = 2e-8  # relative, on squared distances
_CHUNK = 2**25  # float64 entries of the distance matrices held at once: 256 MiB
_PAIRS = 2**20  # float64 coordinates of the differences held at once: 8 MiB, near a cache
_UNIT_ROUNDOFF = 2.0**-53


def h0_deaths(points: Tensor) -> Tensor:
    """Finite H0 death times of the Vietoris-Rips filtration, ascending.

    They are the edge lengths of the Euclidean minimum spanning tree. Time is
    O(B N^2 D) and memory O(N^2), so this is meant for N up to some thousands.

    Args:
        points: ``(N, D)`` or ``(B, N, D)``, any float dtype, any device.

    Returns:
        ``(N - 1,)`` or ``(B, N - 1)``, float32 (float64 for float64 input), in the
        distance units of ``points`` (full edge length, not radius), on the same device.

    Raises:
        ValueError: not a finite floating tensor of 2 or 3 dimensions with N >= 2.

    References:
        Gower & Ross (1969), Minimum Spanning Trees and Single Linkage Cluster Analysis.

    >>> h0_deaths(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]))
    tensor([1., 5.])
    """
    return h0_dendrogram(points)[1].sort(dim=-1).values


def h0_dendrogram(points: Tensor) -> tuple[Tensor, Tensor]:
    """The H0 filtration whole: its components at each scale, as an order and the gaps in it.

    The components at scale s are the runs of ``order`` between gaps longer than s, so the two
    say which points merge when, and the sorted gaps are the deaths. It is the order in which
    Prim's algorithm reaches the points: it leaves a component only when nothing in it is left.

    Args:
        points: as for `h0_deaths`, which tells time, memory and errors.

    Returns:
        ``order``, ``(N,)`` or ``(B, N)`` int64 indices of points, and ``gaps``, ``(N - 1,)``
        or ``(B, N - 1)``: the scale at which the runs on either side of a gap merge; dtype
        and device as of `h0_deaths`.

    >>> h0_dendrogram(torch.tensor([[0.0], [9.0], [1.0], [11.0]]))
    (tensor([0, 2, 1, 3]), tensor([1., 8., 2.]))
    """
    points = check_points(points)
    if not torch.isfinite(points).all():
        raise ValueError("expected finite `points`, got NaN or infinity among them")
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    # Apple's MPS has no float64: the points go to the CPU and the result comes back.
    device = torch.device("cpu") if points.device.type == "mps" else points.device
    clouds = points.unsqueeze(0) if points.ndim == 2 else points

    with torch.no_grad():
        size = max(1, _CHUNK // clouds.shape[1] ** 2)
        parts = [_dendrogram(chunk.to(device, torch.float64)) for chunk in clouds.split(size)]
    order, gaps = (torch.cat(part) for part in zip(*parts, strict=True))
    order, gaps = order.to(points.device), gaps.to(points.device, dtype)
    return (order[0], gaps[0]) if points.ndim == 2 else (order, gaps)


def check_points(points: Tensor) -> Tensor:
    """``points`` as a floating tensor ``(N, D)`` or ``(B, N, D)`` with N >= 2, D >= 1.

    Raises:
        ValueError: it is not one; the message says what came.
    """
    points = torch.as_tensor(points)
    if points.ndim not in (2, 3) or points.shape[-2] < 2 or points.shape[-1] < 1:
        raise ValueError(
            f"expected `points` of shape (N, D) or (B, N, D) with N >= 2, got {tuple(points.shape)}"
        )
    if not points.is_floating_point():
        raise ValueError(f"expected floating `points`, got {points.dtype}")
    return points


def _dendrogram(clouds: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 ``(B, N, D)`` -> order ``(B, N)`` and gaps ``(B, N - 1)``."""
    if clouds.shape[0] == 0:
        empty = clouds.new_empty(clouds.shape[:2])
        return empty.long(), empty[:, 1:]
    # In units of a power of two near the largest coordinate: exact, and no square overflows.
    extent = clouds.abs().amax(dim=(1, 2), keepdim=True)  # (B, 1, 1)
    unit = torch.ldexp(torch.ones_like(extent), torch.frexp(extent).exponent - 1)
    order, gaps = _prim(_squared_distances(clouds / unit))
    return order, gaps.sqrt() * unit[:, :, 0]


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


def _prim(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Prim's algorithm on ``(B, N, N)`` symmetric weights.

    Returns the points in the order in which they join the tree, ``(B, N)`` from point 0 on, and
    the weights ``(B, N - 1)`` by which they do.
    """
    size, n, _ = weights.shape
    rows = torch.arange(size, device=weights.device)
    inside = torch.zeros(size, n, dtype=torch.bool, device=weights.device)
    order = torch.zeros(size, n, dtype=torch.long, device=weights.device)
    lengths = weights.new_empty(size, n - 1)
    reach = weights[:, 0].clone()  # (B, N): distance of each point to the tree so far
    inside[:, 0] = True
    for k in range(n - 1):
        reach.masked_fill_(inside, torch.inf)
        lengths[:, k], newest = reach.min(dim=-1)
        order[:, k + 1] = newest
        inside[rows, newest] = True
        torch.minimum(reach, weights[rows, newest], out=reach)
    return order, lengths
