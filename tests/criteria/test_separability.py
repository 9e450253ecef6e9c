import pytest
import torch

from sepstop import h0_separability
from sepstop.criteria import Separability


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("points", "normalize", "expected"),
    [
        # deaths 1, 1, 8: 1 - (1/8 + 1/8 + 1) / 3
        ([[0.0], [1.0], [9.0], [10.0]], False, 7 / 12),
        # deaths 2, 4: 1 - (1/2 + 1) / 2
        ([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0]], False, 1 / 4),
        # on the circle at (1, 0), (0.6, 0.8), (-1, 0): deaths sqrt 0.8 and sqrt 3.2, ratio 1/2
        ([[2.0, 0.0], [3.0, 4.0], [-7.0, 0.0]], True, 1 / 4),
        # three directions at right angles: equal deaths
        ([[3.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 1.0]], True, 0.0),
        # two points have one death, which is the largest
        ([[1.0, 0.0], [0.0, 1.0]], True, 0.0),
        ([[1.0, 0.0], [0.0, 9.0]], False, 0.0),
    ],
)
def test_hand_computed(points, normalize, expected):
    score = h0_separability(torch.tensor(points), normalize=normalize)
    assert score.item() == pytest.approx(expected, abs=1e-6)


def test_points_are_normalized_by_default():
    points = normal(30, 4) * torch.arange(1, 31)[:, None]
    assert h0_separability(points) == h0_separability(points, normalize=True)
    assert h0_separability(points) != h0_separability(points, normalize=False)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "move",
    [
        lambda x: x[torch.randperm(40, generator=torch.Generator().manual_seed(1))],
        lambda x: x @ torch.linalg.qr(normal(6, 6, seed=2)).Q,
        lambda x: x * 1e-4,
        lambda x: x * 1e4,
    ],
    ids=["permutation", "rotation", "scale down", "scale up"],
)
def test_invariances(move, normalize):
    points = normal(40, 6)
    score = h0_separability(points, normalize)
    torch.testing.assert_close(h0_separability(move(points), normalize), score)


def test_scale_of_each_point_is_divided_out():
    points = normal(40, 6)
    scaled = points * torch.logspace(-10, 10, 40)[:, None]
    torch.testing.assert_close(h0_separability(scaled), h0_separability(points))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_clusters_score_higher_than_one_blob(seed, normalize):
    blob = normal(60, 8, seed=seed)
    clusters = 10 * torch.eye(8)[:4].repeat_interleave(15, dim=0) + 0.1 * blob
    assert h0_separability(clusters, normalize) > h0_separability(blob, normalize) + 0.2


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_equal_points_score_zero(dtype, normalize):
    points = normal(384).to(dtype).expand(20, 384)
    assert h0_separability(points, normalize).item() == 0.0


@pytest.mark.parametrize("normalize", [True, False])
def test_points_equal_up_to_rounding_score_zero(normalize):
    point = normal(384).expand(20, 384)
    up = torch.nextafter(point, torch.tensor(torch.inf))
    noisy = torch.where(normal(20, 384, seed=1) > 0, up, point)
    assert h0_separability(noisy, normalize).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_points_little_apart_are_not_collapsed(dtype):
    points = 1 + 1e-4 * torch.tensor([[0.0], [1.0], [9.0], [10.0]], dtype=dtype)
    assert h0_separability(points, normalize=False).item() == pytest.approx(7 / 12, rel=1e-2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_only_a_cloud_with_nonfinite_points_has_no_score(bad):
    clouds = normal(3, 10, 4)
    expected = h0_separability(clouds)
    clouds[1, 2, 3] = bad
    scores = h0_separability(clouds)
    assert scores[1].isnan()
    torch.testing.assert_close(scores[[0, 2]], expected[[0, 2]])
    assert h0_separability(clouds[1]).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shape_dtype_and_range(dtype):
    clouds = normal(7, 12, 3).to(dtype)
    scores = h0_separability(clouds)
    assert scores.shape == (7,)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ((scores >= 0) & (scores < 1)).all()
    single = h0_separability(clouds[3])
    assert single.shape == ()
    torch.testing.assert_close(single, scores[3])


def test_zero_vectors_stay_at_the_origin():
    assert h0_separability(torch.zeros(5, 3)).item() == 0.0
    points = torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 0.0]])  # deaths 0, 1
    assert h0_separability(points).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("dtype", "scale", "normalize"),
    [
        (torch.float32, 1e30, True),
        (torch.float64, 1e200, True),
        pytest.param(
            *(torch.float32, 1e30, False),
        ),
        pytest.param(
            *(torch.float64, 1e200, False),
        ),
    ],
)
def test_huge_norms(dtype, scale, normalize):
    points = normal(40, 6).to(dtype)
    score = h0_separability(points * scale, normalize)
    torch.testing.assert_close(score, h0_separability(points, normalize))


def test_input_with_gradient():
    points = normal(10, 4)
    score = h0_separability(points.clone().requires_grad_())
    assert not score.requires_grad
    assert score == h0_separability(points)


@pytest.mark.parametrize("normalize", [True, False])
def test_class_is_the_function_with_its_parameter(normalize):
    criterion = Separability(normalize=normalize)
    clouds = normal(3, 20, 4)
    assert torch.equal(criterion(clouds), h0_separability(clouds, normalize))
    assert (criterion.name, criterion.higher_is_better) == ("separability", True)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(80), r"expected `points` of shape .* got \(80,\)"),
        (torch.zeros(1, 3), r"with N >= 2, got \(1, 3\)"),
        (torch.zeros(4, 3, dtype=torch.int32), r"expected floating `points`, got torch\.int32"),
    ],
)
def test_errors(points, message):
    with pytest.raises(ValueError, match=message):
        h0_separability(points)
