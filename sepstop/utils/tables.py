"""Tables of texts: .txt, .jsonl, .json, .csv and .parquet files, datasets and lists.

All rows of a user are read here, so that a cell means the same everywhere. A text is a string with
any character other than white space. A cell of a CSV file is text as it stands, "NA" and "None"
included. Null, NaN and white space are no text. See `sepstop.utils.labels` for labels.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
"""File types that `open_table` reads."""

BATCH = 4096
"""Rows held in memory at a time."""

_BLOCK = 4 << 20  # bytes of a .csv file read at a time, and its longest row

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """Rows that can be read any number of times. Rows of a file are never all held in memory.

    Attributes:
        name: name for messages, such as "the pool texts.csv".
        columns: names of the columns; None for a list or a text file.
        classes: names of the classes of each ``ClassLabel`` column.
        is_complete: False if ``columns`` are the keys of the JSON objects read so far, at least
            4096.
    """

    name: str
    _read: Callable[[Sequence[str]], Iterator[Row]] = field(repr=False)
    columns: Collection[str] | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_complete: bool = True

    def rows(self, *columns: str) -> Iterator[Row]:
        """The cells of ``columns`` in each row, or the one cell of a table without columns.

        Raises:
            ValueError: several columns have the same name, or the file can't be read.
        """
        names = list(self.columns or ())
        for column in columns:
            if names.count(column) > 1:
                raise ValueError(f"{self.name} has {names.count(column)} columns {column!r}")
        return self._read(columns)

    def has(self, column: str) -> bool:
        """True if there is such a column. A JSON file may be read to the end to find out."""
        known = () if self.columns is None else self.columns
        if column in known or self.is_complete:
            return column in known
        return any(column in known for _ in self.rows())

    def require(self, *columns: str) -> None:
        """
        Raises:
            ValueError: a column is missing; the message lists the others.
        """
        for column in columns:
            if self.columns is None:
                raise ValueError(f"{self.name} has no columns, so it has no {column!r}")
            if not self.has(column):
                known = ", ".join(self.columns)
                raise ValueError(f"{self.name} has no column {column!r}; its columns are {known}")


def open_table(source: Any, kind: str = "data") -> Table:
    """Open a table.

    Args:
        source: path of a file, a ``datasets.Dataset``, or an iterable with one cell per row.
        kind: what the rows are for. It becomes part of the table's name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a table, or a file that can't be read.
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
        return _open_dataset(source, name)
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
        cell: cell of a text column.
        row: number of the row, for messages.
        table: name of the table, for messages.
        expected: what the column may hold, for messages.

    Raises:
        ValueError: not a string, or one that no tokenizer can encode.
    """
    if isinstance(cell, str):
        text = str(cell)  # a plain string, not NumPy's
        require_encodable(text, row, table)
        return text if text.strip() else None
    if is_null(cell):
        return None
    raise ValueError(f"expected {expected}, got {type(cell).__name__} at row {row} of {table}")


def is_null(cell: Any) -> bool:
    """True for None, NaN and the missing values of pandas."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(cell, float) and cell != cell


def require_encodable(text: str, row: int, table: str) -> None:
    """
    Raises:
        ValueError: ``text`` has a lone surrogate, which UTF-8 can't encode.
    """
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


def warn_empty(count: int, name: str, stacklevel: int = 3) -> None:
    """Warn that ``count`` rows of the table ``name`` have no text, if any."""
    if count:
        rows = "1 empty row" if count == 1 else f"{count} empty rows"
        warnings.warn(f"sepstop: {rows} left out of {name}", stacklevel=stacklevel + 1)


def is_file(path: Path) -> bool:
    """True if ``path`` is a file; False also for a text that is too long to be a path."""
    try:
        return path.is_file()
    except OSError:
        return False


# Readers


def _open_dataset(source: datasets.Dataset, name: str) -> Table:
    def rows(columns: Sequence[str]) -> Iterator[Row]:
        table = source.select_columns(list(columns)).with_format(None)
        for batch in table.iter(BATCH):
            yield from _cells(batch, columns)

    return Table(name, rows, tuple(source.column_names), _class_names(source.features))


def _open_file(path: Path, kind: str) -> Table:
    if not is_file(path):
        raise FileNotFoundError(f"no {kind} file at {path}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"expected a {kind} file ending in {', '.join(SUFFIXES)}, got {path.name}")
    if path.stat().st_size == 0:
        raise ValueError(f"the {kind} is empty: {path} has no bytes")
    name = f"the {kind} {path}"
    openers = {".txt": _open_text, ".csv": _open_csv, ".parquet": _open_parquet}
    with _readable(name):
        table = openers.get(suffix, _open_json)(path, name)

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        with _readable(name):
            yield from table.rows(*columns)

    return replace(table, _read=rows)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn errors of reading into a ValueError that names the file."""
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {name}: {error}") from error
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise ValueError(f"could not read {name}: {error}") from error


def _open_text(path: Path, name: str) -> Table:
    def rows(columns: Sequence[str]) -> Iterator[Row]:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                yield (line.removesuffix("\n"),)

    return Table(name, rows)


def _open_parquet(path: Path, name: str) -> Table:
    import datasets
    from pyarrow import parquet

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH, columns=list(columns)):
                yield from _cells(batch.to_pydict(), columns)

    schema = parquet.read_schema(path)
    classes: dict[str, Sequence[str]] = {}
    if b"huggingface" in (schema.metadata or {}):
        with suppress(Exception):  # metadata of another version, or damaged
            classes = _class_names(datasets.Features.from_arrow_schema(schema))
    return Table(name, rows, tuple(schema.names), classes)


def _open_csv(path: Path, name: str) -> Table:
    """All cells are text. The last column is always read, to find a quote that is never closed."""
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
                for start in range(0, len(block), BATCH):
                    yield from _cells(block.slice(start, BATCH).to_pydict(), columns)
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


def _open_json(path: Path, name: str) -> Table:
    """One JSON object per line, or one array of objects."""
    keys: dict[str, None] = {}

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for row in _json_values(path, name):
            if not isinstance(row, dict):
                raise ValueError(
                    f'expected JSON objects in {name}, such as {{"text": "..."}}, '
                    f"got {type(row).__name__}"
                )
            if not row.keys() <= keys.keys():
                keys.update(dict.fromkeys(row))
            yield tuple(map(row.get, columns))

    if not sum(1 for _ in islice(rows(()), BATCH)):
        raise ValueError(f"{name} is empty: it has no rows")
    return Table(name, rows, keys.keys(), is_complete=False)


def _json_values(path: Path, name: str) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        if path.suffix.lower() == ".json" and start == "[":
            yield from _parse_json(file.read(), 1, name)
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parse_json(line, number, name)


def _parse_json(text: str, line: int, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number with too many digits
        at = line + getattr(error, "lineno", 1) - 1
        why = "nested too deep" if isinstance(error, RecursionError) else error.args[0]
        raise ValueError(f"could not read {name}, line {at}: {why}") from error


def _cells(batch: Mapping[str, Sequence[Any]], columns: Sequence[str]) -> Iterator[Row]:
    return zip(*(batch[name] for name in columns), strict=True)


def _class_names(features: Any) -> dict[str, Sequence[str]]:
    """Names of the classes of each ``ClassLabel`` column."""
    return {name: tuple(f.names) for name, f in features.items() if hasattr(f, "int2str")}
