"""Scores of a classifier's predicted probabilities, by their entropy.

P is the softmax of the logits, one row per text; H is the entropy in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

ENOUGH_CONFIDENCE = 0.4
"""`confidence` from which on a model counts as `decided`, chosen on development runs."""


def negative_entropy(logits: Tensor) -> Tensor:
    """Confidence of the predictions: ``-mean H(P_i)``.

    Args:
        logits: ``(B, n, k)``, any float dtype, any device.

    Returns:
        ``(B,)`` float64 in nats, on the same device; from -log k (uniform) to 0 (certain).

    References:
        arXiv:2208.07360, Three New Validators and a Large-Scale Benchmark Ranking for Unsupervised
        Domain Adaptation; there the entropy validator.

    >>> negative_entropy(torch.zeros(1, 3, 2))  # undecided between two classes: -log 2
    tensor([-0.6931], dtype=torch.float64)
    """
    return -entropy(logits.double().softmax(dim=-1)).mean(dim=-1)


def infomax(logits: Tensor) -> Tensor:
    """Mutual information of text and predicted class: ``H(mean P) - mean H(P_i)``.

    It is high if each prediction is confident and all classes are in use.

    Args:
        logits: ``(B, n, k)``, any float dtype, any device.

    Returns:
        ``(B,)`` float64 in nats, on the same device; from 0 to log k.

    References:
        Krause, Perona & Gomes, Discriminative Clustering by Regularized Information
        Maximization, NIPS 2010.

    >>> certain = torch.tensor([[99.0, 0.0], [0.0, 99.0]])
    >>> infomax(torch.stack([certain, certain[[0, 0]]]))  # both classes, log 2; one class, 0
    tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    probabilities = logits.double().softmax(dim=-1)
    return entropy(probabilities.mean(dim=-2)) - entropy(probabilities).mean(dim=-1)


def self_consistency(logits: Tensor) -> Tensor:
    """Agreement of samples: the mean over texts of ``sum P_i^2``.

    It is the probability that two answers agree that are drawn for the same text, computed instead
    of sampled.

    Args:
        logits: ``(B, n, k)``, any float dtype, any device.

    Returns:
        ``(B,)`` float64, on the same device; from 1 / k (uniform) to 1 (certain).

    References:
        arXiv:2203.11171, Self-Consistency Improves Chain of Thought Reasoning in Language Models.

    >>> self_consistency(torch.zeros(1, 3, 2))  # undecided between two classes
    tensor([0.5000], dtype=torch.float64)
    """
    return logits.double().softmax(dim=-1).square().sum(dim=-1).mean(dim=-1)


def confidence(logits: Tensor) -> Tensor:
    """Lead of the predicted class over the second: the mean over texts of ``(p - q) / (p + q)``.

    p and q are the two largest probabilities of a text. The lead goes from 0, undecided between
    two classes, to 1. It does not depend on how many other classes share the rest, so a model that
    has learned many classes from labels that are often wrong is not called undecided.

    Args:
        logits: ``(B, n, k)``, any float dtype.

    Returns:
        ``(B,)`` float64, on the same device; 1 for a single class.

    >>> confidence(torch.tensor([[[0.6, 0.2, 0.1, 0.1]]]).log())
    tensor([0.5000], dtype=torch.float64)
    """
    if logits.shape[-1] == 1:
        return logits.new_ones(logits.shape[0], dtype=torch.float64)
    first, second = logits.double().topk(2, dim=-1).values.unbind(dim=-1)
    return ((first - second) / 2).tanh().mean(dim=-1)


def decided(logits: Tensor) -> Tensor:
    """How far a model has decided among its classes: `confidence` / `ENOUGH_CONFIDENCE`, squared.

    From `ENOUGH_CONFIDENCE` on it is 1: memorizing raises confidence as well.

    Args:
        logits: ``(B, n, k)``, any float dtype.

    Returns:
        ``(B,)`` float64 from 0 to 1, on the same device.
    """
    return (confidence(logits) / ENOUGH_CONFIDENCE).clamp(max=1) ** 2


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy over the last dimension, in nats: ``(..., k)`` -> ``(...)``."""
    return torch.special.entr(probabilities).sum(dim=-1)


@dataclass(frozen=True)
class NegativeEntropy:
    """`negative_entropy` as a criterion, for a model that predicts one class out of k."""

    name: ClassVar[str] = "entropy"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor) -> Tensor:
        """``(B, n, k)`` -> ``(B,)``; see `negative_entropy`."""
        return negative_entropy(logits)


@dataclass(frozen=True)
class InfoMax:
    """`infomax` as a criterion, for a model that predicts one class out of k."""

    name: ClassVar[str] = "infomax"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor) -> Tensor:
        """``(B, n, k)`` -> ``(B,)``; see `infomax`."""
        return infomax(logits)


@dataclass(frozen=True)
class SelfConsistency:
    """`self_consistency` as a criterion, for a model that predicts one class out of k."""

    name: ClassVar[str] = "self_consistency"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    outputs: ClassVar[str] = "classes"

    def __call__(self, logits: Tensor) -> Tensor:
        """``(B, n, k)`` -> ``(B,)``; see `self_consistency`."""
        return self_consistency(logits)
