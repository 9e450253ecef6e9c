"""The model in a checkpoint folder, whatever kind it is of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sepstop.runs.adapters import Bases, load_adapter
from sepstop.runs.pretrained import (
    MisfitError,
    check,
    class_for,
    load,
    load_whole,
    takes_pooling_layer,
)
from sepstop.runs.saved_weights import (
    ADAPTER_CONFIG,
    SENTENCE_MODULES,
    adapter_folders,
    is_whole,
    listed,
    weights_that_differ,
)

__all__ = ["DTYPES", "Bases", "MisfitError", "load_model", "load_start", "weights_that_differ"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of weights, by the name that a user gives."""


def load_model(
    checkpoint: str | Path,
    trust_remote_code: bool = False,
    bases: Bases | None = None,
    *,
    base_model: str | Path | None = None,
    model_class: Any = None,
    adapter: str | None = None,
) -> nn.Module:
    """The model in a checkpoint folder, with its head, on the CPU.

    Every saved tensor reaches a weight of its shape, and every weight comes from the folder or from
    an adapter's base.

    Args:
        trust_remote_code: allow a folder to bring code of its own.
        bases: keeps the base of an adapter for the next; the last model is then taken apart.
        base_model: folder or hub name of an adapter's base, in place of the recorded one.
        model_class: class with ``from_pretrained``, or "module:Class"; by default the one that the
            folder names.
        adapter: name of the PEFT adapter, where the folder has several.

    Raises:
        MisfitError: saved tensors and weights do not match; the message names them.
        ValueError: the class, the base or the adapter is not to be had.
    """
    path = Path(checkpoint)
    _check_shards(path)
    with _quiet_transformers():
        if (path / SENTENCE_MODULES).is_file():
            return _load_sentence_transformer(path, trust_remote_code)
        if adapter is not None or (adapter_folders(path) and not is_whole(path)):
            bases = Bases() if bases is None else bases
            return load_adapter(path, trust_remote_code, bases, base_model, model_class, adapter)
        if (path / ADAPTER_CONFIG).is_file():  # transformers would put it on those weights
            raise ValueError(
                f"{path.name} has the weights of a whole model and those of an adapter, which may "
                "be of another run or merged already; move one of them elsewhere, or put the "
                "adapter on its own base: adapter='default' (--adapter)"
            )
        return load_whole(path, trust_remote_code, model_class)


def load_start(
    source: str | Path, trust_remote_code: bool = False, model_class: Any = None
) -> nn.Module:
    """The model that a run started from, which may have heads and poolers that the run left out.

    Args:
        source: folder or hub name of a model or SentenceTransformer.
        model_class: of the run; used where transformers does not have the class of ``source``.

    Raises:
        MisfitError: weights are missing.
    """
    path = Path(source)
    if adapter_folders(path) or (path / SENTENCE_MODULES).is_file():
        return load_model(path, trust_remote_code)
    _check_shards(path)
    with _quiet_transformers():
        try:
            start_class = class_for(source, trust_remote_code)
        except ValueError:
            start_class = class_for(source, trust_remote_code, model_class)
        found = load(source, start_class, trust_remote_code)
    check(found, source)
    return found.model


def _check_shards(path: Path) -> None:
    """An index of sharded weights may name files of its own folder only."""
    for index in path.glob("*.index.json"):
        shards = json.loads(index.read_text()).get("weight_map", {}).values()
        for shard in set(map(str, shards)):
            if Path(shard).is_absolute() or ".." in Path(shard).parts:
                raise ValueError(f"{index.name} names weights outside its folder: {shard!r:.80}")


def _load_sentence_transformer(path: Path, trust_remote_code: bool) -> nn.Module:
    """With the pooling of its own; a folder's own modules are code, and need to be allowed."""
    try:
        from sentence_transformers import CrossEncoder, SentenceTransformer
    except ImportError as error:
        raise ValueError(
            "a SentenceTransformer needs its library: pip install sentence-transformers"
        ) from error

    kinds = [
        str(module.get("type")) for module in json.loads((path / SENTENCE_MODULES).read_text())
    ]
    foreign = [kind for kind in kinds if not kind.startswith("sentence_transformers.")]
    foreign += sorted(file.name for file in path.rglob("*.py"))
    if foreign and not trust_remote_code:
        raise ValueError(
            f"{path.name} brings code of its own, {foreign[0]}; trust_remote_code "
            "(--trust-remote-code) allows it"
        )
    settings = path / "config_sentence_transformers.json"
    noted = json.loads(settings.read_text()) if settings.is_file() else {}
    kind = CrossEncoder if noted.get("model_type") == "CrossEncoder" else SentenceTransformer
    options: dict[str, Any] = {"device": "cpu", "trust_remote_code": trust_remote_code}
    model = kind(str(path), **options)
    misfits = weights_that_differ(model, path)
    if misfits and takes_pooling_layer(model.transformers_model):
        model = kind(str(path), **options, model_kwargs={"add_pooling_layer": False})
        misfits = weights_that_differ(model, path)
    if misfits:
        raise MisfitError(
            f"the weights in {path.name} and those of the {kind.__name__} differ: {listed(misfits)}"
        )
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No report of unused head weights and no bar for each checkpoint."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
