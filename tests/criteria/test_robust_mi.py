"""Consistency with corrupted copies and its mean with neighbors: by hand, naively, limits."""

import math

import numpy as np
import pytest
import torch
from clouds import normal, one_hot_logits
from sklearn.metrics import mutual_info_score

from sepstop import Scorer
from sepstop.criteria import Consistency, NeighborMI, RobustMI
from sepstop.criteria.neighbor_mi import neighbor_mi
from sepstop.criteria.predictions import confidence
from sepstop.criteria.robust_mi import consistency, robust_mi
from sepstop.measure.embedding import Observation
from sepstop.measure.neighbors import nearest_neighbors
from sepstop.measure.resampling import draw_resamples

PAIRS = one_hot_logits(0, 0, 1, 1)
HALVES = torch.arange(40) // 20  # two classes of 20 texts


def logits_of(classes, k=2, sure=3):
    """Logits of one cloud that predict these classes, surely enough if not said otherwise."""
    return sure * torch.nn.functional.one_hot(classes, k).double()[None]


def robust(classes, copies, *neighbors):
    """`robust_mi` of one cloud, with one neighbor per text at each evaluation."""
    near = torch.stack(neighbors, dim=1)[None, ..., None]
    return robust_mi(logits_of(classes), logits_of(copies), near).item()


def test_consistency_by_hand():
    # all four cells of margins 1/2: log 2 nats; 2 cells - 2 rows - 2 columns + 1 = -1
    assert consistency(PAIRS, PAIRS).item() == pytest.approx(math.log(2) + 1 / 8)
    # as good as independent: nothing, less (4 - 2 - 2 + 1) / 8
    assert consistency(PAIRS, one_hot_logits(0, 1, 0, 1)).item() == pytest.approx(-1 / 8)
    # one class for everything tells nothing
    only_one = torch.eye(2)[[1, 1, 1, 1]][None]
    assert consistency(only_one, PAIRS).item() == pytest.approx(0)
    # how sure the model is does not matter
    assert consistency(9 * PAIRS, PAIRS).item() == consistency(PAIRS, PAIRS).item()


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


def test_robust_mi_by_hand():
    # Copies: one of 40 texts changes its class, so the joint shares are 19, 1 and 20 of 40 and the
    # copies' are 19 and 21. Three cells less two rows and two columns, plus 1, correct by nothing.
    copies = HALVES.clone()
    copies[0] = 1
    shares = np.array([19, 1, 20, 19, 21]) / 40
    terms = -shares * np.log(shares)
    stable = math.log(2) + terms[3:].sum() - terms[:3].sum()
    # Neighbors: all of the own class before training, log 2 + 1 / 80, and since then one of 40 of
    # the other, as among the copies. The lower bound of the first evaluation, 10 / 40, is below.
    first = math.log(2) + 1 / 80
    near = math.sqrt(first * (first + stable) / 2)
    assert robust(HALVES, copies, HALVES, copies) == pytest.approx((stable**2 * near) ** (1 / 3))


def test_neither_neighbors_nor_copies_are_enough():
    classes = torch.arange(600) % 2
    chance = (normal(600, seed=3) > 0).long()
    certain = robust(classes, classes, classes)
    assert certain == pytest.approx(math.log(2), abs=0.01)
    memorized = robust(classes, chance, classes)  # neighbors confirm, corrupted copies do not
    unrelated = robust(classes, classes, chance)  # the other way around
    assert max(memorized, unrelated) < certain / 4
    # Independent classes have a consistency below 0 after the correction: that is a score of 0.
    assert consistency(logits_of(HALVES), logits_of(torch.arange(40) % 2)).item() < 0
    assert robust(HALVES, torch.arange(40) % 2, HALVES) == 0


def test_a_single_class_scores_zero():
    one = torch.zeros(40, dtype=torch.int64)
    assert robust(one, one, one) == 0
    assert robust(one, HALVES, one) == robust(HALVES, one, HALVES) == robust(one, one, HALVES) == 0


def test_confidence_by_hand():
    # a half of the way from chance, 1/2, to certainty, and none of it
    shares = torch.tensor([[[0.75, 0.25], [0.25, 0.75]], [[0.5, 0.5], [0.5, 0.5]]])
    torch.testing.assert_close(confidence(shares.log()), torch.tensor([0.5, 0.0]).double())
    # 0.5 before 0.25 is a lead of a third; so is it in a mean with 0.4 before 0.4
    halves = torch.tensor([[[0.5, 0.25, 0.25]], [[0.4, 0.4, 0.2]]]).log()
    torch.testing.assert_close(confidence(halves), torch.tensor([1 / 3, 0.0]).double())
    assert confidence(halves.transpose(0, 1)).item() == pytest.approx(1 / 6)
    assert confidence(torch.zeros(1, 3, 1)).item() == 1  # of one class


@pytest.mark.parametrize("others", [0, 15, 150])
def test_confidence_is_the_lead_over_the_second_class_however_many_share_the_rest(others):
    shares = torch.tensor([0.21, 0.09, *[0.7 / max(1, others)] * others])
    assert confidence(shares.log()[None, None]).item() == pytest.approx(0.4)


@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_confidence_of_extreme_logits(scale):
    logits = scale * torch.tensor([[[1.0, -1.0, -3.0]], [[1.0, 1.0, -1.0]]])
    assert confidence(logits).tolist() == [1, 0]


@pytest.mark.parametrize(("shown", "share"), [(0.4, 1), (0.9, 1), (0.2, 1 / 4), (0.04, 1 / 100)])
def test_undecided_predictions_count_less(shown, share):
    sure = math.log((1 + shown) / (1 - shown))  # of two classes
    near = HALVES[None, :, None, None]
    logits, copies = logits_of(HALVES, sure=sure), logits_of(HALVES)
    assert confidence(logits).item() == pytest.approx(shown)
    expected = share * robust(HALVES, HALVES, HALVES)
    assert robust_mi(logits, copies, near).item() == pytest.approx(expected)


def test_names_of_classes_more_confidence_and_dtype_do_not_matter():
    logits, copies = 3 * normal(2, 50, 4), normal(2, 50, 4) + normal(2, 50, 4, seed=1) / 2
    near = (logits[:, :, None, None] + normal(2, 50, 3, 2, 4, seed=2) / 2).argmax(dim=-1)
    expected = robust_mi(logits, copies, near)
    assert expected.dtype == torch.float64
    assert (expected > 0.1).all()
    other = torch.tensor([2, 0, 3, 1])  # class c is called `names[c]`
    renamed = robust_mi(logits[..., other], copies[..., other], other.argsort()[near])
    torch.testing.assert_close(renamed, expected)
    surer = robust_mi(7 * logits.half(), copies.bfloat16() + 5, near)
    assert torch.equal(surer, robust_mi(logits.half(), copies.bfloat16() + 5, near))
    assert surer.dtype == torch.float64


def test_it_is_the_weighted_geometric_mean_of_its_parts_on_each_resample():
    """The scorer gives all three the same texts of each resample, at each evaluation."""
    resamples = draw_resamples(60, 5, 30, seed=0)
    scorer = Scorer([RobustMI(), Consistency(), NeighborMI()], resamples)
    near = []
    for step in (0, 10, 20):
        points, logits = normal(60, 5, seed=step), normal(60, 3, seed=step + 1)
        points[:, :3] += 2 * logits
        copies = logits + normal(60, 3, seed=step + 2) / 2
        logits, copies = 3 * logits, 3 * copies
        record = scorer(Observation(points, logits, copies), step)
        found, stable, agreeing = (
            np.array(record.scores[name].resample_values)
            for name in ("robust_mi", "consistency", "neighbor_mi")
        )
        assert (found > 0).all()
        assert found == pytest.approx((stable.clip(min=0) ** 2 * agreeing) ** (1 / 3))
        near.append(nearest_neighbors(points))
        classes = logits.argmax(dim=-1)
        by_pool = classes[torch.stack(near, dim=1)]  # neighbors are those in the whole pool
        expected = [
            (
                consistency(logits[None, chosen], copies[None, chosen]).item() ** 2
                * neighbor_mi(logits[None, chosen], by_pool[None, chosen]).item()
            )
            ** (1 / 3)
            for chosen in resamples
        ]
        assert found == pytest.approx(expected)
    assert scorer.reference_step == 0
