"""Scores of a classifier's predictions: their diversity, density and stability.

P is the softmax of the logits, one row per text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sepstop.criteria.predictions import entropy


def bnm(logits: Tensor) -> Tensor:
    """Nuclear norm of P: high for confident predictions that use all classes.

    Args:
        logits: ``(B, n, k)``, any float dtype, any device.

    Returns:
        ``(B,)`` float64, on the same device. It grows with the square root of n.

    References:
        arXiv:2003.12237, Batch Nuclear-norm Maximization.
    """
    return torch.linalg.svdvals(logits.double().softmax(dim=-1)).sum(dim=-1)


def snd(logits: Tensor, temperature: float = 0.05) -> Tensor:
    """Soft neighborhood density: mean entropy of each text's similarities to the other texts.

    Similarities are the cosines of the rows of P, normalized by a softmax.

    Args:
        logits: ``(B, n, k)``, any float dtype, any device.
        temperature: of the softmax over similarities; above 0.

    Returns:
        ``(B,)`` float64 in nats, on the same device; from 0 to log(n - 1).

    References:
        arXiv:2108.10860, Tune it the Right Way: Unsupervised Validation of Domain Adaptation via
        Soft Neighborhood Density.
    """
    rows = normalize(logits.double().softmax(dim=-1), dim=-1)
    similar = rows @ rows.mT / temperature  # (B, n, n)
    similar.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return entropy(similar.softmax(dim=-1)).mean(dim=-1)


def churn(logits: Tensor, previous_logits: Tensor) -> Tensor:
    """Share of texts whose predicted class changed since the previous evaluation.

    Args:
        logits, previous_logits: ``(B, n, k)``, any float dtype, on one device.

    Returns:
        ``(B,)`` float64, on the same device; from 0 to 1.

    References:
        arXiv:2502.07551, Early Stopping Against Label Noise Without Validation Data (Label Wave).
    """
    return (logits.argmax(dim=-1) != previous_logits.argmax(dim=-1)).double().mean(dim=-1)


@dataclass(frozen=True)
class BNM:
    """`bnm` as a criterion, for a model that predicts one class out of k."""

    name: ClassVar[str] = "bnm"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor) -> Tensor:
        """``(B, n, k)`` -> ``(B,)``; see `bnm`."""
        return bnm(logits)


@dataclass(frozen=True)
class SND:
    """`snd` as a criterion, for a model that predicts one class out of k.

    Args:
        temperature: as in `snd`.

    Raises:
        ValueError: ``temperature`` is not above 0.
    """

    temperature: float = 0.05
    name: ClassVar[str] = "snd"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    outputs: ClassVar[str] = "classes"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"expected `temperature` > 0, got {self.temperature}")

    def __call__(self, logits: Tensor) -> Tensor:
        """``(B, n, k)`` -> ``(B,)``; see `snd`."""
        return snd(logits, self.temperature)


@dataclass(frozen=True)
class Churn:
    """`churn` as a criterion, for a model that predicts one class out of k.

    The first evaluation has no score. Records do not keep predictions, so the first evaluation
    after a resume has none either.
    """

    name: ClassVar[str] = "churn"
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("logits", "previous_logits")
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor, previous_logits: Tensor) -> Tensor:
        """``(B, n, k)`` twice -> ``(B,)``; see `churn`."""
        return churn(logits, previous_logits)
