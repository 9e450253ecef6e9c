"""Base models of PEFT adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sepstop.runs.pretrained import Loaded, load_class, of_revision


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter on disk.

    Attributes:
        folder: folder of the adapter.
        config: its ``PeftConfig``.
        base: folder or hub name of its base model.
        revision: of the base on the hub; None for the default one.
        shapes: name -> shape of each saved tensor.
    """

    folder: Path
    config: Any
    base: str
    shapes: Mapping[str, torch.Size]
    revision: str | None = None


@dataclass(frozen=True)
class BaseSizes:
    """Sizes of the trained base that differ from those of the base on disk, else None.

    Attributes:
        labels: outputs of the head.
        tokens: rows of the embeddings.
    """

    labels: int | None = None
    tokens: int | None = None


class BaseCache:
    """The base model of the last adapter, reused for the next one if it is unchanged.

    Attributes:
        reproducible: keys of bases on which loading an adapter was found to draw no random weights.
        classes: base and revision -> class that an adapter was found to fit.
    """

    def __init__(self) -> None:
        self.reproducible: set[Any] = set()
        self.classes: dict[tuple[str, str | None], Any] = {}
        self._key: Any = None
        self._found: Loaded | None = None
        self._weights: dict[str, Tensor] = {}
        self._adapted: Any = None

    def base(self, key: Any, load: Callable[[], Loaded]) -> Loaded:
        """The base with this key, without the last adapter. ``load`` makes a new one if needed."""
        found = self._without_adapter() if key == self._key else None
        self._key, self._found, self._adapted, self._weights = key, found, None, {}
        if self._found is None:
            self._found = load()
        self._weights = dict(self._found.model.named_parameters())
        return self._found

    def keep(self, adapted: nn.Module) -> None:
        """Reuse the base of ``adapted``, whose values the adapter did not change."""
        self._adapted = adapted

    def _without_adapter(self) -> Loaded | None:
        """The base as it was before the last adapter; None if that can't be restored."""
        adapted, self._adapted = self._adapted, None
        if adapted is None or self._found is None:
            return None
        base = adapted.get_base_model()
        originals = replaced_modules(base)
        if not adapted.active_peft_config.is_prompt_learning:
            base = adapted.unload()
        for name, module in originals.items():  # PEFT leaves the adapter's own in their place
            base.set_submodule(name, module)
        now = dict(base.named_parameters())
        is_unchanged = now.keys() == self._weights.keys() and all(
            now[name] is weight for name, weight in self._weights.items()
        )
        return Loaded(base, self._found.unfilled) if is_unchanged else None


def base_sizes(adapter: Adapter, base_class: Any, trust_remote_code: bool) -> BaseSizes:
    """Compare the shapes of an adapter with those of its base, whose weights are not loaded."""
    from transformers import AutoConfig

    if not hasattr(base_class, "config_class") and not hasattr(base_class, "from_config"):
        return BaseSizes()
    config = AutoConfig.from_pretrained(
        adapter.base, trust_remote_code=trust_remote_code, **of_revision(adapter.revision)
    )
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
    return BaseSizes(max(labels, default=None), max(tokens - {rows}, default=None))


def load_base(
    adapter: Adapter, base_class: Any, trust_remote_code: bool, sizes: BaseSizes
) -> Loaded:
    """Load the base of an adapter in the sizes that it was trained in.

    New rows of the embeddings are 0. They count as unfilled, unless the adapter trained them all.
    """
    options: dict[str, Any] = of_revision(adapter.revision)
    options |= {} if sizes.labels is None else {"num_labels": sizes.labels}
    found = load_class(adapter.base, base_class, trust_remote_code, **options)
    base: Any = found.model
    if sizes.tokens is None:
        return found
    rows = len(base.get_input_embeddings().weight)
    base.resize_token_embeddings(sizes.tokens, mean_resizing=False)
    inputs = base.get_input_embeddings().weight
    are_trained = set(range(rows, sizes.tokens)) <= _trained_tokens(adapter.config)
    unfilled = []
    for name in _embeddings(base):
        weight = base.get_submodule(name).weight
        weight.data[rows:] = 0
        if len(weight) > rows and not (are_trained and weight is inputs):
            unfilled.append(f"{name}.weight")
    return Loaded(base, (*found.unfilled, *unfilled))


def replaced_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of the base that the adapter replaces by its own."""
    from peft.utils import ModulesToSaveWrapper

    return {
        name: module.original_module
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }


def weights_in_use(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, without those of modules that the adapter replaces."""
    replaced = {
        id(weight)
        for module in replaced_modules(model).values()
        for weight in (*module.parameters(), *module.buffers())
    }
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: weight for name, weight in state.items() if id(weight) not in replaced}


def _embeddings(model: Any) -> list[str]:
    """Names of the modules with a row for each token: first of the inputs, then of the outputs."""
    ends = [model.get_input_embeddings()]
    ends.append(model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None)
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(end)] for end in ends if end is not None and id(end) in names]


def _trained_tokens(config: Any) -> set[int]:
    """Ids of the tokens whose embeddings the adapter trained one by one."""
    found = getattr(config, "trainable_token_indices", None) or getattr(
        config, "token_indices", None
    )
    lists = found.values() if isinstance(found, Mapping) else [found or []]
    return {int(index) for indices in lists for index in indices}


def _name_in_base(key: str) -> str:
    """The base's name of a tensor of the adapter, such as ``base_model.model.score.weight``."""
    for prefix in ("base_model.model.", "base_model."):
        key = key.removeprefix(prefix)
    return key.replace(".base_layer.", ".").replace(".original_module.", ".")
