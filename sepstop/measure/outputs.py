"""The outputs of a model: one class out of k, labels that do not exclude each other, or neither.

Logits of shape ``(b, k)`` can be any of these. `infer_outputs` looks at what the user requested,
the model's configuration, the training labels and the number of logits, in this order.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from accelerate.utils.other import extract_model_from_parallel
from numpy.typing import NDArray
from torch import nn

from sepstop.measure.backbone import is_cross_encoder, pretrained
from sepstop.types import Outputs

PROBLEM_TYPES: dict[str, Outputs] = {
    "single_label_classification": "classes",
    "multi_label_classification": "labels",
    "regression": "none",
}
"""Outputs of each ``problem_type`` that transformers knows."""

OUTPUTS_IN_WORDS: dict[Outputs, str] = {
    "classes": "one class out of k",
    "labels": "labels that do not exclude each other",
    "none": "neither classes nor labels",
}
"""Outputs as messages name them."""

_IGNORED_LABEL = -100  # torch's losses ignore it

_REMEDY = (
    "; set config.problem_type to what the model is trained for, or set outputs='classes' (one "
    "class out of k), 'labels' (yes or no for each label) or 'none' (neither)"
)


class InferredOutputs(NamedTuple):
    """What a model's outputs are.

    Attributes:
        outputs: "classes", "labels" or "none".
        is_guess: True if only the number of logits, or labels that can be read in another way,
            support it.
    """

    outputs: Outputs
    is_guess: bool = False


def infer_outputs(
    model: nn.Module,
    num_logits: int,
    labels: Sequence[Any] | None = None,
    requested: str = "auto",
) -> InferredOutputs:
    """Infer what the outputs of a model are.

    The first of these that is known decides: the request; the ``problem_type`` in the model's
    configuration; the training labels; the number of logits, where two or more are assumed to be
    one class out of k. For a transformers model without a ``problem_type``, labels are read as the
    model's own loss reads them.

    Args:
        model: the model, with or without wrappers (DDP, FSDP, ``torch.compile``, PEFT,
            CrossEncoder).
        num_logits: k of its ``(b, k)`` logits; 0 for a model without logits.
        labels: labels of some training rows, from `training_labels`; None if unknown.
        requested: "auto", or the outputs.

    Raises:
        ValueError: two of these contradict each other; the message says how to resolve it.

    Warns:
        UserWarning: training labels are outside the range that the model is trained for.

    >>> infer_outputs(nn.Identity(), num_logits=3, labels=[0, 2, 1])
    InferredOutputs(outputs='classes', is_guess=False)
    >>> infer_outputs(nn.Identity(), num_logits=3, labels=[[0, 1, 1], [0, 0, 0]])
    InferredOutputs(outputs='labels', is_guess=False)
    >>> infer_outputs(nn.Identity(), num_logits=3)
    InferredOutputs(outputs='classes', is_guess=True)
    """
    if requested != "auto" or num_logits == 0:
        return outputs_without_labels(num_logits, None, requested)
    rows = _label_array(labels, num_logits)
    problem = problem_type(model)
    if problem is not None:
        _check_labels(problem, num_logits, rows)
    elif rows is not None:
        return _outputs_of_labels(rows, num_logits, _has_own_loss(model))
    return outputs_without_labels(num_logits, declared_outputs(model, num_logits), requested)


def declared_outputs(model: nn.Module, num_logits: int) -> Outputs | None:
    """The outputs that the model itself declares.

    Args:
        model: the model, with or without wrappers.
        num_logits: k of its ``(b, k)`` logits; 0 for a model without logits.

    Returns:
        The outputs by the ``problem_type`` in its configuration, the kind of its head or the
        number of logits; None if these leave it open.
    """
    problem = problem_type(model)
    if num_logits == 0:
        return "none"
    if problem is not None:
        return PROBLEM_TYPES[problem]
    if num_logits == 1:
        return "none"
    # Other heads of transformers, such as next-sentence prediction, predict one class.
    is_other_head = _is_of_transformers(model) and not is_sequence_classifier(model)
    return "classes" if is_other_head else None


def outputs_without_labels(
    num_logits: int, declared: Outputs | None, requested: str
) -> InferredOutputs:
    """Infer the outputs from the request, the model's declaration and the number of logits.

    Args:
        num_logits: k of the ``(b, k)`` logits; 0 without logits.
        declared: from `declared_outputs`.
        requested: "auto", or the outputs.

    Raises:
        ValueError: the request does not fit the number of logits.

    >>> outputs_without_labels(1, declared=None, requested="auto")
    InferredOutputs(outputs='none', is_guess=False)
    """
    if requested != "auto":
        minimum = {"classes": 2, "labels": 1}.get(requested, 0)
        if num_logits < minimum:
            raise ValueError(
                f"outputs={requested!r} needs logits of shape (b, k) with k >= {minimum}, got "
                f"{f'k = {num_logits}' if num_logits else 'none'}"
            )
        return InferredOutputs(requested)  # type: ignore[arg-type]  # validated by the Monitor
    if declared is not None:
        return InferredOutputs(declared)
    return InferredOutputs("classes", is_guess=True) if num_logits > 1 else InferredOutputs("none")


def problem_type(model: nn.Module) -> str | None:
    """The ``problem_type`` in the model's configuration; None unless transformers knows it.

    For a model without one, transformers sets it in the first forward pass of training.
    """
    declared = getattr(getattr(pretrained(model), "config", None), "problem_type", None)
    return declared if declared in PROBLEM_TYPES else None


def is_sequence_classifier(model: nn.Module) -> bool:
    """True for a sequence classifier of transformers."""
    return _is_of_transformers(model) and (
        "ForSequenceClassification" in type(pretrained(model)).__name__
    )


def _is_of_transformers(model: nn.Module) -> bool:
    return type(pretrained(model)).__module__.startswith("transformers.")


def _has_own_loss(model: nn.Module) -> bool:
    """True if the loss is the model's own, which depends on ``problem_type``."""
    outer = extract_model_from_parallel(model, keep_torch_compile=False)
    return not is_cross_encoder(outer) and is_sequence_classifier(model)


# Training labels


def _label_array(labels: Sequence[Any] | None, num_logits: int) -> NDArray[Any] | None:
    """Labels as one array.

    Returns:
        ``(r,)`` for one number per row, ``(r, num_logits)`` for one number per logit, None for
        anything else.
    """
    known = [label for label in (() if labels is None else labels) if label is not None]
    try:
        rows = np.stack([np.asarray(label) for label in known])
    except (TypeError, ValueError):  # no labels, or rows of different lengths, as labels of tokens
        return None
    if rows.dtype.kind not in "biuf":
        return None
    if rows.ndim == 1 or rows.shape[1:] == (num_logits,):
        return rows
    return rows[:, 0] if rows.shape[1:] == (1,) else None


def _outputs_of_labels(rows: NDArray[Any], num_logits: int, has_own_loss: bool) -> InferredOutputs:
    """What a model without a ``problem_type`` is trained for.

    Args:
        has_own_loss: the loss is that of transformers, where vectors of floats are targets of a
            binary cross-entropy.
    """
    if num_logits == 1:
        return InferredOutputs("none")
    if rows.ndim == 1:
        return _outputs_of_numbers(rows, num_logits)
    is_binary = _all_known(rows, (rows == 0) | (rows == 1))
    if not is_binary and not (has_own_loss and rows.dtype.kind == "f"):
        return InferredOutputs("none")
    if not is_binary:
        _warn_of_range(rows)
    # A loss of the user's own may read one-hot rows, smoothed or not, as classes.
    is_one_hot = bool(np.isclose(rows.sum(axis=1), 1).all())
    return InferredOutputs("labels", is_guess=is_one_hot)


def _outputs_of_numbers(rows: NDArray[Any], num_logits: int) -> InferredOutputs:
    """What a model with one number per training row is trained for.

    Whole numbers are classes. As floats they are a guess: a loss of the user's own may convert
    them.
    """
    if not _all_known(rows, rows == np.round(rows)):
        return InferredOutputs("none")
    if (rows >= num_logits).any():
        if rows.dtype.kind != "f":
            warnings.warn(
                f"sepstop: training labels go up to {rows.max()}, but the head has {num_logits} "
                "logits, so the logits are not one class out of k and are not used to decide; to "
                "use them, set outputs='labels' for thresholds or outputs='classes' for classes",
                UserWarning,
                stacklevel=4,
            )
        return InferredOutputs("none")
    return InferredOutputs("classes", is_guess=rows.dtype.kind == "f")


def _check_labels(problem: str, num_logits: int, rows: NDArray[Any] | None) -> None:
    """Check the logits and the training labels against a ``problem_type``.

    Raises:
        ValueError: they contradict it.
    """
    declared = f"config.problem_type is {problem!r}, but "
    if problem == "single_label_classification" and num_logits < 2:
        raise ValueError(f"{declared}the head has a single logit{_REMEDY}")
    if rows is None:
        return
    if problem == "single_label_classification":
        if rows.ndim == 2 and num_logits > 1:
            raise ValueError(f"{declared}each training label has {num_logits} numbers{_REMEDY}")
        if not _all_known(rows, rows == np.round(rows)):
            raise ValueError(f"{declared}the training labels are not whole numbers{_REMEDY}")
    if problem == "multi_label_classification":
        if rows.ndim == 1 and num_logits > 1:
            raise ValueError(
                f"{declared}each training label is one number, not {num_logits}{_REMEDY}"
            )
        _warn_of_range(rows)


def _warn_of_range(rows: NDArray[Any]) -> None:
    if not _all_known(rows, (rows >= 0) & (rows <= 1)):
        warnings.warn(
            "sepstop: some training labels are below 0 or above 1, but the model is trained for "
            "labels that are 0 or 1 (multi_label_classification); for a regression on several "
            "targets, set config.problem_type='regression'",
            UserWarning,
            stacklevel=4,
        )


def _all_known(rows: NDArray[Any], holds: NDArray[np.bool_]) -> bool:
    """True if a condition holds for all labels except unknown ones (-100 or NaN)."""
    return bool((holds | (rows == _IGNORED_LABEL) | (rows != rows)).all())
