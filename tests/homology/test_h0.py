import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ripser import ripser

from sepstop import h0_deaths

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [(1, 2, 1), (1, 40, 3), (5, 17, 2), (3, 30, 384), (2, 64, 16)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unlike_clouds():
    """A wide cloud, one with a tight pair and one with a tight crowd: ``(3, 30, 8)``."""
    clouds = normal(3, 30, 8)
    clouds[1, 7] = clouds[1, 3] + 1e-9
    clouds[2, :20] *= 1e-9
    return clouds


def kruskal(points):
    """Ascending float64 edge lengths of the minimum spanning tree of one cloud, the naive way."""
    x = points.double().cpu().numpy()
    lengths = np.sqrt(np.square(x[:, None] - x[None]).sum(axis=-1))
    rows, columns = np.triu_indices(len(x), k=1)
    group = np.arange(len(x))
    tree = []
    for edge in np.argsort(lengths[rows, columns], kind="stable"):
        i, j = rows[edge], columns[edge]
        if group[i] != group[j]:
            group[group == group[j]] = group[i]
            tree.append(lengths[i, j])
    return torch.tensor(tree, dtype=torch.float64)


def assert_close(deaths, expected):
    """To 1e-6 relative: what is zero must be exactly zero."""
    torch.testing.assert_close(deaths.double().cpu(), expected.double(), rtol=1e-6, atol=0)


def test_hand_computed():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0], [15.0, 0.0]])
    expected = [1.0, 5.0, 160**0.5]  # the last from (15, 0) to (3, 4)
    assert_close(h0_deaths(points), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:The input point cloud has more columns:UserWarning")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity_with_kruskal_and_ripser(shape, dtype, device):
    clouds = normal(*shape).to(device, dtype)
    deaths = h0_deaths(clouds)
    assert deaths.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert deaths.device == clouds.device
    assert deaths.shape == (shape[0], shape[1] - 1)
    assert (deaths.diff(dim=-1) >= 0).all()
    for cloud, row in zip(clouds, deaths, strict=True):
        assert_close(row, kruskal(cloud))
        reference = ripser(cloud.double().cpu().numpy(), maxdim=0)["dgms"][0][:-1, 1]
        np.testing.assert_allclose(row.double().cpu(), np.sort(reference), rtol=1e-5)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    st.floats(-1e6, 1e6, width=32),
)
def test_relative_error_on_any_cloud(points, offset):
    cloud = torch.from_numpy(points + offset)
    assert_close(h0_deaths(cloud), kruskal(cloud))


def test_batch_equals_its_clouds_one_by_one():
    clouds = torch.cat([unlike_clouds(), 1e-3 * unlike_clouds(), 1e6 * unlike_clouds()])
    one_by_one = torch.stack([h0_deaths(cloud) for cloud in clouds])
    assert one_by_one.shape == (9, 29)
    assert_close(h0_deaths(clouds), one_by_one)


def test_no_clouds():
    assert h0_deaths(torch.empty(0, 5, 3)).shape == (0, 4)


def test_permutation_and_rotation_invariance():
    points = normal(25, 6)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(normal(6, 6, seed=2)).Q
    assert_close(h0_deaths(points[order]), h0_deaths(points))
    assert_close(h0_deaths(points @ rotation), h0_deaths(points))


@pytest.mark.parametrize("offset", [1.0, 1e3, 2.0**30])
def test_translation_invariance(offset):
    points = (normal(25, 6) * 1000).round()  # whole numbers, so that the shift itself is exact
    assert_close(h0_deaths(points + offset), h0_deaths(points))


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 0.1, 7.0, 1e30, 1e200])
def test_deaths_scale_with_the_points(scale):
    points = normal(25, 6)
    assert_close(h0_deaths(points * scale), h0_deaths(points) * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("spread", [1e-4, 1e-6])
def test_tight_clumps_far_from_the_origin(spread, offset, dtype):
    centres = normal(3, 1, 16)
    clumps = centres + spread * normal(3, 15, 16, seed=1) + offset
    cloud = clumps.reshape(45, 16).to(dtype)
    assert_close(h0_deaths(cloud), kruskal(cloud))


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_tight_pairs_and_crowds_in_a_wide_cloud(offset):
    for cloud in unlike_clouds() + offset:
        assert_close(h0_deaths(cloud), kruskal(cloud))


def test_norms_over_many_orders_of_magnitude():
    cloud = normal(40, 8) * torch.logspace(-4, 4, 40, dtype=torch.float64)[:, None]
    assert_close(h0_deaths(cloud), kruskal(cloud))


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        pytest.param([[0.0, 0.0], [0.3, 0.4]], [0.5], id="two points"),
        pytest.param([[7.0], [7.0]], [0.0], id="two equal points"),
        pytest.param([[0.1, 0.7]] * 5, [0.0] * 4, id="all equal"),
        pytest.param([[0.0, 0.0]] * 3, [0.0] * 2, id="all zero"),
        pytest.param([[1.1], [5.1], [1.1], [5.1], [1.1]], [0.0, 0.0, 0.0, 4.0], id="duplicates"),
        pytest.param([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]], [2**0.5, 8**0.5], id="on a line"),
    ],
)
def test_degenerate_clouds(points, expected):
    deaths = h0_deaths(torch.tensor(points, dtype=torch.float64))
    assert_close(deaths, torch.tensor(expected, dtype=torch.float64))


def test_largest_float16_values_do_not_overflow():
    assert h0_deaths(torch.tensor([[60000.0], [-60000.0]]).half()).tolist() == [120000.0]


def test_same_input_gives_the_same_bits():
    clouds = unlike_clouds()
    assert torch.equal(h0_deaths(clouds), h0_deaths(clouds.clone()))


def test_input_with_gradient_and_inference_mode():
    clouds = unlike_clouds()
    expected = h0_deaths(clouds)
    deaths = h0_deaths(clouds.clone().requires_grad_())
    assert not deaths.requires_grad
    assert torch.equal(deaths, expected)
    with torch.inference_mode():
        assert torch.equal(h0_deaths(clouds.clone()), expected)


def test_input_is_left_as_it_was():
    points = normal(20, 4)
    before = points.clone()
    h0_deaths(points)
    assert torch.equal(points, before)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(80), r"of shape \(N, D\) or \(B, N, D\) with N >= 2, got \(80,\)"),
        (torch.zeros(2, 2, 2, 2), r"got \(2, 2, 2, 2\)"),
        (torch.zeros(1, 3), r"with N >= 2, got \(1, 3\)"),
        (torch.zeros(4, 1, 3), r"with N >= 2, got \(4, 1, 3\)"),
        (torch.zeros(4, 0), r"got \(4, 0\)"),
        (torch.zeros(4, 3, dtype=torch.int64), r"expected floating `points`, got torch\.int64"),
        (torch.tensor([[0.0], [torch.nan]]), "expected finite `points`, got NaN or infinity"),
        (torch.tensor([[0.0], [-torch.inf]]), "expected finite `points`, got NaN or infinity"),
    ],
)
def test_errors(points, message):
    with pytest.raises(ValueError, match=message):
        h0_deaths(points)
