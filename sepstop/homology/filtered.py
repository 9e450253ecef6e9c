"""Exact minimum spanning trees of large clouds: one pass of products, and few edges that matter.

Any spanning tree bounds the minimum one: a pair of points farther apart than the longest edge
on the tree path between them is in no minimum spanning tree (the cycle property). So

1. a *seed tree* comes from the exact trees of small blocks of points, random ones and
   neighborhoods of random pivots;
2. the points are put in an order in which its components at each scale are runs, so that the
   bound of a pair is a running maximum of the gaps between (`forest.nested_order`);
3. one pass over the upper triangle of squared distances, a block of matrix product at a time,
   keeps the pairs within their bound and a margin for rounding, a few a point;
4. these are measured again in float64 from the differences of their coordinates, and the tree is
   the minimum spanning tree of what is left.

The margin. Points are centered, scaled so that no square overflows, and rounded to the working
precision of unit roundoff u; R is their largest norm. A squared distance is one product of rows
``[-2x, |x|^2, 1]`` and ``[y, 1, |y|^2]`` of length D + 2. Rounding the coordinates moves a point by
at most uR and a squared distance by at most 8 u R^2; rounding the norms by 2 u R^2; summing D + 2
products of total magnitude at most 4 R^2 by 4 (D + 2) u R^2, in whatever order (Higham, Accuracy
and Stability of Numerical Algorithms, 3.1). If the product rounds its factors to v first (TF32,
BF16), that is another 8 v R^2. The sum, with 2 % on top for terms of second order and a few more
u R^2 for the rounding of the bound itself, is `_margin`. A pair is dropped only if its computed
square is above its bound's by more than this, so its true square is above the bound's: no edge of
the tree is lost.

Clumps. In a clump, a set of points whose distances are below the margin, all pairs would be kept.
But the tree's edges inside a clump are those of the clump's own tree, again by the cycle property.
So each clump is centered and solved by itself: the margin shrinks with the square of its radius. A
clump that is not smaller than its cloud is solved in float64. If many pairs of a block are within
their bounds, such as all pairs across two distant clumps, they are compared again in float64.
Copies of a point are set aside first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sepstop.homology import dense
from sepstop.homology.forest import merged, nested_order, spanning_forest

_FEW = 256  # points that are solved as a block of their own
_RANDOM, _NEAR = 192, 256  # points in a block of the seed tree: random ones, and neighbors
_DISTANCES = 2**22  # in such blocks, held at once
_PIVOT = 192  # points a pivot
_LEVELS = 128  # scales that the bounds distinguish
_TIGHT = 16  # gaps below this many margins, squared, make a clump
_CLUMP = 32  # points from which on a clump is worth a solution of its own
_CROWD = 2**13  # pairs of one block of products that are worth a second look in float64
_SAMPLE = 256  # of these pairs, to see whether that would drop any
_SHRUNK = 1 / 16  # of the squared radius, for the precision to be kept in a clump
_ROWS, _COLUMNS = 512, 2048  # of a block of products
_PAIRS = 2**20  # float64 coordinates of the differences held at once: 8 MiB
_WIDER = 4  # times the sides of a block on other devices, where a step costs a launch at any size
_CACHED = 2**18  # likewise on a CPU, for its cache
_ROUNDINGS = {"none": 0.0, "ieee": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-7}  # of factors, cut off
_LEAST = 2.0**-8  # largest coordinate up to which a cloud is scaled, and from its inverse on
_SEED = 0


def spanning_tree(points: Tensor) -> tuple[Tensor, Tensor]:
    """The Euclidean minimum spanning tree.

    Args:
        points: finite ``(N, D)``, any float dtype, N >= 2.

    Returns:
        ``(N - 1, 2)`` int64 edges and their ``(N - 1,)`` float64 lengths, on the device of
        ``points``, in no order.
    """
    cloud = _Cloud(points)
    different, copies, originals = cloud.without_copies()
    found = [_measured(cloud, originals, copies)]
    if len(different) > 1:
        found.append(_solve(cloud, different, torch.float32))
    first, second, squared = map(torch.cat, zip(*found, strict=True))
    return torch.stack([first, second], dim=1), squared.sqrt() * cloud.unit


def memory(points: int, dimensions: int, device: torch.device) -> int:
    """Bytes above the input that `spanning_tree` takes at most."""
    wider = _wider(device)
    copies = 2 * 4 * points * (dimensions + 4)  # of the points: as they come, and in order
    pairs = _most_pairs(points) * 120
    blocks = 12 * _ROWS * _COLUMNS * wider**2 + (4 * 8 * _PAIRS + 13 * _DISTANCES) * wider
    again = 8 * dimensions * (_ROWS + _COLUMNS) * wider  # the points of a block in float64
    return copies + pairs + blocks + again + 1500 * points


def _wider(device: torch.device) -> int:
    return 1 if device.type == "cpu" else _WIDER


def _most_pairs(points: int) -> int:
    """Pairs that are held before they are thinned out to a forest."""
    return 16 * points + 2**18


@dataclass
class _Cloud:
    """Points as they were given; everything is computed from them in float64."""

    points: Tensor

    def __post_init__(self) -> None:
        # A power of two near the largest coordinate: exact, and no square overflows. Embeddings
        # hardly ever need one.
        largest = max(float(rows.abs().max()) for rows in self.points.split(self.rows))
        self.unit = 1.0
        if _LEAST <= largest <= 1 / _LEAST:
            return
        exponent = torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent
        self.unit = float(torch.ldexp(torch.tensor(1.0, dtype=torch.float64), exponent))

    @property
    def rows(self) -> int:
        return _rows(self.points)

    def at(self, ids: Tensor) -> Tensor:
        # Of points, index_select is several times as fast as an index in brackets.
        found = self.points.index_select(0, ids).double()
        return found if self.unit == 1 else found.mul_(1 / self.unit)

    def mean(self, ids: Tensor) -> Tensor:
        sums = [self.at(part).sum(dim=0) for part in ids.split(self.rows)]
        return torch.stack(sums).sum(dim=0) / len(ids)

    def about(self, center: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """``(n, D)`` with ``center`` for the origin, rounded to ``dtype`` at the end."""
        found = self.points.new_empty((len(ids), self.points.shape[1]), dtype=dtype)
        for part, into in zip(ids.split(self.rows), found.split(self.rows), strict=True):
            into.copy_(self.at(part).sub_(center))
        return found

    def without_copies(self) -> tuple[Tensor, Tensor, Tensor]:
        """Points that differ, and the others, each with one of those that it is a copy of.

        Copies are found by a weighted sum of the coordinates, so a chance equal sum may hide one;
        it is then a point like any other.
        """
        generator = torch.Generator().manual_seed(_SEED)
        weights = torch.rand(self.points.shape[1], generator=generator, dtype=torch.float64)
        weights = weights.to(self.points.device)
        everyone = torch.arange(len(self.points), device=self.points.device)
        keys = torch.cat(
            [(self.at(part) * weights).sum(dim=-1) for part in everyone.split(self.rows)]
        )
        order = keys.argsort(stable=True)
        pairs = zip(order[1:].split(self.rows), order[:-1].split(self.rows), strict=True)
        rows = self.points.index_select
        same = [(rows(0, i) == rows(0, j)).all(dim=-1) for i, j in pairs]
        is_first = torch.cat([everyone[:1] == 0, ~torch.cat(same)])
        first = order[is_first]
        group = is_first.cumsum(dim=0) - 1
        return first.sort().values, order[~is_first], first[group[~is_first]]

    def squared_distances(self, first: Tensor, second: Tensor) -> Tensor:
        """``(M,)`` float64, from the differences of the coordinates, relative error D u."""
        pairs = zip(first.split(self.rows), second.split(self.rows), strict=True)
        found = [self.at(i).sub_(self.at(j)).square_().sum(dim=-1) for i, j in pairs]
        return torch.cat(found) if found else self.points.new_empty(0, dtype=torch.float64)


_Edges = tuple[Tensor, Tensor, Tensor]
"""First and second ends, int64, and squared lengths, float64: ``(M,)`` each."""


def _solve(cloud: _Cloud, ids: Tensor, dtype: torch.dtype) -> _Edges:
    """The edges of the tree among the points ``ids``."""
    if len(ids) <= _FEW:
        points = cloud.about(cloud.mean(ids), ids, torch.float64)
        edges = ids[dense.spanning_trees(points[None])[0][0]]
        return _measured(cloud, edges[:, 0], edges[:, 1])
    center = cloud.mean(ids)
    points = cloud.about(center, ids, dtype)
    norms = _squared_norms(points)
    radius = float(norms.max())
    margin = _margin(points, radius)

    first, second = _seed_tree(points, norms)
    seed = _measured(cloud, ids[first], ids[second])
    order, gaps = nested_order(first, second, seed[2], _LEVELS)
    found = [seed]
    for start, end in _runs(gaps <= _TIGHT * margin):
        inside = ids[order[start:end]]
        around = cloud.about(cloud.mean(inside), inside, dtype)
        shrunk = _squared_norms(around).max() <= _SHRUNK * radius
        if shrunk or dtype == torch.float32:
            found.append(_solve(cloud, inside, dtype if shrunk else torch.float64))
            gaps[start : end - 1] = -torch.inf  # no pair inside is within its bound
    crowd = _CROWD * _wider(points.device) ** 2
    if not torch.isneginf(gaps).all():
        points, norms, ids = points.index_select(0, order), norms[order], ids[order]
        held, limit = sum(len(edges[0]) for edges in found), _most_pairs(len(ids))
        waiting: list[tuple[Tensor, Tensor]] = []
        for row, column in _within(points, norms, (gaps + margin).to(dtype)):
            if len(row) > crowd and dtype == torch.float32:
                row, column = _within_in_float64(cloud, ids, center, gaps, row, column)
            waiting.append((row, column))
            held += len(row)
            if held > limit:
                found = [_thinned(len(cloud.points), [*found, *_measured_at(cloud, ids, waiting)])]
                held, waiting = len(found[0][0]), []
        found += _measured_at(cloud, ids, waiting)
    return _thinned(len(cloud.points), found)


def _within_in_float64(
    cloud: _Cloud, ids: Tensor, center: Tensor, gaps: Tensor, row: Tensor, column: Tensor
) -> tuple[Tensor, Tensor]:
    """The pairs, given by their places in the order, that are also within their bounds in float64.

    Two clumps farther apart than they are wide have all pairs across within the margin of float32.
    If most of a sample are within their bounds, it is not the margin that lets them in, and all are
    returned.
    """
    bounds = _bounds(gaps, row, column)
    some = slice(None, None, max(1, len(row) // _SAMPLE))
    lengths = cloud.squared_distances(ids[row[some]], ids[column[some]])
    if (lengths <= bounds[some]).sum() > len(lengths) / 2:
        return row, column
    top, start = int(row.min()), int(column.min())
    left = cloud.about(center, ids[top : int(row.max()) + 1], torch.float64)
    right = cloud.about(center, ids[start : int(column.max()) + 1], torch.float64)
    norms = left.square().sum(dim=-1), right.square().sum(dim=-1)
    squared = torch.addmm(norms[0][:, None] + norms[1], left, right.T, alpha=-2)
    margin = _margin(left, float(torch.cat(norms).max()))
    kept = squared[row - top, column - start] <= bounds + margin
    return row[kept], column[kept]


def _bounds(gaps: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """``(M,)``, the largest gap from each row to its column, from two overlapping stretches."""
    reach = torch.frexp((column - row).double()).exponent.long() - 1
    found = gaps.new_empty(len(row))
    stretch = gaps
    for power in range(int(reach.max()) + 1):
        here = (reach == power).nonzero().squeeze(1)
        found[here] = torch.maximum(stretch[row[here]], stretch[column[here] - 2**power])
        stretch = torch.maximum(stretch[: -(2**power)], stretch[2**power :])
    return found


def _measured(cloud: _Cloud, first: Tensor, second: Tensor) -> _Edges:
    return first, second, cloud.squared_distances(first, second)


def _measured_at(cloud: _Cloud, ids: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> list[_Edges]:
    """Measure the pairs of several blocks in one call. The pairs are places in ``ids``."""
    if not pairs:
        return []
    row, column = map(torch.cat, zip(*pairs, strict=True))
    return [_measured(cloud, ids[row], ids[column])]


def _thinned(points: int, found: list[_Edges]) -> _Edges:
    """A minimum spanning forest of all these edges."""
    first, second, squared = map(torch.cat, zip(*found, strict=True))
    kept = spanning_forest(points, first, second, squared)
    return first[kept], second[kept], squared[kept]


def _rows(points: Tensor) -> int:
    """Rows that are held in float64 at once."""
    held = _CACHED if points.device.type == "cpu" else _PAIRS * _wider(points.device)
    return max(1, held // points.shape[1])


def _squared_norms(points: Tensor) -> Tensor:
    """``(n,)`` in the dtype of ``points``, each rounded once."""
    parts = points.split(_rows(points))
    return torch.cat([part.double().square().sum(dim=-1) for part in parts]).to(points.dtype)


def _margin(points: Tensor, radius: float) -> float:
    """Maximum error of a squared distance of the pass; see the top of this file."""
    roundoff = torch.finfo(points.dtype).eps / 2
    factors = _rounding_of_factors() if points.dtype == torch.float32 else 0.0
    return 1.02 * radius * ((4 * (points.shape[1] + 2) + 24) * roundoff + 8 * factors)


def _rounding_of_factors() -> float:
    """Largest relative error of a factor in float32 products, as the global settings allow it.

    Since torch 2.9 each backend has a setting of its own. The older functions follow it, but raise
    where it was set directly, as by ``TrainingArguments(tf32=True)``.
    """
    if not hasattr(torch.backends, "fp32_precision"):  # torch before 2.9
        general = torch.get_float32_matmul_precision()
        names = {"highest": "ieee", "high": "tf32", "medium": "bf16"}
        settings = {names[general], "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"}
    else:
        on_cpu: Any = torch.backends.mkldnn
        places = (torch.backends, torch.backends.cuda.matmul, on_cpu.matmul)
        settings = {place.fp32_precision for place in places}
    return max(_ROUNDINGS[setting] for setting in settings)


def _seed_tree(points: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """A short spanning tree of ``points``: ends of its edges, ``(n - 1,)`` each."""
    n = len(points)
    generator = torch.Generator().manual_seed(_SEED)
    shuffled = torch.randperm(n, generator=generator).to(points.device)
    pivots = shuffled[: max(2, n // _PIVOT)]
    held = _ROWS * _COLUMNS * _wider(points.device) ** 2
    nearest = torch.cat(
        [
            torch.addmm(norms[pivots], rows, points[pivots].T, alpha=-2).argmin(dim=1)
            for rows in points.split(max(1, held // len(pivots)))
        ]
    )
    gathered = shuffled[nearest[shuffled].argsort(stable=True)]
    if _wider(points.device) > 1:  # one call with larger blocks is faster on a GPU
        orders = [(torch.cat([shuffled, gathered]), _NEAR)]
    else:
        orders = [(shuffled, _RANDOM), (gathered, _NEAR)]
    found = [_block_edges(points, norms, order, size) for order, size in orders]
    first, second, squared = map(torch.cat, zip(*found, strict=True))
    kept = spanning_forest(n, first, second, squared)
    first, second = first[kept], second[kept]
    if len(kept) < n - 1:  # blocks that share no point: tie the components to the first
        label = merged(torch.arange(n, device=points.device), first, second)
        others = label.unique()[1:]
        first = torch.cat([first, torch.zeros_like(others)])
        second = torch.cat([second, others])
    return first, second


def _block_edges(points: Tensor, norms: Tensor, order: Tensor, most: int) -> _Edges:
    """Edges of a nearly shortest spanning tree of each block of at most ``most`` points.

    They only give bounds: lengths are rounded, possibly below zero.
    """
    count = -(-len(order) // most)
    size = -(-len(order) // count)
    padded = torch.cat([order, order[: count * size - len(order)]]).view(count, size)
    held = _DISTANCES * _wider(points.device)
    found = []
    for blocks in padded.split(max(1, held // size**2)):
        rows = points.index_select(0, blocks.flatten()).unflatten(0, blocks.shape)
        heights = norms[blocks]
        squared = torch.baddbmm(heights[:, None, :] + heights[:, :, None], rows, rows.mT, alpha=-2)
        edges, lengths = dense.shortest_trees(squared)
        ends = blocks.gather(1, edges.flatten(1)).view(-1, 2)
        found.append((ends[:, 0], ends[:, 1], lengths.flatten()))
    first, second, squared = map(torch.cat, zip(*found, strict=True))
    apart = first != second  # the padding repeats points
    return first[apart], second[apart], squared[apart]


def _runs(tight: Tensor) -> Iterator[tuple[int, int]]:
    """Bounds of the runs of points with tight gaps between, those of more than `_CLUMP` points."""
    edge = torch.zeros(1, dtype=torch.int8, device=tight.device)
    steps = torch.diff(tight.to(torch.int8), prepend=edge, append=edge)
    starts, ends = (steps == 1).nonzero().squeeze(1), (steps == -1).nonzero().squeeze(1) + 1
    large = ends - starts > _CLUMP
    yield from zip(starts[large].tolist(), ends[large].tolist(), strict=True)


def _within(points: Tensor, norms: Tensor, bounds: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Places of the pairs whose squared distance is at most the largest bound between them.

    Args:
        points: ``(n, D)`` in order.
        norms: their squared norms.
        bounds: ``(n - 1,)`` of neighboring places, squared, margin included.

    Yields:
        Two ``(m,)`` int64 tensors, the lower place first.
    """
    n, dimensions = points.shape
    wider = _wider(points.device)
    height, width = min(n, _ROWS * wider), min(n, _COLUMNS * wider)  # of a block
    ones = torch.ones_like(norms)[:, None]
    right = torch.cat([points, ones, norms[:, None]], dim=1)  # (n, D + 2)
    left = torch.cat([-2 * points[:height], norms[:height, None], ones[:height]], dim=1)
    buffer = points.new_empty(height * width)
    for start in range(0, n, height):
        end = min(n, start + height)
        rows = left[: end - start]
        torch.mul(points[start:end], -2, out=rows[:, :dimensions])
        rows[:, dimensions] = norms[start:end]
        within = bounds[start : end - 1]
        if len(within):
            bound = within.expand(len(within), -1).triu().cummax(dim=1).values
            upper = torch.ones_like(bound, dtype=torch.bool).triu()
            kept = ((rows[:-1] @ right[start + 1 : end].T <= bound) & upper).nonzero()
            yield start + kept[:, 0], start + 1 + kept[:, 1]
        if end == n:
            return
        # Across blocks the largest gap is the row's up to the end of its block, or the rest.
        to_end = bounds.new_full((end - start,), -torch.inf)
        to_end[:-1] = within.flip(0).cummax(dim=0).values.flip(0)
        since = bounds[end - 1 :].cummax(dim=0).values  # (n - end,)
        starts = range(end, n, width)
        # `to_end` decreases along the rows, so it exceeds a block's smallest bound in its first.
        higher = (to_end[:, None] > since[::width]).sum(dim=0).tolist()
        for first, count in zip(starts, higher, strict=True):
            last = min(n, first + width)
            out = buffer[: (end - start) * (last - first)].view(end - start, last - first)
            squared = torch.mm(rows, right[first:last].T, out=out)
            keep = _empty_mask(squared)
            torch.le(squared, since[first - end : last - end], out=keep[:, : last - first])
            if count:
                keep[:count, : last - first] |= squared[:count] <= to_end[:count, None]
            row, column = _true_places(keep)
            if len(row):
                yield start + row, first + column


def _empty_mask(like: Tensor) -> Tensor:
    """A mask of False with the rows of ``like`` and its columns rounded up to a multiple of 8."""
    rows, columns = like.shape
    return torch.zeros(rows, -(-columns // 8) * 8, dtype=torch.bool, device=like.device)


def _true_places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """``mask.nonzero()`` of a mask with few True. On a CPU, eight at a time is much faster."""
    if mask.device.type != "cpu":
        row, column = mask.nonzero(as_tuple=True)
        return row, column
    row, eight = mask.view(torch.int64).nonzero(as_tuple=True)
    which, place = mask.unflatten(1, (-1, 8))[row, eight].nonzero(as_tuple=True)
    return row[which], 8 * eight[which] + place
