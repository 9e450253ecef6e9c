"""Scores of the spectrum of the embeddings: how many directions they use, and how evenly.

Z is a cloud of n points in D dimensions, one per row; σ are its singular values and λ the
eigenvalues of its covariance. Everything is computed in float64 from the smaller Gram matrix.

All functions take points ``(B, n, D)`` of any float dtype on any device, and return ``(B,)``
float64 on the same device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize


def _gram(clouds: Tensor) -> Tensor:
    """The smaller of ``ZᵀZ`` and ``ZZᵀ``; their nonzero eigenvalues are equal."""
    wide = clouds.shape[-1] > clouds.shape[-2]
    return clouds @ clouds.mT if wide else clouds.mT @ clouds


def _eigenvalues(clouds: Tensor) -> Tensor:
    """Squared singular values, descending, ``(B, min(n, D))``; rounding noise is set to 0."""
    values = torch.linalg.eigvalsh(_gram(clouds)).flip(-1).clamp_min(0)
    noise = max(clouds.shape[1:]) * torch.finfo(values.dtype).eps * values[:, :1]
    return values.where(values > noise, 0.0)


def _centered(points: Tensor) -> Tensor:
    clouds = points.double()
    return clouds - clouds.mean(dim=1, keepdim=True)


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient; 0 where the denominator is 0."""
    return (numerator / denominator.where(denominator > 0, 1.0)).where(denominator > 0, 0.0)


def rankme(points: Tensor) -> Tensor:
    """Effective rank: ``exp(-Σ p log p)`` with ``p = σ / Σσ``.

    Args:
        points: ``(B, n, D)``.

    Returns:
        ``(B,)`` from 1 to min(n, D).

    References:
        arXiv:2210.02885, RankMe: Assessing the downstream performance of pretrained
        self-supervised representations by their rank.
    """
    sigma = _eigenvalues(points.double()).sqrt()
    p = sigma / sigma.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(sigma.dtype).tiny)
    return torch.special.entr(p).sum(dim=-1).exp()


def alpha_req(points: Tensor) -> Tensor:
    """Decay of the covariance's spectrum: minus the slope of log λ_i against log i.

    The least-squares line fits the eigenvalues above rounding noise.

    Args:
        points: ``(B, n, D)``.

    Returns:
        ``(B,)``; NaN if fewer than two eigenvalues are above rounding noise.

    References:
        Agrawal et al., α-ReQ: Assessing representation quality in self-supervised learning by
        measuring eigenspectrum decay, NeurIPS 2022.
    """
    values = _eigenvalues(_centered(points))  # (B, r)
    used = (values > 0).to(values.dtype)
    count = used.sum(dim=-1)
    x = torch.arange(1, values.shape[-1] + 1, device=values.device, dtype=values.dtype).log()
    y = values.where(values > 0, 1.0).log()
    x_mean = (used * x).sum(dim=-1) / count
    x_centered = used * (x - x_mean[:, None])
    slope = (x_centered * y).sum(dim=-1) / x_centered.square().sum(dim=-1)
    return (-slope).where(count >= 2, torch.nan)


def nesum(points: Tensor) -> Tensor:
    """Sum of the covariance's eigenvalues over the largest: ``Σλ / λ_max``.

    Args:
        points: ``(B, n, D)``.

    Returns:
        ``(B,)`` from 1 to min(n, D); 0 for a cloud of equal points.

    References:
        He & Ozay, Exploring the Gap between Collapsed and Whitened Features in Self-Supervised
        Learning, ICML 2022.
    """
    values = _eigenvalues(_centered(points))
    return _over(values.sum(dim=-1), values[:, 0])


def stable_rank(points: Tensor) -> Tensor:
    """Stable rank: ``‖Z‖²_F / σ_1²``.

    Args:
        points: ``(B, n, D)``.

    Returns:
        ``(B,)`` from 1 to min(n, D); 0 if all points are zero.

    References:
        arXiv:2305.16562, Unsupervised Embedding Quality Evaluation.
    """
    values = _eigenvalues(points.double())
    return _over(values.sum(dim=-1), values[:, 0])


def self_clustering(points: Tensor) -> Tensor:
    """Self-clustering of the L2-normalized points: ``(‖ZZᵀ‖²_F - E) / (n² - E)``.

    ``E = n + n(n-1)/D`` is the expectation for random points on the sphere.

    Args:
        points: ``(B, n, D)``.

    Returns:
        ``(B,)``; about 0 for random points on the sphere, 1 for a single direction.

    References:
        arXiv:2305.16562, Unsupervised Embedding Quality Evaluation.
    """
    n, dimension = points.shape[-2:]
    expected = n + n * (n - 1) / dimension
    squared = _gram(normalize(points.double(), dim=-1)).square().sum(dim=(-2, -1))
    return (squared - expected) / (n**2 - expected)


def coherence(points: Tensor) -> Tensor:
    """Largest influence of a single point: ``(n / D) max_i ‖U_i‖²``.

    U are the left singular vectors of Z.

    Args:
        points: ``(B, n, D)``.

    Returns:
        ``(B,)`` from 0 to n / D.

    References:
        arXiv:2305.16562, Unsupervised Embedding Quality Evaluation.
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
        """``(B, n, D)`` -> ``(B,)``; see `rankme`."""
        return rankme(points)


@dataclass(frozen=True)
class AlphaReQ:
    """`alpha_req` as a criterion: a slow decay, with many directions in use, is better."""

    name: ClassVar[str] = "alpha_req"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, points: Tensor) -> Tensor:
        """``(B, n, D)`` -> ``(B,)``; see `alpha_req`."""
        return alpha_req(points)


@dataclass(frozen=True)
class NESum:
    """`nesum` as a criterion."""

    name: ClassVar[str] = "nesum"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, points: Tensor) -> Tensor:
        """``(B, n, D)`` -> ``(B,)``; see `nesum`."""
        return nesum(points)


@dataclass(frozen=True)
class StableRank:
    """`stable_rank` as a criterion."""

    name: ClassVar[str] = "stable_rank"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, points: Tensor) -> Tensor:
        """``(B, n, D)`` -> ``(B,)``; see `stable_rank`."""
        return stable_rank(points)


@dataclass(frozen=True)
class SelfClustering:
    """`self_clustering` as a criterion: lower is better, as in its source."""

    name: ClassVar[str] = "self_clustering"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, points: Tensor) -> Tensor:
        """``(B, n, D)`` -> ``(B,)``; see `self_clustering`."""
        return self_clustering(points)


@dataclass(frozen=True)
class Coherence:
    """`coherence` as a criterion: lower is better, as in its source."""

    name: ClassVar[str] = "coherence"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, points: Tensor) -> Tensor:
        """``(B, n, D)`` -> ``(B,)``; see `coherence`."""
        return coherence(points)
