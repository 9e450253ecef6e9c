"""Entropies of predicted probabilities: by hand and against a loop."""

import math

import numpy as np
import pytest
import torch
from clouds import log, normal
from scipy.stats import entropy

from sepstop.criteria.predictions import infomax, negative_entropy, self_consistency


def test_predictions_by_hand():
    logits = log([1.0, 1e-30], [0.5, 0.5])
    half = math.log(2)
    assert negative_entropy(logits).item() == pytest.approx(-half / 2)
    assert infomax(logits).item() == pytest.approx(entropy([0.75, 0.25]) - half / 2)
    assert self_consistency(logits).item() == pytest.approx(0.75)
    sure = log([1.0, 1e-30], [1e-30, 1.0])
    assert infomax(sure).item() == pytest.approx(math.log(2))  # the most there is


def test_predictions_are_those_of_a_loop():
    logits = normal(3, 11, 4) * 3
    for b, cloud in enumerate(logits.double().softmax(-1).numpy()):
        entropies = np.array([entropy(row) for row in cloud])
        assert negative_entropy(logits)[b].item() == pytest.approx(-entropies.mean())
        agree = [(np.outer(row, row) * np.eye(4)).sum() for row in cloud]
        assert self_consistency(logits)[b].item() == pytest.approx(np.mean(agree))
        expected = entropy(cloud.mean(0)) - entropies.mean()
        assert infomax(logits)[b].item() == pytest.approx(expected)


def test_scores_are_float64_whatever_the_logits_are():
    logits = normal(2, 5, 3)
    for score in (infomax, negative_entropy, self_consistency):
        assert score(logits.half()).dtype == score(logits).dtype == torch.float64
