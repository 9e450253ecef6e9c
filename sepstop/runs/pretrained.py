"""A transformers model, or one of a class with ``from_pretrained``, exactly as it was saved."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sepstop.runs.saved_weights import listed, weights_that_differ
from sepstop.utils.registry import import_object

MODEL_CLASS = "model_class= (--model-class module:Class)"
"""What a user passes where the class cannot be found out."""


class MisfitError(ValueError):
    """Weights on disk and those of the model are not the same."""


@dataclass(frozen=True)
class Loaded:
    """A model and how its weights and those on disk match.

    Attributes:
        model: in evaluation mode, on the CPU.
        unfilled: its weights that are not on disk, or with another shape.
        unused: tensors on disk that it has no place for.
    """

    model: nn.Module
    unfilled: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def load_whole(source: str | Path, trust_remote_code: bool, model_class: Any = None) -> nn.Module:
    """The model in a folder: each saved tensor reaches a weight, and each weight was saved.

    Args:
        source: folder, or name on the hub.
        model_class: class with ``from_pretrained``, or "module:Class". By default the one that the
            folder's configuration names.

    Raises:
        MisfitError: the message names the tensors.
        ValueError: the configuration names a class that transformers does not have.
    """
    found = load(source, class_for(source, trust_remote_code, model_class), trust_remote_code)
    check(found, source, found.unused)
    return found.model


def check(found: Loaded, source: str | Path, unused: Iterable[str] = ()) -> None:
    """Raise a `MisfitError` where weights were not on disk.

    Args:
        unused: tensors on disk that are an error too.
    """
    misfits = []
    if found.unfilled:
        misfits.append(f"missing there, or of another shape: {listed(found.unfilled)}")
    if unused:
        misfits.append(f"without a place in it: {listed(unused)}")
    if misfits:
        raise MisfitError(
            f"{type(found.model).__name__} does not fit {source}: {'; '.join(misfits)}. If it was "
            f"trained as another class, name that: {MODEL_CLASS}"
        )


def class_for(source: str | Path, trust_remote_code: bool, model_class: Any = None) -> Any:
    """``model_class``, or the class that a model's configuration names.

    Raises:
        ValueError: that is neither a class of transformers nor code that comes with the model and
            may be run.
    """
    if isinstance(model_class, str):
        model_class = import_object("model_class", model_class)
    if model_class is not None:
        return model_class
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    name = next(iter(config.architectures or ()), None)
    if name is None:
        return transformers.AutoModel
    own_code = getattr(config, "auto_map", None) or {}
    autos = [auto for auto, target in own_code.items() if str(target).endswith(f".{name}")]
    if autos and trust_remote_code:
        return getattr(transformers, autos[0])
    found = library_class(name)
    if found is not None:
        return found
    if autos:
        raise ValueError(
            f"{name} is code that {source} brings; trust_remote_code (--trust-remote-code) allows "
            "it"
        )
    raise ValueError(own_class(name))


def library_class(name: str) -> Any:
    """The model of that name in transformers; None if it has none."""
    import transformers

    found = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else None


def own_class(name: str) -> str:
    """What is said of a class that transformers does not have."""
    return (
        f"the model was trained as {name}, which transformers does not have; without it the scores "
        f"would be of another model. Pass the class: {MODEL_CLASS}"
    )


def load(source: str | Path, model_class: Any, trust_remote_code: bool, **options: Any) -> Loaded:
    """The model of a class, whether or not the weights match.

    Args:
        **options: of ``from_pretrained``, to change the configuration.
    """
    from transformers import PreTrainedModel

    is_ours = isinstance(model_class, type) and not issubclass(model_class, PreTrainedModel)
    if is_ours and not model_class.__module__.startswith("transformers."):  # an Auto class is one
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
    """True if a model can be built without its pooler, as it is where none was saved."""
    found = inspect.signature(type(model)).parameters if model is not None else ()
    return "add_pooling_layer" in found


def _from_pretrained(
    source: str | Path, model_class: Any, options: dict[str, Any]
) -> tuple[Loaded, int | None]:
    """And how many labels the saved head has, where the configuration has another number."""
    # transformers says which shapes differ only if told to go on; here they count as missing.
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
