"""What a recorded run trains: a model that learns classes from the rows of a split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sepstop.bench.run_settings import RunSettings
from sepstop.finetune.lora import with_lora
from sepstop.measure.embedding import Observation
from sepstop.measure.tokens import Tokens

_RESET_LAYERS = 2


@dataclass(frozen=True)
class Split:
    """Token ids and labels of disjoint rows, by part.

    Attributes:
        tokens: the texts of "train", "pool", "validation", "test" and "corrupted", the pool's texts
            without 30 % of their tokens.
        labels: ``(rows,)`` of the first four; those of "train" have the run's noise.
        classes: number k of classes.
    """

    tokens: dict[str, Tokens]
    labels: dict[str, NDArray[np.int64]]
    classes: int


class Learner(nn.Module, ABC):
    """A model in training on the classes of a split."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    @abstractmethod
    def loss(self, split: Split, rows: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar.

        Args:
            rows: ``(b,)`` int64 indices of the training rows.
        """

    @abstractmethod
    def observe(self, tokens: Tokens) -> Observation:
        """Points and logits of N texts; the model is left as it was.

        Returns:
            The first k columns of the logits are those of the classes, float32. A learner may add
            others, for its `more_arrays`.
        """

    def more_arrays(self, split: Split, seen: dict[str, Observation]) -> dict[str, Any]:
        """Other arrays to record at an evaluation, by name.

        Args:
            seen: the observation of each part that was evaluated.
        """
        return {}


def prepare(backbone: Any, settings: RunSettings) -> nn.Module:
    """The backbone at the start of the run."""
    if settings.start == "head":
        backbone.requires_grad_(False)
    if settings.start == "reset":
        lists = [list(m) for m in backbone.modules() if isinstance(m, nn.ModuleList)]
        for layer in max(lists, key=len)[-_RESET_LAYERS:]:
            layer.apply(_reset)
    if settings.start == "lora":
        lora = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
        return with_lora(backbone, lora)
    return backbone


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()


def as_tensors(rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """A ``(length,)`` int64 tensor for each row of token ids."""
    return [torch.tensor(row, dtype=torch.long) for row in rows]
