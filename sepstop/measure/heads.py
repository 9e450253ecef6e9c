"""A model's outputs: one class out of k, labels that do not exclude each other, or neither.

Logits of shape ``(b, k)`` may be any of these. `outputs_of` looks at what the user says, the
configuration, the training labels and the shape, in this order.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils.other import extract_model_from_parallel
from numpy.typing import NDArray
from torch import nn
from transformers.utils.generic import find_labels

from sepstop.measure.backbone import is_cross_encoder, pretrained
from sepstop.measure.untouched import same_randomness
from sepstop.types import Outputs

_OF_PROBLEM: dict[str, Outputs] = {
    "single_label_classification": "classes",
    "multi_label_classification": "labels",
    "regression": "none",
}
_COLUMNS = ("labels", "label", "label_ids")
_LIBRARIES = ("accelerate.", "sentence_transformers.", "setfit.", "torch.", "transformers.", "trl.")
_LOOKED_AT = 100  # training rows
_IGNORED = -100  # by the losses of torch

_SAY = (
    "; set config.problem_type to what is trained, or name the outputs: outputs='classes' for one "
    "class out of k, 'labels' for yes or no each, 'none' for neither"
)

IN_WORDS: dict[Outputs, str] = {
    "classes": "one class out of k",
    "labels": "labels that do not exclude each other",
    "none": "neither classes nor labels",
}


class Head(NamedTuple):
    """What a model's outputs are.

    Attributes:
        outputs: the answer.
        is_guess: it rests on the shape of the logits, or on labels that may be read otherwise.
    """

    outputs: Outputs
    is_guess: bool = False


def outputs_of(
    model: nn.Module, width: int, labels: Sequence[Any] | None = None, asked: str = "auto"
) -> Head:
    """What the outputs of ``model`` are.

    The first of these that is known decides: what was asked for; the ``problem_type`` in the
    model's configuration; the training labels; the shape of the logits, where two or more are taken
    for one class out of k. For a transformers model without a ``problem_type`` the labels are read
    as its own loss reads them.

    Args:
        model: wrapped by DDP, FSDP, ``torch.compile``, PEFT or a CrossEncoder as it may be.
        width: k of its ``(b, k)`` logits; 0 for a model without.
        labels: of some training rows, as `training_labels` finds them; None if unknown.
        asked: "auto" or the answer.

    Raises:
        ValueError: two of these contradict each other; the message says what to do.
    """
    if asked != "auto" or width == 0:
        return _settled(width, None, asked)
    rows = _as_rows(labels, width)
    problem = problem_type(model)
    if problem is not None:
        _check_agreement(problem, width, rows)
    elif rows is not None:
        return _of_labels(rows, width, _reads_problem_type(model))
    return _settled(width, declared_outputs(model, width), asked)


def declared_outputs(model: nn.Module, width: int) -> Outputs | None:
    """What the model itself says of its ``(b, width)`` logits; None if it does not say."""
    problem = problem_type(model)
    if width == 0:
        return "none"
    if problem is not None:
        return _OF_PROBLEM[problem]
    if width == 1:
        return "none"
    return "classes" if _excludes(model) else None


def _settled(width: int, declared: Outputs | None, asked: str) -> Head:
    """Without training labels."""
    if asked != "auto":
        least = {"classes": 2, "labels": 1}.get(asked, 0)
        if width < least:
            raise ValueError(
                f"outputs={asked!r} needs logits of shape (b, k) with k >= {least}, got "
                f"{f'k = {width}' if width else 'none'}"
            )
        return Head(asked)  # type: ignore[arg-type]  # which the Monitor has checked
    if declared is not None:
        return Head(declared)
    return Head("classes", is_guess=True) if width > 1 else Head("none")


def problem_type(model: nn.Module) -> str | None:
    """The ``problem_type`` of the configuration, if it is one that transformers knows.

    transformers sets it in the first training forward pass of a model that has none.
    """
    declared = getattr(getattr(task_model(model), "config", None), "problem_type", None)
    return declared if declared in _OF_PROBLEM else None


def task_model(model: nn.Module) -> Any:
    """The model with the head, without what wraps it."""
    return pretrained(extract_model_from_parallel(model, keep_torch_compile=False))


def _reads_problem_type(model: nn.Module) -> bool:
    """Whether the loss is the model's own, which goes by ``problem_type``."""
    outer = extract_model_from_parallel(model, keep_torch_compile=False)
    return not is_cross_encoder(outer) and is_sequence_classifier(model)


def is_sequence_classifier(model: nn.Module) -> bool:
    """Whether it is one of transformers' own."""
    kind = type(task_model(model))
    return _is_of_transformers(kind) and "ForSequenceClassification" in kind.__name__


def _excludes(model: nn.Module) -> bool:
    """Whether the kind of head tells one class out of k, as that of a next-sentence head does."""
    return _is_of_transformers(type(task_model(model))) and not is_sequence_classifier(model)


def _is_of_transformers(kind: type) -> bool:
    return kind.__module__.startswith("transformers.")


class HeadOfRun:
    """What the outputs are in one run: found out at its beginning, and the same to its end.

    Args:
        asked: "auto" or the answer.

    Attributes:
        outputs: the answer; None before a model was seen.
        has_logits: whether the model gives ``(b, k)`` logits, whatever they are.
    """

    def __init__(self, asked: str = "auto") -> None:
        self.asked = asked
        self.outputs: Outputs | None = None
        self.has_logits = False
        self._is_guess = False
        self._is_final = asked != "auto"

    def recall(self, recorded: Any) -> None:
        """Take over what the run recorded before it was resumed, in the place of a guess."""
        if self._is_guess and recorded in _OF_PROBLEM.values():
            self.outputs, self._is_guess = recorded, False

    def find(self, width: int, head: Head) -> None:
        """Take the answer from ``head`` for a model with ``(b, width)`` logits."""
        self.has_logits = width > 0
        self.outputs, self._is_guess = head

    def follow(self, model: nn.Module) -> bool:
        """Take over a ``problem_type`` that transformers set since; True if it changes the answer.

        Before the first training step a model may not say what it is. In its first training forward
        pass transformers decides, and the loss goes by that.
        """
        problem = None if self._is_final or not self.has_logits else problem_type(model)
        if problem is None:
            return False
        before, self.outputs = self.outputs, _OF_PROBLEM[problem]
        self._is_final, self._is_guess = True, False
        if before in (None, self.outputs):
            return False
        warnings.warn(
            f"sepstop: the model is trained for {IN_WORDS[self.outputs]} (config.problem_type is "
            f"now {problem!r}), not for {IN_WORDS[before]}, as it seemed before training; it is "
            "scored as it is trained",
            RuntimeWarning,
            stacklevel=5,
        )
        return True

    def settle(self, width: int, declared: Outputs | None) -> Outputs:
        """The answer for what was observed, perhaps long ago by another process.

        Args:
            width: k of the ``(N, k)`` logits that were observed; 0 without any.
            declared: as `declared_outputs`.

        Raises:
            ValueError: it contradicts the answer of this run.
        """
        if self.outputs is None:
            self.find(width, _settled(width, declared, self.asked))
        assert self.outputs is not None
        if self.outputs != "none" and width == 0:
            raise ValueError(f"expected logits of {IN_WORDS[self.outputs]}, got none")
        if self.asked == "auto" and width and declared not in (None, self.outputs):
            raise ValueError(
                f"the outputs are {IN_WORDS[declared]}, but {IN_WORDS[self.outputs]} in what was "
                "measured before; name them, if you know: outputs= (--outputs)"
            )
        return self.outputs

    def hold(self, step: int) -> None:
        """From the first trained step on nothing changes the answer; a guess is a warning."""
        if step == 0:
            return
        if self._is_guess and self.outputs in ("classes", "labels"):
            warnings.warn(
                "sepstop: neither the model's configuration nor training labels say what its "
                f"outputs are; they are taken for {IN_WORDS[self.outputs]}. Name them to be sure: "
                "outputs='classes', 'labels' or 'none' (--outputs)",
                UserWarning,
                stacklevel=4,
            )
        self._is_final, self._is_guess = True, False


# Training labels


def training_labels(dataloader: Any, names: Sequence[str] = ()) -> list[Any] | None:
    """The labels of the first training rows, taken from the data set by index.

    The loader is not iterated, its collator is not called, and random states stay as they are.

    Args:
        dataloader: a DataLoader over rows that are mappings.
        names: columns with labels; "labels", "label" and "label_ids" are known.

    Returns:
        One value a row; None where they cannot be had, as those of streamed data, and where a
        collator of the user's own may make anything of them, as vectors of class numbers.
    """
    dataset = getattr(dataloader, "dataset", None)
    device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
    # Whatever a data set of the user's own raises, its labels are unknown then.
    with suppress(Exception), same_randomness(device), _same_generators(dataset):
        labels = _stored_labels(dataset, (*names, *_COLUMNS))
        changes = not _is_of_library(dataloader.collate_fn) and _are_whole(labels)
        return None if changes else labels
    return None


def _are_whole(labels: Sequence[Any] | None) -> bool:
    """Whether each label that is known is one whole number."""
    known = [label for label in labels or () if label is not None]
    return all(np.ndim(label) == 0 and float(label).is_integer() for label in known)


def _is_of_library(collator: Any) -> bool:
    """Whether labels pass through a collator as they are."""
    for name in ("data_collator", "func"):  # of one that removes columns; of a partial
        if hasattr(collator, name):
            return _is_of_library(getattr(collator, name))
    return str(getattr(collator, "__module__", "")).startswith(_LIBRARIES)


def label_names(model: nn.Module, args: Any = None) -> list[str]:
    """The columns with labels, as Trainer takes them: from its arguments or the model's forward."""
    given = getattr(args, "label_names", None)
    return list(find_labels(type(task_model(model))) if given is None else given)


def _stored_labels(dataset: Any, names: Sequence[str]) -> list[Any] | None:
    count = min(len(dataset), _LOOKED_AT)  # no length, no index
    columns = getattr(dataset, "column_names", None)
    if columns is not None and dataset.format["type"] != "custom":
        name = next((name for name in names if name in columns), None)
        plain = dataset.with_format(None)
        return None if name is None else list(plain.select_columns([name])[:count][name])
    rows = [dataset[place] for place in range(count)]
    if not all(isinstance(row, Mapping) for row in rows):
        return None
    name = next((name for name in names if all(name in row for row in rows)), None)
    return None if name is None else [row[name] for row in rows]


@contextmanager
def _same_generators(dataset: Any) -> Iterator[None]:
    """Random generators that a data set has for itself come back as they were."""
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


def _as_rows(labels: Sequence[Any] | None, width: int) -> NDArray[Any] | None:
    """``(r,)``, or ``(r, width)`` where each row has as many labels; None for anything else."""
    known = [label for label in (() if labels is None else labels) if label is not None]
    try:
        rows = np.stack([np.asarray(label) for label in known])
    except (TypeError, ValueError):  # nothing there, or rows of unlike length as of tokens
        return None
    if rows.dtype.kind not in "biuf":
        return None
    if rows.ndim == 1 or rows.shape[1:] == (width,):
        return rows
    return rows[:, 0] if rows.shape[1:] == (1,) else None


def _of_labels(rows: NDArray[Any], width: int, by_transformers: bool) -> Head:
    """What is trained on such labels, where no ``problem_type`` says it.

    Args:
        by_transformers: by its loss, for which numbers are targets of a binary cross-entropy.
    """
    if width == 1:
        return Head("none")
    if rows.ndim == 1:
        return _of_numbers(rows, width)
    are_binary = _are_all(rows, (rows == 0) | (rows == 1))
    if not are_binary and (not by_transformers or rows.dtype.kind != "f"):
        return Head("none")
    # One-hot rows, smoothed or not, may be classes to a loss of the user's own.
    exclude = bool(np.isclose(rows.sum(axis=1), 1).all())
    if not are_binary:
        _warn_of_range(rows)
    return Head("labels", is_guess=exclude)


def _of_numbers(rows: NDArray[Any], width: int) -> Head:
    """Of one number a row: that of a class, which a loss of the user's own may have as a float."""
    if not _are_all(rows, rows == np.round(rows)):
        return Head("none")
    if (rows >= width).any():
        if rows.dtype.kind != "f":
            warnings.warn(
                f"sepstop: training labels go up to {rows.max()}, but the head has {width} logits, "
                "so these are not one class out of k, and the run is decided without them; name "
                "them, if you know: outputs='labels' for thresholds, 'classes' for classes",
                UserWarning,
                stacklevel=4,
            )
        return Head("none")
    return Head("classes", is_guess=rows.dtype.kind == "f")


def _check_agreement(problem: str, width: int, rows: NDArray[Any] | None) -> None:
    """
    Raises:
        ValueError: the logits or the training labels contradict ``problem``.
    """
    said = f"config.problem_type is {problem!r}, but "
    if problem == "single_label_classification" and width < 2:
        raise ValueError(f"{said}the head has a single logit{_SAY}")
    if rows is None:
        return
    if problem == "single_label_classification":
        if rows.ndim == 2 and width > 1:
            raise ValueError(f"{said}each training label has {width} numbers{_SAY}")
        if not _are_all(rows, rows == np.round(rows)):
            raise ValueError(f"{said}the training labels are no whole numbers{_SAY}")
    if problem == "multi_label_classification":
        if rows.ndim == 1 and width > 1:
            raise ValueError(f"{said}each training label is one number, not {width}{_SAY}")
        _warn_of_range(rows)


def _warn_of_range(rows: NDArray[Any]) -> None:
    if not _are_all(rows, (rows >= 0) & (rows <= 1)):
        warnings.warn(
            "sepstop: some training labels are below 0 or above 1, but the model is trained for "
            "labels that are 0 or 1 (multi_label_classification); for a regression on several "
            "targets set config.problem_type='regression'",
            UserWarning,
            stacklevel=4,
        )


def _are_all(rows: NDArray[Any], right: NDArray[np.bool_]) -> bool:
    """Whether all labels are right but those that are not known."""
    return bool((right | (rows == _IGNORED) | (rows != rows)).all())
