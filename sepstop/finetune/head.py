"""The head of a classifier: new or kept, and never of other labels unnoticed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from sepstop.finetune.settings import ModelSettings
from sepstop.utils.text import listed

CLASSIFIES = "single_label_classification"
"""The ``problem_type`` of a model that names one class for a text."""


def head_modules(model: Any) -> list[str]:
    """Names of the modules beside the base model; empty if the model does not name its base."""
    names = {name.partition(".")[0] for name, _ in model.named_parameters()}
    base = {model.base_model_prefix}
    return sorted(names - base) if base <= names else []


def check_weights(settings: ModelSettings, model: Any, before: Any, loaded: dict[str, Any]) -> None:
    """Warn of weights that did not come from the checkpoint, except the head of a base model.

    An output layer that was trained for other labels is initialized again.

    Args:
        before: the checkpoint's own configuration.
        loaded: the loading info of from_pretrained.
    """
    name, output = settings.name, output_layer(model, settings.trust_remote_code)
    wrong = {key: (tuple(had), tuple(has)) for key, had, has in loaded["mismatched_keys"]}
    if odd := sorted(wrong.keys() - output):
        shapes = "; ".join("{} is {}, not {}".format(key, *wrong[key]) for key in odd[:5])
        raise ValueError(f"the weights of {name} do not fit its configuration: {shapes}")
    missing = set(loaded["missing_keys"])
    heads = head_modules(model)
    if new := [key for key in missing - output if key.partition(".")[0] not in heads]:
        warnings.warn(
            f"sepstop: {name} has no weights for {listed(sorted(new))}; they are new", stacklevel=3
        )
    if not (trained := output - missing):
        return
    of = other_labels(model, before)
    classes = listed(model.config.id2label.values())
    if wrong or of:
        if wrong:
            (count, *_), _ = next(iter(wrong.values()))
            of = of or f"for {count} label{'s' * (count != 1)}"
        else:
            renew(model, trained)
        warnings.warn(
            f"sepstop: {name} was fine-tuned {of}; its head is new for {classes} "
            f"({listed(sorted(trained))})",
            stacklevel=3,
        )
    elif is_unnamed(before):
        warnings.warn(
            f"sepstop: {name} has a head for {len(model.config.id2label)} classes without names; "
            f"it is kept for {classes}",
            stacklevel=3,
        )


def output_layer(model: Any, trust_remote_code: bool) -> set[str]:
    """Names of the weights whose shape depends on the number of labels."""
    config = copy.deepcopy(model.config)
    config.num_labels = model.config.num_labels + 1
    with torch.device("meta"):
        wider = AutoModelForSequenceClassification.from_config(
            config, trust_remote_code=trust_remote_code
        )
    shapes = {key: weight.shape for key, weight in wider.named_parameters()}
    return {key for key, weight in model.named_parameters() if weight.shape != shapes.get(key)}


def other_labels(model: Any, before: Any) -> str | None:
    """What the head was trained for; None if for the same classes, or for unnamed ones."""
    kinds = before.architectures or [type(model).__name__]
    if type(model).__name__ not in kinds:
        return f"as {kinds[0]}"
    if before.problem_type not in (None, CLASSIFIES):
        return f"for {before.problem_type}"
    if not is_unnamed(before) and dict(before.id2label) != dict(model.config.id2label):
        return f"for {listed(before.id2label.values())}"
    return None


def is_unnamed(config: Any) -> bool:
    """True if the classes have transformers' default names, LABEL_0, LABEL_1 and so on."""
    return all(name == f"LABEL_{number}" for number, name in config.id2label.items())


def renew(model: Any, weights: Collection[str]) -> None:
    """Initialize the weights as transformers does if a checkpoint lacks them."""
    modules = {key.rpartition(".")[0] for key in weights}
    for module in map(model.get_submodule, sorted(modules)):
        for weight in module.parameters(recurse=False):
            weight._is_hf_initialized = False
        model._init_weights(module)
