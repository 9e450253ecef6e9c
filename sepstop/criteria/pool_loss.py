"""Loss of a language model on the pool, for continued pre-training on text of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


def pool_loss(token_losses: Tensor) -> Tensor:
    """Mean cross-entropy of the pool's tokens.

    In continued pre-training on text like the pool's, this is the validation loss: text is its own
    label. It says nothing about answers that the pool does not contain.

    Args:
        token_losses: ``(B, n, 2)``, any float dtype, any device: for each text the sum of the
            cross-entropies of its tokens, in nats, and their number.

    Returns:
        ``(B,)`` float64 in nats per token, on the same device. Lower is better.

    >>> import torch
    >>> pool_loss(torch.tensor([[[6.0, 2], [4.0, 3]]]))
    tensor([2.], dtype=torch.float64)
    """
    total, count = token_losses.double().sum(dim=-2).unbind(dim=-1)
    return total / count


@dataclass(frozen=True)
class PoolLoss:
    """`pool_loss` as a criterion, for a causal language model and a pool of texts."""

    name: ClassVar[str] = "pool_loss"
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("token_losses",)

    def __call__(self, token_losses: Tensor) -> Tensor:
        """``(B, n, 2)`` -> ``(B,)``; see `pool_loss`."""
        return pool_loss(token_losses)
