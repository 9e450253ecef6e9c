"""Mutual information of predicted classes: by hand, against a naive version, over evaluations."""

import math

import pytest
import torch
from clouds import directions, normal, one_hot_logits
from sklearn.metrics import mutual_info_score

from sepstop.criteria.neighbor_mi import NeighborMI, mutual_information, neighbor_mi
from sepstop.measure.neighbors import NEIGHBORS, nearest_neighbors


def informed(logits, *clouds, count=NEIGHBORS):
    """`neighbor_mi` of one cloud of logits, its points at each evaluation so far."""
    classes = logits.argmax(dim=-1)
    near = torch.stack([nearest_neighbors(points, count) for points in clouds], dim=1)
    return neighbor_mi(logits[None], classes[near][None]).item()


def shared(logits, points, count):
    """`mutual_information` of the classes of points and of their neighbors."""
    classes = logits.argmax(dim=-1)
    near = classes[nearest_neighbors(points, count)]
    return mutual_information(classes[None], near[None], logits.shape[-1]).item()


def test_neighbor_mi_by_hand():
    # Nearest neighbors 0-1, 2-3: each of its own class, which tells log 2; cells 2, rows 2,
    # columns 2 give the correction of 1 / (2 * 4).
    points = directions(0, 1, 90, 91)[0]
    right, wrong = one_hot_logits(0, 0, 1, 1)[0], one_hot_logits(0, 1, 0, 1)[0]
    apart = shared(right, points, count=1)
    assert apart == pytest.approx(math.log(2) + 1 / 8)
    # Each neighbor of the other class tells as much; one class tells nothing.
    assert shared(wrong, points, count=1) == pytest.approx(apart)
    assert shared(torch.zeros(4, 2), points, count=1) == pytest.approx(0)
    # All three neighbors: one of the own class, two of the other. The joint shares are
    # 1/6, 1/3, 1/3, 1/6 and four cells give the correction of -1 / (2 * 4).
    shares = torch.tensor([1 / 6, 1 / 3, 1 / 3, 1 / 6], dtype=torch.float64)
    expected = 2 * math.log(2) - torch.special.entr(shares).sum().item() - 1 / 8
    assert expected < 0
    assert shared(right, points, count=3) == pytest.approx(expected)
    # As the criterion, no less than nothing, and first neighbors of four texts have no say.
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
    # What today's neighbors vouch for and those of the start know nothing of.
    first = informed(logits, mixed)
    later = informed(logits, mixed, apart, apart)
    assert first < 5 / 600  # what chance gives
    assert later == pytest.approx(math.sqrt(10 * 5 / 600 * (first + 2 * whole) / 3), abs=0.01)
    assert later < whole / 4


def test_neighbor_mi_agrees_with_a_naive_version_whatever_the_length():
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


def test_the_criterion_counts_what_an_undecided_model_predicts_for_little():
    """Its classes are the same; a confidence of 0.4 is enough."""
    points = directions(0, 1, 90, 91)[0]
    near = nearest_neighbors(points, 1)[None, :, None]
    classes = torch.tensor([[0, 0, 1, 1]])

    def score(confidence):
        sure = torch.tensor([(1 + confidence) / 2, (1 - confidence) / 2]).log()
        logits = torch.where(classes[..., None] == 0, sure, sure.flip(0))
        return NeighborMI()(logits, classes[0][near]).item()

    assert score(0.4) == pytest.approx(score(0.9))
    assert score(0.9) == pytest.approx(informed(one_hot_logits(0, 0, 1, 1)[0], points, count=1))
    assert score(0.2) == pytest.approx(score(0.4) / 4)
