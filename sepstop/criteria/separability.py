"""Separability of a cloud from its H0 persistence: the default criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sepstop.homology import check_points, h0_deaths


def h0_separability(
    points: Tensor, normalize: bool = True, resamples: Tensor | None = None
) -> Tensor:
    """``1 - mean(p_i / max p)`` over the finite H0 death times p_i; higher is more separable.

    A cloud of tight, distant clusters merges early but for a few late merges: most deaths
    are small beside the largest, and the score is near 1. A cloud without structure merges
    everywhere at about the same scale, and the score is near 0. The value depends on the
    number of points, so compare only clouds of equal size.

    The formula is sepstop's reading of the paper, which publishes no code: persistence times
    normalised by their maximum, on L2-normalised embeddings.

    Args:
        points: ``(N, D)`` or ``(B, N, D)``, any float dtype, any device.
        normalize: divide each point by its L2 norm first.
        resamples: ``(B, n)`` int64 index sets into one cloud ``(N, D)``; the same as
            ``points[resamples]``, but distances are shared.

    Returns:
        ``()`` or ``(B,)`` in [0, 1), float32 (float64 for float64 input), same device.
        0 for a collapsed cloud (all points equal up to rounding): there is nothing to
        separate. NaN for a cloud with a NaN or infinite coordinate.

    Raises:
        ValueError: not a floating tensor of 2 or 3 dimensions with N >= 2.

    References:
        arXiv:2305.15016, Estimating class separability of text embeddings with persistent
        homology (TMLR 2024).

    >>> h0_separability(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), normalize=False)
    tensor(0.5833)
    """
    points = check_points(points)
    clouds = points if resamples is not None or points.ndim == 3 else points[None]
    finite = torch.isfinite(clouds).all(dim=-1)  # of each point
    # Noise of the points: storage for half precision, a forward pass's sums for single.
    noise = max(torch.finfo(clouds.dtype).eps, 8 * torch.finfo(torch.float32).eps)
    if clouds.dtype == torch.float64:
        noise = 8 * torch.finfo(torch.float64).eps
    if clouds.dtype != torch.float64:
        clouds = clouds.float()
    clouds = clouds.where(finite[..., None], 0.0)
    if normalize:
        clouds = torch.nn.functional.normalize(_scaled(clouds, dim=(-1,))[0], dim=-1)

    deaths = h0_deaths(clouds, resamples)  # (B, n - 1)
    largest = deaths[:, -1]
    scaled, scale = _scaled(clouds, dim=(-2, -1))
    norms = scaled.norm(dim=-1) * scale[..., 0]  # of each point
    if resamples is not None:
        norms, finite = norms[resamples], finite[resamples]
    finite = finite.all(dim=-1)  # (B,)
    collapsed = largest <= noise * norms.amax(dim=-1)
    scores = 1 - (deaths / largest.where(~collapsed, 1.0)[:, None]).mean(dim=-1)
    scores = scores.masked_fill(collapsed, 0.0).masked_fill(~finite, torch.nan)
    return scores[0] if clouds.ndim == 3 > points.ndim else scores


def _scaled(points: Tensor, dim: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """``points`` divided by their largest coordinate over ``dim``, so that no norm overflows."""
    scale = points.abs().amax(dim=dim, keepdim=True)
    return points / scale.where(scale > 0, 1.0), scale


@dataclass(frozen=True)
class Separability:
    """`h0_separability` as a criterion."""

    normalize: bool = True
    name: ClassVar[str] = "separability"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, points: Tensor) -> Tensor:
        return h0_separability(points, normalize=self.normalize)

    def on_resamples(self, points: Tensor, resamples: Tensor) -> Tensor:
        return h0_separability(points, self.normalize, resamples)
