"""Mutual information of H0 components: by hand, and on resamples of a pool."""

import math

import pytest
import torch
from clouds import directions, normal
from scipy.stats import entropy

from sepstop.criteria import ComponentMI
from sepstop.criteria.component_mi import best_components, component_mi
from sepstop.measure.neighbors import nearest_neighbors
from sepstop.measure.resampling import draw_resamples


def test_component_mi_by_hand():
    """Two clumps of five and one point alone; its neighbors are the next in a ring."""
    clumps = (range(0, 10, 2), range(90, 100, 2))
    points = directions(*clumps[0], *clumps[1], 200)[0]
    ring = torch.tensor([1, 2, 3, 4, 0, 6, 7, 8, 9, 5, 9])[:, None, None]  # (N, 1, 1)
    all_ = torch.arange(11)[None]
    # Components 1, 2 and the rest; of the neighbors 1 and 2 alone.
    parts = torch.tensor([5, 5, 1]) / 11, torch.tensor([5, 6]) / 11, torch.tensor([5, 5, 1]) / 11
    rows, columns, both = (entropy(part) for part in parts)
    expected = rows + columns - both - (3 - 3 - 2 + 1) / 22
    assert component_mi(points, ring, all_, min_size=5).item() == pytest.approx(expected)
    # That at which the one clump is a component tells as much, and rounding decides.
    best = best_components(points, ring, min_size=5).tolist()
    assert best in ([1] * 5 + [2] * 5 + [0], [1] * 5 + [0] * 6)
    # With neighbors across the clumps it tells as much; of any clump at random, less.
    torn = torch.tensor([5, 1, 6, 2, 7, 0, 8, 3, 9, 4, 9])[:, None, None]
    less = component_mi(points, torn, all_, min_size=5).item()
    assert less < expected / 2
    # The mean over evaluations; a component has to have its least number of points.
    both_ = torch.cat([ring, torn], dim=1)
    mean = component_mi(points, both_, all_, min_size=5).item()
    assert mean == pytest.approx((expected + less) / 2)
    assert component_mi(points, ring, all_, min_size=6).item() < 0.2


def test_component_mi_of_resamples_is_at_the_scale_of_the_pool():
    centers = torch.eye(6).repeat_interleave(100, dim=0) * 9
    points = centers + normal(1, 600, 6)[0] / 3
    near = nearest_neighbors(points)[:, None]
    resamples = draw_resamples(600, 4, 300, seed=0)
    found = component_mi(points, near, resamples)
    assert found.shape == (4,)
    assert found.tolist() == pytest.approx([math.log(6)] * 4, abs=0.06)
    unrelated = nearest_neighbors(normal(1, 600, 6, seed=1)[0])[:, None]
    assert component_mi(points, unrelated, resamples).max() < 0.1
    blob = normal(1, 600, 6, seed=2)[0]
    assert component_mi(blob, near, resamples).max() < found.min() / 4


def test_too_small_components_are_refused():
    with pytest.raises(ValueError, match="expected `min_size` >= 2, got 1"):
        ComponentMI(min_size=1)
