"""Resamples of the pool, and how a criterion is called on them."""

import math
import re

import pytest
import torch
from clouds import normal

from sepstop.criteria import Separability
from sepstop.measure.resampling import draw_resamples, score_resamples


def test_resamples_are_sets_of_the_pool():
    resamples = draw_resamples(pool_size=50, num_resamples=8, resample_size=20, seed=0)
    assert resamples.shape == (8, 20)
    assert resamples.dtype == torch.int64
    assert all(len(set(row)) == 20 for row in resamples.tolist())
    assert set(resamples.flatten().tolist()) <= set(range(50))
    assert len({frozenset(row) for row in resamples.tolist()}) == 8


def test_seed_decides_the_resamples():
    first = draw_resamples(50, 8, 20, seed=3)
    assert torch.equal(first, draw_resamples(50, 8, 20, seed=3))
    assert not torch.equal(first, draw_resamples(50, 8, 20, seed=4))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    draw_resamples(50, 8, 20, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def mean_of(*needs, shape=None):
    """A criterion: the mean of all that it needs, for each resample."""

    def criterion(*inputs):
        scores = sum(values.flatten(start_dim=1).mean(dim=1) for values in inputs)
        return scores if shape is None else scores.new_zeros(shape)

    criterion.name, criterion.higher_is_better, criterion.needs = "mean", True, needs
    return criterion


def test_a_criterion_gets_each_resample_of_what_it_needs():
    inputs = {"points": normal(9, 4), "logits": normal(9, 2, seed=1), "neighbors": None}
    chosen = draw_resamples(9, 3, 5, seed=0)
    found = score_resamples(mean_of("logits", "points"), inputs, chosen)
    expected = [float(inputs["logits"][i].mean() + inputs["points"][i].mean()) for i in chosen]
    assert found == pytest.approx(expected)


class Sharing:
    """A criterion that keeps what it is given."""

    name, higher_is_better = "sharing", True

    def on_resamples(self, points, resample_indices):
        self.given = points, resample_indices
        return torch.arange(3.0)


def test_work_that_resamples_share_is_done_on_the_whole_pool():
    criterion, points, chosen = Sharing(), normal(9, 4), draw_resamples(9, 3, 5, seed=0)
    assert score_resamples(criterion, {"points": points}, chosen) == [0, 1, 2]
    assert criterion.given[0] is points
    assert torch.equal(criterion.given[1], chosen)


@pytest.mark.parametrize("bad", [None, torch.nan, torch.inf])
def test_an_input_that_is_missing_or_not_finite_gives_no_score(bad):
    points = normal(9, 4)
    chosen = draw_resamples(9, 3, 5, seed=0)
    assert all(map(math.isfinite, score_resamples(Separability(), {"points": points}, chosen)))
    if bad is not None:
        points[8, 3] = bad  # in some of the resamples only
    inputs = {"points": None if bad is None else points}
    assert all(map(math.isnan, score_resamples(Separability(), inputs, chosen)))


@pytest.mark.parametrize("shape", [(), (1,), (3, 1)])
def test_scores_of_another_shape_are_an_error(shape):
    message = f"expected the criterion 'mean' to return (3,) scores, got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        score_resamples(
            mean_of("points", shape=shape), {"points": normal(9, 4)}, draw_resamples(9, 3, 5, 0)
        )
