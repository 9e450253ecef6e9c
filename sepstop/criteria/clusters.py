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
    """Mean silhouette of the k-means clusters: ``(B, n, D)`` -> ``(B,)`` from -1 to 1."""
    return _clustered(points, clusters, silhouette_score)


def kmeans_calinski_harabasz(points: Tensor, clusters: int) -> Tensor:
    """Calinski-Harabasz index of the k-means clusters: ``(B, n, D)`` -> ``(B,)``, at least 0."""
    return _clustered(points, clusters, calinski_harabasz_score)


def _clustered(points: Tensor, clusters: int, score: Callable[..., Any]) -> Tensor:
    """NaN for a cloud that has not two clusters or more, each of them smaller than the cloud."""
    scores = []
    for cloud in points.float().cpu().numpy():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer points than clusters differ
            found = KMeans(min(clusters, len(cloud) - 1), n_init=1, random_state=0).fit(cloud)
        several = 1 < len(set(found.labels_)) < len(cloud)
        scores.append(float(score(cloud, found.labels_)) if several else math.nan)
    return torch.tensor(scores, dtype=torch.float64, device=points.device)


@dataclass(frozen=True)
class _OfClusters:
    """k is ``clusters``, or else the number of the classifier's classes."""

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
    """`kmeans_silhouette` as a criterion."""

    name: ClassVar[str] = "silhouette"

    def __call__(self, points: Tensor, logits: Tensor | None = None) -> Tensor:
        return kmeans_silhouette(points, self._count(logits))


class CalinskiHarabasz(_OfClusters):
    """`kmeans_calinski_harabasz` as a criterion."""

    name: ClassVar[str] = "calinski_harabasz"

    def __call__(self, points: Tensor, logits: Tensor | None = None) -> Tensor:
        return kmeans_calinski_harabasz(points, self._count(logits))
