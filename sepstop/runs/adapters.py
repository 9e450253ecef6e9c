"""Exact loading of PEFT adapters onto their bases."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sepstop.runs.adapter_base import (
    Adapter,
    BaseCache,
    base_sizes,
    load_base,
    weights_in_use,
)
from sepstop.runs.loading_options import Loading
from sepstop.runs.pretrained import (
    MODEL_CLASS,
    MisfitError,
    class_for,
    library_class,
    of_revision,
    unknown_class,
)
from sepstop.runs.saved_weights import (
    adapter_folders,
    adapter_tensors,
    address,
    fingerprint,
    saved_shapes,
    shorten,
    weights_that_differ,
)

_TASKS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}


def load_adapter(checkpoint: Path, loading: Loading, bases: BaseCache) -> nn.Module:
    """Load the adapter in a checkpoint and its base, on the CPU.

    Args:
        checkpoint: folder with one adapter, or with several of which ``loading`` names one.
        loading: see `Loading`.
        bases: holds the base for the next adapter.

    Raises:
        MisfitError: a tensor of the adapter has no place, or a weight of the model is neither in
            the adapter nor in the base; the message names it.
        ValueError: there is no such base or adapter, or there are several adapters and ``loading``
            names none.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError("a PEFT adapter needs peft: pip install 'sepstop[peft]'") from error

    folder = _adapter_folder(checkpoint, loading.adapter)
    config = peft.PeftConfig.from_pretrained(str(folder))
    base, revision = _base_of(config, loading.base_model)
    adapter = Adapter(folder, config, base, saved_shapes(folder), revision)
    known = bases.classes.get((base, revision))
    misfits = []
    for base_class in [known] if known else _classes(adapter, loading):
        try:
            model = _on_class(adapter, base_class, loading.trust_remote_code, bases)
        except MisfitError as misfit:
            misfits.append(misfit)
        else:
            bases.classes[base, revision] = base_class
            return model
    raise misfits[0]


def _adapter_folder(checkpoint: Path, name: str | None) -> Path:
    """The folder of the adapter with this name; of the only one if the name is None.

    Raises:
        ValueError: there is no such adapter, or there are several to choose from.
    """
    found = adapter_folders(checkpoint)
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name in found:
        return found[name]
    known = ", ".join(found)
    if name is not None:
        raise ValueError(f"no adapter {name!r} in the checkpoint; found {known}")
    raise ValueError(
        f"expected one adapter in the checkpoint, found {len(found)}: {known}. Name the trained "
        "one: adapter= (--adapter)"
    )


def _base_of(config: Any, base_model: str | Path | None) -> tuple[str, str | None]:
    """Name and revision of an adapter's base: ``base_model``, or what the adapter names."""
    source = str(base_model or config.base_model_name_or_path or "")
    revision = None if base_model else config.revision
    if not source:
        raise ValueError(
            "the adapter does not name its base model; pass it: base_model= (--base-model)"
        )
    from transformers import PreTrainedConfig

    try:
        PreTrainedConfig.get_config_dict(source, **of_revision(revision))
    except OSError as error:
        raise ValueError(
            f"the adapter's base model {source} can't be read. If it was moved, pass its folder or "
            "hub name: base_model= (--base-model)"
        ) from error
    return source, revision


def _classes(adapter: Adapter, loading: Loading) -> Iterator[Any]:
    """Classes that the base may have been trained as, the most likely first."""
    import transformers

    recorded = adapter.config.auto_mapping or {}
    task = str(getattr(adapter.config.task_type, "value", adapter.config.task_type))
    if loading.model_class is None and recorded.get("base_model_class"):
        name = str(recorded["base_model_class"])
        found = library_class(name)
        if found is not None and str(recorded.get("parent_library")).startswith("transformers."):
            yield found
            return
        if not loading.trust_remote_code:
            raise unknown_class(name)
    if loading.model_class is None and task in _TASKS:
        yield getattr(transformers, _TASKS[task])
        if task != "FEATURE_EXTRACTION":  # a class without the task's head can't replace it
            return
    yield class_for(adapter.base, loading, adapter.revision)


def _on_class(
    adapter: Adapter, base_class: Any, trust_remote_code: bool, bases: BaseCache
) -> nn.Module:
    """Put an adapter on a base of the given class.

    Raises:
        MisfitError: the adapter does not fit, or weights are drawn at random.
    """
    sizes = base_sizes(adapter, base_class, trust_remote_code)
    key = (adapter.base, adapter.revision, base_class, sizes)

    def attempt(seed: int) -> nn.Module:
        found = bases.base(key, lambda: load_base(adapter, base_class, trust_remote_code, sizes))
        own = dict(found.model.named_parameters()) | dict(found.model.named_buffers())
        state = found.model.state_dict(keep_vars=True)  # tied weights under each name
        before = fingerprint(own)
        with _seeded(seed):
            model = _on_base(found.model, adapter)
        _require_fit(model, adapter)
        _require_saved(model, adapter, {name: state[name] for name in found.unfilled})
        if fingerprint(own) == before:
            bases.keep(model)
        return model

    model = attempt(0)
    if key not in bases.reproducible:
        # Weights that neither the adapter nor the base holds differ with another seed.
        first = fingerprint(weights_in_use(model))
        del model
        model = attempt(1)
        again = fingerprint(weights_in_use(model))
        random = [name for name in first if first[name] != again.get(name)]
        if random:
            init = getattr(adapter.config, "init_lora_weights", None)
            raise MisfitError(
                f"{len(random)} weights were never saved and are drawn at random when the adapter "
                f"is loaded: {shorten(random)}. init_lora_weights={init!r} can't be repeated: save "
                "with path_initial_model_for_weight_conversion"
            )
        bases.reproducible.add(key)
    return model


def _on_base(base: nn.Module, adapter: Adapter) -> nn.Module:
    import peft

    # `_require_fit` finds everything that does not fit, by name.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return peft.PeftModel.from_pretrained(
                base, str(adapter.folder), ignore_mismatched_sizes=True
            )
        except KeyError as error:
            raise MisfitError(
                f"the adapter lacks {error}, which its configuration names"
            ) from error


def _require_fit(model: Any, adapter: Adapter) -> None:
    """
    Raises:
        MisfitError: the model does not hold each tensor of the adapter, or holds others.
    """
    misfits = weights_that_differ(model, adapter.folder)
    if misfits:
        raise MisfitError(
            f"the adapter does not fit {type(model.get_base_model()).__name__} of {adapter.base}: "
            f"missing, of another shape or without a place: {shorten(misfits)}. If another class "
            f"was trained, pass it: {MODEL_CLASS}"
        )


def _require_saved(model: Any, adapter: Adapter, unfilled: Mapping[str, Tensor]) -> None:
    """
    Args:
        unfilled: weights of the base that were not saved with it.

    Raises:
        MisfitError: a weight that the model uses is neither in the base nor in the adapter.
    """
    tensors = adapter_tensors(model, adapter.shapes)
    saved = {address(tensors[key]) for key in adapter.shapes}
    in_use = {id(weight) for weight in weights_in_use(model).values()}
    missing = [
        name
        for name, weight in unfilled.items()
        if id(weight) in in_use and address(weight) not in saved
    ]
    if missing:
        raise MisfitError(
            f"neither the adapter nor its base {adapter.base} has these weights of "
            f"{type(model.get_base_model()).__name__}: {shorten(missing)}. They were never saved: "
            "the adapter has no trained head or embeddings. Train with task_type, 'SEQ_CLS' for a "
            "classifier, or list the modules in modules_to_save"
        )
    if str(getattr(adapter.config, "init_lora_weights", "")).lower().startswith("lora_ga"):
        raise MisfitError(
            "LoRA-GA changes the base by gradients that are not saved, so the trained model can't "
            "be rebuilt: save with path_initial_model_for_weight_conversion"
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
