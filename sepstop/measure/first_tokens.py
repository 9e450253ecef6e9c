"""What a model says first, for prompts whose answers are unknown: groups of next tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sepstop.measure.backbone import unwrapped
from sepstop.measure.embedding import Observation
from sepstop.measure.language_model import last_log_probabilities, options_for_last

MOST_LIKELY = 64
"""Next tokens that are kept of each prompt."""

_LEAST = 1e-12  # probability of a group that none of a prompt's most likely tokens is in


@torch.no_grad()
def first_tokens(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **inputs: Any
) -> Tensor:
    """Log-probabilities and ids of the `MOST_LIKELY` tokens after each prompt.

    `group` makes logits of them, once those of the whole pool are known.

    Args:
        model: a causal language model; may be wrapped.
        input_ids: ``(b, L)`` int64 token ids of the prompts, left-padded.
        attention_mask: ``(b, L)`` int64: 1 for tokens, 0 for padding.
        **inputs: ``position_ids``, if the model takes them.

    Returns:
        ``(b, 2 m)`` float32 on the model's device: m log-probabilities, the highest first, then the
        ids of their tokens, which float32 holds exactly up to 2**24.

    Raises:
        ValueError: the model returns no logits over the vocabulary.
    """
    body = unwrapped(model)  # DDP's own forward waits for the other ranks, to sync buffers
    output = body(
        input_ids=input_ids,
        attention_mask=attention_mask,
        use_cache=False,
        **options_for_last(body, 1),
        **inputs,
    )
    likely = last_log_probabilities(output, 1)[:, -1]
    values, ids = likely.topk(min(MOST_LIKELY, likely.shape[-1]), dim=-1)
    return torch.cat([values, ids.float()], dim=-1)


def group(seen: Observation, count: int) -> Observation:
    """The observation with groups of first tokens as classes.

    A group is one of the tokens that the model is most likely to say first over the whole pool, or
    all others together. So a model whose answers are unknown is scored by how it divides the pool
    among what it says.

    Args:
        seen: its logits, and corrupted logits if there are, are those of `first_tokens`.
        count: number of tokens with a group of their own.

    Returns:
        The same with logits ``(N, count + 1)``, from `grouped`.
    """
    if seen.logits is None:
        return seen
    tokens = frequent(seen.logits, count)
    corrupted = seen.corrupted_logits
    return seen._replace(
        logits=grouped(seen.logits, tokens),
        corrupted_logits=None if corrupted is None else grouped(corrupted, tokens),
    )


def frequent(first: Tensor, count: int) -> Tensor:
    """The tokens that the model is most likely to say first, over the whole pool.

    Args:
        first: ``(N, 2 m)`` float32, from `first_tokens`.
        count: at most this many.

    Returns:
        Their ids, ``(count,)`` int64 on the same device, in descending order of their mean
        probability; of equals, the lower id first.

    >>> first = torch.tensor([[0.9, 0.1, 7, 5], [0.6, 0.4, 7, 5]])
    >>> first[:, :2] = first[:, :2].log()
    >>> frequent(first, count=1)
    tensor([7])
    """
    likely, ids = first.chunk(2, dim=-1)
    tokens, places = ids.long().unique(return_inverse=True)
    total = torch.zeros(len(tokens), device=first.device)
    total.index_add_(0, places.flatten(), likely.exp().flatten())
    order = total.argsort(descending=True, stable=True)[:count]
    return tokens[order]


def grouped(first: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each of these tokens, and of all others together, after each prompt.

    Args:
        first: ``(N, 2 m)`` float32, from `first_tokens`.
        tokens: ``(k,)`` int64 ids on the same device.

    Returns:
        ``(N, k + 1)`` float32 on the same device. A token that is not among the m most likely of a
        prompt has a probability of 1e-12.

    >>> first = torch.tensor([[0.9, 0.1, 7, 5], [0.6, 0.4, 7, 5]])
    >>> first[:, :2] = first[:, :2].log()
    >>> grouped(first, torch.tensor([7])).exp()
    tensor([[0.9000, 0.1000],
            [0.6000, 0.4000]])
    """
    likely, ids = first.chunk(2, dim=-1)
    shares = [(likely.exp() * (ids == token)).sum(dim=-1) for token in tokens]  # (N,) each
    found = torch.stack([*shares, 1 - sum(shares)], dim=-1)
    return found.clamp(min=_LEAST).log()
