"""The unlabeled pool: whatever a user has, read as texts or token ids, labels never touched."""

from __future__ import annotations

import csv
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

_SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Pool:
    """Rows of the pool in the user's order: strings, or token ids if they came tokenised."""

    rows: tuple[str, ...] | tuple[tuple[int, ...], ...]

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
            A `Pool` is returned as it is.
        text_column: the column with the texts.
        limit: keep a random sample of this many rows, the same for the same ``seed``.
        seed: of the sample.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing usable in it; the message says what was found.
    """
    import datasets

    if isinstance(pool, Pool):
        return pool
    if limit is not None and limit < 4:
        raise ValueError(f"expected at least 4 as the pool's size, got {limit}")
    if isinstance(pool, (str, Path)):
        rows = _file_rows(Path(pool), text_column)
    elif isinstance(pool, (dict, datasets.IterableDatasetDict)):  # a DatasetDict is a dict
        raise ValueError(
            f"expected one split as the pool, got a dictionary of {list(pool)}; "
            "pass one of them, as in pool=splits['train']"
        )
    elif isinstance(pool, datasets.IterableDataset):
        raise ValueError(
            "a streamed dataset has no fixed rows to compare; take some first: "
            "datasets.Dataset.from_list(list(stream.take(2000)))"
        )
    elif isinstance(pool, datasets.Dataset):
        columns = _columns(pool.column_names, text_column)
        rows = _rows_of(pool.select_columns(columns).with_format(None)[:], columns)
    elif isinstance(pool, Iterable) and not hasattr(pool, "columns"):  # a DataFrame has them
        rows = list(pool)
    else:
        raise ValueError(
            "expected a list of strings, a datasets.Dataset or a path as the pool, "
            f"got {type(pool).__name__}"
        )
    return Pool(tuple(_sample(_checked(rows), limit, seed)))


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


def _rows_of(table: Mapping[str, Sequence[Any]], columns: list[str]) -> list[Any]:
    first = list(table[columns[0]])
    if len(columns) == 1:
        return first
    return [
        [token for token, seen in zip(tokens, mask, strict=True) if seen]
        for tokens, mask in zip(first, table[columns[1]], strict=True)
    ]


def _file_rows(path: Path, text_column: str) -> list[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no pool file at {path}; to pass one text, pass a list")
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"expected a pool file ending in {', '.join(_SUFFIXES)}, got {path.name}")
    if path.stat().st_size == 0:
        raise ValueError(f"the pool is empty: {path} has no bytes")
    if path.suffix == ".txt":
        return _text(path).removesuffix("\n").split("\n")
    if path.suffix in (".jsonl", ".json"):
        return _json_rows(path, text_column)
    return _table_rows(path, text_column)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in the pool {path}: {error}") from error


def _json_rows(path: Path, text_column: str) -> list[Any]:
    """Objects a line, or one array of them."""
    text = _text(path)
    if path.suffix == ".json" and text.lstrip().startswith("["):
        rows = _parsed(path, text, line=1)
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = [_parsed(path, text, line) for line, text in lines if text.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"expected JSON objects in the pool {path}, as {{{text_column!r}: ...}}")
    if not rows:
        raise ValueError(f"the pool is empty: {path} has no rows")
    columns = _columns(list(rows[0]), text_column)
    return _rows_of({name: [row.get(name) for row in rows] for name in columns}, columns)


def _parsed(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {line + error.lineno - 1}"
        raise ValueError(f"could not read the pool {path}, {at}: {error.msg}") from error


def _table_rows(path: Path, text_column: str) -> list[Any]:
    """The needed columns of a .csv or .parquet file; pyarrow leaves the others alone."""
    import pyarrow as pa
    from pyarrow import csv as pa_csv
    from pyarrow import parquet

    try:
        if path.suffix == ".parquet":
            columns = _columns(parquet.read_schema(path).names, text_column)
            table = parquet.ParquetFile(path).read(columns=columns)
            return _rows_of(table.to_pydict(), columns)
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file))
        columns = _columns(names, text_column)
        if columns != [text_column]:
            raise ValueError(f"a CSV file can't hold token ids; name a text column of {path}")
        table = pa_csv.read_csv(
            path,
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                include_columns=columns, column_types={text_column: pa.string()}
            ),
        )
        return _rows_of(table.to_pydict(), columns)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"could not read the pool {path}: {error}") from error


def _sample(rows: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    if limit is None or len(rows) <= limit:
        return list(rows)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(rows), generator=generator)[:limit].sort().values
    return [rows[i] for i in chosen.tolist()]


def _checked(rows: list[Any]) -> tuple[Any, ...]:
    kept: list[Any] = []
    for number, row in enumerate(rows):
        if isinstance(row, str):
            if row.strip():
                kept.append(str(row))  # a plain string, not NumPy's
        elif _is_token_ids(row):
            if len(row):
                kept.append(tuple(map(int, row)))
        elif row is not None:
            raise ValueError(
                f"expected strings (or token ids) in the pool, got {type(row).__name__} "
                f"at row {number}"
            )
    if not kept:
        raise ValueError(f"the pool is empty: none of its {len(rows)} rows has any text")
    if len({type(row) for row in kept}) > 1:
        raise ValueError("the pool mixes strings and token ids; pass one kind")
    if len(kept) < len(rows):
        warnings.warn(f"{len(rows) - len(kept)} empty rows left out of the pool", stacklevel=3)
    if len(kept) < 4:
        raise ValueError(f"expected at least 4 texts in the pool, got {len(kept)}")
    if len(set(kept)) == 1:
        raise ValueError(f"all {len(kept)} texts of the pool are equal: {kept[0]!r:.60}")
    return tuple(kept)


def _is_token_ids(row: Any) -> bool:
    if isinstance(row, (torch.Tensor, np.ndarray)):
        return row.ndim == 1 and "int" in str(row.dtype)
    return isinstance(row, (list, tuple)) and all(isinstance(token, int) for token in row)
