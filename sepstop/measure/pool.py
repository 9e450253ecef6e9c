"""The unlabeled pool: texts or token ids, read from what the user has. Labels are never read.

A pool larger than its limit is sampled in two passes: the first counts the usable rows, the second
takes the sample. Files and datasets of any length are never held in memory as a whole.
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

from sepstop.measure.prompts import Chat, is_chat, read_chat
from sepstop.utils.tables import Table, is_file, open_table, text_of, warn_empty

_PROMPT_COLUMNS = ("prompt", "messages")  # as TRL calls them
_TOKEN_COLUMNS = ("input_ids", "attention_mask", "token_type_ids")
_SEQUENCES = (list, tuple, torch.Tensor, np.ndarray)
_MIN_SIZE = 4  # texts; fewer have no subset to compare
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Pool:
    """Rows of the pool in the user's order: texts or chats, or token ids if they are tokenized.

    Attributes:
        rows: the rows that are kept.
        row_numbers: number of each kept row in the source, counted from 0 with the empty rows;
            empty for a pool that was not read from a source.
        token_type_ids: token types of each kept row, as long as its ids; None if the source has
            none.
        other_columns: names of the columns that were not read, in the order of the source.
    """

    rows: tuple[str, ...] | tuple[Chat, ...] | tuple[Ids, ...]
    row_numbers: tuple[int, ...] = field(default=(), compare=False, repr=False)
    token_type_ids: tuple[Ids, ...] | None = field(default=None, repr=False)
    other_columns: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_tokenized(self) -> bool:
        """True if the rows are token ids."""
        return isinstance(self.rows[0], tuple)

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of a SHA-256 of the rows. Equal pools have equal fingerprints.

        >>> Pool(("a text", "another")).fingerprint
        '674c5ed13f10304f'
        """
        digest = hashlib.sha256()
        for row in (*self.rows, *(self.token_type_ids or ())):
            digest.update(repr(row).encode())
        return digest.hexdigest()[:16]


class _Tokens(NamedTuple):
    """A tokenized row without its padding."""

    ids: Ids
    types: Ids | None = None


_Row = str | Chat | _Tokens


def read_pool(
    pool: Any, text_column: str = "text", limit: int | None = None, seed: int = 0
) -> Pool:
    """Read the pool.

    Args:
        pool: one of

            - a sequence of texts, of prompts as chat messages, or of token ids;
            - a ``datasets.Dataset`` with ``text_column``, or else "prompt" or "messages" (texts or
              chat messages) or, if tokenized, with ``input_ids`` (and optionally
              ``attention_mask`` and ``token_type_ids``);
            - the path of a .txt file (one text per line) or of a .jsonl, .json, .csv or .parquet
              file with such columns;
            - a `Pool`, which is returned unchanged.

            No other column is read. Only a .json file with a single array is held in memory.
        text_column: name of the column with the texts.
        limit: maximum number of rows. A larger pool is sampled at random; None keeps all rows.
        seed: seed of the sample. The same seed gives the same sample.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the pool is not usable: fewer than 4 texts, only equal texts, no such column, or
            rows that are neither texts nor token ids, or conversations instead of prompts.

    Warns:
        UserWarning: empty rows were left out.

    >>> read_pool(["the first", "the second", "the third", "the fourth"]).row_numbers
    (0, 1, 2, 3)
    """
    if isinstance(pool, Pool):
        return pool
    if limit is not None and limit < _MIN_SIZE:
        raise ValueError(f"expected at least {_MIN_SIZE} as the pool's size, got {limit}")
    if isinstance(pool, (str, Path)) and not is_file(Path(pool)):
        raise FileNotFoundError(f"no pool file at {pool!s:.200}; to pass one text, pass a list")
    table = open_table(pool, "pool")
    columns = _columns_to_read(table, text_column)
    num_usable = _count_usable(_read_rows(table, columns), table.name)
    chosen = None
    if limit is not None and num_usable > limit:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(num_usable, generator=generator)[:limit].sort().values.tolist()
    kept, numbers = zip(*_select(_read_rows(table, columns), chosen), strict=True)
    others = tuple(name for name in table.columns or () if name not in columns)
    if not isinstance(kept[0], _Tokens):
        return Pool(kept, numbers, other_columns=others)
    ids, types = zip(*kept, strict=True)
    return Pool(ids, numbers, types if "token_type_ids" in columns else None, others)


def _columns_to_read(table: Table, text_column: str) -> tuple[str, ...]:
    """The column of texts, or else the columns of tokens; empty for a table without columns."""
    if table.columns is None:
        return ()
    for column in (text_column, *_PROMPT_COLUMNS):
        if table.has(column):
            return (column,)
    if table.has("input_ids"):
        return tuple(name for name in _TOKEN_COLUMNS if table.has(name))
    raise ValueError(
        f"{table.name} has no column {text_column!r} (and no 'input_ids'); "
        f"its columns are {', '.join(table.columns)}; name one with text_column="
    )


def _read_rows(table: Table, columns: tuple[str, ...]) -> Iterator[_Row | None]:
    """Each row of the table as a text or as tokens; None for an empty row."""
    is_tokenized = columns[:1] == ("input_ids",)
    for number, cells in enumerate(table.rows(*columns)):
        cell = cells[0]
        if not is_tokenized and is_chat(cell):
            yield read_chat(cell, number, table.name)
        elif not is_tokenized and (isinstance(cell, str) or not isinstance(cell, _SEQUENCES)):
            yield text_of(cell, number, table.name, "strings (or token ids)")
        elif cell is None:
            yield None
        else:
            named = zip(columns if is_tokenized else _TOKEN_COLUMNS[:1], cells, strict=True)
            yield _without_padding(dict(named), number, table.name)


def _without_padding(cells: dict[str, Any], row: int, table: str) -> _Tokens | None:
    """The tokens whose attention mask is not 0; None if there are none."""
    ids = _token_ids(cells["input_ids"], row, table)
    for column, cell in cells.items():
        if not isinstance(cell, _SEQUENCES) or len(cell) != len(ids):
            raise ValueError(
                f"expected lists of equal length in the pool's input_ids and {column}, "
                f"got {cells['input_ids']!r:.40} and {cell!r:.40} at row {row} of {table}"
            )
    mask = cells.get("attention_mask", [1] * len(ids))
    kept = [index for index, is_attended in enumerate(mask) if is_attended]
    if not kept:
        return None
    types = None
    if "token_type_ids" in cells:
        types = _token_ids(cells["token_type_ids"], row, table)
        types = tuple(types[index] for index in kept)
    return _Tokens(tuple(ids[index] for index in kept), types)


def _token_ids(cell: Any, row: int, table: str) -> Ids:
    """The token ids of a row as Python integers."""
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
            "-100 marks labels, so pass the input_ids"
        )
    return tuple(map(int, cell))


def _count_usable(rows: Iterator[_Row | None], name: str) -> int:
    """Number of rows that are not empty.

    Raises:
        ValueError: there are too few, all are equal, or some are texts and some are token ids.
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
            raise ValueError("the pool mixes strings, chat messages or token ids; pass one kind")
        differ = differ or row != first
    if not usable:
        raise ValueError(f"the pool is empty: none of its {total} rows has any text")
    warn_empty(total - usable, name, stacklevel=4)
    if usable < _MIN_SIZE:
        raise ValueError(f"expected at least {_MIN_SIZE} texts in the pool, got {usable}")
    if not differ:
        shown = first.ids if isinstance(first, _Tokens) else str(first)
        raise ValueError(
            f"all {usable} texts of the pool are equal: {shown!r:.60}; expected different texts"
        )
    return usable


def _select(
    rows: Iterator[_Row | None], chosen: Sequence[int] | None
) -> Iterator[tuple[_Row, int]]:
    """The usable rows with their row numbers.

    Args:
        chosen: ascending indices into the usable rows; None selects all.
    """
    usable = ((row, number) for number, row in enumerate(rows) if row is not None)
    if chosen is None:
        yield from usable
        return
    wanted = iter(chosen)
    index = next(wanted)
    for count, numbered in enumerate(usable):
        if count == index:
            yield numbered
            index = next(wanted, -1)
            if index < 0:
                return
