"""Scores of the spectrum of the embeddings: how many directions they use, and how evenly.

Z is a cloud of n points in D dimensions, its rows; σ its singular values; λ the eigenvalues of its
covariance. All are computed in float64 from the smaller of the two Gram matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize


def _gram(clouds: Tensor) -> Tensor:
    """``(B, n, D)`` -> ``ZᵀZ`` or ``ZZᵀ``, the smaller; their non-zero eigenvalues are the same."""
    wide = clouds.shape[-1] > clouds.shape[-2]
    return clouds @ clouds.mT if wide else clouds.mT @ clouds


def _eigenvalues(clouds: Tensor) -> Tensor:
    """Squared singular values, descending, ``(B, min(n, D))``; rounding noise set to 0."""
    values = torch.linalg.eigvalsh(_gram(clouds)).flip(-1).clamp_min(0)
    noise = max(clouds.shape[1:]) * torch.finfo(values.dtype).eps * values[:, :1]
    return values.where(values > noise, 0.0)


def _centred(points: Tensor) -> Tensor:
    clouds = points.double()
    return clouds - clouds.mean(dim=1, keepdim=True)


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient; 0 for a cloud without any spread."""
    return (numerator / denominator.where(denominator > 0, 1.0)).where(denominator > 0, 0.0)


def rankme(points: Tensor) -> Tensor:
    """Effective rank ``exp(-Σ p log p)`` with ``p = σ / Σσ``: ``(B, n, D)`` -> ``(B,)``.

    References:
        arXiv:2210.02885, RankMe.
    """
    sigma = _eigenvalues(points.double()).sqrt()
    p = sigma / sigma.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(sigma.dtype).tiny)
    return torch.special.entr(p).sum(dim=-1).exp()


def alpha_req(points: Tensor) -> Tensor:
    """Decay of the covariance's spectrum: minus the slope of log λ_i against log i.

    The least-squares line goes through the eigenvalues above rounding noise; NaN with fewer
    than two of them. ``(B, n, D)`` -> ``(B,)``.

    References:
        Agrawal et al., α-ReQ, NeurIPS 2022.
    """
    values = _eigenvalues(_centred(points))  # (B, r)
    used = (values > 0).to(values.dtype)
    count = used.sum(dim=-1)
    x = torch.arange(1, values.shape[-1] + 1, device=values.device, dtype=values.dtype).log()
    y = values.where(values > 0, 1.0).log()
    x_mean = (used * x).sum(dim=-1) / count
    x_centred = used * (x - x_mean[:, None])
    slope = (x_centred * y).sum(dim=-1) / x_centred.square().sum(dim=-1)
    return (-slope).where(count >= 2, torch.nan)


def nesum(points: Tensor) -> Tensor:
    """``Σλ / λ_max``: ``(B, n, D)`` -> ``(B,)``; 0 for a cloud without spread.

    References:
        He & Ozay, Exploring the Gap between Collapsed and Whitened Features, ICML 2022.
    """
    values = _eigenvalues(_centred(points))
    return _over(values.sum(dim=-1), values[:, 0])


def stable_rank(points: Tensor) -> Tensor:
    """``‖Z‖²_F / σ_1²``: ``(B, n, D)`` -> ``(B,)``; 0 for points that are all zero.

    References:
        arXiv:2305.16562.
    """
    values = _eigenvalues(points.double())
    return _over(values.sum(dim=-1), values[:, 0])


def self_clustering(points: Tensor) -> Tensor:
    """``(‖ZZᵀ‖²_F - E) / (n² - E)`` of unit rows, ``E = n + n(n-1)/D`` being that of random ones.

    0 for points spread at random over the sphere, 1 for a single direction:
    ``(B, n, D)`` -> ``(B,)``.

    References:
        arXiv:2305.16562.
    """
    n, dimension = points.shape[-2:]
    expected = n + n * (n - 1) / dimension
    squared = _gram(normalize(points.double(), dim=-1)).square().sum(dim=(-2, -1))
    return (squared - expected) / (n**2 - expected)


def coherence(points: Tensor) -> Tensor:
    """``(n / D) max_i ‖U_i‖²`` with U the left singular vectors: how much one point stands out.

    ``(B, n, D)`` -> ``(B,)``.

    References:
        arXiv:2305.16562.
    """
    clouds = points.double()
    n, dimension = clouds.shape[-2:]
    values, vectors = torch.linalg.eigh(_gram(clouds))  # (B, r), (B, r, r)
    noise = max(n, dimension) * torch.finfo(values.dtype).eps * values[:, -1:]
    used = values > noise
    if dimension > n:
        squares = vectors.square()  # (B, n, r)
    else:
        squares = (clouds @ vectors).square() / values.where(used, 1.0)[:, None]
    leverage = (squares * used[:, None]).sum(dim=-1)  # (B, n)
    return n / dimension * leverage.amax(dim=-1)


@dataclass(frozen=True)
class RankMe:
    """`rankme` as a criterion."""

    name: ClassVar[str] = "rankme"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, points: Tensor) -> Tensor:
        return rankme(points)


@dataclass(frozen=True)
class AlphaReQ:
    """`alpha_req` as a criterion; a slow decay, many directions in use, counts as better."""

    name: ClassVar[str] = "alpha_req"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, points: Tensor) -> Tensor:
        return alpha_req(points)


@dataclass(frozen=True)
class NESum:
    """`nesum` as a criterion."""

    name: ClassVar[str] = "nesum"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, points: Tensor) -> Tensor:
        return nesum(points)


@dataclass(frozen=True)
class StableRank:
    """`stable_rank` as a criterion."""

    name: ClassVar[str] = "stable_rank"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, points: Tensor) -> Tensor:
        return stable_rank(points)


@dataclass(frozen=True)
class SelfClustering:
    """`self_clustering` as a criterion; its source wants little of it."""

    name: ClassVar[str] = "self_clustering"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, points: Tensor) -> Tensor:
        return self_clustering(points)


@dataclass(frozen=True)
class Coherence:
    """`coherence` as a criterion; its source wants little of it."""

    name: ClassVar[str] = "coherence"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, points: Tensor) -> Tensor:
        return coherence(points)
