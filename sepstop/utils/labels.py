"""Labels in tables, as names of classes.

- A label is the name of its class. A cell of a CSV file is a name as it stands: "None", "NA",
  "null", "nan", "00" and "True" are classes. Elsewhere, 1 and 1.0 are the class "1", and true is
  the class "True". A ``datasets.ClassLabel`` column brings its own names; there, -1 is no label.
- A blank cell, null and NaN are no label.
- Classes have the order of the ClassLabel column. Otherwise they are sorted: by size if all names
  are integers without leading zeros or a plus sign, else alphabetically.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sepstop.utils.tables import (
    BATCH,
    Table,
    is_null,
    open_table,
    require_encodable,
    text_of,
    warn_empty,
)

if TYPE_CHECKING:
    import datasets

NO_LABEL = -1
"""Number of the class of a row without a label."""

CLASSES_FILE = "classes.json"
"""The names of the classes, in the folder of a run of `sepstop finetune`."""

_INTEGER = re.compile("0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Labels:
    """Labels of a table's rows.

    Attributes:
        values: name of the class of each row; None without a label.
        names: the classes in order.
        table: name of the table, for messages.
    """

    values: list[str | None]
    names: tuple[str, ...]
    table: str

    def numbered(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The index in ``names`` of each row's class, ``(rows,)``; `NO_LABEL` without a label.

        Raises:
            ValueError: a label is not in ``names``.
        """
        numbers: dict[str | None, int] = {name: number for number, name in enumerate(names)}
        unknown = [value for value in self.values if value is not None and value not in numbers]
        if unknown:
            known = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
            raise ValueError(f"expected labels among {known}, got {unknown[0]!r} in {self.table}")
        numbers[None] = NO_LABEL
        return np.array([numbers[value] for value in self.values], dtype=np.int64)


@dataclass(frozen=True)
class LabeledTexts:
    """The rows of a table that have text.

    Attributes:
        texts: a dataset with the column "text". It is memory-mapped if its source is.
        labels: label of each text.
    """

    texts: datasets.Dataset
    labels: Labels


def read_labels(table: Table, column: str) -> Labels:
    """Read the labels of all rows.

    Raises:
        ValueError: there is no such column, or a cell is not a label.
    """
    table.require(column)
    return _labels([cell for (cell,) in table.rows(column)], table, column)


def read_labeled(
    source: Any, text_column: str = "text", label_column: str = "label", kind: str = "data"
) -> LabeledTexts:
    """Read the rows that have text, and their labels.

    Args:
        source: see `sepstop.utils.tables.open_table`.
        text_column: column with the texts.
        label_column: column with the labels.
        kind: see `sepstop.utils.tables.open_table`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, a cell is not a text or label, or no row has text.

    Warns:
        UserWarning: rows without text were left out, or two classes look alike.
    """
    import datasets

    table = open_table(source, kind)
    if text_column == label_column:
        raise ValueError(
            f"expected different columns for the texts and labels of {table.name}, "
            f"got {text_column!r} for both"
        )
    table.require(text_column, label_column)
    total = 0
    rows: list[int] = []
    cells: list[Any] = []

    def texts() -> Iterator[str]:
        nonlocal total
        for total, (text, label) in enumerate(table.rows(text_column, label_column), start=1):
            if (text := text_of(text, total - 1, table.name)) is not None:
                rows.append(total - 1)
                cells.append(label)
                yield text

    if isinstance(source, datasets.Dataset):
        for _ in texts():
            pass
        kept = source.select_columns([text_column]).with_format(None).select(rows)
        kept = kept.rename_columns({text_column: "text"} if text_column != "text" else {})
    else:
        kept = _to_dataset(texts())
    if not rows:
        raise ValueError(f"{table.name} is empty: none of its {total} rows has any text")
    warn_empty(total - len(rows), table.name)
    return LabeledTexts(kept, _labels(cells, table, label_column, rows))


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names, sorted by size if all are integers, else alphabetically.

    >>> sorted_names(["10", "2", "1", "2"])
    ('1', '2', '10')
    >>> sorted_names(["10", "2", "01"])
    ('01', '10', '2')
    """
    distinct = set(names)
    if all(map(_INTEGER.fullmatch, distinct)):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


def class_names(model_config: Mapping[str, Any]) -> dict[int, str]:
    """Class -> name in a model's configuration; empty if it has none but placeholders.

    >>> class_names({"id2label": {"0": "glad", "1": "sad"}})
    {0: 'glad', 1: 'sad'}
    >>> class_names({"id2label": {"0": "LABEL_0"}})
    {}
    """
    names = model_config.get("id2label")
    if not isinstance(names, Mapping) or not all(
        key.isdecimal() and len(key) < 10 for key in map(str, names)
    ):
        return {}
    if all(str(name) == f"LABEL_{number}" for number, name in names.items()):
        return {}
    return {int(number): str(name) for number, name in names.items()}


def _labels(
    cells: list[Any], table: Table, column: str, rows: Sequence[int] | None = None
) -> Labels:
    """
    Args:
        cells: cells of the label column.
        rows: number of each cell's row; None if the cells are those of all rows.
    """
    classes = table.classes.get(column)
    values: list[str | None] = []
    known: dict[str, str] = {}  # one string per class, not per row
    for place, cell in enumerate(cells):
        row = place if rows is None else rows[place]
        if classes is None:
            value = _class_of(cell, row, table.name)
        else:
            value = _class_in(cell, classes, row, table.name)
        values.append(None if value is None else known.setdefault(value, value))
    if classes is None:
        _warn_alike(known, table.name)
    return Labels(values, sorted_names(known) if classes is None else tuple(classes), table.name)


def _class_of(cell: Any, row: int, table: str) -> str | None:
    """The name of a label's class; None if there is no label."""
    if isinstance(cell, str):
        require_encodable(cell, row, table)
        return str(cell) if cell.strip() else None
    if is_null(cell):
        return None
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))  # pandas turns integers with gaps into floats
    if isinstance(cell, (list, tuple, dict, bytes, np.ndarray)):
        raise ValueError(
            f"expected one label per row (a string, an integer or a boolean), "
            f"got {type(cell).__name__} at row {row} of {table}"
        )
    return str(cell)


def _class_in(cell: Any, classes: Sequence[str], row: int, table: str) -> str | None:
    """The name of a label's class in a ``ClassLabel`` column; None if there is no label."""
    if cell is None or cell == NO_LABEL:
        return None
    if not 0 <= cell < len(classes):
        raise ValueError(
            f"expected a label from 0 to {len(classes) - 1}, got {cell} at row {row} of {table}"
        )
    return classes[cell]


def _warn_alike(names: Iterable[str], table: str) -> None:
    """Warn of different classes that look alike to a reader, such as "a" and " A"."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.strip().casefold(), []).append(name)
    several = [sorted(group) for group in alike.values() if len(group) > 1]
    if several:
        shown = " and ".join(map(repr, several[0]))
        warnings.warn(
            f"sepstop: {shown} are different classes in {table}, although they differ only in "
            "letter case or white space",
            stacklevel=4,
        )


def _to_dataset(texts: Iterator[str]) -> datasets.Dataset:
    """The texts as a dataset, which takes less memory than Python strings."""
    import datasets
    import pyarrow as pa

    pieces = []
    while piece := list(islice(texts, BATCH)):
        pieces.append(pa.array(piece, pa.string()))
    return datasets.Dataset(pa.table({"text": pa.chunked_array(pieces, pa.string())}))
