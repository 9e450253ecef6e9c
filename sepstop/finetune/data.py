"""Labeled rows and the pool of unlabeled texts, disjoint."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from sepstop.finetune.settings import DataSettings
from sepstop.measure.pool import Pool
from sepstop.measure.prompts import Chat
from sepstop.utils.labels import NO_LABEL, LabeledTexts, Labels, read_labeled
from sepstop.utils.tables import SUFFIXES, is_file
from sepstop.utils.text import listed

_FRACTION = re.compile(r"[-+]?\d*\.\d+(e[-+]?\d+)?", re.IGNORECASE)


@dataclass
class TrainingData:
    """Training and validation rows, with ``text`` and an integer ``label``, and the pool."""

    train: datasets.Dataset
    validation: datasets.Dataset | None
    pool: datasets.Dataset | str
    names: list[str]


def load_data(settings: DataSettings) -> TrainingData:
    """Labeled rows and pool, disjoint; the classes are those of the whole training split.

    Raises:
        OSError: no such file.
        ValueError: unusable data, or settings that leave no rows.

    Warns:
        UserWarning: a class has no labeled row; the labels look like scores; a row has no text.
    """
    if settings.labeled_rows is not None and settings.labeled_rows < 1:
        raise ValueError(f"expected data.labeled_rows >= 1, got {settings.labeled_rows}")
    found = _read_rows(settings, settings.train, settings.split)
    names = _class_names(found.labels)
    rows = _numbered(found, names).shuffle(seed=settings.seed)
    labeled = np.flatnonzero(np.array(rows["label"]) != NO_LABEL)[: settings.labeled_rows]
    rest = np.setdiff1d(np.arange(len(rows)), labeled)
    unseen = sorted(set(range(len(names))) - set(np.array(rows["label"])[labeled]))
    if unseen:
        warnings.warn(
            f"sepstop: none of the {len(labeled)} labeled rows is of the class "
            f"{listed([names[number] for number in unseen])}: the model can't learn it; raise "
            "data.labeled_rows or change data.seed",
            stacklevel=2,
        )
    if not len(rest) and settings.pool is None:
        raise ValueError(
            f"all {len(rows)} rows are labeled, which leaves no pool: set data.labeled_rows or "
            "data.pool"
        )
    validation = None
    if settings.validation:
        found = _read_rows(settings, settings.validation, settings.validation)
        validation = _numbered(found, names)
        if NO_LABEL in validation["label"]:
            raise ValueError(f"{found.labels.table} has rows without a label")
    return TrainingData(
        train=rows.select(labeled),
        validation=validation,
        pool=settings.pool or rows.select(rest).select_columns(["text"]),
        names=names,
    )


def _read_rows(settings: DataSettings, file: str, split: str) -> LabeledTexts:
    """Texts and labels of a file or of a split of the hub dataset."""
    columns = settings.text_column, settings.label_column
    suffix = Path(file).suffix.lower()
    if suffix in SUFFIXES or (suffix and is_file(Path(file))):
        return read_labeled(file, *columns)
    if is_file(Path(settings.train)):
        raise ValueError(
            f"data.train is a file, which has no splits: expected a file ending in "
            f"{', '.join(SUFFIXES)} as data.validation, got {file}"
        )
    rows = datasets.load_dataset(settings.train, settings.subset, split=split)
    return read_labeled(rows, *columns, kind=f"data {settings.train}, split {split}")


def _class_names(labels: Labels) -> list[str]:
    """Names of the classes; at least two."""
    if len(labels.names) < 2:
        raise ValueError(f"expected at least 2 classes in {labels.table}, got {labels.names}")
    fractions = [name for name in labels.names if _FRACTION.fullmatch(name)]
    if len(fractions) == len(labels.names):
        warnings.warn(
            f"sepstop: the labels of {labels.table} are numbers such as {fractions[0]}; each of "
            f"the {len(fractions)} becomes a class of its own",
            stacklevel=3,
        )
    return list(labels.names)


def _numbered(rows: LabeledTexts, names: list[str]) -> datasets.Dataset:
    """Rows with ``text`` and ``label``: an index into ``names``, or NO_LABEL."""
    return rows.texts.add_column("label", rows.labels.numbered(names).tolist())


def columns_of(pool: Pool) -> dict[str, Any]:
    """The pool as columns that `sepstop.measure.pool.read_pool` reads."""
    if pool.is_tokenized:
        types = {} if pool.token_type_ids is None else {"token_type_ids": pool.token_type_ids}
        return {"input_ids": pool.rows, **types}
    if isinstance(pool.rows[0], Chat):
        chats: Any = pool.rows
        return {
            "messages": [
                [{"role": role, "content": content} for role, content in chat.messages]
                for chat in chats
            ]
        }
    return {"text": pool.rows}
