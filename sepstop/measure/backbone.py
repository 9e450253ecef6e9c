"""The parts of a model: its backbone, its head and its wrappers."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch.distributed as dist
from accelerate.utils.other import extract_model_from_parallel
from torch import nn

_SHARD_MARKS = ("ds_id", "_is_flat_param")
"""Attributes of parameters that DeepSpeed ZeRO 3 and FSDP1 shard."""


def backbone(model: nn.Module) -> nn.Module:
    """The module that computes the hidden states, without the task head.

    Under FSDP2 and with soft prompts only the whole model can be called, so it is returned.
    """
    body: Any = model
    if is_fsdp2(model):
        return model  # only a call of the whole model gathers its weights from the ranks
    while (inner := _inner(body)) is not None:
        if hasattr(body, "active_peft_config") and body.active_peft_config.is_prompt_learning:
            return body
        body = inner
    return _without_head(body)


def pretrained(model: nn.Module) -> Any:
    """The innermost model, with its head: a transformers model or the user's own."""
    body: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    while (inner := _inner(body)) is not None:
        body = inner
    return body


def pretrained_backbone(model: nn.Module) -> Any:
    """The backbone of `pretrained`, which looks up the token ids. For inspection, not for calls."""
    return _without_head(pretrained(model))


def unwrapped(model: nn.Module) -> Any:
    """The model inside DDP, DataParallel and ``torch.compile``."""
    body: Any = model
    while True:
        if isinstance(body, nn.parallel.DistributedDataParallel | nn.DataParallel):
            body = body.module
        elif hasattr(body, "_orig_mod"):  # torch.compile
            body = body._orig_mod
        else:
            return body


def text_config(model: nn.Module) -> Any:
    """The configuration of the text model; None if the model has no configuration."""
    config: Any = getattr(pretrained(model), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def is_fsdp2(model: nn.Module) -> bool:
    """True if FSDP2 shards the model."""
    if not dist.is_available():  # such a build of torch has no FSDP2 either
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def is_sharded(model: nn.Module) -> bool:
    """True if this rank holds a part of the weights: FSDP, DeepSpeed ZeRO 3, tensor parallelism."""
    return any(map(is_fsdp2, model.modules())) or any(
        type(weight).__name__ == "DTensor" or any(hasattr(weight, mark) for mark in _SHARD_MARKS)
        for weight in model.parameters()
    )


def reshard(model: nn.Module) -> None:
    """Let the parameters of an FSDP2 model be this rank's shards.

    After a forward pass without a backward pass some of them are whole copies, which the next
    forward pass would use again whatever the shards hold then.
    """
    for module in model.modules():
        if is_fsdp2(module):
            cast(Any, module).reshard()


def is_sentence_transformer(model: nn.Module) -> bool:
    """True for a SentenceTransformer."""
    return isinstance(model, _sentence_transformers_class("SentenceTransformer"))


def is_causal_lm(model: nn.Module) -> bool:
    """True for a language model that goes on from a text, with a head over the vocabulary."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = type(pretrained(model)).__name__.removeprefix("FSDP")
    return name.endswith("ForCausalLM") or name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def is_cross_encoder(model: nn.Module) -> bool:
    """True for a CrossEncoder of sentence-transformers."""
    return isinstance(model, _sentence_transformers_class("CrossEncoder"))


def _sentence_transformers_class(name: str) -> Any:
    """The class, or an empty tuple of classes if the library is not imported."""
    library = sys.modules.get("sentence_transformers")
    return getattr(library, name, ())


def _inner(body: Any) -> Any:
    """The model that ``body`` wraps; None for a transformers model or the user's own."""
    from transformers import PreTrainedModel

    if isinstance(body, PreTrainedModel):
        return None
    if (inner := unwrapped(body)) is not body:
        return inner
    if hasattr(body, "get_base_model"):  # PEFT; the adapters stay active inside
        return body.get_base_model()
    if is_sentence_transformer(body) or is_cross_encoder(body):
        return body.transformers_model
    return None


def _without_head(body: Any) -> Any:
    from transformers import PreTrainedModel

    if not isinstance(body, PreTrainedModel):
        return body
    return body.get_encoder() if body.config.is_encoder_decoder else body.base_model
