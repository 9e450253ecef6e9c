"""Next-token probabilities of a causal language model, at the tokens that are needed."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from sepstop.measure.backbone import is_causal_lm, pretrained


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
    if getattr(logits, "ndim", 0) != 3:
        raise ValueError(
            f"expected logits over the vocabulary from a causal language model, got "
            f"{type(output).__name__}"
        )
    found: Tensor = logits
    return found[:, -count:].float().log_softmax(dim=-1)
