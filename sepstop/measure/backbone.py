"""The parts of a model, whatever is wrapped around it."""

from __future__ import annotations

import sys
from typing import Any

import torch.distributed as dist
from torch import nn

_DIVIDED = ("ds_id", "_is_flat_param")
"""Marks of parameters that DeepSpeed ZeRO 3 and FSDP 1 divide."""


def backbone(model: nn.Module) -> nn.Module:
    """The module that makes the hidden states, without the task's head.

    The whole model where only that can be called: under FSDP2, and with soft prompts.
    """
    body: Any = model
    if is_sharded(model):
        return model  # only the whole model gathers what it shares out over the ranks
    while (inside := _inside(body)) is not None:
        if hasattr(body, "active_peft_config") and body.active_peft_config.is_prompt_learning:
            return body
        body = inside
    return _without_head(body)


def pretrained(model: nn.Module) -> Any:
    """The transformers model inside, with its head; or what comes closest to it."""
    body: Any = model
    while (inside := _inside(body)) is not None:
        body = inside
    return body


def inputs_of(model: nn.Module) -> Any:
    """The module that looks up the token ids: the backbone of `pretrained`."""
    return _without_head(pretrained(model))


def unwrapped(model: nn.Module) -> Any:
    """Without DDP and ``torch.compile`` around it."""
    body: Any = model
    while True:
        if isinstance(body, nn.parallel.DistributedDataParallel | nn.DataParallel):
            body = body.module
        elif hasattr(body, "_orig_mod"):  # torch.compile
            body = body._orig_mod
        else:
            return body


def text_config(model: nn.Module) -> Any:
    """The configuration of the text model; None where there is none."""
    config: Any = getattr(pretrained(model), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 divides it over the ranks; FSDP2 is not part of every build of torch."""
    if not dist.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def is_divided(model: nn.Module) -> bool:
    """Whether this rank has only a part of the weights: FSDP, DeepSpeed ZeRO 3, tensor parallel."""
    return any(
        type(weight).__name__ == "DTensor" or any(hasattr(weight, mark) for mark in _DIVIDED)
        for weight in model.parameters()
    )


def is_sentence_transformer(model: nn.Module) -> bool:
    return isinstance(model, _of_sentence_transformers("SentenceTransformer"))


def is_cross_encoder(model: nn.Module) -> bool:
    return isinstance(model, _of_sentence_transformers("CrossEncoder"))


def _of_sentence_transformers(name: str) -> Any:
    library = sys.modules.get("sentence_transformers")  # not loaded: none of its models
    return getattr(library, name, ())


def _inside(body: Any) -> Any:
    """What ``body`` is wrapped around; None for a model of transformers or of the user's own."""
    from transformers import PreTrainedModel

    if isinstance(body, PreTrainedModel):
        return None
    if (inside := unwrapped(body)) is not body:
        return inside
    if hasattr(body, "get_base_model"):  # PEFT; adapters stay active inside
        return body.get_base_model()
    if is_sentence_transformer(body) or is_cross_encoder(body):
        return body.transformers_model
    return None


def _without_head(body: Any) -> Any:
    from transformers import PreTrainedModel

    if not isinstance(body, PreTrainedModel):
        return body
    return body.get_encoder() if body.config.is_encoder_decoder else body.base_model
