"""Mutual information of labels: by hand, against two classes each, invariances."""

import math

import pytest
import torch
from clouds import normal
from scipy.stats import entropy

from sepstop.criteria.label_mi import label_mi
from sepstop.criteria.neighbor_mi import neighbor_mi
from sepstop.measure.neighbors import nearest_neighbors


def yes(*labels):
    """``(n, k)`` logits of k labels, each 0 or 1 for n texts."""
    return 2 * torch.tensor(labels).double().T - 1


def made_up(texts=60, count=7, evaluations=3):
    """Logits, neighbors that know something of the labels, and resamples."""
    points = normal(texts, 5)
    logits = points @ normal(5, count, seed=1) + normal(texts, count, seed=2)
    logits[:, 0] -= 9  # never
    clouds = [points + normal(texts, 5, seed=3 + step) for step in range(evaluations)]
    near = torch.stack([nearest_neighbors(cloud) for cloud in clouds], dim=1)
    order = [torch.randperm(texts, generator=torch.Generator().manual_seed(b)) for b in range(4)]
    return logits, near, torch.stack(order)[:, :40]


def test_label_mi_by_hand():
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
    found = label_mi(logits, ring[:, None, None], whole)
    assert found.tolist() == pytest.approx([sum(scores) / 4])
    # At a second evaluation the neighbor is the text across: of the other half, and of the other
    # four, but the same of every other. Each tells log 2, with two cells; all tells nothing.
    across = (torch.arange(40) + 20) % 40
    sure = math.log(2) + 1 / 80
    means = [(value + sure) / 2 for value in each[:3]]
    scores = [math.sqrt(max(first, 1 / 4) * mean) for first, mean in zip(each, means, strict=False)]
    near = torch.stack([ring, across], dim=1)[:, :, None]
    assert label_mi(logits, near, whole).item() == pytest.approx(sum(scores) / 4)


def test_label_mi_is_the_mean_of_that_of_each():
    logits, near, resamples = made_up()
    expected = []
    for chosen in resamples:
        each = []
        for label in (logits > 0).T.long():
            two = torch.nn.functional.one_hot(label, 2)[chosen][None]
            each.append(neighbor_mi(two, label[near][chosen][None]).item())
        expected.append(sum(each) / len(each))
    assert min(expected) > 0.03
    assert label_mi(logits, near, resamples).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("cells", [1, 60, 150])
def test_label_mi_is_the_same_whatever_is_held_at_once(cells, monkeypatch):
    logits, near, resamples = made_up()
    expected = label_mi(logits, near, resamples)
    for b in range(4):
        assert torch.equal(label_mi(logits, near, resamples[b : b + 1]), expected[b : b + 1])
    monkeypatch.setattr("sepstop.criteria.label_mi._MAX_CELLS", cells)
    assert torch.equal(label_mi(logits, near, resamples), expected)


def test_neither_the_order_nor_the_sense_of_labels_matters():
    logits, near, resamples = made_up()
    expected = label_mi(logits, near, resamples)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    for other in (logits[:, order], -logits, logits * 9, logits.double()):
        torch.testing.assert_close(label_mi(other, near, resamples), expected)


@pytest.mark.parametrize("texts", [2, 9, 40])
def test_labels_of_all_or_no_texts_tell_exactly_nothing(texts):
    """The bound for the first neighbors makes nothing of them, nor does rounding."""
    near = torch.randint(texts, (texts, 2, 3), generator=torch.Generator().manual_seed(0))
    whole = torch.arange(texts)[None]
    for logits in (torch.ones(texts, 3), -torch.ones(texts, 3), torch.zeros(texts, 1)):
        assert label_mi(logits, near, whole).item() == 0
    # Nor one that is the same all over a resample, though some text beyond it has another.
    one = -torch.ones(texts, 1)
    one[0] = 1
    assert label_mi(one, near, whole[:, 1:]).item() == 0
