"""Next-token probabilities of a causal language model, at the tokens that are needed."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sepstop.measure.backbone import backbone, is_causal_lm, is_sharded, pretrained, unwrapped

_POSITIONS = 512  # with logits over the vocabulary at a time
_CALLS = 16  # of a divided model


def check_causal(model: nn.Module, wanted: str) -> None:
    """
    Args:
        wanted: what needs such a model, for the message.

    Raises:
        ValueError: the model is not a causal language model.
    """
    if not is_causal_lm(model):
        raise ValueError(
            f"{wanted} is for causal language models, such as LlamaForCausalLM, got "
            f"{type(pretrained(model)).__name__}"
        )


def options_for_last(model: nn.Module, count: int) -> dict[str, Any]:
    """The option of a forward pass that makes logits at the last ``count`` tokens only."""
    forward = inspect.signature(pretrained(model).forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in forward else {}


def last_log_probabilities(output: Any, count: int) -> Tensor:
    """``(b, count, V)`` float32 log-probabilities after each of the last tokens.

    Args:
        output: of a causal language model, with logits at the last ``count`` tokens at least.

    Raises:
        ValueError: it has no logits over the vocabulary.
    """
    logits: Any = getattr(output, "logits", None)
    _check_logits(logits, output)
    found: Tensor = logits
    return found[:, -count:].float().log_softmax(dim=-1)


@torch.no_grad()
def token_losses(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **inputs: Any
) -> Tensor:
    """Cross-entropy of each text's tokens, given those before them.

    Logits over the vocabulary are made at 512 positions at a time, so the backbone has to be kept
    from running again: see `sepstop.measure.embedding.observe`.

    Args:
        model: a causal language model; may be wrapped.
        input_ids: ``(b, L)`` int64 token ids, padded on either side.
        attention_mask: ``(b, L)`` int64: 1 for tokens, 0 for padding.
        **inputs: other inputs of the model.

    Returns:
        ``(b, 2)`` float32 on the model's device: for each text the sum in nats, and the number of
        tokens in it, which is one less than the text has.

    Raises:
        ValueError: the model returns no logits over the vocabulary.
    """
    body = unwrapped(model)  # DDP's own forward waits for the other ranks, to sync buffers
    rows, length = input_ids.shape
    given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
    in_parts = bool(options_for_last(body, 1)) and backbone(model) is not model
    found = torch.zeros(rows, 2, device=input_ids.device)
    for part in _parts(length - 1, rows, model) if in_parts else [range(length - 1)]:
        places = torch.tensor(part, device=input_ids.device)
        options = {"logits_to_keep": places} if in_parts else {}
        logits: Any = getattr(body(**given, use_cache=False, **options), "logits", None)
        _check_logits(logits, body)
        kept = logits if in_parts else logits[:, places]  # (b, p, V)
        wanted = input_ids[:, places + 1]
        losses = nn.functional.cross_entropy(
            kept.flatten(0, 1).float(), wanted.flatten(), reduction="none"
        ).view_as(wanted)  # (b, p)
        is_token = (attention_mask[:, places] * attention_mask[:, places + 1]).bool()
        found[:, 0] += losses.masked_fill(~is_token, 0).sum(dim=1)
        found[:, 1] += is_token.sum(dim=1)
    return found


def _parts(positions: int, rows: int, model: nn.Module) -> list[range]:
    """Positions to make logits at, a call of the model each.

    The ranks of a model that is divided have to make the same number of calls, whatever the
    lengths of their texts; the last of them may have nothing to do.
    """
    size = max(1, _POSITIONS // rows)
    if not is_sharded(model):
        return [range(at, min(at + size, positions)) for at in range(0, positions, size)]
    size = -(-positions // _CALLS)
    return [
        range(min(at * size, positions), min((at + 1) * size, positions)) for at in range(_CALLS)
    ]


def _check_logits(logits: Any, model: Any) -> None:
    """
    Raises:
        ValueError: no logits over the vocabulary.
    """
    if getattr(logits, "ndim", 0) != 3:
        raise ValueError(
            f"expected logits over the vocabulary from a causal language model, got none from "
            f"{type(model).__name__}"
        )
