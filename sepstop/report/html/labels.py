"""Labels that a user gives for the picture: read from the pool's file, and what they say.

No decision sees any of this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sepstop.measure.pool import Pool
from sepstop.utils import tables
from sepstop.utils.tables import open_table

_FOLDS = 3


def read_labels(path: Path, column: str, pool: Pool) -> tuple[str, ...]:
    """The label of each row of ``pool``, "" where there is none.

    Args:
        path: the file that ``pool`` was read from.
        column: the file's column with the labels.
        pool: says which rows of the file it holds in its ``row_numbers``; without those, it has
            to hold all of them.

    Raises:
        ValueError: no such column, or rows and labels that do not belong together.
    """
    labels = [value or "" for value in tables.read_labels(open_table(path, "pool"), column).values]
    numbers: Sequence[int] = getattr(pool, "row_numbers", ())
    if not numbers:
        if len(labels) != len(pool):
            raise ValueError(
                f"expected a label for each of the {len(pool)} texts of the pool, got "
                f"{len(labels)} rows in {path.name}: rows were left out as empty or by sampling"
            )
        return tuple(labels)
    if max(numbers) >= len(labels):
        raise ValueError(
            f"expected at least {max(numbers) + 1} rows in {path.name}, got {len(labels)}"
        )
    return tuple(labels[number] for number in numbers)


def label_classes(
    labels: Sequence[str], names: Mapping[int, str], classes: int
) -> NDArray[np.int64] | None:
    """The model's class of each label, -1 where there is no label; None if they do not match.

    Labels are names of classes or, failing that, their numbers.

    Args:
        names: class -> name, as in a model's ``id2label``.
        classes: how many the model tells apart.

    >>> label_classes(["sad", "", "glad"], {0: "glad", 1: "sad"}, 2)
    array([ 1, -1,  0])
    >>> label_classes(["1", "0"], {}, 2)
    array([1, 0])
    """
    by_name = {name: number for number, name in names.items()}
    by_number = {str(number): number for number in range(classes)}
    for known in (by_name, by_number):
        if all(label in known for label in labels if label):
            return np.array([known.get(label, -1) if label else -1 for label in labels])
    return None


def accuracy(predicted: NDArray[np.integer], classes: NDArray[np.integer]) -> float:
    """Share of the labelled texts whose predicted class is their own, ``(N,)``, ``(N,)``."""
    known = classes >= 0
    return float((predicted[known] == classes[known]).mean()) if known.any() else float("nan")


def separability_of(points: NDArray[np.floating], labels: Sequence[str]) -> dict[str, float]:
    """What labels say of embeddings alone; empty where there are too few of them.

    Args:
        points: ``(m, D)``.
        labels: of each point, "" for none; classes with fewer than three are left out.
    """
    from sepstop.criteria.supervised import cross_validated, thornton

    counts = Counter(label for label in labels if label)
    kept = np.array([counts.get(label, 0) >= _FOLDS for label in labels])
    names = np.array(labels)[kept]
    if len(set(names)) < 2:
        return {}
    classes = np.unique(names, return_inverse=True)[1]
    return {
        "logistic regression, cross-validated": cross_validated(points[kept], classes, _FOLDS)[0],
        "nearest neighbour has the same label": thornton(points[kept], classes),
    }
