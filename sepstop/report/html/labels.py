"""Labels of the pool, for the page only: no decision uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sepstop.criteria.supervised import cross_validated, thornton
from sepstop.measure.pool import Pool
from sepstop.utils import labels as table_labels
from sepstop.utils.tables import open_table

_FOLDS = 3


def read_labels(path: Path, column: str, pool: Pool) -> tuple[str, ...]:
    """The label of each text of ``pool``, "" where there is none.

    Args:
        path: file that ``pool`` was read from.
        column: column of the file with the labels.
        pool: its ``row_numbers`` say which rows of the file it holds; without them, it must hold
            all rows.

    Raises:
        ValueError: no such column, or labels that do not belong to these texts.
    """
    cells = table_labels.read_labels(open_table(path, "pool"), column).values
    labels = [cell or "" for cell in cells]
    numbers: Sequence[int] = getattr(pool, "row_numbers", ())
    if not numbers:
        if len(labels) != len(pool):
            raise ValueError(
                f"expected a label for each of the {len(pool)} texts of the pool, got "
                f"{len(labels)} rows in {path.name}: the pool lacks rows that are empty or were "
                "not sampled"
            )
        return tuple(labels)
    if max(numbers) >= len(labels):
        raise ValueError(
            f"expected at least {max(numbers) + 1} rows in {path.name}, got {len(labels)}"
        )
    return tuple(labels[number] for number in numbers)


def label_classes(
    labels: Sequence[str], class_names: Mapping[int, str], num_classes: int
) -> NDArray[np.int64] | None:
    """The model's class of each label.

    Labels are names of classes or, failing that, their numbers.

    Args:
        labels: ``(N,)``, "" for none.
        class_names: class -> name, as in a model's ``id2label``.
        num_classes: number of classes of the model.

    Returns:
        ``(N,)`` int64, -1 where there is no label; None if labels are not classes.

    >>> label_classes(["sad", "", "glad"], {0: "glad", 1: "sad"}, 2)
    array([ 1, -1,  0])
    >>> label_classes(["1", "0"], {}, 2)
    array([1, 0])
    """
    by_name = {name: number for number, name in class_names.items()}
    by_number = {str(number): number for number in range(num_classes)}
    for known in (by_name, by_number):
        if all(label in known for label in labels if label):
            return np.array([known.get(label, -1) if label else -1 for label in labels])
    return None


def accuracy(predicted: NDArray[np.integer], classes: NDArray[np.integer]) -> float:
    """Share of labeled texts whose predicted class is their label's; NaN without labels.

    Args:
        predicted: ``(N,)`` predicted class.
        classes: ``(N,)`` class of the label, -1 for none.
    """
    known = classes >= 0
    return float((predicted[known] == classes[known]).mean()) if known.any() else float("nan")


def label_separability(points: NDArray[np.floating], labels: Sequence[str]) -> dict[str, float]:
    """How well embeddings alone tell labels apart, by name of the measure.

    Args:
        points: ``(m, D)`` embeddings.
        labels: ``(m,)``, "" for none. Labels with fewer than three texts are left out.

    Returns:
        Values in [0, 1]; empty with fewer than two labels left.
    """
    counts = Counter(label for label in labels if label)
    kept = np.array([counts.get(label, 0) >= _FOLDS for label in labels])
    names = np.array(labels)[kept]
    if len(set(names)) < 2:
        return {}
    classes = np.unique(names, return_inverse=True)[1]
    return {
        "logistic regression, cross-validated": cross_validated(points[kept], classes, _FOLDS)[0],
        "nearest neighbor has the same label": thornton(points[kept], classes),
    }
