"""Maps: embeddings in the plane, comparable between checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes

Positions = NDArray[np.float64]
"""``(m, 2)`` positions of texts in the plane."""


def pca(points: NDArray[np.floating], before: Positions | None = None) -> Positions:
    """The first two principal components.

    Args:
        points: ``(m, D)`` embeddings.
        before: not used.

    Returns:
        ``(m, 2)``, padded with zeros if D is below 2.
    """
    centered = np.asarray(points, dtype=np.float64) - points.mean(axis=0)
    axes = np.linalg.svd(centered, full_matrices=False)[2]
    positions = centered @ axes[:2].T
    return np.pad(positions, ((0, 0), (0, 2 - positions.shape[1])))


def umap(points: NDArray[np.floating], before: Positions | None = None) -> Positions:
    """UMAP.

    Args:
        points: ``(m, D)`` embeddings.
        before: ``(m, 2)`` initial positions, those of the previous checkpoint.

    Returns:
        ``(m, 2)``.

    Raises:
        ImportError: umap-learn is missing; the message names it.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError("a map by UMAP needs umap-learn: pip install umap-learn") from error
    init: Any = "spectral" if before is None else before
    reducer = UMAP(n_neighbors=min(15, len(points) - 1), init=init, random_state=0, n_jobs=1)
    return np.asarray(reducer.fit_transform(points), dtype=np.float64)


def pacmap(points: NDArray[np.floating], before: Positions | None = None) -> Positions:
    """PaCMAP.

    Args:
        points: ``(m, D)`` embeddings.
        before: ``(m, 2)`` initial positions, those of the previous checkpoint.

    Returns:
        ``(m, 2)``.

    Raises:
        ImportError: pacmap is missing; the message names it.
    """
    try:
        from pacmap import PaCMAP
    except ImportError as error:
        raise ImportError("a map by PaCMAP needs pacmap: pip install pacmap") from error
    init: Any = "pca" if before is None else before
    reducer = PaCMAP(n_components=2, random_state=0)
    return np.asarray(reducer.fit_transform(points, init=init), dtype=np.float64)


MAPS: dict[str, Callable[[NDArray[np.floating], Positions | None], Positions]] = {
    "pca": pca,
    "umap": umap,
    "pacmap": pacmap,
}


def check_map(name: str) -> None:
    """Check that a map can be made, before any model is run.

    Raises:
        ValueError: unknown name; the message lists the known ones.
        ImportError: a package is missing; the message names it.
    """
    if name not in MAPS:
        raise ValueError(f"unknown map {name!r}; known: {', '.join(MAPS)}")
    if name != "pca":
        MAPS[name](np.random.default_rng(0).normal(size=(40, 4)), None)


def align(positions: Positions, before: Positions) -> Positions:
    """Center ``positions`` and rotate or mirror them to be as close to ``before`` as possible.

    Orthogonal Procrustes: distances do not change.

    Args:
        positions, before: ``(m, 2)``.

    Returns:
        ``(m, 2)``, centered at 0.
    """
    centered = positions - positions.mean(axis=0)
    rotation, _ = orthogonal_procrustes(centered, before - before.mean(axis=0))
    return centered @ rotation


def explained_variance(points: NDArray[np.floating], positions: Positions) -> float:
    """Share of the variance of the points that a linear map shows.

    Args:
        points: ``(m, D)`` embeddings.
        positions: ``(m, 2)``, their principal components.

    Returns:
        A value in [0, 1]; 1 for points that are all equal.
    """
    total = float(np.asarray(points, dtype=np.float64).var(axis=0).sum())
    return float(positions.var(axis=0).sum()) / total if total > 0 else 1.0
