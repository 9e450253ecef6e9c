"""PEFT adapters, loaded onto the base that they were trained on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sepstop.runs.pretrained import (
    MODEL_CLASS,
    Loaded,
    MisfitError,
    class_for,
    library_class,
    load,
    own_class,
)
from sepstop.runs.saved_weights import (
    adapter_folders,
    address,
    held_by_adapter,
    listed,
    saved_shapes,
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


class Bases:
    """The base of the adapter that was loaded last, reused for the next if it is as it was."""

    def __init__(self) -> None:
        self._key: Any = None
        self._found: Loaded | None = None
        self._weights: dict[str, Tensor] = {}
        self._adapted: Any = None
        self.checked: set[Any] = set()
        """Keys of bases on which an adapter was found to be reproducible."""
        self.classes: dict[str, Any] = {}
        """Of bases that an adapter was found to fit."""

    def base(self, key: Any, load: Callable[[], Loaded]) -> Loaded:
        """The base of that key, without the last adapter; loaded if it is another."""
        found = self._bare() if key == self._key else None
        self._key, self._found, self._adapted, self._weights = key, found, None, {}
        if self._found is None:
            self._found = load()
        self._weights = dict(self._found.model.named_parameters())
        return self._found

    def keep(self, adapted: nn.Module) -> None:
        """Reuse the base that ``adapted`` was put on, which did not change it."""
        self._adapted = adapted

    def _bare(self) -> Loaded | None:
        """The base as it was before it was adapted; None if it cannot be had again."""
        adapted, self._adapted = self._adapted, None
        if adapted is None or self._found is None:
            return None
        base = adapted.get_base_model()
        originals = _originals(base)
        if not adapted.active_peft_config.is_prompt_learning:
            base = adapted.unload()
        for name, module in originals.items():  # in whose place PEFT leaves the trained ones
            base.set_submodule(name, module)
        now = dict(base.named_parameters())
        same = now.keys() == self._weights.keys() and all(
            now[name] is weight for name, weight in self._weights.items()
        )
        return Loaded(base, self._found.unfilled) if same else None


@dataclass(frozen=True)
class _Adapter:
    """An adapter in a folder.

    Attributes:
        source: folder or hub name of its base.
        shapes: of the tensors that were saved.
    """

    folder: Path
    config: Any
    source: str
    shapes: Mapping[str, torch.Size]


def load_adapter(
    checkpoint: Path,
    trust_remote_code: bool,
    bases: Bases,
    base_model: str | Path | None = None,
    model_class: Any = None,
    name: str | None = None,
) -> nn.Module:
    """The base with the adapter in a checkpoint.

    Raises:
        MisfitError: a tensor of the adapter reaches nothing, or a weight of the model is in neither
            the adapter nor the base; the message names it.
        ValueError: no such base or adapter, or several adapters and no ``name``.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError("a PEFT adapter needs peft: pip install 'sepstop[peft]'") from error

    folder = adapter_folder(checkpoint, name)
    config = peft.PeftConfig.from_pretrained(str(folder))
    source = _base_of(config, base_model)
    adapter = _Adapter(folder, config, source, saved_shapes(folder))
    known = bases.classes.get(source)
    misfits = []
    for base_class in [known] if known else _classes(adapter, trust_remote_code, model_class):
        try:
            model = _adapted(adapter, base_class, trust_remote_code, bases)
        except MisfitError as misfit:
            misfits.append(misfit)
        else:
            bases.classes[source] = base_class
            return model
    raise misfits[0]


def adapter_folder(checkpoint: Path, name: str | None = None) -> Path:
    """The folder of the adapter of that name, or of the only one.

    Raises:
        ValueError: there is no such adapter, or more than one to choose from.
    """
    found = adapter_folders(checkpoint)
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name in found:
        return found[name]
    known = ", ".join(found)
    if name is not None:
        raise ValueError(f"no adapter called {name!r} in {checkpoint}; there is {known}")
    raise ValueError(
        f"the checkpoint has {len(found)} adapters, {known}, and does not say which was trained; "
        "name it: adapter= (--adapter)"
    )


def _base_of(config: Any, base_model: str | Path | None) -> str:
    """Folder or hub name of an adapter's base."""
    source = str(base_model or config.base_model_name_or_path or "")
    if not source:
        raise ValueError("the adapter does not name its base; name it: base_model= (--base-model)")
    from transformers import PreTrainedConfig

    try:
        PreTrainedConfig.get_config_dict(source)
    except OSError as error:
        raise ValueError(
            f"the adapter's base, {source}, can't be read; if it is somewhere else, name where: "
            "base_model= (--base-model)"
        ) from error
    return source


def _classes(adapter: _Adapter, trust_remote_code: bool, model_class: Any) -> Iterator[Any]:
    """Classes that the base may have been trained as, the likeliest first."""
    import transformers

    noted = adapter.config.auto_mapping or {}
    task = str(getattr(adapter.config.task_type, "value", adapter.config.task_type))
    if model_class is None and noted.get("base_model_class"):
        name = str(noted["base_model_class"])
        found = library_class(name)
        if found is not None and str(noted.get("parent_library")).startswith("transformers."):
            yield found
            return
        if not trust_remote_code:
            raise ValueError(own_class(name))
    if model_class is None and task in _TASKS:
        yield getattr(transformers, _TASKS[task])
        if task != "FEATURE_EXTRACTION":  # a class without the task's head is no substitute
            return
    yield class_for(adapter.source, trust_remote_code, model_class)


def _adapted(
    adapter: _Adapter, base_class: Any, trust_remote_code: bool, bases: Bases
) -> nn.Module:
    """An adapter on a base of a class.

    Raises:
        MisfitError: they do not belong together, or what they make is not what was trained.
    """
    sizes = _sizes(adapter, base_class, trust_remote_code)
    key = (adapter.source, base_class, sizes)

    def attempt(seed: int) -> nn.Module:
        found = bases.base(key, lambda: _load_base(adapter, base_class, trust_remote_code, sizes))
        own = dict(found.model.named_parameters()) | dict(found.model.named_buffers())
        state = found.model.state_dict(keep_vars=True)  # tied weights under each name
        before = _fingerprint(own)
        with _seeded(seed):
            model = _on_base(found.model, adapter)
        _check(model, adapter, {name: state[name] for name in found.unfilled})
        if _fingerprint(own) == before:
            bases.keep(model)
        return model

    model = attempt(0)
    if key not in bases.checked:
        # What neither the adapter nor the base holds comes out otherwise with another seed.
        first = _fingerprint(_in_use(model))
        del model
        model = attempt(1)
        again = _fingerprint(_in_use(model))
        random = [name for name in first if first[name] != again.get(name)]
        if random:
            raise MisfitError(
                f"{len(random)} weights are drawn at random when the adapter is loaded, since they "
                f"were never saved: {listed(random)}; init_lora_weights="
                f"{getattr(adapter.config, 'init_lora_weights', None)!r} cannot be repeated, so "
                "save with path_initial_model_for_weight_conversion"
            )
        bases.checked.add(key)
    return model


@dataclass(frozen=True)
class _Sizes:
    """What an adapter says of the sizes of its base; None where the base's own fit.

    Attributes:
        labels: outputs of the head.
        tokens: rows of the embeddings.
    """

    labels: int | None = None
    tokens: int | None = None


def _sizes(adapter: _Adapter, base_class: Any, trust_remote_code: bool) -> _Sizes:
    """By comparing the saved shapes with those of the base, without loading it."""
    from transformers import AutoConfig

    if not hasattr(base_class, "config_class") and not hasattr(base_class, "from_config"):
        return _Sizes()
    config = AutoConfig.from_pretrained(adapter.source, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        if hasattr(base_class, "from_config"):
            base = base_class.from_config(config, trust_remote_code=trust_remote_code)
        else:
            base = base_class(config)
    own = {name: weight.shape for name, weight in base.named_parameters()}
    embeddings = _embeddings(base)
    rows = own[f"{embeddings[0]}.weight"][0] if embeddings else 0
    labels, tokens = set(), set()
    for key, shape in adapter.shapes.items():
        name = _name_in_base(key)
        module, _, kind = name.rpartition(".")
        if kind == "lora_embedding_A" and module in embeddings:
            tokens.add(shape[-1])
        elif name in own and own[name] != shape and own[name][1:] == shape[1:]:
            if module in embeddings:
                tokens.add(shape[0])
            elif own[name][0] == config.num_labels:
                labels.add(shape[0])
    tokens.update(index + 1 for index in _trained_tokens(adapter.config) if index >= rows)
    return _Sizes(max(labels, default=None), max(tokens - {rows}, default=None))


def _load_base(
    adapter: _Adapter, base_class: Any, trust_remote_code: bool, sizes: _Sizes
) -> Loaded:
    options = {} if sizes.labels is None else {"num_labels": sizes.labels}
    found = load(adapter.source, base_class, trust_remote_code, **options)
    base: Any = found.model
    if sizes.tokens is None:
        return found
    rows = len(base.get_input_embeddings().weight)
    base.resize_token_embeddings(sizes.tokens, mean_resizing=False)
    first = base.get_input_embeddings().weight
    trained = set(range(rows, sizes.tokens)) <= _trained_tokens(adapter.config)
    unfilled = []
    for name in _embeddings(base):
        weight = base.get_submodule(name).weight
        weight.data[rows:] = 0
        if len(weight) > rows and not (trained and weight is first):
            unfilled.append(f"{name}.weight")
    return Loaded(base, (*found.unfilled, *unfilled))


def _embeddings(model: Any) -> list[str]:
    """Names of the modules that have a row for each token: of the inputs, then of the outputs."""
    ends = [model.get_input_embeddings()]
    ends.append(model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None)
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(end)] for end in ends if end is not None and id(end) in names]


def _trained_tokens(config: Any) -> set[int]:
    """Ids of the tokens whose embeddings were trained by themselves."""
    found = getattr(config, "trainable_token_indices", None) or getattr(
        config, "token_indices", None
    )
    lists = found.values() if isinstance(found, Mapping) else [found or []]
    return {int(index) for indices in lists for index in indices}


def _name_in_base(key: str) -> str:
    """The base's name of what an adapter saved, ``base_model.model.score.weight`` for instance."""
    for prefix in ("base_model.model.", "base_model."):
        key = key.removeprefix(prefix)
    return key.replace(".base_layer.", ".").replace(".original_module.", ".")


def _on_base(base: nn.Module, adapter: _Adapter) -> nn.Module:
    import peft

    # What does not fit is found by its name afterwards, all of it.
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


def _check(model: Any, adapter: _Adapter, unfilled: Mapping[str, Tensor]) -> None:
    """Every tensor of the adapter is in the model, and every weight of the model was saved.

    Args:
        unfilled: weights of the base that were not.
    """
    misfits = weights_that_differ(model, adapter.folder)
    name = type(model.get_base_model()).__name__
    if misfits:
        raise MisfitError(
            f"the adapter does not fit {name} of {adapter.source}: missing, of another shape or "
            f"without a place: {listed(misfits)}. If another class was trained, name that: "
            f"{MODEL_CLASS}"
        )
    held = held_by_adapter(model, adapter.shapes)
    saved = {address(held[key]) for key in adapter.shapes}
    in_use = {id(weight) for weight in _in_use(model).values()}
    missing = [
        name
        for name, weight in unfilled.items()
        if id(weight) in in_use and address(weight) not in saved
    ]
    if missing:
        raise MisfitError(
            f"neither the adapter nor its base {adapter.source} has these weights of {name}: "
            f"{listed(missing)}. They were never saved: this adapter has no trained head or "
            "embeddings. Train with task_type, 'SEQ_CLS' for a classifier, or name the modules in "
            "modules_to_save"
        )
    if str(getattr(adapter.config, "init_lora_weights", "")).lower().startswith("lora_ga"):
        raise MisfitError(
            "LoRA-GA changes the base by gradients that are not saved, so the trained model cannot "
            "be rebuilt; save with path_initial_model_for_weight_conversion"
        )


def _originals(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of the base of which the adapter brings its own."""
    from peft.utils import ModulesToSaveWrapper

    return {
        name: module.original_module
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }


def _in_use(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, but for those in the place of which the adapter brings its own."""
    replaced = {
        id(weight)
        for module in _originals(model).values()
        for weight in (*module.parameters(), *module.buffers())
    }
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: weight for name, weight in state.items() if id(weight) not in replaced}


def _fingerprint(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Sums of the bits of each tensor, the same on every device."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = {}
    for name, weight in weights.items():
        values = weight.detach().reshape(-1).contiguous()
        bits = torch.view_as_real(values).reshape(-1) if values.is_complex() else values
        sums[name] = int(bits.view(kinds[bits.element_size()]).sum(dtype=torch.int64))
    return sums


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
