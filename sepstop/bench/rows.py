"""Rows of a recorded run: read, split into disjoint parts, with wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepstop.bench.run_settings import RunSettings
from sepstop.utils.labels import read_labeled, sorted_names


def read_rows(
    files: Sequence[str | Path], text_column: str = "text", label_column: str = "label"
) -> tuple[list[str], list[str]]:
    """Texts and class names of the rows that have both.

    Args:
        files: tables, see `sepstop.utils.labels`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a table, or no such column.

    Warns:
        UserWarning: rows without a text are left out.
    """
    texts: list[str] = []
    labels: list[str] = []
    for file in files:
        table = read_labeled(file, text_column, label_column)
        for text, label in zip(table.texts["text"], table.labels.values, strict=True):
            if label is not None:
                texts.append(text)
                labels.append(label)
    return texts, labels


def split_rows(
    texts: Sequence[str], labels: Sequence[Any], settings: RunSettings, rng: np.random.Generator
) -> dict[str, tuple[list[str], NDArray[np.int64]]]:
    """Disjoint rows for "train", "pool", "validation" and "test"; each text occurs once.

    Returns:
        By part, the texts and the ``(rows,)`` numbers of their classes.

    Raises:
        ValueError: too few rows or classes.
    """
    first = dict(zip(reversed(texts), reversed(labels), strict=True))
    names = class_names(labels)
    if len(names) < 2:
        raise ValueError(f"expected at least 2 classes, got {list(names)}")
    numbers = {name: number for number, name in enumerate(names)}
    unique = list(first)
    y = np.array([numbers[str(first[text])] for text in unique])
    order = rng.permutation(len(unique))
    labeled = _labeled(y[order], settings, rng)
    rest = np.setdiff1d(np.arange(len(order)), labeled)
    found: dict[str, tuple[list[str], NDArray[np.int64]]] = {}
    for part, rows in (
        ("train", labeled),
        ("pool", rest[: settings.pool_rows]),
        ("validation", rest[settings.pool_rows :][: settings.validation_rows]),
        ("test", rest[settings.pool_rows + settings.validation_rows :][: settings.test_rows]),
    ):
        if len(rows) < 4:
            raise ValueError(
                f"{len(unique)} different texts leave {len(rows)} rows for {part}: lower "
                "labeled_rows, pool_rows or validation_rows"
            )
        found[part] = [unique[i] for i in order[rows]], y[order[rows]]
    return found


def class_names(labels: Sequence[Any]) -> list[str]:
    """The names of the classes, in the order of their numbers."""
    return list(sorted_names(map(str, labels)))


def _labeled(
    y: NDArray[np.int64], settings: RunSettings, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Indices of the rows to train on; with imbalance, class sizes fall geometrically."""
    if settings.imbalance == 1:
        return np.arange(min(settings.labeled_rows, len(y)))
    classes = rng.permutation(int(y.max()) + 1)
    sizes = settings.imbalance ** -np.linspace(0, 1, len(classes))
    sizes = np.maximum(1, np.round(settings.labeled_rows * sizes / sizes.sum())).astype(int)
    rows = [np.flatnonzero(y == c)[:size] for c, size in zip(classes, sizes, strict=True)]
    return np.sort(np.concatenate(rows))


def with_noise(
    y: NDArray[np.int64], classes: int, settings: RunSettings, rng: np.random.Generator
) -> NDArray[np.int64]:
    """A copy of ``y`` with a share of ``settings.noise`` changed to another class."""
    wrong = rng.permutation(len(y))[: round(settings.noise * len(y))]
    shift = 1 if settings.noise_kind == "class" else rng.integers(1, classes, len(wrong))
    y = y.copy()
    y[wrong] = (y[wrong] + shift) % classes
    return y
