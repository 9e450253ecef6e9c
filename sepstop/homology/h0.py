"""Exact H0 persistence of point clouds, on the device of the points.

The finite H0 death times of the Vietoris-Rips filtration are the edge lengths of the Euclidean
minimum spanning tree, so an engine builds that tree: `dense` for many small clouds at once,
`filtered` for large clouds in little memory. `rips` calls ripser, the reference. docs/h0_engine.md
has their times.
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
    resample_indices: Tensor | None = None,
    *,
    engine: Engine = "auto",
    max_memory: int | None = None,
) -> Tensor:
    """Finite H0 death times of the Vietoris-Rips filtration, ascending.

    They are the edge lengths of the Euclidean minimum spanning tree. The relative error of each is
    below 1e-6.

    Args:
        points: ``(N, D)`` or ``(B, N, D)``, any float dtype, any device.
        resample_indices: ``(B, n)`` int64 index sets into one cloud ``(N, D)``. The result is that
            of ``points[resample_indices]``, but distances are shared.
        engine: "dense" holds all distances of a cloud, in O(N^2) memory. "filtered" passes over
            them once, in O(N D) memory. "ripser" calls ripser on the CPU. "auto" is dense for
            clouds of up to 1500 points, on a GPU up to 4000, or 10,000 if it is fast in float64;
            else filtered.
        max_memory: maximum bytes above the input. Default: what the engine needs for one cloud,
            and 256 MiB for a batch of small ones (512 MiB on a GPU).

    Returns:
        ``(N - 1,)`` or ``(B, N - 1)``, on the same device; float32, or float64 for float64 input.
        The unit is that of distances between ``points``: full edge lengths, not radii.

    Raises:
        ValueError: ``points`` is not a finite floating tensor of 2 or 3 dimensions with N >= 2;
            invalid ``resample_indices``; an unknown engine; more memory needed than ``max_memory``.

    References:
        Gower & Ross (1969), Minimum Spanning Trees and Single Linkage Cluster Analysis.

    >>> h0_deaths(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]))
    tensor([1., 5.])
    """
    points = _checked(points)
    if resample_indices is not None:
        return _of_resamples(points, resample_indices, engine, max_memory)
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
    """The Euclidean minimum spanning tree, whose edge lengths are the deaths, shortest edge first.

    Args:
        points, engine, max_memory: as for `h0_deaths`, except "ripser", which gives no tree.

    Returns:
        ``(N - 1, 2)`` or ``(B, N - 1, 2)`` int64 edges, each as the indices of its two points, and
        their lengths, as `h0_deaths` returns them.

    Raises:
        ValueError: as `h0_deaths`.

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
    """The components of the H0 filtration at every scale, as an order of the points with gaps.

    The components at scale s are the runs of the order between gaps longer than s, and the sorted
    gaps are the deaths. The order is that in which Prim's algorithm reaches the points: it leaves a
    component only when it has reached all of its points. It takes O(N^2) memory, for N up to some
    thousands.

    Args:
        points: as for `h0_deaths`.

    Returns:
        The order, ``(N,)`` or ``(B, N)`` int64 indices of points, and the gaps, ``(N - 1,)`` or
        ``(B, N - 1)``: the scale at which the runs on both sides of a gap merge. Dtype and device
        of the gaps are those of `h0_deaths`.

    Raises:
        ValueError: as `h0_deaths`.

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
        ValueError: it has another shape or dtype.
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
    points: Tensor, resample_indices: Tensor, engine: Engine, max_memory: int | None
) -> Tensor:
    if points.ndim != 2:
        raise ValueError(f"expected one cloud (N, D) to resample, got {tuple(points.shape)}")
    resample_indices = torch.as_tensor(resample_indices)
    if (
        resample_indices.ndim != 2
        or resample_indices.dtype != torch.int64
        or resample_indices.shape[1] < 2
    ):
        raise ValueError(
            f"expected `resample_indices` (B, n) int64 with n >= 2, got "
            f"{tuple(resample_indices.shape)} {resample_indices.dtype}"
        )
    if resample_indices.numel() and (
        resample_indices.min() < 0 or resample_indices.max() >= len(points)
    ):
        raise ValueError(f"expected `resample_indices` from 0 to {len(points) - 1}")
    resample_indices = resample_indices.to(points.device)
    limit = _limit(points.device, max_memory)
    shared = dense.memory(len(points), points.device)
    cheaper = len(points) ** 2 <= resample_indices.numel() * resample_indices.shape[1]
    if len(resample_indices) == 0:
        return points.new_empty(0, resample_indices.shape[1] - 1)
    way = _chosen(engine, points, resample_indices.shape[1], max_memory)
    if way == "dense" and cheaper and shared <= limit:
        with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
            cloud = _with_float64(points).double()
            gaps = dense.resampled_deaths(cloud, _on(points, resample_indices), limit)
        return _as_given(gaps.sort(dim=-1).values, points[None])
    parts = [
        h0_deaths(points[part], engine=engine, max_memory=max_memory)
        for part in resample_indices.split(
            max(1, limit // dense.memory(resample_indices.shape[1], points.device))
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
