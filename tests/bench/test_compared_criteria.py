"""Criteria for comparison: by hand and against naive versions."""

import math

import numpy as np
import pytest
import torch
from clouds import directions, log, normal, one_hot_logits
from scipy.stats import entropy
from sklearn.metrics import silhouette_score

from sepstop.bench.criteria import COMPARED
from sepstop.bench.criteria.clusters import kmeans_calinski_harabasz, kmeans_silhouette
from sepstop.bench.criteria.components import cluster_entropy, cluster_information
from sepstop.bench.criteria.persistence import total_persistence
from sepstop.bench.criteria.predictions import bnm, churn, snd
from sepstop.bench.criteria.spectrum import (
    alpha_req,
    coherence,
    nesum,
    rankme,
    self_clustering,
    stable_rank,
)


def diagonal(*values):
    """Points whose singular values are these, of one cloud."""
    return torch.diag(torch.tensor(values))[None]


def test_rankme_of_equal_singular_values_is_their_number():
    assert rankme(diagonal(2.0, 2.0, 2.0, 0.0)).item() == pytest.approx(3)
    assert rankme(diagonal(1.0, 0.0)).item() == pytest.approx(1)
    # p = 1/4, 3/4
    expected = math.exp(entropy([0.25, 0.75]))
    assert rankme(diagonal(1.0, 3.0)).item() == pytest.approx(expected)


def test_alpha_req_of_a_power_law_is_its_exponent():
    # Orthogonal columns of mean zero, so that the covariance is diagonal: variances i^-1.5.
    signs = torch.tensor([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])
    points = signs * torch.arange(1, 4) ** -0.75
    assert alpha_req(points[None]).item() == pytest.approx(1.5, abs=1e-6)
    assert math.isnan(alpha_req(torch.tensor([[[0.0, 1], [0, 2], [0, 3]]])).item())


def test_nesum_and_stable_rank():
    signs = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    points = (signs * torch.tensor([3.0, 1.0]))[None]  # variances 9 : 1
    assert nesum(points).item() == pytest.approx(10 / 9)
    assert nesum(points + 5).item() == pytest.approx(10 / 9)  # centered
    assert stable_rank(points).item() == pytest.approx(10 / 9)
    assert stable_rank(diagonal(2.0, 1.0, 1.0)).item() == pytest.approx(6 / 4)


def test_self_clustering_is_one_for_one_direction():
    assert self_clustering(torch.ones(1, 7, 3)).item() == pytest.approx(1)
    # rows e1, e1, e2 in two dimensions: ||ZZ'||^2 = 5, E = 3 + 6/2 = 6, n^2 = 9
    points = torch.tensor([[[1.0, 0], [4, 0], [0, 2]]])
    assert self_clustering(points).item() == pytest.approx((5 - 6) / (9 - 6))


def test_coherence_is_largest_for_a_point_alone_in_its_direction():
    points = torch.tensor([[[1.0, 0], [1, 0], [1, 0], [0, 1]]])  # leverages 1/3, 1/3, 1/3, 1
    assert coherence(points).item() == pytest.approx(4 / 2)
    even = torch.tensor([[[1.0, 0], [0, 1], [1, 0], [0, 1]]])
    assert coherence(even).item() == pytest.approx(1)


def test_cluster_entropy_by_hand():
    # Three of one direction, three of another, one alone: at the best scale two components of
    # three in seven points.
    points = directions(0, 1, 2, 90, 91, 92, 200)
    expected = 2 * (3 / 7) * math.log(7 / 3)
    assert cluster_entropy(points, min_size=3).item() == pytest.approx(expected)
    blob = directions(0, 1, 2, 3, 4, 5, 200)
    assert cluster_entropy(blob, min_size=3).item() < expected / 2


def test_cluster_information_by_hand():
    points = directions(0, 1, 2, 90, 91, 92)
    matching = cluster_information(points, one_hot_logits(0, 0, 0, 1, 1, 1), min_size=3).item()
    assert matching == pytest.approx(math.log(2) + 1 / 12)
    crossing = cluster_information(points, one_hot_logits(0, 1, 0, 1, 0, 1), min_size=3).item()
    assert crossing < matching / 2


def test_predictions_by_hand():
    logits = log([1.0, 1e-30], [0.5, 0.5])
    sure = log([1.0, 1e-30], [1e-30, 1.0])
    assert bnm(sure).item() == pytest.approx(2)  # singular values 1 and 1
    assert bnm(log([1.0, 1e-30], [1.0, 1e-30])).item() == pytest.approx(math.sqrt(2))
    assert churn(sure, sure.flip(1)).item() == 1
    assert churn(logits, sure).item() == pytest.approx(0.5)


def test_snd_counts_neighbors():
    # Two pairs of equal predictions: each text has one neighbor, entropy 0.
    pairs = log([1.0, 1e-30], [1.0, 1e-30], [1e-30, 1.0], [1e-30, 1.0])
    assert snd(pairs).item() == pytest.approx(0, abs=1e-6)
    assert snd(torch.zeros(1, 5, 3)).item() == pytest.approx(math.log(4))  # all alike


def test_total_persistence_by_hand():
    points = torch.tensor([[[0.0], [1.0], [9.0], [10.0]]])  # deaths 1, 1, 8
    assert total_persistence(points).item() == pytest.approx(10)
    assert total_persistence(points, power=2).item() == pytest.approx(66)
    assert total_persistence(points.abs() + 1, normalize=True).item() == 0


def test_k_means_finds_clusters_that_are_far_apart():
    points = torch.cat([normal(20, 3), normal(20, 3, seed=1) + 50])[None]
    labels = [0] * 20 + [1] * 20
    expected = silhouette_score(points[0].numpy(), labels)
    assert kmeans_silhouette(points, 2).item() == pytest.approx(expected)
    assert kmeans_calinski_harabasz(points, 2) > 1000
    assert math.isnan(kmeans_silhouette(torch.ones(1, 9, 2), 2).item())  # one cluster only


def naive_spectrum(cloud):
    cloud = cloud.numpy().astype(float)
    n, d = cloud.shape
    u, sigma, _ = np.linalg.svd(cloud, full_matrices=False)
    eigenvalues = np.linalg.eigvalsh(np.cov(cloud.T))[::-1][: min(n - 1, d)]
    unit = cloud / np.linalg.norm(cloud, axis=1, keepdims=True)
    expected = n + n * (n - 1) / d
    slope = np.polyfit(np.log(np.arange(1, len(eigenvalues) + 1)), np.log(eigenvalues), 1)[0]
    return {
        rankme: math.exp(entropy(sigma / sigma.sum())),
        alpha_req: -slope,
        nesum: eigenvalues.sum() / eigenvalues[0],
        stable_rank: (cloud**2).sum() / sigma[0] ** 2,
        self_clustering: (((unit @ unit.T) ** 2).sum() - expected) / (n**2 - expected),
        coherence: n / d * (u**2).sum(axis=1).max(),
    }


@pytest.mark.parametrize("shape", [(3, 30, 5), (2, 8, 20), (2, 12, 12)])
def test_spectra_are_those_of_a_singular_value_decomposition(shape):
    points = normal(*shape) * torch.linspace(0.5, 2, shape[-1]) + 0.3
    expected = [naive_spectrum(cloud) for cloud in points]
    for criterion in expected[0]:
        values = [scores[criterion] for scores in expected]
        torch.testing.assert_close(
            criterion(points), torch.tensor(values, dtype=torch.float64), rtol=1e-5, atol=1e-6
        )


def test_predictions_are_those_of_a_loop():
    logits = normal(3, 11, 4) * 3
    for b, cloud in enumerate(logits.double().softmax(-1).numpy()):
        assert bnm(logits)[b].item() == pytest.approx(np.linalg.norm(cloud, "nuc"))
        densities = []
        for i, row in enumerate(cloud):
            others = np.delete(cloud, i, axis=0)
            cosines = others @ row / np.linalg.norm(others, axis=1) / np.linalg.norm(row)
            weights = np.exp(cosines / 0.05)
            densities.append(entropy(weights / weights.sum()))
        assert snd(logits)[b].item() == pytest.approx(np.mean(densities))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("snd", {"temperature": 0}, "expected `temperature` > 0, got 0"),
        ("silhouette", {"clusters": 1}, "expected `clusters` >= 2, got 1"),
        ("cluster_entropy", {"min_size": 1}, "expected `min_size` >= 2, got 1"),
        ("cluster_information", {"min_size": 0}, "expected `min_size` >= 2, got 0"),
    ],
)
def test_settings_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        COMPARED[name](**options)
