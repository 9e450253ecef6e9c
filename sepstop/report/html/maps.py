"""Points to places in a plane, comparable from one checkpoint to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes

Places = NDArray[np.float64]


def pca(points: NDArray[np.floating], before: Places | None = None) -> Places:
    """The first two principal components: ``(m, D)`` -> ``(m, 2)``, zeros where D is below 2."""
    centred = np.asarray(points, dtype=np.float64) - points.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    places = centred @ axes[:2].T
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))


def umap(points: NDArray[np.floating], before: Places | None = None) -> Places:
    """UMAP, begun at the places of the checkpoint ``before``.

    Raises:
        ImportError: umap-learn is missing; the message names it.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError("a map by UMAP needs umap-learn: pip install umap-learn") from error
    start: Any = "spectral" if before is None else before
    made = UMAP(n_neighbors=min(15, len(points) - 1), init=start, random_state=0, n_jobs=1)
    return np.asarray(made.fit_transform(points), dtype=np.float64)


def pacmap(points: NDArray[np.floating], before: Places | None = None) -> Places:
    """PaCMAP, begun at the places of the checkpoint ``before``.

    Raises:
        ImportError: pacmap is missing; the message names it.
    """
    try:
        from pacmap import PaCMAP
    except ImportError as error:
        raise ImportError("a map by PaCMAP needs pacmap: pip install pacmap") from error
    start: Any = "pca" if before is None else before
    made = PaCMAP(n_components=2, random_state=0)
    return np.asarray(made.fit_transform(points, init=start), dtype=np.float64)


MAPS: dict[str, Callable[[NDArray[np.floating], Places | None], Places]] = {
    "pca": pca,
    "umap": umap,
    "pacmap": pacmap,
}


def check_map(name: str) -> None:
    """
    Raises:
        ValueError: no map of this name; the message lists them.
        ImportError: what it needs is missing; the message names it.
    """
    if name not in MAPS:
        raise ValueError(f"unknown map {name!r}; known: {', '.join(MAPS)}")
    if name != "pca":  # find out before models are run
        MAPS[name](np.random.default_rng(0).normal(size=(40, 4)), None)


def aligned(places: Places, before: Places) -> Places:
    """``places`` about their centre, turned and mirrored to lie as near to ``before`` as they can.

    ``(m, 2)``, ``(m, 2)`` -> ``(m, 2)``; no distance changes (orthogonal Procrustes).
    """
    centred = places - places.mean(axis=0)
    turn, _ = orthogonal_procrustes(centred, before - before.mean(axis=0))
    return centred @ turn


def shown_variance(points: NDArray[np.floating], places: Places) -> float:
    """Share of the variance of ``(m, D)`` points that is left in ``(m, 2)`` places by `pca`."""
    whole = float(np.asarray(points, dtype=np.float64).var(axis=0).sum())
    return float(places.var(axis=0).sum()) / whole if whole > 0 else 1.0
