"""Each criterion against a case done by hand and a naive version from its definition."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score, silhouette_score

from sepstop.criteria import CRITERIA, INPUTS, label_mi
from sepstop.criteria.clusters import kmeans_calinski_harabasz, kmeans_silhouette
from sepstop.criteria.component_mi import (
    best_components,
    cluster_entropy,
    cluster_information,
    component_information,
)
from sepstop.criteria.label_mi import label_information
from sepstop.criteria.neighbor_mi import mutual_information, neighbor_information
from sepstop.criteria.persistence import total_persistence
from sepstop.criteria.predictions import (
    bnm,
    churn,
    consistency,
    infomax,
    negative_entropy,
    snd,
)
from sepstop.criteria.spectrum import (
    alpha_req,
    coherence,
    nesum,
    rankme,
    self_clustering,
    stable_rank,
)
from sepstop.measure.neighbors import NEIGHBORS, nearest_neighbors


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def diagonal(*values):
    """Points whose singular values are these, of one cloud."""
    return torch.diag(torch.tensor(values))[None]


# By hand


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


def directions(*degrees):
    """Unit points of the plane, one cloud."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=-1)[None]


def one_hot_logits(*classes):
    return torch.nn.functional.one_hot(torch.tensor(classes)).double()[None]


def informed(logits, *clouds, count=NEIGHBORS):
    """`neighbor_information` of one cloud of logits, its points at each evaluation so far."""
    classes = logits.argmax(dim=-1)
    near = torch.stack([nearest_neighbors(points, count) for points in clouds], dim=1)
    return neighbor_information(logits[None], classes[near][None]).item()


def shared(logits, points, count):
    """`mutual_information` of the classes of points and of their neighbours."""
    classes = logits.argmax(dim=-1)
    near = classes[nearest_neighbors(points, count)]
    return mutual_information(classes[None], near[None], logits.shape[-1]).item()


def test_information_of_neighbors_by_hand():
    # Nearest neighbours 0-1, 2-3: each of its own class, which tells log 2; cells 2, rows 2,
    # columns 2 give the correction of 1 / (2 * 4).
    points = directions(0, 1, 90, 91)[0]
    right, wrong = one_hot_logits(0, 0, 1, 1)[0], one_hot_logits(0, 1, 0, 1)[0]
    apart = shared(right, points, count=1)
    assert apart == pytest.approx(math.log(2) + 1 / 8)
    # Each neighbour of the other class tells as much; one class tells nothing.
    assert shared(wrong, points, count=1) == pytest.approx(apart)
    assert shared(torch.zeros(4, 2), points, count=1) == pytest.approx(0)
    # All three neighbours: one of the own class, two of the other. The joint shares are
    # 1/6, 1/3, 1/3, 1/6 and four cells give the correction of -1 / (2 * 4).
    shares = torch.tensor([1 / 6, 1 / 3, 1 / 3, 1 / 6], dtype=torch.float64)
    expected = 2 * math.log(2) - torch.special.entr(shares).sum().item() - 1 / 8
    assert expected < 0
    assert shared(right, points, count=3) == pytest.approx(expected)
    # As the criterion, no less than nothing, and first neighbours of four texts have no say.
    assert informed(right, points, count=3) == 0
    assert informed(right, points, count=1) == pytest.approx(math.sqrt(10 / 4 * apart))


def test_neighbors_of_before_and_of_all_evaluations_have_to_agree():
    classes = torch.arange(600) % 6
    logits = one_hot_logits(*classes.tolist())[0]
    mixed, apart = normal(1, 600, 6)[0], (torch.eye(6)[classes] * 50 + normal(1, 600, 6)[0])
    assert informed(logits, mixed) < 0.05
    whole = informed(logits, apart)
    assert whole == pytest.approx(math.log(6), abs=0.02)
    assert informed(logits, apart, mixed) == pytest.approx(whole * math.sqrt(1 / 2), rel=0.05)
    # What today's neighbours vouch for and those of the start know nothing of.
    first = informed(logits, mixed)
    later = informed(logits, mixed, apart, apart)
    assert first < 5 / 600  # what chance gives
    assert later == pytest.approx(math.sqrt(10 * 5 / 600 * (first + 2 * whole) / 3), abs=0.01)
    assert later < whole / 4


def test_information_of_neighbors_agrees_with_a_naive_version_whatever_the_length():
    points, logits = normal(60, 5), normal(60, 3, seed=1)
    points[:, 0] += 2 * logits.argmax(dim=-1)
    found = shared(logits, points * torch.rand(60, 1).add(0.5), count=1)
    unit = torch.nn.functional.normalize(points, dim=-1)
    near = torch.cdist(unit, unit).fill_diagonal_(torch.inf).argmin(dim=1)
    row = logits.argmax(dim=-1)
    pairs = len(set(zip(row.tolist(), row[near].tolist(), strict=True)))
    bias = (pairs - len(set(row.tolist())) - len(set(row[near].tolist())) + 1) / 120
    expected = mutual_info_score(row, row[near]) - bias
    assert expected > 0.01
    assert found == pytest.approx(expected, abs=1e-6)


def yes(*labels):
    """``(n, k)`` logits of k labels, each 0 or 1 for n texts."""
    return 2 * torch.tensor(labels).double().T - 1


def test_information_of_labels_by_hand():
    # 40 texts in a ring; the one neighbor of each is the next. Pairs of text and neighbor:
    #
    # label                        yes-yes  yes-no  no-yes  no-no   cells - rows - columns + 1
    # half: texts 0 to 19               19       1       1      19    4 - 2 - 2 + 1 =  1
    # every other                        0      20      20       0    2 - 2 - 2 + 1 = -1
    # four in a row, four without       15       5       5      15    4 - 2 - 2 + 1 =  1
    # all                               40       0       0       0    1 - 1 - 1 + 1 =  0
    half, other = [int(i < 20) for i in range(40)], [i % 2 for i in range(40)]
    four = [int(i % 8 < 4) for i in range(40)]
    logits = yes(half, other, four, [1] * 40)
    ring = (torch.arange(40) + 1) % 40

    def told(shared, lone, cells):
        table = [shared / 40, lone / 40, lone / 40, shared / 40]
        return 2 * math.log(2) - entropy(table) - cells / 80

    each = told(19, 1, 1), told(0, 20, -1), told(15, 5, 1), 0.0
    assert each[2] == pytest.approx(0.118, abs=1e-3)
    # What the first neighbors tell of the third is below the bound of 10 / 40.
    scores = each[0], each[1], math.sqrt(10 / 40 * each[2]), 0.0
    whole = torch.arange(40)[None]
    found = label_information(logits, ring[:, None, None], whole)
    assert found.tolist() == pytest.approx([sum(scores) / 4])
    # At a second evaluation the neighbor is the text across: of the other half, and of the other
    # four, but the same of every other. Each tells log 2, with two cells; all tells nothing.
    across = (torch.arange(40) + 20) % 40
    sure = math.log(2) + 1 / 80
    means = [(value + sure) / 2 for value in each[:3]]
    scores = [math.sqrt(max(first, 1 / 4) * mean) for first, mean in zip(each, means, strict=False)]
    near = torch.stack([ring, across], dim=1)[:, :, None]
    assert label_information(logits, near, whole).item() == pytest.approx(sum(scores) / 4)


def made_up(texts=60, count=7, evaluations=3):
    """Logits, neighbors that know something of the labels, and resamples."""
    points = normal(texts, 5)
    logits = points @ normal(5, count, seed=1) + normal(texts, count, seed=2)
    logits[:, 0] -= 9  # never
    clouds = [points + normal(texts, 5, seed=3 + step) for step in range(evaluations)]
    near = torch.stack([nearest_neighbors(cloud) for cloud in clouds], dim=1)
    order = [torch.randperm(texts, generator=torch.Generator().manual_seed(b)) for b in range(4)]
    return logits, near, torch.stack(order)[:, :40]


def test_information_of_labels_is_the_mean_of_that_of_each():
    logits, near, resamples = made_up()
    expected = []
    for chosen in resamples:
        each = []
        for label in (logits > 0).T.long():
            two = torch.nn.functional.one_hot(label, 2)[chosen][None]
            each.append(neighbor_information(two, label[near][chosen][None]).item())
        expected.append(sum(each) / len(each))
    assert min(expected) > 0.03
    assert label_information(logits, near, resamples).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("cells", [1, 60, 150])
def test_information_of_labels_is_the_same_whatever_is_held_at_once(cells, monkeypatch):
    logits, near, resamples = made_up()
    expected = label_information(logits, near, resamples)
    for b in range(4):
        assert torch.equal(
            label_information(logits, near, resamples[b : b + 1]), expected[b : b + 1]
        )
    monkeypatch.setattr(label_mi, "_CELLS", cells)
    assert torch.equal(label_information(logits, near, resamples), expected)


def test_neither_the_order_nor_the_sense_of_labels_matters():
    logits, near, resamples = made_up()
    expected = label_information(logits, near, resamples)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    for other in (logits[:, order], -logits, logits * 9, logits.double()):
        torch.testing.assert_close(label_information(other, near, resamples), expected)


@pytest.mark.parametrize("texts", [2, 9, 40])
def test_labels_of_all_or_no_texts_tell_exactly_nothing(texts):
    """The bound for the first neighbors makes nothing of them, nor does rounding."""
    near = torch.randint(texts, (texts, 2, 3), generator=torch.Generator().manual_seed(0))
    whole = torch.arange(texts)[None]
    for logits in (torch.ones(texts, 3), -torch.ones(texts, 3), torch.zeros(texts, 1)):
        assert label_information(logits, near, whole).item() == 0
    # Nor one that is the same all over a resample, though some text beyond it has another.
    one = -torch.ones(texts, 1)
    one[0] = 1
    assert label_information(one, near, whole[:, 1:]).item() == 0


def test_cluster_entropy_by_hand():
    # Three of one direction, three of another, one alone: at the best scale two components of
    # three in seven points.
    points = directions(0, 1, 2, 90, 91, 92, 200)
    expected = 2 * (3 / 7) * math.log(7 / 3)
    assert cluster_entropy(points, least=3).item() == pytest.approx(expected)
    blob = directions(0, 1, 2, 3, 4, 5, 200)
    assert cluster_entropy(blob, least=3).item() < expected / 2


def test_component_information_by_hand():
    """Two clumps of five and one point alone; its neighbours are the next in a ring."""
    clumps = (range(0, 10, 2), range(90, 100, 2))
    points = directions(*clumps[0], *clumps[1], 200)[0]
    ring = torch.tensor([1, 2, 3, 4, 0, 6, 7, 8, 9, 5, 9])[:, None, None]  # (N, 1, 1)
    all_ = torch.arange(11)[None]
    # Components 1, 2 and the rest; of the neighbours 1 and 2 alone.
    parts = torch.tensor([5, 5, 1]) / 11, torch.tensor([5, 6]) / 11, torch.tensor([5, 5, 1]) / 11
    rows, columns, both = (entropy(part) for part in parts)
    expected = rows + columns - both - (3 - 3 - 2 + 1) / 22
    assert component_information(points, ring, all_, least=5).item() == pytest.approx(expected)
    # That at which the one clump is a component tells as much, and rounding decides.
    best = best_components(points, ring, least=5).tolist()
    assert best in ([1] * 5 + [2] * 5 + [0], [1] * 5 + [0] * 6)
    # With neighbours across the clumps it tells as much; of any clump at random, less.
    torn = torch.tensor([5, 1, 6, 2, 7, 0, 8, 3, 9, 4, 9])[:, None, None]
    less = component_information(points, torn, all_, least=5).item()
    assert less < expected / 2
    # The mean over evaluations; a component has to have its least number of points.
    both_ = torch.cat([ring, torn], dim=1)
    mean = component_information(points, both_, all_, least=5).item()
    assert mean == pytest.approx((expected + less) / 2)
    assert component_information(points, ring, all_, least=6).item() < 0.2


def test_component_information_of_resamples_is_at_the_scale_of_the_pool():
    centres = torch.eye(6).repeat_interleave(100, dim=0) * 9
    points = centres + normal(1, 600, 6)[0] / 3
    near = nearest_neighbors(points)[:, None]
    resamples = torch.stack([torch.randperm(600)[:300] for _ in range(4)])
    found = component_information(points, near, resamples)
    assert found.shape == (4,)
    assert found.tolist() == pytest.approx([math.log(6)] * 4, abs=0.06)
    unrelated = nearest_neighbors(normal(1, 600, 6, seed=1)[0])[:, None]
    assert component_information(points, unrelated, resamples).max() < 0.1
    blob = normal(1, 600, 6, seed=2)[0]
    assert component_information(blob, near, resamples).max() < found.min() / 4


def test_cluster_information_by_hand():
    points = directions(0, 1, 2, 90, 91, 92)
    matching = cluster_information(points, one_hot_logits(0, 0, 0, 1, 1, 1), least=3).item()
    assert matching == pytest.approx(math.log(2) + 1 / 12)
    crossing = cluster_information(points, one_hot_logits(0, 1, 0, 1, 0, 1), least=3).item()
    assert crossing < matching / 2


def test_nesum_and_stable_rank():
    signs = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    points = (signs * torch.tensor([3.0, 1.0]))[None]  # variances 9 : 1
    assert nesum(points).item() == pytest.approx(10 / 9)
    assert nesum(points + 5).item() == pytest.approx(10 / 9)  # centred
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


def log(*rows):
    return torch.tensor(rows).log()[None]


def test_predictions_by_hand():
    logits = log([1.0, 1e-30], [0.5, 0.5])
    half = math.log(2)
    assert negative_entropy(logits).item() == pytest.approx(-half / 2)
    assert infomax(logits).item() == pytest.approx(entropy([0.75, 0.25]) - half / 2)
    sure = log([1.0, 1e-30], [1e-30, 1.0])
    assert infomax(sure).item() == pytest.approx(math.log(2))  # the most there is
    assert bnm(sure).item() == pytest.approx(2)  # singular values 1 and 1
    assert bnm(log([1.0, 1e-30], [1.0, 1e-30])).item() == pytest.approx(math.sqrt(2))
    assert churn(sure, sure.flip(1)).item() == 1
    assert churn(logits, sure).item() == pytest.approx(0.5)


def one_hot(*classes, count=2):
    return torch.eye(count)[torch.tensor(classes)][None]


def test_consistency_by_hand():
    same = one_hot(0, 0, 1, 1)
    # all four cells of margins 1/2: log 2 nats; 2 cells - 2 rows - 2 columns + 1 = -1
    assert consistency(same, same).item() == pytest.approx(math.log(2) + 1 / 8)
    # as good as independent: nothing, less (4 - 2 - 2 + 1) / 8
    assert consistency(same, one_hot(0, 1, 0, 1)).item() == pytest.approx(-1 / 8)
    # one class for everything tells nothing
    assert consistency(one_hot(1, 1, 1, 1), same).item() == pytest.approx(0)
    # how sure the model is does not matter
    assert consistency(9 * same, same).item() == consistency(same, same).item()


def test_consistency_of_chance_is_about_nothing_even_of_many_classes():
    first, second = normal(20, 500, 12), normal(20, 500, 12, seed=1)
    naive = [
        mutual_info_score(a, b)
        for a, b in zip(first.argmax(-1).numpy(), second.argmax(-1).numpy(), strict=True)
    ]
    assert np.mean(naive) > 0.1
    assert consistency(first, second).mean().item() == pytest.approx(0, abs=0.01)
    both = first[0].argmax(-1).numpy(), second[0].argmax(-1).numpy()
    cells = len(set(zip(*both, strict=True))) - 12 - 12 + 1
    expected = mutual_info_score(*both) - cells / 1000
    assert consistency(first, second)[0].item() == pytest.approx(expected)


def test_snd_counts_neighbours():
    # Two pairs of equal predictions: each text has one neighbour, entropy 0.
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


def test_weightwatcher_looks_at_the_weights_alone():
    pytest.importorskip("weightwatcher")

    def alpha(exponent):
        """Of a layer whose spectrum has a tail of this exponent."""
        torch.manual_seed(0)
        layer = torch.nn.Linear(300, 300)
        u, _, v = torch.linalg.svd(layer.weight.data)
        eigenvalues = torch.rand(300).pow(-1 / (exponent - 1))  # Pareto
        layer.weight.data = u @ torch.diag(eigenvalues.sqrt()) @ v
        return CRITERIA["weightwatcher"]()(torch.nn.Sequential(layer)).item()

    assert alpha(2.5) == pytest.approx(2.5, rel=0.25)
    assert alpha(2.5) < alpha(4.0)


# Naive versions


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
        entropies = np.array([entropy(row) for row in cloud])
        assert negative_entropy(logits)[b].item() == pytest.approx(-entropies.mean())
        expected = entropy(cloud.mean(0)) - entropies.mean()
        assert infomax(logits)[b].item() == pytest.approx(expected)
        assert bnm(logits)[b].item() == pytest.approx(np.linalg.norm(cloud, "nuc"))
        densities = []
        for i, row in enumerate(cloud):
            others = np.delete(cloud, i, axis=0)
            cosines = others @ row / np.linalg.norm(others, axis=1) / np.linalg.norm(row)
            weights = np.exp(cosines / 0.05)
            densities.append(entropy(weights / weights.sum()))
        assert snd(logits)[b].item() == pytest.approx(np.mean(densities))


# What all of them keep


def inputs_of(criterion, **given):
    needs = getattr(criterion, "needs", ("points",))
    return [given[need] for need in needs]


ON_DATA = [name for name in CRITERIA if name != "weightwatcher"]


@pytest.mark.parametrize("name", ON_DATA)
def test_a_batch_is_its_clouds_and_the_order_of_the_texts_does_not_matter(name):
    criterion = CRITERIA[name]()
    assert set(getattr(criterion, "needs", ("points",))) <= set(INPUTS)
    assert criterion.name == name
    given = {
        "points": normal(3, 24, 6),
        "logits": normal(3, 24, 3, seed=1),
        "previous_logits": normal(3, 24, 3, seed=2),
        "corrupted_logits": normal(3, 24, 3, seed=4),
        "neighbors": normal(3, 24, 2, 3, 24, seed=6).argmax(dim=-1),
        "neighbor_classes": normal(3, 24, 2, 3, 3, seed=5).argmax(dim=-1),
    }
    scores = criterion(*inputs_of(criterion, **given))
    assert scores.shape == (3,)
    alone = {key: value[1:2] for key, value in given.items()}
    assert criterion(*inputs_of(criterion, **alone)).item() == pytest.approx(scores[1].item())
    if name not in ("silhouette", "calinski_harabasz"):  # k-means starts at some of the points
        order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
        moved = {key: value[:, order] for key, value in given.items()}
        moved["neighbors"] = order.argsort()[moved["neighbors"]]
        torch.testing.assert_close(criterion(*inputs_of(criterion, **moved)), scores)


@pytest.mark.parametrize("name", ON_DATA)
def test_a_collapsed_model_gives_a_number_or_nan_and_no_crash(name):
    criterion = CRITERIA[name]()
    for value in (0.0, 1.0):
        given = {key: torch.full((2, 10, 3), value) for key in INPUTS}
        given["neighbors"] = given["neighbor_classes"] = torch.zeros(2, 10, 1, 3, dtype=torch.int64)
        assert criterion(*inputs_of(criterion, **given)).shape == (2,)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("snd", {"temperature": 0}, "expected `temperature` > 0, got 0"),
        ("silhouette", {"clusters": 1}, "expected `clusters` >= 2, got 1"),
    ],
)
def test_settings_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        CRITERIA[name](**options)
