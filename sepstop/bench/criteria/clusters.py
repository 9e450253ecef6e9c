"""Scores of a k-means clustering of the embeddings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import calinski_harabasz_score, silhouette_score
from torch import Tensor


def kmeans_silhouette(points: Tensor, clusters: int) -> Tensor:
    """Mean silhouette of the k-means clusters.

    Args:
        points: ``(B, n, D)``, any float dtype, any device.
        clusters: number of clusters, at least 2; at most n - 1 are sought.

    Returns:
        ``(B,)`` float64, on the same device; from -1 to 1. NaN for a cloud in which k-means does
        not find at least two clusters, each smaller than the cloud.

    References:
        scikit-learn's `silhouette_score`.
    """
    return _clustered(points, clusters, silhouette_score)


def kmeans_calinski_harabasz(points: Tensor, clusters: int) -> Tensor:
    """Calinski-Harabasz index of the k-means clusters.

    Args:
        points, clusters: as in `kmeans_silhouette`.

    Returns:
        ``(B,)`` float64, on the same device; at least 0. NaN as in `kmeans_silhouette`.

    References:
        scikit-learn's `calinski_harabasz_score`.
    """
    return _clustered(points, clusters, calinski_harabasz_score)


def _clustered(points: Tensor, clusters: int, score: Callable[..., Any]) -> Tensor:
    scores = []
    for cloud in points.float().cpu().numpy():
        with warnings.catch_warnings():
            # Raised if the cloud has fewer distinct points than clusters.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = KMeans(min(clusters, len(cloud) - 1), n_init=1, random_state=0).fit(cloud)
        has_clusters = 1 < len(set(found.labels_)) < len(cloud)
        scores.append(float(score(cloud, found.labels_)) if has_clusters else math.nan)
    return torch.tensor(scores, dtype=torch.float64, device=points.device)


@dataclass(frozen=True)
class _OfClusters:
    """Number of clusters: ``clusters``, or the classifier's number of classes if it is None."""

    clusters: int | None = None
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.clusters is not None and self.clusters < 2:
            raise ValueError(f"expected `clusters` >= 2, got {self.clusters}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("points", "logits") if self.clusters is None else ("points",)

    @property
    def outputs(self) -> str | None:
        return "classes" if self.clusters is None else None

    def _count(self, logits: Tensor | None) -> int:
        return self.clusters or (0 if logits is None else logits.shape[-1])


class Silhouette(_OfClusters):
    """`kmeans_silhouette` as a criterion.

    Args:
        clusters: number of clusters. By default the number of the model's classes, so the model has
            to predict one class out of k.

    Raises:
        ValueError: ``clusters`` is below 2.
    """

    name: ClassVar[str] = "silhouette"

    def __call__(self, points: Tensor, logits: Tensor | None = None) -> Tensor:
        """``(B, n, D)``, and ``(B, n, k)`` without ``clusters`` -> ``(B,)``."""
        return kmeans_silhouette(points, self._count(logits))


class CalinskiHarabasz(_OfClusters):
    """`kmeans_calinski_harabasz` as a criterion; its argument is that of `Silhouette`."""

    name: ClassVar[str] = "calinski_harabasz"

    def __call__(self, points: Tensor, logits: Tensor | None = None) -> Tensor:
        """``(B, n, D)``, and ``(B, n, k)`` without ``clusters`` -> ``(B,)``."""
        return kmeans_calinski_harabasz(points, self._count(logits))
