"""Pooling: one point per text from the hidden states of a model."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool1d

from sepstop.measure.backbone import backbone, is_sentence_transformer, unwrapped
from sepstop.types import Pooling


def mean_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the attended tokens of each text.

    Args:
        hidden: ``(b, L, D)`` hidden states, any float dtype.
        mask: ``(b, L)`` attention mask: 1 for tokens, 0 for padding.

    Returns:
        ``(b, D)``, of the dtype and on the device of ``hidden``.

    >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> mean_pooling(hidden, torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (b, L, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def cls_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """First attended token of each text, with padding on either side.

    Args:
        hidden: ``(b, L, D)`` hidden states, any float dtype.
        mask: ``(b, L)`` attention mask: 1 for tokens, 0 for padding.

    Returns:
        ``(b, D)``, of the dtype and on the device of ``hidden``.

    >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> cls_pooling(hidden, torch.tensor([[0, 1, 1]]))
    tensor([[3.]])
    """
    first = mask.int().argmax(dim=1)  # (b,)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def last_token_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """Last attended token of each text, with padding on either side.

    Args:
        hidden: ``(b, L, D)`` hidden states, any float dtype.
        mask: ``(b, L)`` attention mask: 1 for tokens, 0 for padding.

    Returns:
        ``(b, D)``, of the dtype and on the device of ``hidden``.

    >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> last_token_pooling(hidden, torch.tensor([[1, 1, 0]]))
    tensor([[3.]])
    """
    position = torch.arange(mask.shape[1], device=mask.device)
    last = (mask.int() * position).argmax(dim=1)  # (b,)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


@dataclass(frozen=True)
class LayerPooling(ABC):
    """Pooling of one hidden layer of a transformers model.

    Only the backbone runs where it can be reached (encoders, decoders, sequence classifiers, PEFT
    models), so no logits are computed.

    Attributes:
        layer: index of the hidden states: 0 for the input embeddings, -1 for the last layer.
    """

    layer: int = -1

    @abstractmethod
    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """``(b, L, D)`` float32 hidden states and ``(b, L)`` mask -> ``(b, D)`` points."""

    def __call__(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **inputs: Any
    ) -> Tensor:
        """``(b, L)`` int64 token ids and 0/1 mask on the model's device -> ``(b, D)`` float32.

        Raises:
            ValueError: the model has no hidden states, or no such layer.
        """
        length = attention_mask.shape[1]
        hidden = hidden_states(model, input_ids, attention_mask, self.layer, **inputs)
        # Soft prompts come first, so the last L positions are the text's own.
        hidden = hidden[:, -length:].float()  # (b, L, D)
        if hidden.shape[1] < length:  # Funnel shortens the sequence: a position is several tokens
            mask = adaptive_max_pool1d(attention_mask[:, None].float(), hidden.shape[1])
            attention_mask = mask[:, 0].long()
        return self.pool(hidden, attention_mask)


class MeanPooling(LayerPooling):
    """Mean of the attended tokens."""

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return mean_pooling(hidden, mask)


class CLSPooling(LayerPooling):
    """First attended token."""

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return cls_pooling(hidden, mask)


class LastTokenPooling(LayerPooling):
    """Last attended token: the only one that attends to the whole text in a decoder."""

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return last_token_pooling(hidden, mask)


@dataclass(frozen=True)
class AutoPooling(MeanPooling):
    """A SentenceTransformer's own embedding; the mean of the attended tokens for other models.

    A `layer` other than the last is always pooled by the mean.
    """

    def __call__(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        prompt_length: int = 0,
        **inputs: Any,
    ) -> Tensor:
        """As `LayerPooling`.

        Args:
            prompt_length: tokens of the prompt at the beginning of each text. A
                SentenceTransformer may leave them out of its own pooling.
        """
        body = unwrapped(model)
        if self.layer != -1 or not is_sentence_transformer(body):
            return super().__call__(model, input_ids, attention_mask, **inputs)
        features: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            **inputs,
        }
        if prompt_length:
            features["prompt_length"] = prompt_length
        if body.transformers_model is None:  # a StaticEmbedding reads texts end to end
            lengths = attention_mask.sum(dim=1)
            features["input_ids"] = input_ids[attention_mask.bool()]
            features["offsets"] = lengths.cumsum(dim=0) - lengths
        return body(features)["sentence_embedding"].float()


POOLINGS: dict[str, type] = {
    "auto": AutoPooling,
    "mean": MeanPooling,
    "cls": CLSPooling,
    "last": LastTokenPooling,
}


def hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, layer: int = -1, **inputs: Tensor
) -> Tensor:
    """Hidden states of one layer.

    Args:
        model: a transformers model or a wrapper of one.
        input_ids: ``(b, L)`` int64 token ids on the model's device.
        attention_mask: ``(b, L)`` int64: 1 for tokens, 0 for padding.
        layer: 0 for the input embeddings, -1 for the last layer.
        **inputs: other inputs of the model, such as ``token_type_ids``.

    Returns:
        ``(b, L, D)`` in the model's dtype; L is larger with soft prompts and smaller for Funnel.

    Raises:
        ValueError: the model's output has no hidden states, or no such layer.
    """
    body = backbone(model)
    options: dict[str, Any] = {"return_dict": True}
    known = inspect.signature(body.forward).parameters
    if "use_cache" in known:
        options["use_cache"] = False
    if "logits_to_keep" in known:
        options["logits_to_keep"] = 1  # the fewest: a causal head has a vocabulary per token
    if layer != -1 or body is model:
        options["output_hidden_states"] = True
    try:
        output = body(input_ids=input_ids, attention_mask=attention_mask, **inputs, **options)
    except TypeError as error:
        raise ValueError(f"{_no_hidden_states(model)} (its forward says: {error})") from error
    last = getattr(output, "last_hidden_state", None)
    layers = getattr(output, "hidden_states", None)
    if layer == -1 and last is not None:
        return last
    if layers is None:
        raise ValueError(_no_hidden_states(model))
    if not -len(layers) <= layer < len(layers):
        raise ValueError(
            f"expected `layer` from {-len(layers)} to {len(layers) - 1} "
            f"for {type(model).__name__}, got {layer}"
        )
    return layers[layer]


def _no_hidden_states(model: nn.Module) -> str:
    return (
        f"the outputs of {type(model).__name__} have no hidden states; pass a pooling function of "
        "your own: pooling(model, input_ids, attention_mask) -> points (b, D)"
    )


def check_pooling(pooling: Pooling, inputs: Collection[str]) -> None:
    """Check that ``pooling`` accepts the inputs that the pool has besides ids and mask.

    Args:
        pooling: the pooling to check.
        inputs: names of the inputs, such as "token_type_ids".

    Raises:
        ValueError: it accepts neither these inputs nor ``**inputs``.
    """
    parameters = inspect.signature(pooling).parameters.values() if inputs else ()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    names = {parameter.name for parameter in parameters}
    refused = [name for name in inputs if name not in names]
    if refused:
        raise ValueError(
            f"the pool has {', '.join(refused)}, which your pooling function does not accept; "
            "add **inputs to its parameters and pass them to the model, or use a pool without "
            f"{', '.join(refused)}"
        )
