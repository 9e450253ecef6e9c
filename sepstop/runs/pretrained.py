"""Exact loading of classes with ``from_pretrained``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sepstop.runs.loading_options import Loading
from sepstop.runs.saved_weights import shorten, weights_that_differ
from sepstop.utils.registry import import_object

MODEL_CLASS = "model_class= (--model-class module:Class)"
"""How a user names the class, for error messages."""


class MisfitError(ValueError):
    """The saved weights and those of the model are not the same."""


@dataclass(frozen=True)
class Loaded:
    """A loaded model and the weights that do not match.

    Attributes:
        model: in evaluation mode, on the CPU.
        unfilled: weights of the model that were not saved, or were saved with another shape.
        unused: saved tensors without a place in the model.
    """

    model: nn.Module
    unfilled: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def load_whole(source: str | Path, loading: Loading) -> nn.Module:
    """Load a whole model: every saved tensor reaches a weight, and every weight was saved.

    Args:
        source: folder or hub name.
        loading: its ``model_class`` and ``trust_remote_code`` are used.

    Raises:
        MisfitError: the message names the tensors.
        ValueError: transformers lacks the class that the configuration names.
    """
    found = load_class(source, class_for(source, loading), loading.trust_remote_code)
    require_fit(found, source, found.unused)
    return found.model


def require_fit(found: Loaded, source: str | Path, unused: Iterable[str] = ()) -> None:
    """
    Args:
        unused: saved tensors that are an error too.

    Raises:
        MisfitError: weights of the model were not saved, or ``unused`` is not empty.
    """
    misfits = []
    if found.unfilled:
        misfits.append(f"missing there, or of another shape: {shorten(found.unfilled)}")
    if unused:
        misfits.append(f"without a place in it: {shorten(unused)}")
    if misfits:
        raise MisfitError(
            f"{type(found.model).__name__} does not fit {source}: {'; '.join(misfits)}. If another "
            f"class was trained, pass it: {MODEL_CLASS}"
        )


def of_revision(revision: str | None) -> dict[str, Any]:
    """The option of ``from_pretrained`` for a revision on the hub; none for the default one."""
    return {} if revision is None else {"revision": revision}


def class_for(source: str | Path, loading: Loading, revision: str | None = None) -> Any:
    """The class of a model: ``loading.model_class``, or the one that the configuration names.

    Args:
        source: folder or hub name.
        loading: its ``model_class`` and ``trust_remote_code`` are used.
        revision: of a model on the hub.

    Raises:
        ValueError: transformers lacks the class, and the code that the model brings is not allowed
            to run.
    """
    model_class = loading.model_class
    if isinstance(model_class, str):
        model_class = import_object("model_class", model_class)
    if model_class is not None:
        return model_class
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        source, trust_remote_code=loading.trust_remote_code, **of_revision(revision)
    )
    name = next(iter(config.architectures or ()), None)
    if name is None:
        return transformers.AutoModel
    own_code = getattr(config, "auto_map", None) or {}
    autos = [auto for auto, target in own_code.items() if str(target).endswith(f".{name}")]
    if autos and loading.trust_remote_code:
        return getattr(transformers, autos[0])
    found = library_class(name)
    if found is not None:
        return found
    if autos:
        raise ValueError(
            f"{source} brings the code of {name}; to run it, pass trust_remote_code "
            "(--trust-remote-code)"
        )
    raise unknown_class(name)


def library_class(name: str) -> Any:
    """The transformers model class of this name; None if there is none."""
    import transformers

    found = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else None


def unknown_class(name: str) -> ValueError:
    """The error for a class that transformers lacks."""
    return ValueError(
        f"the model was trained as {name}, which transformers does not have. Another class would "
        f"give another model's scores. Pass the class: {MODEL_CLASS}"
    )


def load_class(
    source: str | Path, model_class: Any, trust_remote_code: bool, **options: Any
) -> Loaded:
    """Load a model as the given class, whether or not the weights match.

    Args:
        source: folder or hub name.
        model_class: class with ``from_pretrained``.
        trust_remote_code: allow the model to run the code that it brings.
        **options: of ``from_pretrained``, those that change the configuration and the revision.
    """
    from transformers import PreTrainedModel

    is_foreign = isinstance(model_class, type) and not issubclass(model_class, PreTrainedModel)
    if is_foreign and not model_class.__module__.startswith("transformers."):  # as Auto classes are
        model = model_class.from_pretrained(str(source), **options)
        return Loaded(model, unused=tuple(weights_that_differ(model, source)))
    options["trust_remote_code"] = trust_remote_code
    found, labels = _from_pretrained(source, model_class, options)
    if labels is not None and "num_labels" not in options:
        resized, _ = _from_pretrained(source, model_class, options | {"num_labels": labels})
        found = resized if not resized.unfilled else found
    if found.unfilled and takes_pooling_layer(found.model):
        options["add_pooling_layer"] = False
        without, _ = _from_pretrained(source, type(found.model), options)
        if not without.unfilled and set(without.unused) <= set(found.unused):
            return without
    return found


def takes_pooling_layer(model: Any) -> bool:
    """True if the model's class can be built without its pooler."""
    found = inspect.signature(type(model)).parameters if model is not None else ()
    return "add_pooling_layer" in found


def _from_pretrained(
    source: str | Path, model_class: Any, options: dict[str, Any]
) -> tuple[Loaded, int | None]:
    """The model, and the labels of the saved head if the configuration has another number."""
    # transformers lists tensors of another shape only if they are no error; here they are missing.
    model, info = model_class.from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    other_shapes = info["mismatched_keys"]  # name, saved shape, own shape
    unfilled = sorted({*info["missing_keys"], *(name for name, *_ in other_shapes)})
    found = Loaded(model, tuple(unfilled), tuple(sorted(info["unexpected_keys"])))
    heads = {
        saved[0] if own == (model.config.num_labels, *saved[1:]) else None
        for _, saved, own in other_shapes
    }
    return found, heads.pop() if len(heads) == 1 else None
