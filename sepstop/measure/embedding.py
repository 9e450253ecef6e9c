"""The forward pass over the pool: points and logits, with the model left as it was."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import torch
from accelerate.state import AcceleratorState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from sepstop.config import Precision
from sepstop.measure.backbone import backbone, is_cross_encoder, pretrained, unwrapped
from sepstop.measure.language_model import token_losses
from sepstop.measure.pooling import AutoPooling, check_pooling
from sepstop.measure.token_checks import padding_id
from sepstop.measure.tokens import Tokens
from sepstop.measure.untouched import untouched
from sepstop.types import Outputs, Pooling

Head = Callable[..., Tensor]
"""Computes ``(b, k)`` float32 logits, with the arguments of `classify`."""

TOKENS_IN_A_BATCH: Final = {"cpu": 2048, "cuda": 16384}
"""Type of device -> tokens in a forward pass. Other accelerators take those of "cuda"."""

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Observation(NamedTuple):
    """Points and logits of N texts, in the order of the texts, on the model's device.

    Attributes:
        points: ``(N, D)`` embeddings; float32 with the poolings of `POOLINGS`, any float dtype
            with a pooling function of the user's own.
        logits: ``(N, k)`` float32 logits of the model's head; None if not computed.
        corrupted_logits: ``(N, k)`` float32 logits of the texts with a share of `DROP_RATE` of
            their tokens dropped; None if not computed.
        outputs: what the logits stand for; None if the model does not declare it. Without
            meaning if there are no logits.
        token_losses: ``(N, 2)`` float32 from `sepstop.measure.language_model.token_losses`; None if
            not computed.
    """

    points: Tensor
    logits: Tensor | None = None
    corrupted_logits: Tensor | None = None
    outputs: Outputs | None = "classes"
    token_losses: Tensor | None = None

    @property
    def classes(self) -> Tensor | None:
        """``(N,)`` int64 predicted classes; None unless the outputs are one class out of k."""
        if self.logits is None or self.outputs != "classes":
            return None
        return self.logits.argmax(dim=-1)

    def cpu(self) -> Observation:
        """A copy with its tensors on the CPU."""
        tensors: dict[str, Any] = {
            name: part.cpu() for name, part in self._asdict().items() if isinstance(part, Tensor)
        }
        return self._replace(**tensors)


@dataclass(frozen=True)
class Batching:
    """How texts are grouped and computed in a forward pass.

    Attributes:
        size: texts per batch. None takes as many as have `tokens` tokens, padding included, and
            one at least.
        tokens: see `size`. None is `TOKENS_IN_A_BATCH` of the model's device.
        padding: True pads texts of different lengths in a batch; False puts only texts of one
            length in a batch.
        precision: autocast precision; "no" keeps the caller's autocast, if any.
    """

    size: int | None = None
    tokens: int | None = None
    padding: bool = True
    precision: Precision = "no"

    def on(self, device: torch.device) -> Batching:
        """The same, with as many tokens as suit a device unless they are given."""
        suits = TOKENS_IN_A_BATCH.get(device.type, TOKENS_IN_A_BATCH["cuda"])
        return self if self.tokens else replace(self, tokens=suits)

    def texts(self, length: int) -> int:
        """Number of texts of this length in a batch, once its number of tokens is known."""
        return self.size or max(1, (self.tokens or 0) // max(1, length))

    def halved(self, texts: int, length: int) -> Batching:
        """Batches of half as many texts as those, of this length, that memory did not hold."""
        half = texts // 2
        return replace(self, size=half) if self.size else replace(self, tokens=half * length)


def embed(
    model: nn.Module,
    tokens: Tokens | Sequence[Tensor],
    pooling: Pooling,
    batch_size: int | None = None,
) -> Tensor:
    """Points of the tokenized texts: `observe` without logits.

    Args:
        model, tokens, pooling: as in `observe`.
        batch_size: texts per batch. Default: as many as suit the device.

    Returns:
        ``(N, D)`` float on the model's device.
    """
    return observe(model, tokens, pooling, Batching(batch_size)).points


def observe(
    model: nn.Module,
    tokens: Tokens | Sequence[Tensor],
    pooling: Pooling,
    batching: Batching = Batching(),  # frozen
    *,
    with_logits: bool = False,
    with_losses: bool = False,
    head: Head | None = None,
    progress: bool = False,
    on_smaller_batch: Callable[[Batching], None] | None = None,
) -> Observation:
    """Points of the tokenized texts and, on request, logits from the same forward pass.

    Texts of similar length share a batch. If the device runs out of memory, the batch is halved
    and tried again.

    Args:
        model: on its device; its weights, modes and buffers and the random states are unchanged
            afterwards.
        tokens: `Tokens`, or one ``(length,)`` int64 tensor per text.
        pooling: computes the points of a batch.
        batching: batch size, padding and precision.
        with_logits: compute logits as well.
        with_losses: compute the losses of a language model as well.
        head: computes the logits. Default: `classify`.
        progress: show a progress bar.
        on_smaller_batch: called with the new batching after each halving.

    Returns:
        `Observation` without corrupted logits.

    Raises:
        ValueError: the pooling did not return ``(b, D)`` points, or the model did not return
            ``(b, k)`` logits, or logits over the vocabulary for the losses.
    """
    if not isinstance(tokens, Tokens):
        tokens = Tokens(tokens)
    tokens = replace(tokens, pad_token_id=padding_id(tokens, model))
    device = next(model.parameters()).device
    order = sorted(range(len(tokens)), key=lambda index: len(tokens.ids[index]), reverse=True)
    parts: list[Observation] = []
    with (
        untouched(model),
        _autocast(device, batching.precision),
        tqdm(total=len(order), desc="pool", unit="text", leave=False, disable=not progress) as bar,
    ):
        for part in _batches(
            lambda batch: _observe_batch(
                model, batch, pooling, head or classify, with_logits, with_losses
            ),
            tokens.at(order),
            batching.on(device),
            on_smaller_batch,
        ):
            parts.append(part)
            bar.update(len(part.points))
    inverse = torch.tensor(order).argsort().to(device)

    def joined(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else torch.cat(found)[inverse]

    return Observation(joined("points"), joined("logits"), token_losses=joined("token_losses"))


def _batches(
    observe_batch: Callable[[Tokens], Observation],
    tokens: Tokens,
    batching: Batching,
    on_smaller_batch: Callable[[Batching], None] | None,
) -> Iterator[Observation]:
    """The observation of each batch; batches are halved when memory runs out.

    Args:
        tokens: sorted by length, the longest text first.
    """
    lengths = [len(ids) for ids in tokens.ids]
    start = 0
    while start < len(tokens):
        indices = range(start, min(start + batching.texts(lengths[start]), len(tokens)))
        if not batching.padding:
            indices = range(start, start + sum(lengths[i] == lengths[start] for i in indices))
        try:
            part = observe_batch(tokens.at(indices))
        except RuntimeError as error:
            is_full = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
            if len(indices) == 1 or not is_full:
                raise
            batching = batching.halved(len(indices), lengths[start])
            if on_smaller_batch is not None:
                on_smaller_batch(batching)
            clear_device_cache()
            continue
        start += len(indices)
        yield part


def _observe_batch(
    model: nn.Module,
    batch: Tokens,
    pooling: Pooling,
    head: Head,
    with_logits: bool,
    with_losses: bool,
) -> Observation:
    input_ids, mask, inputs = padded(batch, model)
    check_pooling(pooling, inputs)
    prompt = {}
    if batch.prompt_length and isinstance(pooling, AutoPooling):
        prompt["prompt_length"] = batch.prompt_length
    logits = losses = None
    keeps_cache = with_logits and getattr(head, "keeps_cache", False)
    with _one_pass(model, keeps_cache) if with_logits or with_losses else nullcontext():
        points = pooling(model, input_ids, mask, **inputs, **prompt)
        if with_logits:
            logits = head(model, input_ids, mask, **inputs)
        if with_losses:
            losses = token_losses(model, input_ids, mask, **inputs)
    if not isinstance(points, Tensor) or points.ndim != 2 or len(points) != len(batch):
        shape = getattr(points, "shape", None)
        raise ValueError(
            f"expected points of shape ({len(batch)}, D) from the pooling function, "
            f"got {tuple(shape) if shape is not None else type(points).__name__}"
        )
    return Observation(points.detach(), logits, token_losses=losses)


def padded(batch: Tokens, model: nn.Module) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A batch for a model's forward pass: texts padded on the right, prompts on the left.

    Args:
        batch: b texts of at most L tokens.
        model: its device and the names of its inputs count.

    Returns:
        ``(b, L)`` int64 token ids, their mask, and the model's other inputs by name, on its device.
    """
    device, side = next(model.parameters()).device, "left" if batch.are_prompts else "right"
    input_ids = pad_sequence(list(batch.ids), True, batch.pad_token_id, padding_side=side)
    lengths = torch.tensor([len(ids) for ids in batch.ids])
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()  # (b, L)
    inputs: dict[str, Tensor] = {}
    if batch.are_prompts:
        mask = mask.flip(1)
        if "position_ids" in inspect.signature(pretrained(model).forward).parameters:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0).to(device)
    if batch.types is not None:
        types = pad_sequence(list(batch.types), batch_first=True, padding_value=batch.pad_type_id)
        inputs["token_type_ids"] = types.to(device)
    return input_ids.to(device), mask.to(device), inputs


def classify(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
    """Logits of the model's head.

    Args:
        model: a model with a head of any kind.
        input_ids: ``(b, L)`` int64 token ids on the model's device.
        attention_mask: ``(b, L)`` int64: 1 for tokens, 0 for padding.
        **inputs: other inputs of the model, such as ``token_type_ids``.

    Returns:
        ``(b, k)`` float32 on the model's device.

    Raises:
        ValueError: the model returns no logits, or not one row per text.
    """
    model = unwrapped(model)  # DDP's own forward waits for the other ranks, to sync buffers
    if is_cross_encoder(model):
        model = pretrained(model)
    output = model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
    logits = _find_logits(output)
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or shape[0] != len(input_ids) or shape[1] < 1:
        raise ValueError(
            f"expected logits of shape ({len(input_ids)}, k), got {shape or 'none'} from "
            f"{type(model).__name__}; a criterion on predictions needs logits, and so does a run "
            "whose first model had them; to do without, set outputs='none' and choose a criterion "
            "on embeddings, such as 'separability'"
        )
    return logits.detach().float()


def _find_logits(output: Any) -> Any:
    """The logits in a model's output.

    They are found by name. Otherwise the output itself is taken or, of a tuple, the first part if
    no other part has two dimensions.
    """
    if hasattr(output, "get"):
        return output.get("logits")
    if not isinstance(output, tuple) or hasattr(output, "logits"):
        return getattr(output, "logits", output)
    is_matrix = [getattr(part, "ndim", 0) == 2 for part in output]
    return output[0] if is_matrix[:1] == [True] and sum(is_matrix) == 1 else None


@contextmanager
def _one_pass(model: nn.Module, keeps_cache: bool = False) -> Iterator[None]:
    """Run the backbone once: its second call within returns the output of the first.

    A call that goes on from a key-value cache, or reads another number of tokens, is run.

    Args:
        keeps_cache: let the first call return its key-value cache if a later one asks for it.
    """
    body: Any = backbone(model)
    if body is model:  # the head cannot be called without the backbone, so the model runs twice
        yield
        return
    forward, own = body.forward, vars(body).get("forward")
    outputs: list[Any] = []

    @functools.wraps(forward)  # callers inspect its signature
    def once(*args: Any, **kwargs: Any) -> Any:
        read = _tokens_read(args, kwargs)
        if not outputs:
            more = {"use_cache": True} if keeps_cache else {}
            outputs.append((read, forward(*args, **kwargs | more)))
        (first, output), *_ = outputs
        is_again = read == first and kwargs.get("past_key_values") is None
        return output if is_again else forward(*args, **kwargs)

    body.forward = once
    try:
        yield
    finally:
        del body.forward
        if own is not None:
            body.forward = own


def _tokens_read(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Number of tokens of each text in a call of a backbone."""
    named = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args)
    return next(int(tensor.shape[1]) for tensor in named if isinstance(tensor, Tensor))


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Autocast in ``precision``; "no" leaves the caller's own autocast as it is."""
    if precision == "no":
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST_DTYPES[precision])


def training_precision(model: nn.Module) -> Precision:
    """Precision of the autocast that accelerate put around the model's forward pass.

    The autocast covers only calls of the outermost module, so a call of the backbone has to set it
    up again.
    """
    parts = [model, unwrapped(model), pretrained(model)]
    if not any("_original_forward" in vars(part) for part in parts):
        return "no"
    precision = str(AcceleratorState().mixed_precision)
    return precision if precision in _AUTOCAST_DTYPES else "no"  # type: ignore[return-value]
