"""Scores of a classifier's predictions on the pool.

P is the softmax of the logits, one row a text; H the entropy in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sepstop.criteria.neighbor_mi import mutual_information


def _entropy(probabilities: Tensor) -> Tensor:
    """Over the last dimension."""
    return torch.special.entr(probabilities).sum(dim=-1)


def negative_entropy(logits: Tensor) -> Tensor:
    """``-mean H(P_i)``, at most 0: ``(B, n, k)`` -> ``(B,)``.

    References:
        The entropy validator of arXiv:2208.07360 (pytorch-adapt).
    """
    return -_entropy(logits.double().softmax(dim=-1)).mean(dim=-1)


def infomax(logits: Tensor) -> Tensor:
    """``H(mean P) - mean H(P_i)``: sure of each text, and all classes in use.

    The mutual information of text and predicted class, from 0 to log k:
    ``(B, n, k)`` -> ``(B,)``.

    References:
        Krause, Perona & Gomes, Discriminative Clustering by Regularized Information
        Maximization, NIPS 2010.
    """
    probabilities = logits.double().softmax(dim=-1)
    return _entropy(probabilities.mean(dim=-2)) - _entropy(probabilities).mean(dim=-1)


def bnm(logits: Tensor) -> Tensor:
    """Nuclear norm of P: ``(B, n, k)`` -> ``(B,)``. It grows with the root of n.

    References:
        arXiv:2003.12237, Batch Nuclear-norm Maximization.
    """
    return torch.linalg.svdvals(logits.double().softmax(dim=-1)).sum(dim=-1)


def snd(logits: Tensor, temperature: float = 0.05) -> Tensor:
    """Soft neighborhood density: mean entropy of each text's similarities to the others.

    Cosine similarities of the rows of P, each to the others only, softmax with the
    temperature: ``(B, n, k)`` -> ``(B,)``.

    References:
        arXiv:2108.10860, Tune it the Right Way.
    """
    rows = normalize(logits.double().softmax(dim=-1), dim=-1)
    similar = rows @ rows.mT / temperature  # (B, n, n)
    similar.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return _entropy(similar.softmax(dim=-1)).mean(dim=-1)


def churn(logits: Tensor, previous_logits: Tensor) -> Tensor:
    """Share of texts whose predicted class is another than before: ``(B, n, k)`` twice -> ``(B,)``.

    References:
        arXiv:2502.07551, Label Wave.
    """
    return (logits.argmax(dim=-1) != previous_logits.argmax(dim=-1)).double().mean(dim=-1)


def consistency(logits: Tensor, corrupted_logits: Tensor) -> Tensor:
    """What the predicted class of a text tells about that of its corrupted copy, in nats.

    The mutual information of the two classes over the texts: high where all classes are in use
    and a prediction survives the loss of some words. Unlike `infomax` it is no matter of how sure
    the model is, which memorising wrong labels raises as well. Counting few texts of many
    classes finds information where there is none; the Miller-Madow term takes that off.

    ``(B, n, k)`` twice -> ``(B,)``.

    References:
        The objective of arXiv:1807.06653 (Invariant Information Clustering), on hard classes;
        Miller (1955), Note on the bias of information estimates.
    """
    first, second = logits.argmax(dim=-1), corrupted_logits.argmax(dim=-1)  # (B, n)
    return mutual_information(first, second, logits.shape[-1])


@dataclass(frozen=True)
class NegativeEntropy:
    """`negative_entropy` as a criterion."""

    name: ClassVar[str] = "entropy"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor) -> Tensor:
        return negative_entropy(logits)


@dataclass(frozen=True)
class InfoMax:
    """`infomax` as a criterion."""

    name: ClassVar[str] = "infomax"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor) -> Tensor:
        return infomax(logits)


@dataclass(frozen=True)
class BNM:
    """`bnm` as a criterion."""

    name: ClassVar[str] = "bnm"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor) -> Tensor:
        return bnm(logits)


@dataclass(frozen=True)
class SND:
    """`snd` as a criterion."""

    temperature: float = 0.05
    name: ClassVar[str] = "snd"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    outputs: ClassVar[str] = "classes"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"expected `temperature` > 0, got {self.temperature}")

    def __call__(self, logits: Tensor) -> Tensor:
        return snd(logits, self.temperature)


@dataclass(frozen=True)
class Churn:
    """`churn` since the evaluation before; the first evaluation has no score.

    What was predicted before is not part of a record, so the first evaluation after a resume has
    none either.
    """

    name: ClassVar[str] = "churn"
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("logits", "previous_logits")
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor, previous_logits: Tensor) -> Tensor:
        return churn(logits, previous_logits)


@dataclass(frozen=True)
class Consistency:
    """`consistency` as a criterion; it costs a second pass over the pool."""

    name: ClassVar[str] = "consistency"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits", "corrupted_logits")
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor, corrupted_logits: Tensor) -> Tensor:
        return consistency(logits, corrupted_logits)
