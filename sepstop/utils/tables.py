"""Tables of texts and labels: .txt, .jsonl, .json, .csv and .parquet files, datasets and lists.

Everything that reads a user's rows reads them here, so that a cell means the same everywhere:

- A text is a string with any character but white space. A cell of a CSV file is text as it stands,
  "NA" and "None" included. Null, NaN and white space are rows without text.
- A label is the name of its class. A cell of a CSV file is a name as it stands: "None", "NA",
  "null", "nan", "00" and "True" are classes. Elsewhere, 1 and 1.0 are the class "1", and true is
  the class "True". A `datasets.ClassLabel` column has its own names, and -1 is no label.
- A blank cell, null and NaN are no label.
- Classes are in a ClassLabel column's own order; else by size if all names are integers without
  leading zeros or a plus sign; else by the alphabet.
"""

from __future__ import annotations

import csv
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
NO_LABEL = -1
_BATCH = 4096  # rows that are held at once
_BLOCK = 4 << 20  # bytes of a .csv file, and its longest row
_INTEGER = re.compile("0|-?[1-9][0-9]{0,17}")

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """Rows that can be read any number of times, never held whole if they come from a file.

    Attributes:
        name: what messages call it, such as "the pool texts.csv".
        columns: names of the columns; None for a list or a text file.
        classes: names of the classes of each ``ClassLabel`` column.
        is_complete: False if ``columns`` are the keys of the JSON objects read so far, which are
            4096 at least.
    """

    name: str
    _read: Callable[[Sequence[str]], Iterator[Row]] = field(repr=False)
    columns: Collection[str] | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_complete: bool = True

    def rows(self, *columns: str) -> Iterator[Row]:
        """The cells of ``columns`` in each row; of a table without columns, its one cell.

        Raises:
            ValueError: two columns have the same name.
        """
        names = list(self.columns or ())
        for column in columns:
            if names.count(column) > 1:
                raise ValueError(f"{self.name} has {names.count(column)} columns {column!r}")
        return self._read(columns)

    def has(self, column: str) -> bool:
        """True if there is such a column; a JSON file is read as far as it takes to know."""
        known = () if self.columns is None else self.columns
        if column in known or self.is_complete:
            return column in known
        return any(column in known for _ in self.rows())

    def require(self, *columns: str) -> None:
        """Check that the columns exist.

        Raises:
            ValueError: a column is missing.
        """
        for column in columns:
            if self.columns is None:
                raise ValueError(f"{self.name} has no columns, so it has no {column!r}")
            if not self.has(column):
                known = ", ".join(self.columns)
                raise ValueError(f"{self.name} has no column {column!r}; its columns are {known}")


@dataclass(frozen=True)
class Labels:
    """Labels of a table's rows, as names of classes.

    Attributes:
        values: of each row; None without a label.
        names: the classes in order.
        table: name of the table.
    """

    values: list[str | None]
    names: tuple[str, ...]
    table: str

    def numbered(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Each row's place in ``names``, `NO_LABEL` without a label. Shape ``(rows,)``.

        Raises:
            ValueError: a label is none of ``names``.
        """
        places: dict[str | None, int] = {name: number for number, name in enumerate(names)}
        unknown = [value for value in self.values if value is not None and value not in places]
        if unknown:
            known = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
            raise ValueError(
                f"{self.table} has a label {unknown[0]!r} that is none of the classes {known}"
            )
        places[None] = NO_LABEL
        return np.array([places[value] for value in self.values], dtype=np.int64)


@dataclass(frozen=True)
class LabelledTexts:
    """The rows of a table that have text.

    Attributes:
        texts: a dataset with the column "text"; memory-mapped if it was made from one that is.
        labels: of each text.
    """

    texts: datasets.Dataset
    labels: Labels


def open_table(source: Any, kind: str = "data") -> Table:
    """The table in ``source``.

    Args:
        source: the path of a file, a ``datasets.Dataset`` or a sequence with one cell a row.
        kind: what the rows are for; part of the table's name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a table, or one that can't be read.
    """
    import datasets

    name = f"the {kind}"
    if isinstance(source, (str, Path)):
        return _open_file(Path(source), kind)
    if isinstance(source, (dict, datasets.IterableDatasetDict)):  # a DatasetDict is a dict
        raise ValueError(
            f"expected one split as {name}, got a dictionary of {list(source)}; "
            f"pass one of them, as in {kind}=splits['train']"
        )
    if isinstance(source, datasets.IterableDataset):
        raise ValueError(
            "a streamed dataset has no fixed rows to compare; take some first: "
            "datasets.Dataset.from_list(list(stream.take(2000)))"
        )
    if isinstance(source, datasets.Dataset):
        return _dataset(source, name)
    if isinstance(source, Iterable) and not hasattr(source, "columns"):  # a DataFrame has them
        rows = list(source)
        return Table(name, lambda columns: ((row,) for row in rows))
    raise ValueError(
        f"expected a list of strings, a datasets.Dataset or a path as {name}, "
        f"got {type(source).__name__}"
    )


def text_of(cell: Any, row: int, table: str, expected: str = "strings") -> str | None:
    """The text in a cell; None if there is none.

    Args:
        cell: of a text column.
        row, table: where the cell is, for messages.
        expected: what may be there, for messages.

    Raises:
        ValueError: not a string, or one that no tokenizer can encode.
    """
    if isinstance(cell, str):
        text = str(cell)  # a plain string, not NumPy's
        _check_surrogates(text, row, table)
        return text if text.strip() else None
    if _is_null(cell):
        return None
    raise ValueError(f"expected {expected}, got {type(cell).__name__} at row {row} of {table}")


def read_labels(table: Table, column: str) -> Labels:
    """The labels of all rows.

    Raises:
        ValueError: no such column, or a cell of it is no label.
    """
    table.require(column)
    return _labels([cell for (cell,) in table.rows(column)], table, column)


def read_labelled(
    source: Any, text_column: str = "text", label_column: str = "label", kind: str = "data"
) -> LabelledTexts:
    """The rows of a table that have text, and their labels.

    Args:
        source: see `open_table`.
        text_column, label_column: columns of the table.
        kind: see `open_table`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such column, a cell is neither text nor label, or no row has text.

    Warns:
        UserWarning: rows without text were left out.
    """
    import datasets

    table = open_table(source, kind)
    if text_column == label_column:
        raise ValueError(f"{text_column!r} can't be both texts and labels of {table.name}")
    table.require(text_column, label_column)
    total = 0
    numbers: list[int] = []
    cells: list[Any] = []

    def texts() -> Iterator[str]:
        nonlocal total
        for total, (text, label) in enumerate(table.rows(text_column, label_column), start=1):
            if (text := text_of(text, total - 1, table.name)) is not None:
                numbers.append(total - 1)
                cells.append(label)
                yield text

    if isinstance(source, datasets.Dataset):
        for _ in texts():
            pass
        rows = source.select_columns([text_column]).with_format(None).select(numbers)
        rows = rows.rename_columns({text_column: "text"} if text_column != "text" else {})
    else:
        rows = _in_arrow(texts())
    if not numbers:
        raise ValueError(f"{table.name} is empty: none of its {total} rows has any text")
    warn_empty(total - len(numbers), table.name)
    return LabelledTexts(rows, _labels(cells, table, label_column, numbers))


def warn_empty(count: int, name: str, stacklevel: int = 3) -> None:
    """Say that ``count`` rows of the table ``name`` have no text, if any."""
    if count:
        rows = "1 empty row" if count == 1 else f"{count} empty rows"
        warnings.warn(f"sepstop: {rows} left out of {name}", stacklevel=stacklevel + 1)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """The different names in order: by size if all are integers, else by the alphabet.

    >>> ordered(["10", "2", "1", "2"]), ordered(["10", "2", "01"]), ordered(["b", "None", "a"])
    (('1', '2', '10'), ('01', '10', '2'), ('None', 'a', 'b'))
    """
    different = set(names)
    if all(map(_INTEGER.fullmatch, different)):
        return tuple(sorted(different, key=int))
    return tuple(sorted(different))


# Datasets and labels


def _dataset(source: datasets.Dataset, name: str) -> Table:
    def rows(columns: Sequence[str]) -> Iterator[Row]:
        table = source.select_columns(list(columns)).with_format(None)
        for batch in table.iter(_BATCH):
            yield from _cells(batch, columns)

    return Table(name, rows, tuple(source.column_names), _class_names(source.features))


def _labels(
    cells: list[Any], table: Table, column: str, numbers: Sequence[int] | None = None
) -> Labels:
    """Labels of the cells, which are in the rows ``numbers``; in all of them by default."""
    classes = table.classes.get(column)
    values: list[str | None] = []
    known: dict[str, str] = {}  # a string for each class, not for each row
    for place, cell in enumerate(cells):
        row = place if numbers is None else numbers[place]
        if classes is None:
            value = _class_of(cell, row, table.name)
        else:
            value = _class_in(cell, classes, row, table.name)
        values.append(None if value is None else known.setdefault(value, value))
    if classes is None:
        _warn_alike(known, table.name)
    return Labels(values, ordered(known) if classes is None else tuple(classes), table.name)


def _warn_alike(names: Iterable[str], table: str) -> None:
    """Say which classes are one to a reader, as "a" and " A" are."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.strip().casefold(), []).append(name)
    several = [sorted(group) for group in alike.values() if len(group) > 1]
    if several:
        shown = " and ".join(map(repr, several[0]))
        warnings.warn(
            f"sepstop: {shown} are different classes in {table}, though only letter case or white "
            "space tells them apart",
            stacklevel=4,
        )


def _class_of(cell: Any, row: int, table: str) -> str | None:
    """The name of a label's class; None if there is no label."""
    if isinstance(cell, str):
        _check_surrogates(cell, row, table)
        return str(cell) if cell.strip() else None
    if _is_null(cell):
        return None
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))  # integers with gaps, as pandas has them
    if isinstance(cell, (list, tuple, dict, bytes, np.ndarray)):
        raise ValueError(
            f"expected one label a row (a string, an integer or a boolean), "
            f"got {type(cell).__name__} at row {row} of {table}"
        )
    return str(cell)


def _class_in(cell: Any, classes: Sequence[str], row: int, table: str) -> str | None:
    if cell is None or cell == NO_LABEL:
        return None
    if not 0 <= cell < len(classes):
        raise ValueError(
            f"expected a label from 0 to {len(classes) - 1}, got {cell} at row {row} of {table}"
        )
    return classes[cell]


def _is_null(cell: Any) -> bool:
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):  # of pandas
        return True
    return isinstance(cell, float) and cell != cell


def _check_surrogates(text: str, row: int, table: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected text that can be encoded as UTF-8, got the lone surrogate "
            f"{ascii(error.object[error.start])[1:-1]} at row {row} of {table}; repair it with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from error


def _class_names(features: Any) -> dict[str, Sequence[str]]:
    """Names of the classes of each ``ClassLabel`` column."""
    return {name: tuple(f.names) for name, f in features.items() if hasattr(f, "int2str")}


def _in_arrow(texts: Iterator[str]) -> datasets.Dataset:
    """The texts as a dataset, which takes less memory than strings of Python do."""
    import datasets
    import pyarrow as pa

    pieces = []
    while piece := list(islice(texts, _BATCH)):
        pieces.append(pa.array(piece, pa.string()))
    return datasets.Dataset(pa.table({"text": pa.chunked_array(pieces, pa.string())}))


# Files


def _open_file(path: Path, kind: str) -> Table:
    if not is_file(path):
        raise FileNotFoundError(f"no {kind} file at {path}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"expected a {kind} file ending in {', '.join(SUFFIXES)}, got {path.name}")
    if path.stat().st_size == 0:
        raise ValueError(f"the {kind} is empty: {path} has no bytes")
    name = f"the {kind} {path}"
    opened = {".txt": _text, ".csv": _csv, ".parquet": _parquet}.get(suffix, _json)
    with _readable(name):
        table = opened(path, name)

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        with _readable(name):
            yield from table.rows(*columns)

    return replace(table, _read=rows)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Errors of reading as a ValueError that names the file."""
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {name}: {error}") from error
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise ValueError(f"could not read {name}: {error}") from error


def is_file(path: Path) -> bool:
    """True if ``path`` is a file; False for a text that is too long to be a path, too."""
    try:
        return path.is_file()
    except OSError:
        return False


def _cells(batch: Mapping[str, Sequence[Any]], columns: Sequence[str]) -> Iterator[Row]:
    return zip(*(batch[name] for name in columns), strict=True)


def _text(path: Path, name: str) -> Table:
    def rows(columns: Sequence[str]) -> Iterator[Row]:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                yield (line.removesuffix("\n"),)

    return Table(name, rows)


def _parquet(path: Path, name: str) -> Table:
    import datasets
    from pyarrow import parquet

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=list(columns)):
                yield from _cells(batch.to_pydict(), columns)

    schema = parquet.read_schema(path)
    classes: dict[str, Sequence[str]] = {}
    if b"huggingface" in (schema.metadata or {}):
        with suppress(Exception):  # the metadata may be of another version, or anything
            classes = _class_names(datasets.Features.from_arrow_schema(schema))
    return Table(name, rows, tuple(schema.names), classes)


def _csv(path: Path, name: str) -> Table:
    """Cells as text; pyarrow leaves the columns that are not asked for alone."""
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(filter(None, csv.reader(file)), [])
    if not names:
        raise ValueError(f"{name} is empty: it has no row of column names")
    last = names[-1:] if names.count(names[-1]) == 1 else []

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        wanted = list(dict.fromkeys([*columns, *last]))
        reader = pa_csv.open_csv(
            path,
            # With threads, errors do not name the row (and reading takes longer).
            read_options=pa_csv.ReadOptions(block_size=_BLOCK, use_threads=False),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                strings_can_be_null=False,
            ),
        )
        cell = ""
        with reader:
            for block in reader:
                for start in range(0, len(block), _BATCH):
                    yield from _cells(block.slice(start, _BATCH).to_pydict(), columns)
                if last and len(block):
                    cell = block[last[0]][-1].as_py()
        if "\n" in cell and not _ends_with_quote(path):
            raise ValueError(
                f"could not read {name}: the quote before {cell[:40]!r} is never closed, so the "
                "rest of the file would be one cell"
            )

    return Table(name, rows, tuple(names))


def _ends_with_quote(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        return file.read().rstrip().endswith(b'"')


def _json(path: Path, name: str) -> Table:
    """Objects a line, or one array of them."""
    keys: dict[str, None] = {}

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for row in _json_values(path, name):
            if not isinstance(row, dict):
                raise ValueError(f'expected JSON objects in {name}, as {{"text": ...}}')
            if not row.keys() <= keys.keys():
                keys.update(dict.fromkeys(row))
            yield tuple(map(row.get, columns))

    if not sum(1 for _ in islice(rows(()), _BATCH)):
        raise ValueError(f"{name} is empty: it has no rows")
    return Table(name, rows, keys.keys(), is_complete=False)


def _json_values(path: Path, name: str) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        if path.suffix.lower() == ".json" and start == "[":
            yield from _parsed(file.read(), 1, name)
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parsed(line, number, name)


def _parsed(text: str, line: int, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError of a number of too many digits, too
        at = line + getattr(error, "lineno", 1) - 1
        why = "nested too deep" if isinstance(error, RecursionError) else error.args[0]
        raise ValueError(f"could not read {name}, line {at}: {why}") from error
