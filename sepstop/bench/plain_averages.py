"""Averages of weights that need no pool: the references for a label-free choice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

_EMA_DECAYS = (0.99, 0.999)
_LAST = (3, 5)


class PlainAverages:
    """Averages that are fixed before the run: of checkpoints, exponential, bias-corrected.

    Args:
        model: before training, on its device.

    References:
        BEMA: arXiv:2508.00180, with the constants of TRL's ``BEMACallback``, updated at each step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = [weight.data for weight in model.parameters() if weight.requires_grad]
        self._start = self._copied()
        self._ema = {decay: self._copied() for decay in _EMA_DECAYS}
        self._bema = self._copied()
        self._sum = [torch.zeros_like(weight) for weight in self._weights]
        self._checkpoints: deque[list[Tensor]] = deque(maxlen=max(_LAST))
        self._steps, self._count = 0, 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the model's weights after an optimizer step."""
        self._steps += 1
        for decay, average in self._ema.items():
            # The usual warm-up: until then the average would hold mostly the first weights.
            share = 1 - min(decay, (1 + self._steps) / (10 + self._steps))
            torch._foreach_lerp_(average, self._weights, share)
        torch._foreach_lerp_(self._bema, self._weights, (10 + self._steps) ** -0.5)

    @torch.no_grad()
    def add_checkpoint(self) -> None:
        """Add the model's weights at an evaluation."""
        self._count += 1
        torch._foreach_add_(self._sum, self._weights)
        self._checkpoints.append(self._copied())

    def results(self, evaluate: Callable[[], float]) -> Iterator[tuple[str, float]]:
        """Name and accuracy of each average; the model ends with the weights of the last step.

        Args:
            evaluate: the test accuracy of the model as it is.
        """
        last = self._copied()
        try:
            for name, weights in self._all(last):
                self._put(weights)
                yield name, evaluate()
        finally:
            self._put(last)

    def _all(self, last: list[Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
        yield "average of all", [total / self._count for total in self._sum]
        for count in _LAST:
            kept = list(self._checkpoints)[-count:]
            means = [torch.stack(weights).mean(0) for weights in zip(*kept, strict=True)]
            yield f"average of last {count}", means
        for decay, average in self._ema.items():
            yield f"EMA {decay}", average
        scale = (10 + self._steps) ** -0.2
        corrected = zip(self._bema, last, self._start, strict=True)
        yield "BEMA", [ema + scale * (now - start) for ema, now, start in corrected]

    def _copied(self) -> list[Tensor]:
        return [weight.clone() for weight in self._weights]

    def _put(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(self._weights, weights)
