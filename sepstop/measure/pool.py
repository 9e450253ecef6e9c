"""The unlabeled pool: whatever a user has, read as texts or token ids, labels never touched.

A pool larger than its limit is sampled in two passes: the first counts the rows with text, the
second takes the sample. So files and datasets of any length are never held whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sepstop.utils.tables import Table, is_file, open_table, text_of, warn_empty

_TOKENS = ("input_ids", "attention_mask", "token_type_ids")
_LISTS = (list, tuple, torch.Tensor, np.ndarray)
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Pool:
    """Rows of the pool in the user's order: strings, or token ids if they came tokenized.

    Attributes:
        rows: the rows that were kept.
        row_numbers: of each kept row in the source, counted from 0 with the empty rows; empty if
            the rows were not read.
        token_type_ids: of each kept row of a tokenized pool, as long as its ids; None if the pool
            has none.
        other_columns: names of the source's columns that were not read, in order.
    """

    rows: tuple[str, ...] | tuple[Ids, ...]
    row_numbers: tuple[int, ...] = field(default=(), compare=False, repr=False)
    token_type_ids: tuple[Ids, ...] | None = field(default=None, repr=False)
    other_columns: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_tokenized(self) -> bool:
        return not isinstance(self.rows[0], str)

    @property
    def fingerprint(self) -> str:
        """Short hash of the rows: equal pools have equal fingerprints."""
        digest = hashlib.sha256()
        for row in (*self.rows, *(self.token_type_ids or ())):
            digest.update(repr(row).encode())
        return digest.hexdigest()[:16]


class _Tokens(NamedTuple):
    """A tokenized row without its padding."""

    ids: Ids
    types: Ids | None = None


_Row = str | _Tokens


def read_pool(
    pool: Any, text_column: str = "text", limit: int | None = None, seed: int = 0
) -> Pool:
    """The pool as rows.

    Args:
        pool: a sequence of strings or of token ids; a ``datasets.Dataset`` with ``text_column``
            or, already tokenized, with ``input_ids`` (and ``attention_mask`` and
            ``token_type_ids``); or the path of a .txt (a text a line), .jsonl, .json, .csv or
            .parquet file with such columns. No other column is read. A `Pool` is returned as it
            is. Files and datasets are never held whole, except a .json file that is one array.
        text_column: the column with the texts.
        limit: keep a random sample of this many rows, the same for the same ``seed``.
        seed: of the sample.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing usable in it; the message says what was found.

    Warns:
        UserWarning: rows without text were left out.
    """
    if isinstance(pool, Pool):
        return pool
    if limit is not None and limit < 4:
        raise ValueError(f"expected at least 4 as the pool's size, got {limit}")
    if isinstance(pool, (str, Path)) and not is_file(Path(pool)):
        raise FileNotFoundError(f"no pool file at {pool!s:.200}; to pass one text, pass a list")
    table = open_table(pool, "pool")
    columns = _columns(table, text_column)
    usable = _count_usable(_rows(table, columns), table.name)
    chosen = None
    if limit is not None and usable > limit:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(usable, generator=generator)[:limit].sort().values.tolist()
    taken, numbers = zip(*_taken(_rows(table, columns), chosen), strict=True)
    others = tuple(name for name in table.columns or () if name not in columns)
    if isinstance(taken[0], str):
        return Pool(taken, numbers, other_columns=others)
    ids, types = zip(*taken, strict=True)
    return Pool(ids, numbers, types if "token_type_ids" in columns else None, others)


def _columns(table: Table, text_column: str) -> tuple[str, ...]:
    """The columns to read: the texts, or else the token ids and what belongs to them."""
    if table.columns is None:
        return ()
    if table.has(text_column):
        return (text_column,)
    if table.has("input_ids"):
        return tuple(name for name in _TOKENS if table.has(name))
    raise ValueError(
        f"{table.name} has no column {text_column!r} (and no 'input_ids'); "
        f"its columns are {', '.join(table.columns)}; name one with text_column="
    )


def _rows(table: Table, columns: tuple[str, ...]) -> Iterator[_Row | None]:
    """Each row of the table as it is kept; None where there is no text in it."""
    is_tokenized = columns[:1] == ("input_ids",)
    for number, cells in enumerate(table.rows(*columns)):
        cell = cells[0]
        if not is_tokenized and (isinstance(cell, str) or not isinstance(cell, _LISTS)):
            yield text_of(cell, number, table.name, "strings (or token ids)")
        elif cell is None:
            yield None
        else:
            named = zip(columns if is_tokenized else _TOKENS[:1], cells, strict=True)
            yield _unpadded(dict(named), number, table.name)


def _unpadded(cells: dict[str, Any], row: int, table: str) -> _Tokens | None:
    """Token ids, and types if there are any, where the attention mask is not 0."""
    ids = _token_ids(cells["input_ids"], row, table)
    for column, cell in cells.items():
        if not isinstance(cell, _LISTS) or len(cell) != len(ids):
            raise ValueError(
                f"expected lists of as many numbers in the pool's input_ids and {column}, "
                f"got {cells['input_ids']!r:.40} and {cell!r:.40} at row {row} of {table}"
            )
    mask = cells.get("attention_mask", [1] * len(ids))
    kept = [place for place, is_seen in enumerate(mask) if is_seen]
    if not kept:
        return None
    types = None
    if "token_type_ids" in cells:
        types = _token_ids(cells["token_type_ids"], row, table)
        types = tuple(types[place] for place in kept)
    return _Tokens(tuple(ids[place] for place in kept), types)


def _token_ids(cell: Any, row: int, table: str) -> Ids:
    """A row's token ids as integers of Python."""
    kind = type(cell).__name__
    if isinstance(cell, (torch.Tensor, np.ndarray)) and cell.ndim == 1:
        cell = cell.tolist()
    if not isinstance(cell, (list, tuple)):
        raise ValueError(f"expected strings (or token ids), got {kind} at row {row} of {table}")
    if not all(type(token) is int for token in cell):
        for token in cell:
            if isinstance(token, bool) or not isinstance(token, Integral):
                raise ValueError(
                    f"expected strings (or token ids), got {kind} at row {row} of {table}, "
                    f"with {token!r:.40} in it"
                )
    if any(token < 0 for token in cell):
        raise ValueError(
            f"expected token ids of at least 0, got {min(cell)} at row {row} of {table}; "
            "-100 marks labels: pass the input_ids"
        )
    return tuple(map(int, cell))


def _count_usable(rows: Iterator[_Row | None], name: str) -> int:
    """Number of rows with any text.

    Raises:
        ValueError: too few, or all equal, or of both kinds.
    """
    total = usable = 0
    first: _Row | None = None
    differ = False
    for total, row in enumerate(rows, start=1):  # noqa: B007
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
    warn_empty(total - usable, name, stacklevel=4)
    if usable < 4:
        raise ValueError(f"expected at least 4 texts in the pool, got {usable}")
    if not differ:
        shown = first if isinstance(first, str) else first and first.ids
        raise ValueError(f"all {usable} texts of the pool are equal: {shown!r:.60}")
    return usable


def _taken(rows: Iterator[_Row | None], chosen: Sequence[int] | None) -> Iterator[tuple[_Row, int]]:
    """The usable rows with their numbers; of those the ``chosen``, ascending, if not all."""
    usable = ((row, number) for number, row in enumerate(rows) if row is not None)
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
