"""Separability of a cloud, from its H0 persistence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sepstop.homology import check_points, h0_deaths


def h0_separability(
    points: Tensor, normalize: bool = True, resample_indices: Tensor | None = None
) -> Tensor:
    """Separability of a cloud: ``1 - mean(p_i / max p)`` over its finite H0 death times p_i.

    A cloud of tight, distant clusters has few late merges: most deaths are small compared to the
    largest, and the score is near 1. A cloud without structure merges everywhere at about the same
    scale, and the score is near 0. The value depends on the number of points, so compare only
    clouds of equal size.

    The paper publishes no code, so the formula is our reading of it: persistence times divided by
    their maximum, on L2-normalized embeddings.

    Args:
        points: ``(N, D)`` or ``(B, N, D)``, any float dtype, any device.
        normalize: divide each point by its L2 norm first.
        resample_indices: ``(B, n)`` int64 index sets into one cloud ``(N, D)``. The result is that
            of ``points[resample_indices]``, but distances are shared.

    Returns:
        ``()`` or ``(B,)`` in [0, 1), on the same device; float32, or float64 for float64 input.
        0 for a collapsed cloud, whose points are equal up to rounding. NaN for a cloud with a NaN
        or infinite coordinate.

    Raises:
        ValueError: ``points`` is not a floating tensor of 2 or 3 dimensions with N >= 2.

    References:
        arXiv:2305.15016, Estimating class separability of text embeddings with persistent
        homology (TMLR 2024).

    >>> points = torch.tensor([[0.0], [1.0], [9.0], [10.0]])  # deaths 1, 1, 8
    >>> h0_separability(points, normalize=False)  # 1 - (1/8 + 1/8 + 1) / 3
    tensor(0.5833)
    """
    points = check_points(points)
    clouds = points if resample_indices is not None or points.ndim == 3 else points[None]
    finite = torch.isfinite(clouds).all(dim=-1)  # of each point
    # Rounding noise of the points: of storage in half precision, of a forward pass in single.
    noise = max(torch.finfo(clouds.dtype).eps, 8 * torch.finfo(torch.float32).eps)
    if clouds.dtype == torch.float64:
        noise = 8 * torch.finfo(torch.float64).eps
    if clouds.dtype != torch.float64:
        clouds = clouds.float()
    clouds = clouds.where(finite[..., None], 0.0)
    if normalize:
        # Scaled first, so that no norm overflows.
        clouds = torch.nn.functional.normalize(_scaled(clouds, dim=(-1,))[0], dim=-1)

    deaths = h0_deaths(clouds, resample_indices)  # (B, n - 1)
    largest = deaths[:, -1]
    scaled, scale = _scaled(clouds, dim=(-2, -1))
    norms = scaled.norm(dim=-1) * scale[..., 0]  # of each point
    if resample_indices is not None:
        norms, finite = norms[resample_indices], finite[resample_indices]
    finite = finite.all(dim=-1)  # (B,)
    collapsed = largest <= noise * norms.amax(dim=-1)
    scores = 1 - (deaths / largest.where(~collapsed, 1.0)[:, None]).mean(dim=-1)
    scores = scores.masked_fill(collapsed, 0.0).masked_fill(~finite, torch.nan)
    return scores[0] if clouds.ndim == 3 > points.ndim else scores


def _scaled(points: Tensor, dim: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """``points`` divided by their largest coordinate over ``dim``, and that coordinate."""
    scale = points.abs().amax(dim=dim, keepdim=True)
    return points / scale.where(scale > 0, 1.0), scale


@dataclass(frozen=True)
class Separability:
    """`h0_separability` as a criterion, for any model.

    Args:
        normalize: as in `h0_separability`.
    """

    normalize: bool = True
    name: ClassVar[str] = "separability"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, points: Tensor) -> Tensor:
        """``(B, n, D)`` -> ``(B,)``; see `h0_separability`."""
        return h0_separability(points, normalize=self.normalize)

    def on_resamples(self, points: Tensor, resample_indices: Tensor) -> Tensor:
        """``(N, D)`` and ``(B, n)`` -> ``(B,)``; see `h0_separability`."""
        return h0_separability(points, self.normalize, resample_indices)
