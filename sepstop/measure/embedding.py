"""A model and the pool's tokens to points, leaving the model and the random state as they were."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from accelerate.state import AcceleratorState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool1d
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from sepstop.measure.backbone import (
    backbone,
    is_cross_encoder,
    is_sentence_transformer,
    pretrained,
    unwrapped,
)
from sepstop.measure.tokens import Tokens, valid_padding
from sepstop.measure.untouched import untouched
from sepstop.types import Embedder, Outputs

Precision = Literal["no", "bf16", "fp16"]
"""Of autocast, by accelerate's names."""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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

    def __call__(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **inputs: Any
    ) -> Tensor:
        length = attention_mask.shape[1]
        inputs.pop("prompt_length", None)  # for a SentenceTransformer's own pooling
        hidden = hidden_states(model, input_ids, attention_mask, self.layer, **inputs)
        # Soft prompts lengthen the sequence in front: the texts' own tokens are the last L.
        hidden = hidden[:, -length:].float()  # (b, L, D)
        if hidden.shape[1] < length:  # Funnel pools the sequence: a place has several tokens
            mask = adaptive_max_pool1d(attention_mask[:, None].float(), hidden.shape[1])
            attention_mask = mask[:, 0].long()
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

    def __call__(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **inputs: Any
    ) -> Tensor:
        body = unwrapped(model)
        if self.layer != -1 or not is_sentence_transformer(body):
            return super().__call__(model, input_ids, attention_mask, **inputs)
        features = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        if body.transformers_model is None:  # a StaticEmbedding takes texts end to end
            lengths = attention_mask.sum(dim=1)
            features["input_ids"] = input_ids[attention_mask.bool()]
            features["offsets"] = lengths.cumsum(dim=0) - lengths
        return body(features)["sentence_embedding"].float()


EMBEDDERS: dict[str, type] = {
    "auto": OwnPooling,
    "mean": MeanPooling,
    "cls": CLSToken,
    "last": LastToken,
}


def hidden_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, layer: int = -1, **inputs: Tensor
) -> Tensor:
    """Hidden states of one layer, ``(b, L, D)`` in the model's dtype.

    Args:
        **inputs: what else the model reads, as ``token_type_ids``.

    Raises:
        ValueError: the model's output has no hidden states, or not this layer.
    """
    body = backbone(model)
    options: dict[str, Any] = {"return_dict": True}
    if "use_cache" in inspect.signature(body.forward).parameters:
        options["use_cache"] = False
    if "logits_to_keep" in inspect.signature(body.forward).parameters:
        options["logits_to_keep"] = 1  # a causal language model's, of a whole vocabulary each
    wants_all = layer != -1 or body is model
    if wants_all:
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
        f"the outputs of {type(model).__name__} have no hidden states; pass your own embedder, "
        "a function (model, input_ids, attention_mask) -> points (b, D)"
    )


class Observation(NamedTuple):
    """What one pass over the texts gives, in their order, on the model's device.

    Attributes:
        points: ``(N, D)`` embeddings, float.
        logits: ``(N, k)`` of the model's head, float32, if they were asked for.
        corrupted_logits: ``(N, k)`` likewise, of the texts without `DROPPED` of their tokens.
        outputs: what the logits are, if there are any; None where the model does not say.
    """

    points: Tensor
    logits: Tensor | None = None
    corrupted_logits: Tensor | None = None
    outputs: Outputs | None = "classes"

    @property
    def classes(self) -> Tensor | None:
        """``(N,)`` int64 predicted classes; None if the outputs are not one class out of k."""
        if self.logits is None or self.outputs != "classes":
            return None
        return self.logits.argmax(dim=-1)

    def cpu(self) -> Observation:
        tensors: dict[str, Any] = {
            name: part.cpu() for name, part in self._asdict().items() if isinstance(part, Tensor)
        }
        return self._replace(**tensors)


@dataclass(frozen=True)
class Batching:
    """How texts are put through a model.

    Attributes:
        size: texts in a forward pass.
        padding: texts of different lengths share a batch, right-padded; else only those of one.
        precision: of autocast.
    """

    size: int = 64
    padding: bool = True
    precision: Precision = "no"


def embed(
    model: nn.Module,
    tokens: Tokens | Sequence[Tensor],
    embedder: Embedder,
    batch_size: int = 64,
) -> Tensor:
    """`observe` without logits: -> ``(N, D)`` float on the model's device."""
    return observe(model, tokens, embedder, Batching(batch_size)).points


def observe(
    model: nn.Module,
    tokens: Tokens | Sequence[Tensor],
    embedder: Embedder,
    batching: Batching = Batching(),  # frozen
    *,
    with_logits: bool = False,
    progress: bool = False,
    on_smaller: Callable[[int], None] | None = None,
) -> Observation:
    """Points of the tokenized texts, and their logits from the same forward pass.

    Texts of like length share a batch. When the device runs out of memory the batch is halved and
    tried again.

    Args:
        tokens: `Tokens`, or one ``(length,)`` int64 tensor a text.
        on_smaller: told the new batch size when it was halved.

    Raises:
        ValueError: the embedder returned something else than ``(b, D)`` floats, or the model
            something else than ``(b, k)`` logits.
    """
    if not isinstance(tokens, Tokens):
        tokens = Tokens(tokens)
    device = next(model.parameters()).device
    tokens = replace(tokens, pad_token_id=valid_padding(tokens, model))
    lengths = [len(ids) for ids in tokens.ids]
    order = sorted(range(len(tokens)), key=lengths.__getitem__, reverse=True)
    seen: list[Observation] = []
    size, done = batching.size, 0
    with (
        untouched(model),
        _autocast(device, batching.precision),
        tqdm(total=len(order), desc="pool", unit="text", leave=False, disable=not progress) as bar,
    ):
        while done < len(order):
            places = order[done : done + size]
            if not batching.padding:
                longest = lengths[places[0]]
                places = [place for place in places if lengths[place] == longest]
            try:
                seen.append(_observe_batch(model, tokens.at(places), embedder, with_logits))
            except RuntimeError as error:
                full = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
                if len(places) == 1 or not full:
                    raise
                size = len(places) // 2
                if on_smaller is not None:
                    on_smaller(size)
                clear_device_cache()
                continue
            done += len(places)
            bar.update(len(places))
    inverse = torch.empty(len(order), dtype=torch.long)
    inverse[torch.tensor(order)] = torch.arange(len(order))
    inverse = inverse.to(device)
    points = torch.cat([part.points for part in seen])[inverse]
    logits = [part.logits for part in seen if part.logits is not None]
    return Observation(points, torch.cat(logits)[inverse] if logits else None)


def _observe_batch(
    model: nn.Module, batch: Tokens, embedder: Embedder, with_logits: bool
) -> Observation:
    device = next(model.parameters()).device
    input_ids, mask, inputs = _padded(batch, device)
    check_embedder(embedder, inputs)
    prompt = {}
    if batch.prompt_length and isinstance(embedder, OwnPooling):
        prompt["prompt_length"] = batch.prompt_length
    logits = None
    with _one_pass(model) if with_logits else nullcontext():
        points = embedder(model, input_ids, mask, **inputs, **prompt)
        if with_logits:
            logits = classify(model, input_ids, mask, **inputs)
    shape = getattr(points, "shape", None)
    if not isinstance(points, Tensor) or points.ndim != 2 or len(points) != len(batch):
        raise ValueError(
            f"expected the embedder to return points of shape ({len(batch)}, D), "
            f"got {tuple(shape) if shape is not None else type(points).__name__}"
        )
    return Observation(points.detach(), logits)


def _padded(batch: Tokens, device: torch.device) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """``(b, L)`` ids and mask, right-padded, and what else the model reads."""
    input_ids = pad_sequence(list(batch.ids), batch_first=True, padding_value=batch.pad_token_id)
    lengths = torch.tensor([len(ids) for ids in batch.ids])
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    inputs: dict[str, Tensor] = {}
    if batch.types is not None:
        types = pad_sequence(list(batch.types), batch_first=True, padding_value=batch.pad_type_id)
        inputs["token_type_ids"] = types.to(device)
    return input_ids.to(device), mask.to(device), inputs


def check_embedder(embedder: Embedder, inputs: Collection[str]) -> None:
    """
    Raises:
        ValueError: the pool has more than the embedder takes.
    """
    if not inputs:
        return
    known = inspect.signature(embedder).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        return
    foreign = [name for name in inputs if name not in {parameter.name for parameter in known}]
    if foreign:
        raise ValueError(
            f"the texts of the pool have {', '.join(foreign)}, which your embedder does not take: "
            "give it **inputs and hand them to the model, or pass a pool without"
        )


def classify(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
    """``(b, k)`` float32 logits of the model's head.

    Raises:
        ValueError: the model gives no logits, or not one row a text.
    """
    model = unwrapped(model)  # DDP's own forward waits for the other ranks, to sync buffers
    if is_cross_encoder(model):
        model = pretrained(model)
    output = model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
    logits = _logits_in(output)
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or shape[0] != len(input_ids) or shape[1] < 1:
        raise ValueError(
            f"expected logits of shape ({len(input_ids)}, k), got {shape or 'none'} from "
            f"{type(model).__name__}; a criterion on predictions needs them, and so does a run "
            "whose first model had them; outputs='none' with a criterion on embeddings, as "
            "'separability', does not"
        )
    return logits.detach().float()


def _logits_in(output: Any) -> Any:
    """The logits by their name, or the output itself; of a tuple the first and only ``(b, k)``."""
    if hasattr(output, "get"):
        return output.get("logits")
    if not isinstance(output, tuple) or hasattr(output, "logits"):
        return getattr(output, "logits", output)
    flat = [getattr(part, "ndim", 0) == 2 for part in output]
    return output[0] if flat[:1] == [True] and sum(flat) == 1 else None


@contextmanager
def _one_pass(model: nn.Module) -> Iterator[None]:
    """Within, the backbone runs once: a second call gets the output of the first."""
    body: Any = backbone(model)
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


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The caller's own autocast stays where none is asked for."""
    if precision == "no":
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


def training_precision(model: nn.Module) -> Precision:
    """That of the autocast which accelerate put around the model's forward pass.

    It is around the outermost module only, so a pass over the backbone has to ask for it.
    """
    parts = [model, unwrapped(model), pretrained(model)]
    if not any("_original_forward" in vars(part) for part in parts):
        return "no"
    named = str(AcceleratorState().mixed_precision)
    return named if named in _AUTOCAST else "no"  # type: ignore[return-value]
