"""The choice by a few labels, and the texts to label, on predictions made by hand."""

import math

import numpy as np
import pytest

from sepstop.decide.few_labels import (
    MIN_LABELS,
    choose_by_labels,
    contenders,
    draw_texts,
    telling_texts,
)

SCORES = np.array([0.9, 0.5, 0.7])


def outcome(wins, losses, ties=2):
    """Predictions of the pick and of a second candidate that wins and loses so often; labels."""
    first = [0] * wins + [1] * losses + [1] * ties
    second = [1] * wins + [0] * losses + [1] * ties
    third = [0] * (wins + losses + ties)  # wrong everywhere
    return np.array([first, second, third]), np.ones(wins + losses + ties, int)


# The difference has to exceed 1.5 times the root of the sum.
@pytest.mark.parametrize(
    ("wins", "losses", "is_replaced"),
    [
        (2, 0, False),  # 2 < 2.12
        (3, 0, True),  # 3 > 2.60
        (4, 1, False),  # 3 < 3.35
        (5, 1, True),  # 4 > 3.67
        (6, 2, False),  # 4 < 4.24
        (7, 2, True),  # 5 > 4.5
        (0, 3, False),
        (0, 0, False),
    ],
)
def test_labels_replace_the_pick_only_if_they_clearly_contradict_it(wins, losses, is_replaced):
    predictions, labels = outcome(wins, losses)
    found = choose_by_labels(predictions, labels, SCORES, proposed=0)
    assert found.is_replaced is is_replaced
    assert found.kept == int(is_replaced)
    assert found.num_labels == len(labels)
    if is_replaced:
        assert (found.rival, found.wins, found.losses) == (0, wins, losses)


def test_the_closest_rival_of_a_pick_that_stays():
    predictions, labels = outcome(wins=2, losses=1)
    found = choose_by_labels(predictions, labels, SCORES, proposed=0)
    assert (found.kept, found.rival, found.wins, found.losses) == (0, 1, 1, 2)
    assert found.probability == pytest.approx(5 / 16)  # at most one of four fair coins


def test_no_fewer_labels_can_replace_the_pick():
    predictions, labels = outcome(MIN_LABELS - 1, 0, ties=0)
    assert not choose_by_labels(predictions, labels, SCORES, proposed=0).is_replaced
    predictions, labels = outcome(MIN_LABELS, 0, ties=0)
    assert choose_by_labels(predictions, labels, SCORES, proposed=0).is_replaced


def test_of_two_better_candidates_the_clearer_one_and_of_equals_the_better_score():
    labels = np.ones(6, int)
    pick, better, best = [0] * 6, [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]
    found = choose_by_labels(np.array([pick, better, best]), labels, SCORES, proposed=0)
    assert (found.kept, found.wins) == (2, 5)
    found = choose_by_labels(np.array([pick, better, better]), labels, SCORES, proposed=0)
    assert found.kept == 2  # 0.7, against 0.5


def test_candidates_in_the_worse_half_by_score_are_no_choice():
    scores = np.linspace(0.1, 1, 12)
    predictions = np.zeros((12, 5), int)
    predictions[2] = 1  # right everywhere, but of the worse half
    found = choose_by_labels(predictions, np.ones(5, int), scores, proposed=11)
    assert found.kept == 11
    predictions[6] = 1
    assert choose_by_labels(predictions, np.ones(5, int), scores, proposed=11).kept == 6


def test_contenders_are_at_least_five_and_hold_the_pick():
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, math.nan])
    assert contenders(scores, 5).tolist() == [1, 2, 3, 4, 5]
    assert contenders(scores, 0).tolist() == [0, 1, 2, 3, 4, 5]  # a policy may have chosen it
    assert contenders(np.linspace(0, 1, 21), 20).tolist() == list(range(10, 21))
    assert contenders(np.array([0.5]), 0).tolist() == [0]


def test_a_single_candidate_has_no_rival():
    found = choose_by_labels(np.array([[0, 1]]), np.array([1, 1]), np.array([0.3]), proposed=0)
    assert (found.kept, found.rival) == (0, None)
    assert telling_texts(np.array([[0, 1]]), np.array([0.3]), 0).size == 0


def test_only_texts_on_which_contenders_disagree_are_drawn_and_all_equally_often():
    predictions = np.zeros((3, 40), int)
    predictions[1, 10:20] = 1
    predictions[2, 15:22] = 1
    telling = telling_texts(predictions, SCORES, 0)
    assert telling.tolist() == list(range(10, 22))
    counts = np.zeros(40)
    for seed in range(2000):
        counts[draw_texts(telling, 3, seed)] += 1
    assert counts[:10].sum() == counts[22:].sum() == 0
    assert np.allclose(counts[10:22] / 2000, 3 / 12, atol=0.04)


def test_labeled_texts_are_not_drawn_again_and_the_first_of_a_draw_are_a_draw():
    telling = np.arange(10, 22)
    first = draw_texts(telling, 4, seed=1)
    assert draw_texts(telling, 9, seed=1)[:4].tolist() == first.tolist()
    rest = draw_texts(telling, 100, seed=1, leave_out=first.tolist())
    assert sorted([*first, *rest]) == telling.tolist()


def test_differences_on_drawn_texts_are_unbiased():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    predictions = np.where(rng.random((4, 300)) < 0.7, labels, rng.integers(0, 3, (4, 300)))
    predictions[:, :150] = predictions[0, :150]  # all agree on half of the texts
    scores = np.array([0.4, 0.3, 0.2, 0.1])
    right = predictions == labels
    telling = telling_texts(predictions, scores, 0)
    drawn = np.stack([draw_texts(telling, 20, seed) for seed in range(3000)])
    gains = (right[:, drawn].mean(axis=-1) - right[0, drawn].mean(axis=-1)).mean(axis=1)
    of_pool = right.mean(axis=1) - right[0].mean()
    assert gains * len(telling) / 300 == pytest.approx(of_pool, abs=0.004)
