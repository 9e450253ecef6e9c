"""Training labels, read from a data set without side effects."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.utils.generic import find_labels

from sepstop.measure.backbone import pretrained
from sepstop.measure.untouched import same_randomness

_LABEL_COLUMNS = ("labels", "label", "label_ids")
_LIBRARIES = ("accelerate.", "sentence_transformers.", "setfit.", "torch.", "transformers.", "trl.")
_MAX_ROWS = 100


def training_labels(dataloader: Any, names: Sequence[str] = ()) -> list[Any] | None:
    """Labels of the first 100 training rows, taken from the data set by index.

    The data loader is not iterated, its collator is not called, and random states do not change.

    Args:
        dataloader: a DataLoader over rows that are mappings.
        names: columns with labels, before the usual "labels", "label" and "label_ids".

    Returns:
        One value per row. None if there are no labels to read, as for streamed data, or if a
        collator of the user's own may convert them, such as class numbers into vectors.

    >>> from torch.utils.data import DataLoader
    >>> training_labels(DataLoader([{"text": "good", "label": 1}, {"text": "bad", "label": 0}]))
    [1, 0]
    """
    dataset = getattr(dataloader, "dataset", None)
    device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
    # A data set of the user's own may raise anything. Its labels are unknown then.
    with suppress(Exception), same_randomness(device), _same_generators(dataset):
        labels = _stored_labels(dataset, (*names, *_LABEL_COLUMNS))
        may_convert = not _is_of_library(dataloader.collate_fn) and _are_whole_numbers(labels)
        return None if may_convert else labels
    return None


def label_names(model: nn.Module, args: Any = None) -> list[str]:
    """Names of the label columns, chosen as by Trainer.

    Args:
        model: the model, whose forward has parameters with these names.
        args: TrainingArguments, whose ``label_names`` come first if set.
    """
    given = getattr(args, "label_names", None)
    return list(find_labels(type(pretrained(model))) if given is None else given)


def _stored_labels(dataset: Any, names: Sequence[str]) -> list[Any] | None:
    count = min(len(dataset), _MAX_ROWS)  # raises for a data set without a length
    columns = getattr(dataset, "column_names", None)
    if columns is not None and dataset.format["type"] != "custom":
        name = next((name for name in names if name in columns), None)
        plain = dataset.with_format(None)
        return None if name is None else list(plain.select_columns([name])[:count][name])
    rows = [dataset[index] for index in range(count)]
    if not all(isinstance(row, Mapping) for row in rows):
        return None
    name = next((name for name in names if all(name in row for row in rows)), None)
    return None if name is None else [row[name] for row in rows]


def _are_whole_numbers(labels: Sequence[Any] | None) -> bool:
    """True if each label is a single whole number or None."""
    known = [label for label in labels or () if label is not None]
    return all(np.ndim(label) == 0 and float(label).is_integer() for label in known)


def _is_of_library(collator: Any) -> bool:
    """True if the collator comes from a library whose collators keep labels as they are."""
    for name in ("data_collator", "func"):  # Trainer's collator that removes columns; a partial
        if hasattr(collator, name):
            return _is_of_library(getattr(collator, name))
    return str(getattr(collator, "__module__", "")).startswith(_LIBRARIES)


@contextmanager
def _same_generators(dataset: Any) -> Iterator[None]:
    """Restore the random generators that are attributes of the data set."""
    restore: list[Callable[[], Any]] = []
    for own in getattr(dataset, "__dict__", {}).values():
        if isinstance(own, random.Random):
            restore.append(partial(own.setstate, own.getstate()))
        elif isinstance(own, np.random.Generator):
            bits = own.bit_generator
            restore.append(partial(setattr, bits, "state", bits.state))
        elif isinstance(own, torch.Generator):
            restore.append(partial(own.set_state, own.get_state()))
    try:
        yield
    finally:
        for put_back in restore:
            put_back()
