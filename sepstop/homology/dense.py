"""Exact minimum spanning trees of many small clouds at once, from all their distances.

On a CPU, Prim's algorithm runs on all clouds of a batch at once. For the lengths of a few clouds,
scipy's single linkage does the same in C. On a GPU the time goes into kernel launches, and Prim's
algorithm needs about ten for each of N steps. Borůvka's algorithm needs about 50 for each of at
most log2 N rounds, so a GPU uses that.

Everything is computed in float64, u = 2^-53. The product form ``|x|^2 + |y|^2 - 2xy`` of points
centered to norms of at most R has an absolute error below ``4 (D + 8) u R^2``: three dot products
of D u R^2 each (two counted once, one twice), and at most 32 u R^2 for the centering and the sums.
That is harmless for far pairs and ruinous for near ones. So every pair whose squared distance is
below that error divided by ``_TOLERANCE`` is measured again from the difference of its uncentered
points, which has only relative errors of some D u. All distances then have relative errors of about
1e-8, and so have the sorted edges of the tree, because the k-th shortest is a minimax of distances.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from torch import Tensor

_TOLERANCE = 2e-8  # relative, on squared distances
_MANY = 4  # clouds from which on Prim's steps on all at once are faster than single linkage on each
_ROWS = 128  # of a block of distances on a CPU; blocks below the diagonal are left out
_PAIRS = 2**20  # float64 coordinates of the differences held at once: 8 MiB, near a cache
_BYTES = 18  # per distance in `resampled_deaths`: float64 distance, int64 place, two masks
_UNIT_ROUNDOFF = 2.0**-53


def is_launched(device: torch.device) -> bool:
    """True if kernel launches dominate the time. Points on MPS are moved to the CPU first."""
    return device.type not in ("cpu", "mps")


def memory(points: int, device: torch.device) -> int:
    """Maximum bytes for a cloud with this number of points."""
    return (20 if is_launched(device) else 32) * points**2


def deaths(clouds: Tensor) -> Tensor:
    """Edge lengths ``(B, N - 1)`` of the trees, in no order; the argument is `dendrograms`'."""
    if len(clouds) < _MANY and not is_launched(clouds.device):
        scaled, unit = _scaled(clouds)
        heights = [linkage(_condensed(cloud), "single")[:, 2] for cloud in scaled]
        return torch.from_numpy(np.stack(heights)).sqrt() * unit
    squared, unit = _measured(clouds)
    if is_launched(clouds.device):
        gaps = shortest_trees(squared)[1]
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
    if is_launched(clouds.device):
        edges, gaps = shortest_trees(squared)
        return edges, gaps.sqrt() * unit
    order, gaps, parents = _prim(
        squared.shape[:2], lambda row, point: squared[row, point], clouds, with_parents=True
    )
    return torch.stack([parents, order[:, 1:]], dim=-1), gaps.sqrt() * unit


def resampled_deaths(points: Tensor, resample_indices: Tensor, memory: int) -> Tensor:
    """Edge lengths ``(B, n - 1)`` of the trees of subsets that share their distances, in no order.

    Args:
        points: finite float64 ``(N, D)``.
        resample_indices: ``(B, n)`` int64 places in it, n >= 2.
        memory: maximum bytes; exceeded only if one subset alone needs more.
    """
    squared, unit = _measured(points[None])
    if not is_launched(points.device):

        def row_of(row: Tensor, point: Tensor) -> Tensor:
            return squared[0, resample_indices[row, point]].gather(1, resample_indices)

        return _prim(resample_indices.shape, row_of, points)[1].sqrt() * unit
    shared = squared[0].fill_diagonal_(0)  # for a point drawn twice
    bytes_each = _BYTES * resample_indices.shape[1] ** 2
    parts = resample_indices.split(max(1, (memory - shared.nbytes) // bytes_each))
    pairs = (len(points) * part[:, :, None] + part[:, None, :] for part in parts)
    found = [shortest_trees(shared.take(places))[1] for places in pairs]
    return torch.cat(found).sqrt() * unit


def shortest_trees(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum spanning trees of B graphs at once, by Borůvka's algorithm.

    In each round, every component picks one of its shortest outgoing edges and points at the
    component at the other end. Every path along these pointers ends in a cycle. If one component
    points at the next, the pick of the next is not longer, so all picks of a cycle have the same
    length. The component with the smallest label of each cycle drops its pick.

    The remaining picks belong to a minimum spanning tree, no matter how ties were broken. Add them
    from the leaves inward: each is a shortest edge out of the set of components that lead to it,
    and no edge added before leaves that set (the cut property). So the result does not depend on
    which of several equal weights a device finds first.

    Args:
        weights: ``(B, N, N)``, finite and symmetric; the diagonal is ignored. Overwritten. If they
            are asymmetric by rounding, the trees still span.

    Returns:
        Edges ``(B, N - 1, 2)`` int64 and their weights ``(B, N - 1)``, in no order.
    """
    size, n = weights.shape[:2]
    weights.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    everyone = torch.arange(n, device=weights.device).expand(size, n)
    label, no_point = everyone, torch.full_like(everyone, n - 1)
    first, second = everyone, everyone  # (B, N): the pick that merged each label into another
    lengths = weights.new_zeros(size, n)
    for halved in range((n - 1).bit_length()):
        reach, nearest = weights.min(dim=2)
        shortest = torch.full_like(lengths, torch.inf).scatter_reduce(1, label, reach, "amin")
        is_shortest = reach == shortest.gather(1, label)
        point = no_point.scatter_reduce(1, label, everyone.where(is_shortest, n - 1), "amin")
        other = nearest.gather(1, point)
        parent = label.gather(1, other).where(shortest < torch.inf, everyone)
        root = _smallest_of_cycles(parent, n >> halved)
        picked = root != everyone
        first, second = point.where(picked, first), other.where(picked, second)
        lengths = shortest.where(picked, lengths)
        label = root.gather(1, label)
        if bool((label == label[:, :1]).all()):
            break
        weights.masked_fill_(label[:, :, None] == label[:, None, :], torch.inf)
    # One label is left and has no pick. Move the pick at place 0 there, then cut off place 0.
    found = [values.scatter(1, label[:, :1], values[:, :1]) for values in (first, second, lengths)]
    return torch.stack(found[:2], dim=-1)[:, 1:], found[2][:, 1:]


def _smallest_of_cycles(parent: Tensor, longest: int) -> Tensor:
    """The smallest label of the cycle at the end of each path along ``parent``, ``(B, N)``.

    Args:
        longest: maximum number of labels on a path.
    """
    smallest, end = parent, parent  # of the next 1, 2, 4, ... steps
    for _ in range(longest.bit_length()):
        smallest = torch.minimum(smallest, smallest.gather(1, end))
        end = end.gather(1, end)
    return smallest.gather(1, end)


def _mirror(squared: Tensor) -> None:
    """Copy the upper triangles ``(B, N, N)`` to the lower ones."""
    n = squared.shape[1]
    upper = torch.ones(_part(n), _part(n), dtype=torch.bool, device=squared.device).triu()
    for start in range(0, n, _part(n)):
        end = start + _part(n)
        corner = squared[:, start:end, start:end]
        size = corner.shape[1]
        corner.copy_(corner.where(upper[:size, :size], corner.mT))
        squared[:, end:, start:end] = squared[:, start:end, end:].mT


def _part(rows: int) -> int:
    """Rows in an eighth of a matrix, so that a temporary copy takes an eighth of its memory."""
    return -(-rows // 8)


def _measured(clouds: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances ``(B, N, N)`` in units ``(B, 1)``."""
    scaled, unit = _scaled(clouds)
    blocks = _blocks(scaled)
    squared = next(blocks)
    if squared.shape[1] < squared.shape[2]:
        first, n = squared, clouds.shape[1]
        squared = clouds.new_empty(len(clouds), n, n)
        for block in itertools.chain([first], blocks):
            start = n - block.shape[2]
            squared[:, start : start + block.shape[1], start:] = block
    _mirror(squared)
    return squared, unit


def _condensed(cloud: Tensor) -> NDArray[np.float64]:
    """The squared distances of ``(N, D)`` on the CPU as SciPy has them: each pair once, in order.

    The blocks are all that is held beside it. More would cost time, too: large pieces of memory go
    back to the system and are mapped anew in the next call.
    """
    n = len(cloud)
    above = np.triu(np.ones((min(n, 2 * _ROWS), n), dtype=bool), k=1)
    blocks = (block[0].numpy() for block in _blocks(cloud[None]))
    return np.concatenate([block[above[: len(block), : block.shape[1]]] for block in blocks])


def _scaled(clouds: Tensor) -> tuple[Tensor, Tensor]:
    """The clouds in units ``(B, 1)`` of their own."""
    # A power of two near the largest coordinate: exact, and no square overflows.
    extent = torch.linalg.vector_norm(clouds, torch.inf, dim=(1, 2), keepdim=True)  # (B, 1, 1)
    unit = torch.ldexp(torch.ones_like(extent), torch.frexp(extent).exponent - 1)
    return clouds / unit, unit[:, :, 0]


def _blocks(clouds: Tensor) -> Iterator[Tensor]:
    """Rows of squared distances from the diagonal on, relative error about ``_TOLERANCE``.

    Args:
        clouds: ``(B, N, D)``.

    Yields:
        ``(B, n, N - start)`` for the n rows from ``start`` on, valid until the next; all rows at
        once on a GPU, and of small clouds. Below the diagonal, near pairs are not measured again.
    """
    size, n, dimensions = clouds.shape
    centered = clouds - clouds.mean(dim=1, keepdim=True)
    norms = torch.linalg.vecdot(centered, centered)  # (B, N)
    error = 4 * (dimensions + 8) * _UNIT_ROUNDOFF * norms.amax(dim=-1)  # (B,)
    height = n if is_launched(clouds.device) or n <= 2 * _ROWS else _ROWS
    buffer = clouds.new_empty(size * height * n)
    for start in range(0, n, height):
        rows = slice(start, start + height)
        high, wide = len(norms[0, rows]), n - start
        block = buffer[: size * high * wide].view(size, high, wide)
        torch.add(norms[:, rows, None], norms[:, None, start:], out=block)
        block.baddbmm_(centered[:, rows], centered[:, start:].mT, alpha=-2)
        _measure_again(block, clouds[:, rows], clouds[:, start:], error / _TOLERANCE)
        yield block


def _measure_again(squared: Tensor, first: Tensor, second: Tensor, harmed: Tensor) -> None:
    """Measure the near pairs above the diagonal by their differences, in place.

    Args:
        squared: ``(B, n, m)`` between ``first`` and ``second``.
        first, second: ``(B, n, D)`` and ``(B, m, D)``; the first n of these are the former.
        harmed: ``(B,)``, where a squared distance becomes too inexact.
    """
    near = (squared <= harmed[:, None, None]).triu(diagonal=1)
    # Many near pairs are cheapest as one direct pass over their cloud, few are as a list.
    # On a GPU the sum of a mask copies it to int64.
    counts = [rows.sum(dim=(1, 2)) for rows in near.split(_part(near.shape[1]), dim=1)]
    crowded = torch.stack(counts).sum(dim=0) > near[0].numel() / 16  # (B,)
    if crowded.any():
        direct = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(first[crowded], second[crowded], compute_mode=direct)
        squared[crowded] = apart.square_()
        near &= ~crowded[:, None, None]
    batch, row, column = near.nonzero(as_tuple=True)
    held = 4 * _PAIRS if is_launched(squared.device) else _PAIRS
    pairs = max(1, held // first.shape[-1])
    for b, i, j in zip(batch.split(pairs), row.split(pairs), column.split(pairs), strict=True):
        squared[b, i, j] = (first[b, i] - second[b, j]).square().sum(dim=-1)


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
    nearest = torch.zeros(size, n, dtype=torch.long, device=like.device)  # the point at `reach`
    newest = nearest[:, 0]
    inside[:, 0] = True
    reach = row_of(rows, newest).clone()
    # Filled in place: small tensors kept between large temporaries fragment the heap of glibc,
    # which then grew by gigabytes over a thousand steps.
    order = nearest.new_zeros(n, size)
    lengths = reach.new_empty(n - 1, size)
    parents = nearest.new_empty(n - 1 if with_parents else 0, size)
    for step in range(n - 1):
        length, newest = reach.masked_fill_(inside, torch.inf).min(dim=-1)
        order[step + 1], lengths[step] = newest, length
        inside.scatter_(1, newest[:, None], True)
        weights = row_of(rows, newest)
        if with_parents:
            parents[step] = nearest[rows, newest]
            nearest = torch.where(weights < reach, newest[:, None], nearest)
        torch.minimum(reach, weights, out=reach)
    return order.mT.contiguous(), lengths.mT.contiguous(), parents.mT.contiguous()
