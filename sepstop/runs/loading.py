"""Checkpoint loading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from sepstop.runs.adapter_base import BaseCache
from sepstop.runs.adapters import load_adapter
from sepstop.runs.loading_options import DTYPES, Loading
from sepstop.runs.pretrained import (
    MisfitError,
    class_for,
    load_class,
    load_whole,
    of_revision,
    require_fit,
    takes_pooling_layer,
)
from sepstop.runs.saved_weights import (
    ADAPTER_CONFIG,
    SENTENCE_MODULES,
    adapter_folders,
    has_whole_model,
    shards,
    shorten,
    weights_that_differ,
)

__all__ = [
    "DTYPES",
    "BaseCache",
    "Loading",
    "MisfitError",
    "load_base_model",
    "load_model",
    "weights_that_differ",
]


def load_model(
    checkpoint: str | Path, loading: Loading = Loading(), bases: BaseCache | None = None
) -> nn.Module:
    """Load the model in a checkpoint folder, with its head.

    Every saved tensor reaches a weight of its shape, and every weight comes from the folder or from
    the base of an adapter.

    Args:
        checkpoint: folder of a transformers model, a PEFT adapter or a SentenceTransformer.
        loading: see `Loading`.
        bases: reuses the base for the next adapter. The model of the previous call is then taken
            apart.

    Raises:
        MisfitError: saved tensors and weights do not match; the message names them.
        ValueError: the class, the base, the adapter or the device is not available.
    """
    path = Path(checkpoint)
    _check_shards(path)
    with _quiet_transformers():
        return loading.place(_load(path, loading, BaseCache() if bases is None else bases))


def load_base_model(
    source: str | Path, loading: Loading = Loading(), revision: str | None = None
) -> nn.Module:
    """Load the model that training started from.

    It may have heads and poolers that the trained model lacks.

    Args:
        source: folder or hub name of a transformers model or SentenceTransformer.
        loading: see `Loading`. ``model_class`` counts only if transformers lacks the class that
            ``source`` names; ``adapter`` and ``base_model`` do not count.
        revision: of a model on the hub.

    Raises:
        MisfitError: weights of the model were not saved; the message names them.
        ValueError: the class or the device is not available.
    """
    path = Path(source)
    _check_shards(path)
    with _quiet_transformers():
        if adapter_folders(path) or (path / SENTENCE_MODULES).is_file():
            own = Loading(trust_remote_code=loading.trust_remote_code)
            return loading.place(_load(path, own, BaseCache()))
        try:
            own = Loading(trust_remote_code=loading.trust_remote_code)
            model_class = class_for(source, own, revision)
        except ValueError:
            model_class = class_for(source, loading, revision)
        found = load_class(source, model_class, loading.trust_remote_code, **of_revision(revision))
    require_fit(found, source)
    return loading.place(found.model)


def _load(path: Path, loading: Loading, bases: BaseCache) -> nn.Module:
    """Load any kind of checkpoint, on the CPU."""
    if (path / SENTENCE_MODULES).is_file():
        return _load_sentence_transformer(path, loading.trust_remote_code)
    if loading.adapter is not None or (adapter_folders(path) and not has_whole_model(path)):
        return load_adapter(path, loading, bases)
    if (path / ADAPTER_CONFIG).is_file():  # transformers would put it on those weights
        raise ValueError(
            f"{path.name} has both a whole model and an adapter, which may be merged already or "
            "belong to another run. Move one of them elsewhere, or load the adapter onto its own "
            "base: adapter='default' (--adapter)"
        )
    return load_whole(path, loading)


def _check_shards(path: Path) -> None:
    """
    Raises:
        ValueError: an index of sharded weights names files outside its folder.
    """
    for index in path.glob("*.index.json"):
        for shard in shards(index):
            if Path(shard).is_absolute() or ".." in Path(shard).parts:
                raise ValueError(f"{index.name} names weights outside its folder: {shard!r:.80}")


def _load_sentence_transformer(path: Path, trust_remote_code: bool) -> nn.Module:
    """Load a SentenceTransformer or CrossEncoder with its own pooling."""
    try:
        from sentence_transformers import CrossEncoder, SentenceTransformer
    except ImportError as error:
        raise ValueError(
            "a SentenceTransformer needs its library: pip install sentence-transformers"
        ) from error

    modules = json.loads((path / SENTENCE_MODULES).read_text())
    own_code = [
        str(module.get("type"))
        for module in modules
        if not str(module.get("type")).startswith("sentence_transformers.")
    ]
    own_code += sorted(file.name for file in path.rglob("*.py"))
    if own_code and not trust_remote_code:
        raise ValueError(
            f"{path.name} brings its own code, {own_code[0]}; to run it, pass trust_remote_code "
            "(--trust-remote-code)"
        )
    settings = path / "config_sentence_transformers.json"
    recorded = json.loads(settings.read_text()) if settings.is_file() else {}
    kind = CrossEncoder if recorded.get("model_type") == "CrossEncoder" else SentenceTransformer
    options: dict[str, Any] = {"device": "cpu", "trust_remote_code": trust_remote_code}
    model = kind(str(path), **options)
    misfits = weights_that_differ(model, path)
    if misfits and takes_pooling_layer(model.transformers_model):
        model = kind(str(path), **options, model_kwargs={"add_pooling_layer": False})
        misfits = weights_that_differ(model, path)
    if misfits:
        raise MisfitError(
            f"the weights in {path.name} and those of the {kind.__name__} differ: "
            f"{shorten(misfits)}"
        )
    return model


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hide reports of unused head weights and a progress bar for each checkpoint."""
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
