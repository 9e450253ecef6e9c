"""A model and a pool of tokens to points, leaving the model and the random state as they were."""

from __future__ import annotations

import functools
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from sepstop.types import Embedder
from sepstop.untouched import untouched


def mean_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the attended tokens: ``(b, L, D)``, ``(b, L)`` -> ``(b, D)``."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (b, L, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def cls_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first attended token, whatever the padding side: -> ``(b, D)``."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.int().argmax(dim=1)]


def last_token_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last attended token, whatever the padding side: -> ``(b, D)``."""
    position = torch.arange(mask.shape[1], device=mask.device)
    last = (mask.int() * position).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


@dataclass(frozen=True)
class HiddenStates(ABC):
    """Embedder: pools one hidden layer of a transformers model.

    The model's head is not run where its backbone can be reached (encoders, decoders,
    sequence classifiers, PEFT models), so no logits are built.

    Attributes:
        layer: index into the hidden states: 0 is the input embeddings, -1 the last layer.
    """

    layer: int = -1

    @abstractmethod
    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """``(b, L, D)``, ``(b, L)`` -> ``(b, D)``."""

    def __call__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = hidden_states(model, input_ids, attention_mask, self.layer)
        # Soft prompts lengthen the sequence in front: the texts' own tokens are the last L.
        hidden = hidden[:, -attention_mask.shape[1] :].float()
        return self.pool(hidden, attention_mask)


class MeanPooling(HiddenStates):
    """Embedder: mean of the attended tokens."""

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return mean_pooling(hidden, mask)


class CLSToken(HiddenStates):
    """Embedder: the first token."""

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return cls_pooling(hidden, mask)


class LastToken(HiddenStates):
    """Embedder: the last token, the one that has seen the whole text in a decoder."""

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return last_token_pooling(hidden, mask)


@dataclass(frozen=True)
class OwnPooling(MeanPooling):
    """Embedder: what a SentenceTransformer makes of a text; the mean for every other model.

    A `layer` other than the last is pooled by the mean, too.
    """

    def __call__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        body = _unwrapped(model)
        if self.layer == -1 and _is_sentence_transformer(body):
            features = body({"input_ids": input_ids, "attention_mask": attention_mask})
            return features["sentence_embedding"].float()
        return super().__call__(model, input_ids, attention_mask)


EMBEDDERS: dict[str, type] = {
    "auto": OwnPooling,
    "mean": MeanPooling,
    "cls": CLSToken,
    "last": LastToken,
}


def hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, layer: int = -1
) -> Tensor:
    """Hidden states of one layer, ``(b, L, D)`` in the model's dtype.

    Raises:
        ValueError: the model's output has no hidden states, or not this layer.
    """
    body = _backbone(model)
    options: dict[str, Any] = {"return_dict": True}
    if "use_cache" in inspect.signature(body.forward).parameters:
        options["use_cache"] = False
    if "logits_to_keep" in inspect.signature(body.forward).parameters:
        options["logits_to_keep"] = 1  # a causal language model's, of a whole vocabulary each
    wants_all = layer != -1 or body is model
    if wants_all:
        options["output_hidden_states"] = True
    try:
        output = body(input_ids=input_ids, attention_mask=attention_mask, **options)
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
        f"the outputs of {type(model).__name__} have no hidden states; pass your own embedder, "
        "a function (model, input_ids, attention_mask) -> points (b, D)"
    )


def _backbone(model: nn.Module) -> nn.Module:
    """The module that makes the hidden states, without the task's head."""
    from transformers import PreTrainedModel

    if _is_sharded(model):
        return model  # only the whole model gathers what it shares out over the ranks
    body: Any = model
    while not isinstance(body, PreTrainedModel):
        inside = _unwrapped(body)
        if inside is not body:
            body = inside
        elif hasattr(body, "get_base_model"):  # PEFT; adapters stay active inside
            if body.active_peft_config.is_prompt_learning:
                return body
            body = body.get_base_model()
        elif _is_sentence_transformer(body) and body.transformers_model is not None:
            body = body.transformers_model
        else:
            return body
    return body.get_encoder() if body.config.is_encoder_decoder else body.base_model


def _unwrapped(model: nn.Module) -> Any:
    """Without DDP and ``torch.compile`` around it."""
    body: Any = model
    while True:
        if isinstance(body, nn.parallel.DistributedDataParallel | nn.DataParallel):
            body = body.module
        elif hasattr(body, "_orig_mod"):  # torch.compile
            body = body._orig_mod
        else:
            return body


def _is_sharded(model: nn.Module) -> bool:
    """By FSDP2, which is not part of every build of torch."""
    if not dist.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def _is_sentence_transformer(model: nn.Module) -> bool:
    library = sys.modules.get("sentence_transformers")  # not loaded, none of its models
    return isinstance(model, getattr(library, "SentenceTransformer", ()))


DROPPED = 0.3
"""Share of a text's tokens that its corrupted copy lacks."""


def drop_tokens(tokens: Sequence[Tensor], share: float, seed: int) -> list[Tensor]:
    """Each text without a random ``share`` of its tokens; its first and last always stay.

    Drawn from its own generator, so that the same texts lose the same tokens every time.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for ids in tokens:
        keep = torch.rand(len(ids), generator=generator) >= share
        keep[[0, -1]] = True
        kept.append(ids[keep])
    return kept


class Observation(NamedTuple):
    """What one pass over the texts gives, in their order, on the model's device.

    Attributes:
        points: ``(N, D)`` embeddings, float.
        logits: ``(N, k)`` of the model's classifier, float32, if they were asked for.
        corrupted_logits: ``(N, k)`` likewise, of the texts without `DROPPED` of their tokens.
    """

    points: Tensor
    logits: Tensor | None = None
    corrupted_logits: Tensor | None = None


def embed(
    model: nn.Module,
    tokens: Sequence[Tensor],
    embedder: Embedder,
    batch_size: int = 64,
    pad_token_id: int = 0,
    progress: bool = False,
) -> Tensor:
    """`observe` without logits: -> ``(N, D)`` float on the model's device."""
    return observe(model, tokens, embedder, batch_size, pad_token_id, progress).points


def observe(
    model: nn.Module,
    tokens: Sequence[Tensor],
    embedder: Embedder,
    batch_size: int = 64,
    pad_token_id: int = 0,
    progress: bool = False,
    with_logits: bool = False,
    on_smaller: Callable[[int], None] | None = None,
) -> Observation:
    """Points of the tokenised texts, and their logits from the same forward pass.

    Texts of like length share a batch, right-padded. When the device runs out of memory the
    batch is halved and tried again.

    Args:
        tokens: one ``(length,)`` int64 tensor a text.
        on_smaller: told the new batch size when it was halved.

    Raises:
        ValueError: the embedder returned something else than ``(b, D)`` floats, or the model
            something else than ``(b, k)`` logits.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]), reverse=True)
    seen: list[Observation] = []
    done = 0
    with (
        untouched(model),
        tqdm(total=len(order), desc="pool", unit="text", leave=False, disable=not progress) as bar,
    ):
        while done < len(order):
            batch = [tokens[i] for i in order[done : done + batch_size]]
            try:
                seen.append(_observe_batch(model, batch, embedder, pad_token_id, with_logits))
            except RuntimeError as error:
                full = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
                if len(batch) == 1 or not full:
                    raise
                batch_size = len(batch) // 2
                if on_smaller is not None:
                    on_smaller(batch_size)
                clear_device_cache()
                continue
            done += len(batch)
            bar.update(len(batch))
    inverse = torch.empty(len(order), dtype=torch.long)
    inverse[torch.tensor(order)] = torch.arange(len(order))
    inverse = inverse.to(device)
    points = torch.cat([part.points for part in seen])[inverse]
    logits = [part.logits for part in seen if part.logits is not None]
    return Observation(points, torch.cat(logits)[inverse] if logits else None)


def _observe_batch(
    model: nn.Module, batch: list[Tensor], embedder: Embedder, pad: int, with_logits: bool
) -> Observation:
    device = next(model.parameters()).device
    input_ids = pad_sequence(batch, batch_first=True, padding_value=pad).to(device)  # (b, L)
    lengths = torch.tensor([len(ids) for ids in batch], device=device)
    positions = torch.arange(input_ids.shape[1], device=device)
    mask = (positions < lengths[:, None]).long()  # (b, L)
    if with_logits:
        with _one_pass(model):
            points = embedder(model, input_ids, mask)
            logits = classify(model, input_ids, mask)
    else:
        points, logits = embedder(model, input_ids, mask), None
    shape = getattr(points, "shape", None)
    if not isinstance(points, Tensor) or points.ndim != 2 or len(points) != len(batch):
        raise ValueError(
            f"expected the embedder to return points of shape ({len(batch)}, D), "
            f"got {tuple(shape) if shape is not None else type(points).__name__}"
        )
    return Observation(points.detach(), logits)


def classify(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """``(b, k)`` float32 logits of a classifier.

    Raises:
        ValueError: the model gives no logits, or not one row of two or more a text.
    """
    output = model(input_ids=input_ids, attention_mask=attention_mask)
    logits = output.get("logits") if hasattr(output, "get") else getattr(output, "logits", output)
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or shape[0] != len(input_ids) or shape[1] < 2:
        raise ValueError(
            f"expected a classifier with logits of shape ({len(input_ids)}, k) for k >= 2 classes, "
            f"got {shape or 'none'} from {type(model).__name__}; a criterion on predictions needs "
            "them, one on embeddings, as 'separability', does not"
        )
    return logits.detach().float()


@contextmanager
def _one_pass(model: nn.Module) -> Iterator[None]:
    """Within, the backbone runs once: a second call gets the output of the first."""
    body: Any = _backbone(model)
    if body is model:  # no head to be reached without it: it runs twice
        yield
        return
    forward, own = body.forward, vars(body).get("forward")
    outputs: list[Any] = []

    @functools.wraps(forward)  # its signature is looked at
    def once(*args: Any, **kwargs: Any) -> Any:
        if not outputs:
            outputs.append(forward(*args, **kwargs))
        return outputs[0]

    body.forward = once
    try:
        yield
    finally:
        del body.forward
        if own is not None:
            body.forward = own
