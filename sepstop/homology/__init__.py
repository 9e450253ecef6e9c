"""Exact H0 persistence of point clouds, on the device of the points.

The finite H0 death times of the Vietoris-Rips filtration are the edge lengths of the Euclidean
minimum spanning tree, so an engine builds that tree: `dense` for many small clouds at once,
`filtered` for large ones in little memory; `rips` asks ripser, for comparison.
docs/h0_engine.md says how fast they are.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sepstop.homology import dense, filtered, rips

Engine = Literal["auto", "dense", "filtered", "ripser"]

_DENSE = 1500  # maximum points for the dense engine on a CPU
_DENSE_GPU = 4000
_DENSE_FLOAT64 = 10_000  # on a GPU with fast float64
_FAST_FLOAT64 = {(7, 0), (8, 0), (9, 0), (10, 0)}  # compute capability: V100, A100, H100, B200
_MEMORY = 2**28  # default bytes of distances held at once on a CPU
_MEMORY_GPU = 2**29


def h0_deaths(
    points: Tensor,
    resamples: Tensor | None = None,
    *,
    engine: Engine = "auto",
    max_memory: int | None = None,
) -> Tensor:
    """Finite H0 death times of the Vietoris-Rips filtration, ascending.

    They are the edge lengths of the Euclidean minimum spanning tree, exact to 1e-6 relative each.

    Args:
        points: ``(N, D)`` or ``(B, N, D)``, any float dtype, any device.
        resamples: ``(B, n)`` int64 index sets into one cloud ``(N, D)``: the deaths of each
            subset. Cheaper than ``points[resamples]``, for distances are shared.
        engine: "dense" takes all distances of a cloud at once, O(N^2) memory; "filtered"
            a pass over them in O(N D) memory; "ripser" asks ripser, on the CPU. "auto" takes dense
            up to 1500 points a cloud, on a GPU up to 4000, or 10,000 if it is fast in float64.
        max_memory: bytes to take above the input at most. By default as much as the
            engine needs for one cloud, and 256 MiB for a batch of small ones, on a GPU 512.

    Returns:
        ``(N - 1,)`` or ``(B, N - 1)``, float32 (float64 for float64 input), in the
        distance units of ``points`` (full edge length, not radius), on the same device.

    Raises:
        ValueError: not a finite floating tensor of 2 or 3 dimensions with N >= 2; resamples that
            are no index sets; an unknown engine; more memory needed than ``max_memory``.

    References:
        Gower & Ross (1969), Minimum Spanning Trees and Single Linkage Cluster Analysis.

    >>> h0_deaths(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]))
    tensor([1., 5.])
    """
    points = _checked(points)
    if resamples is not None:
        return _of_resamples(points, resamples, engine, max_memory)
    clouds = points if points.ndim == 3 else points[None]
    way = _chosen(engine, clouds, clouds.shape[1], max_memory)
    if len(clouds) == 0:
        deaths = clouds.new_empty(0, clouds.shape[1] - 1)
    elif way == "ripser":
        deaths = torch.stack([rips.deaths(cloud) for cloud in clouds])
    elif way == "dense":
        with torch.no_grad(), torch.autocast(clouds.device.type, enabled=False):
            deaths = torch.cat([dense.deaths(part) for part in _in_parts(clouds, max_memory)])
    else:
        deaths = _trees(clouds, engine, max_memory)[1]
    return _as_given(deaths.sort(dim=-1).values, points)


def h0_tree(
    points: Tensor, *, engine: Engine = "auto", max_memory: int | None = None
) -> tuple[Tensor, Tensor]:
    """The minimum spanning tree whose edges are the deaths, shortest first.

    Args:
        points, engine, max_memory: as for `h0_deaths`; ripser gives no tree.

    Returns:
        ``(N - 1, 2)`` or ``(B, N - 1, 2)`` int64 edges, each the two points whose components it
        merges, and their lengths as from `h0_deaths`.

    Raises:
        ValueError: as from `h0_deaths`.

    >>> h0_tree(torch.tensor([[0.0], [9.0], [1.0]]))
    (tensor([[0, 2],
            [2, 1]]), tensor([1., 8.]))
    """
    points = _checked(points)
    if engine == "ripser":
        raise ValueError("ripser gives no tree: expected `engine` auto, dense or filtered")
    clouds = points if points.ndim == 3 else points[None]
    edges, lengths = _trees(clouds, engine, max_memory)
    lengths, order = lengths.sort(dim=-1, stable=True)
    edges = edges.gather(1, order[..., None].expand_as(edges))
    edges = edges.to(points.device)
    return edges[0] if points.ndim == 2 else edges, _as_given(lengths, points)


def h0_dendrogram(points: Tensor) -> tuple[Tensor, Tensor]:
    """The H0 filtration whole: its components at each scale, as an order and the gaps in it.

    The components at scale s are the runs of ``order`` between gaps longer than s, so the two
    say which points merge when, and the sorted gaps are the deaths. It is the order in which
    Prim's algorithm reaches the points: it leaves a component only when nothing in it is left.
    It takes O(N^2) memory, so it is meant for N up to some thousands.

    Args:
        points: as for `h0_deaths`.

    Returns:
        ``order``, ``(N,)`` or ``(B, N)`` int64 indices of points, and ``gaps``, ``(N - 1,)``
        or ``(B, N - 1)``: the scale at which the runs on either side of a gap merge; dtype
        and device as of `h0_deaths`.

    >>> h0_dendrogram(torch.tensor([[0.0], [9.0], [1.0], [11.0]]))
    (tensor([0, 2, 1, 3]), tensor([1., 8., 2.]))
    """
    points = _checked(points)
    clouds = points if points.ndim == 3 else points[None]
    with torch.no_grad():
        parts = [dense.dendrograms(part) for part in _in_parts(clouds, None)]
    order, gaps = (torch.cat(part).to(points.device) for part in zip(*parts, strict=True))
    return order[0] if points.ndim == 2 else order, _as_given(gaps, points)


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


def _checked(points: Tensor) -> Tensor:
    points = check_points(points)
    if not torch.isfinite(points).all():
        raise ValueError("expected finite `points`, got NaN or infinity among them")
    return points


def _chosen(engine: str, points: Tensor, number: int, max_memory: int | None) -> str:
    """The engine for a cloud of ``number`` points."""
    if engine not in ("auto", "dense", "filtered", "ripser"):
        raise ValueError(f"expected `engine` auto, dense, filtered or ripser, got {engine!r}")
    if engine != "auto":
        return engine
    fits = max_memory is None or dense.memory(number, points.device) <= max_memory
    most = _most_dense(points.device) if fits else _DENSE
    return "dense" if number <= most else "filtered"


def _most_dense(device: torch.device) -> int:
    if not dense.is_launched(device):
        return _DENSE
    if device.type == "cuda" and torch.cuda.get_device_capability(device) in _FAST_FLOAT64:
        return _DENSE_FLOAT64
    return _DENSE_GPU


def _limit(device: torch.device, max_memory: int | None) -> int:
    """Maximum bytes for the distances of a batch."""
    if max_memory is not None:
        return max_memory
    return _MEMORY_GPU if dense.is_launched(device) else _MEMORY


def _trees(clouds: Tensor, engine: str, max_memory: int | None) -> tuple[Tensor, Tensor]:
    """Edges and float64 lengths, in no order, of ``(B, N, D)``."""
    size, n, dimensions = clouds.shape
    autocast = torch.autocast(clouds.device.type, enabled=False)
    with torch.no_grad(), autocast:
        if _chosen(engine, clouds, n, max_memory) == "dense" or size == 0:
            parts = [dense.spanning_trees(part) for part in _in_parts(clouds, max_memory)]
            edges, lengths = (torch.cat(part) for part in zip(*parts, strict=True))
        else:
            _check_memory(filtered.memory(n, dimensions, clouds.device), max_memory, clouds)
            found = [filtered.spanning_tree(cloud) for cloud in _with_float64(clouds)]
            edges, lengths = (torch.stack(part) for part in zip(*found, strict=True))
    return edges, lengths


def _of_resamples(
    points: Tensor, resamples: Tensor, engine: Engine, max_memory: int | None
) -> Tensor:
    if points.ndim != 2:
        raise ValueError(f"expected one cloud (N, D) to resample, got {tuple(points.shape)}")
    resamples = torch.as_tensor(resamples)
    if resamples.ndim != 2 or resamples.dtype != torch.int64 or resamples.shape[1] < 2:
        raise ValueError(
            f"expected `resamples` (B, n) int64 with n >= 2, got {tuple(resamples.shape)} "
            f"{resamples.dtype}"
        )
    if resamples.numel() and (resamples.min() < 0 or resamples.max() >= len(points)):
        raise ValueError(f"expected `resamples` from 0 to {len(points) - 1}, the points there are")
    resamples = resamples.to(points.device)
    limit = _limit(points.device, max_memory)
    shared = dense.memory(len(points), points.device)
    cheaper = len(points) ** 2 <= resamples.numel() * resamples.shape[1]
    if len(resamples) == 0:
        return points.new_empty(0, resamples.shape[1] - 1)
    way = _chosen(engine, points, resamples.shape[1], max_memory)
    if way == "dense" and cheaper and shared <= limit:
        with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
            cloud = _with_float64(points).double()
            gaps = dense.resampled_deaths(cloud, _on(points, resamples), limit)
        return _as_given(gaps.sort(dim=-1).values, points[None])
    parts = [
        h0_deaths(points[part], engine=engine, max_memory=max_memory)
        for part in resamples.split(
            max(1, limit // dense.memory(resamples.shape[1], points.device))
        )
    ]
    return torch.cat(parts)


def _in_parts(clouds: Tensor, max_memory: int | None) -> list[Tensor]:
    """Float64 parts of a batch, as many clouds at once as memory allows."""
    need = dense.memory(clouds.shape[1], clouds.device)
    _check_memory(need, max_memory, clouds)
    size = max(1, _limit(clouds.device, max_memory) // need)
    return [part.double() for part in _with_float64(clouds).split(size)]


def _check_memory(need: int, max_memory: int | None, clouds: Tensor) -> None:
    if max_memory is not None and need > max_memory:
        raise ValueError(
            f"a cloud of {clouds.shape[1]} x {clouds.shape[2]} takes up to {need / 2**20:.0f} MiB, "
            f"but `max_memory` allows {max_memory / 2**20:.0f}"
        )


def _with_float64(points: Tensor) -> Tensor:
    """Apple's MPS has no float64: the points go to the CPU and the result comes back."""
    return points.cpu() if points.device.type == "mps" else points


def _on(points: Tensor, other: Tensor) -> Tensor:
    return other.to(_with_float64(points[:1]).device)


def _as_given(lengths: Tensor, points: Tensor) -> Tensor:
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    lengths = lengths.to(points.device, dtype)
    return lengths[0] if points.ndim == 2 else lengths
