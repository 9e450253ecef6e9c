"""The unlabeled pool: whatever a user has, read as texts or token ids, labels never touched.

A pool larger than its limit is sampled in two passes, one that counts the rows with text and one
that takes those chosen, so that files and datasets of any length are never held whole.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

_SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
_BATCH = 4096  # rows of a table that are held at once
_BLOCK = 4 << 20  # bytes of a .csv file, and its longest row

Row = str | tuple[int, ...]


@dataclass(frozen=True)
class Pool:
    """Rows of the pool in the user's order: strings, or token ids if they came tokenised.

    Attributes:
        rows: those that were kept.
        row_numbers: of each in what they were read from, counted from 0 with the empty rows; empty
            if they were not read.
    """

    rows: tuple[str, ...] | tuple[tuple[int, ...], ...]
    row_numbers: tuple[int, ...] = field(default=(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_tokenized(self) -> bool:
        return not isinstance(self.rows[0], str)

    @property
    def fingerprint(self) -> str:
        """Short hash of the rows: equal pools have equal fingerprints."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(repr(row).encode())
        return digest.hexdigest()[:16]


def read_pool(
    pool: Any, text_column: str = "text", limit: int | None = None, seed: int = 0
) -> Pool:
    """The pool as rows.

    Args:
        pool: a sequence of strings; a ``datasets.Dataset`` with ``text_column`` or, already
            tokenised, with ``input_ids`` (and ``attention_mask``); or the path of a .txt
            (a text a line), .jsonl, .json, .csv or .parquet file. No other column is read.
            A `Pool` is returned as it is. Files and datasets are never held whole, but for a
            .json file that is one array.
        text_column: the column with the texts.
        limit: keep a random sample of this many rows, the same for the same ``seed``.
        seed: of the sample.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing usable in it; the message says what was found.
    """
    if isinstance(pool, Pool):
        return pool
    if limit is not None and limit < 4:
        raise ValueError(f"expected at least 4 as the pool's size, got {limit}")
    read = _reader(pool, text_column)
    usable = _count_usable(read())
    chosen = None
    if limit is not None and usable > limit:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(usable, generator=generator)[:limit].sort().values.tolist()
    rows, numbers = zip(*_taken(read(), chosen), strict=True)
    return Pool(rows, numbers)


def _reader(pool: Any, text_column: str) -> Callable[[], Iterator[Any]]:
    """What gives the pool's rows anew whenever it is called."""
    import datasets

    if isinstance(pool, (str, Path)):
        return lambda: _file_rows(Path(pool), text_column)
    if isinstance(pool, (dict, datasets.IterableDatasetDict)):  # a DatasetDict is a dict
        raise ValueError(
            f"expected one split as the pool, got a dictionary of {list(pool)}; "
            "pass one of them, as in pool=splits['train']"
        )
    if isinstance(pool, datasets.IterableDataset):
        raise ValueError(
            "a streamed dataset has no fixed rows to compare; take some first: "
            "datasets.Dataset.from_list(list(stream.take(2000)))"
        )
    if isinstance(pool, datasets.Dataset):
        columns = _columns(pool.column_names, text_column)
        table = pool.select_columns(columns).with_format(None)
        return lambda: _table_rows(table.iter(_BATCH), columns)
    if isinstance(pool, Iterable) and not hasattr(pool, "columns"):  # a DataFrame has them
        rows = list(pool)
        return lambda: iter(rows)
    raise ValueError(
        "expected a list of strings, a datasets.Dataset or a path as the pool, "
        f"got {type(pool).__name__}"
    )


def _count_usable(rows: Iterator[Any]) -> int:
    """Rows with any text.

    Raises:
        ValueError: too few, or all equal, or of both kinds.
    """
    total = usable = 0
    first: Row | None = None
    differ = False
    for total, row in enumerate(map(_checked, rows, itertools.count()), start=1):  # noqa: B007
        if row is None:
            continue
        usable += 1
        if first is None:
            first = row
        if type(row) is not type(first):
            raise ValueError("the pool mixes strings and token ids; pass one kind")
        differ = differ or row != first
    if not usable:
        raise ValueError(f"the pool is empty: none of its {total} rows has any text")
    if usable < total:
        warnings.warn(f"{total - usable} empty rows left out of the pool", stacklevel=4)
    if usable < 4:
        raise ValueError(f"expected at least 4 texts in the pool, got {usable}")
    if not differ:
        raise ValueError(f"all {usable} texts of the pool are equal: {first!r:.60}")
    return usable


def _taken(rows: Iterator[Any], chosen: list[int] | None) -> Iterator[tuple[Row, int]]:
    """The usable rows with their numbers; of those the ``chosen``, ascending, if not all."""
    usable = ((row, n) for n, given in enumerate(rows) if (row := _checked(given, n)) is not None)
    if chosen is None:
        yield from usable
        return
    wanted = iter(chosen)
    place = next(wanted)
    for count, taken in enumerate(usable):
        if count == place:
            yield taken
            place = next(wanted, -1)
            if place < 0:
                return


def _columns(names: Sequence[str], text_column: str) -> list[str]:
    """The columns to read: the texts, or else the token ids with their mask."""
    if text_column in names:
        return [text_column]
    if "input_ids" in names:
        return [name for name in ("input_ids", "attention_mask") if name in names]
    raise ValueError(
        f"the pool has no column {text_column!r} (and no 'input_ids'); "
        f"its columns are {', '.join(names)}; name one with text_column="
    )


def _table_rows(
    batches: Iterable[Mapping[str, Sequence[Any]]], columns: list[str]
) -> Iterator[Any]:
    """Texts, or token ids without padding, of a table that comes in batches."""
    for batch in batches:
        if len(columns) == 1:
            yield from batch[columns[0]]
            continue
        for tokens, mask in zip(*(batch[name] for name in columns), strict=True):
            if not _is_token_ids(tokens) or not isinstance(mask, list) or len(mask) != len(tokens):
                raise ValueError(
                    "expected lists of as many numbers in the pool's input_ids and attention_mask, "
                    f"got {tokens!r:.40} and {mask!r:.40}"
                )
            yield [token for token, seen in zip(tokens, mask, strict=True) if seen]


def _file_rows(path: Path, text_column: str) -> Iterator[Any]:
    import pyarrow as pa

    if not path.is_file():
        raise FileNotFoundError(f"no pool file at {path}; to pass one text, pass a list")
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"expected a pool file ending in {', '.join(_SUFFIXES)}, got {path.name}")
    if path.stat().st_size == 0:
        raise ValueError(f"the pool is empty: {path} has no bytes")
    read = {".parquet": _parquet_rows, ".csv": _csv_rows, ".txt": _text_rows}
    try:
        yield from read.get(path.suffix, _json_rows)(path, text_column)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in the pool {path}: {error}") from error
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise ValueError(f"could not read the pool {path}: {error}") from error


def _text_rows(path: Path, text_column: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            yield line.removesuffix("\n")


def _json_rows(path: Path, text_column: str) -> Iterator[Any]:
    """Objects a line, or one array of them."""
    with path.open(encoding="utf-8-sig") as file:
        columns: list[str] = []
        for row in _json_values(path, file):
            if not isinstance(row, dict):
                raise ValueError(
                    f"expected JSON objects in the pool {path}, as {{{text_column!r}: ...}}"
                )
            columns = columns or _columns(list(row), text_column)
            yield from _table_rows([{name: [row.get(name)] for name in columns}], columns)
        if not columns:
            raise ValueError(f"the pool is empty: {path} has no rows")


def _json_values(path: Path, file: TextIO) -> Iterator[Any]:
    start = file.read(1)
    while start.isspace():
        start = file.read(1)
    is_array = path.suffix == ".json" and start == "["
    file.seek(0)
    if is_array:
        yield from _parsed(path, file.read(), line=1)
        return
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield _parsed(path, line, number)


def _parsed(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        at = line + getattr(error, "lineno", 1) - 1
        why = getattr(error, "msg", "nested too deep")
        raise ValueError(f"could not read the pool {path}, line {at}: {why}") from error


def _parquet_rows(path: Path, text_column: str) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        columns = _columns(file.schema_arrow.names, text_column)
        batches = file.iter_batches(_BATCH, columns=columns)
        yield from _table_rows((batch.to_pydict() for batch in batches), columns)


def _csv_rows(path: Path, text_column: str) -> Iterator[str]:
    """The text column; pyarrow leaves the others alone."""
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    columns = _columns(names, text_column)
    if columns != [text_column]:
        raise ValueError(f"a CSV file can't hold token ids; name a text column of {path}")
    table = pa_csv.open_csv(
        path,
        read_options=pa_csv.ReadOptions(block_size=_BLOCK),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            include_columns=columns, column_types={text_column: pa.string()}
        ),
    )
    with table:
        parts = (
            block.slice(start, _BATCH) for block in table for start in range(0, len(block), _BATCH)
        )
        yield from _table_rows((part.to_pydict() for part in parts), columns)


def _checked(row: Any, number: int) -> Row | None:
    """The row as it is kept; None if there is no text in it."""
    if isinstance(row, str):
        return str(row) if row.strip() else None  # a plain string, not NumPy's
    if _is_token_ids(row):
        return tuple(map(int, row)) or None
    if row is None:
        return None
    raise ValueError(
        f"expected strings (or token ids) in the pool, got {type(row).__name__} at row {number}"
    )


def _is_token_ids(row: Any) -> bool:
    if isinstance(row, (torch.Tensor, np.ndarray)):
        return row.ndim == 1 and "int" in str(row.dtype)
    return isinstance(row, (list, tuple)) and all(isinstance(token, int) for token in row)
