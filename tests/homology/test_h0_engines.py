"""The engines of `h0_deaths` against each other and a float64 tree of plain differences."""

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree

from sepstop import h0_deaths, h0_tree
from sepstop.homology import dense, filtered, forest
from sepstop.homology.forest import merged, nested_order, spanning_forest
from sepstop.homology.h0 import _chosen


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Every branch of the filtered pass in clouds of a few hundred points."""
    for name, value in {
        "_FEW": 8,
        "_RANDOM": 32,
        "_NEAR": 32,
        "_PIVOT": 16,
        "_CLUMP": 6,
        "_CROWD": 60,
        "_ROWS": 40,
        "_COLUMNS": 70,
        "_LEVELS": 12,
        "_PAIRS": 500,
    }.items():
        monkeypatch.setattr(filtered, name, value)


def prim(points):
    """Ascending float64 edge lengths, from differences of coordinates, one row a step."""
    x = points.double().numpy()
    inside = np.zeros(len(x), dtype=bool)
    reach, newest, lengths = np.full(len(x), np.inf), 0, []
    for _ in range(len(x) - 1):
        inside[newest] = True
        reach = np.minimum(reach, np.square(x - x[newest]).sum(axis=1))
        reach[inside] = np.inf
        newest = int(reach.argmin())
        lengths.append(math.sqrt(reach[newest]))
    return torch.tensor(lengths, dtype=torch.float64).sort().values


def assert_close(deaths, expected):
    torch.testing.assert_close(deaths.double(), expected, rtol=1e-6, atol=0)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clumps(spread, seed=0, count=4, each=60, dimensions=8):
    centres = normal(count, 1, dimensions, seed=seed)
    return (centres + spread * normal(count, each, dimensions, seed=seed + 1)).flatten(0, 1)


def shapes(seed):
    """Clouds that have been the ruin of some program or other."""
    x = normal(240, 8, seed=seed)
    decades = torch.rand(240, 1, generator=torch.Generator().manual_seed(seed)).double() * 6
    return {
        "blob": x,
        "float32": x.float(),
        "half": x.half(),
        "bfloat16": x.bfloat16(),
        "clusters": clumps(0.05, seed),
        "clumps": clumps(1e-4, seed),
        "clumps in float32": clumps(1e-4, seed).float(),
        "points almost": clumps(1e-9, seed),
        "clumps of clumps": torch.cat([clumps(1e-5, seed) * 1e-4, clumps(0.1, seed + 9)]),
        "pairs": torch.cat([x, x + 1e-10]),
        "duplicates": x[:20].repeat(12, 1),
        "two points many times": x[:2].repeat(120, 1),
        "one point and others": torch.cat([x[:1].expand(120, -1), x[:40]]),
        "all equal": x[:1].expand(240, -1),
        "offset": x + 1e6,
        "offset in float32": (x + 1000).float(),
        "line": torch.arange(240.0)[:, None] * x[:1],
        "grid": torch.cartesian_prod(torch.arange(16.0), torch.arange(15.0)),
        "orders of magnitude": x * 10**decades,
        "huge": x * 1e200,
        "tiny": x * 1e-200,
        "plane": torch.cat([x[:, :2], torch.zeros(240, 6)], dim=1),
        "one dimension": x[:, :1],
    }


@pytest.fixture
def launched(monkeypatch):
    """The ways of a GPU, on the CPU."""
    monkeypatch.setattr(dense, "is_launched", lambda device: True)
    monkeypatch.setattr(filtered, "_wider", lambda device: 2)
    monkeypatch.setattr(forest, "_scales_at_once", lambda points, device: 5)


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ["dense", "filtered"])
@pytest.mark.parametrize("name", shapes(0))
def test_exact_on_every_shape(name, engine, device):
    points = shapes(0)[name]
    scale = {"huge": 1e200, "tiny": 1e-200}.get(name, 1.0)
    deaths = h0_deaths(points.to(device), engine=engine)
    assert deaths.device.type == device
    assert_close(deaths.cpu() / scale, prim(points / scale))


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("engine", ["dense", "filtered"])
@pytest.mark.parametrize("name", shapes(0))
def test_the_ways_of_a_gpu_are_exact_on_every_shape(name, engine):
    points = shapes(1)[name]
    scale = {"huge": 1e200, "tiny": 1e-200}.get(name, 1.0)
    expected = prim(points / scale)
    edges, lengths = h0_tree(points, engine=engine)
    assert_close(lengths / scale, expected)
    label = merged(torch.arange(len(points)), edges[:, 0], edges[:, 1])
    assert (label == 0).all()
    assert torch.equal(h0_deaths(points, engine=engine), lengths)
    pair = torch.stack([points, points.flip(0)])
    for deaths in h0_deaths(pair, engine=engine):
        assert_close(deaths / scale, expected)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(sorted(shapes(0))), st.integers(1, 10**6), st.integers(9, 240))
def test_filtered_is_exact_on_any_cloud(name, seed, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filtered, "_FEW", 8)
        patch.setattr(filtered, "_CLUMP", 6)
        points = shapes(seed)[name]
        size = min(size, len(points))
        points = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))]
        points = points[:size]
        scale = {"huge": 1e200, "tiny": 1e-200}.get(name, 1.0)
        assert_close(h0_deaths(points, engine="filtered") / scale, prim(points / scale))


@pytest.mark.parametrize("engine", ["dense", "filtered"])
def test_the_tree_has_the_deaths_for_lengths_and_spans(engine):
    points = shapes(3)["clusters"]
    edges, lengths = h0_tree(points, engine=engine)
    assert torch.equal(lengths, h0_deaths(points, engine=engine))
    ends = points[edges]
    assert_close((ends[:, 0] - ends[:, 1]).norm(dim=-1), lengths)
    label = merged(torch.arange(len(points)), edges[:, 0], edges[:, 1])
    assert (label == 0).all()
    batch_edges, batch_lengths = h0_tree(torch.stack([points, points * 2]), engine=engine)
    assert batch_edges.shape == (2, len(points) - 1, 2)
    assert_close(batch_lengths[1], 2 * lengths)


def test_ripser_gives_the_same_deaths_but_no_tree():
    for points in (shapes(4)["clusters"], shapes(4)["duplicates"]):
        found = h0_deaths(points, engine="ripser")
        torch.testing.assert_close(found, h0_deaths(points), rtol=1e-5, atol=1e-6)
    assert h0_deaths(torch.stack([points, points]), engine="ripser").shape == (2, 239)
    with pytest.raises(ValueError, match="ripser gives no tree"):
        h0_tree(points, engine="ripser")


def test_resamples_share_their_distances_and_change_nothing(monkeypatch):
    points = shapes(5)["clusters"].float()
    resamples = torch.stack(
        [torch.randperm(240, generator=torch.Generator().manual_seed(s))[:100] for s in range(7)]
    )
    apart = h0_deaths(points[resamples])
    calls = []
    shared = dense.resampled_deaths
    monkeypatch.setattr(dense, "resampled_deaths", lambda *given: calls.append(1) or shared(*given))
    torch.testing.assert_close(h0_deaths(points, resamples), apart, rtol=1e-6, atol=0)
    assert calls
    # Few small ones of a large pool are cheaper by themselves.
    assert torch.equal(h0_deaths(points, resamples[:1, :50]), h0_deaths(points[resamples[:1, :50]]))
    found = h0_deaths(points, resamples, engine="filtered")
    torch.testing.assert_close(found, apart, rtol=1e-6, atol=0)
    assert len(calls) == 1
    assert h0_deaths(points, resamples[:0]).shape == (0, 99)


@pytest.mark.usefixtures("launched")
def test_resamples_take_no_more_memory_than_allowed(monkeypatch):
    points = shapes(5)["clusters"].float()
    resamples = torch.randint(240, (9, 100), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([prim(points[part]) for part in resamples])  # some points twice
    sizes = []
    trees = dense.shortest_trees

    def counted(weights):
        sizes.append(len(weights))
        return trees(weights)

    monkeypatch.setattr(dense, "shortest_trees", counted)
    limit = dense.memory(240, points.device)
    assert_close(h0_deaths(points, resamples, max_memory=limit), expected)
    assert sizes == [3, 3, 3]
    assert limit >= (3 * 18 * 100**2 + 8 * 240**2)
    assert_close(h0_deaths(points, resamples), expected)
    assert sizes[3:] == [9]


@pytest.mark.usefixtures("launched")
def test_a_gpu_takes_all_distances_at_once_while_they_fit():
    points, room = normal(2, 3), dense.memory(3000, torch.device("cuda"))
    assert _chosen("auto", points, 3000, None) == "dense"
    assert _chosen("auto", points, 3000, room) == "dense"
    assert _chosen("auto", points, 3000, room - 1) == "filtered"
    assert _chosen("auto", points, 5000, None) == "filtered"


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_lower_precision_of_products_loses_nothing(precision):
    """As allowed on the user's side, globally; the margin is wider then."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        for name in ("blob", "clusters", "clumps in float32"):
            points = shapes(6)[name].float()
            assert_close(h0_deaths(points, engine="filtered"), prim(points))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="needs torch 2.9")
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_lower_precision_by_backend_loses_nothing(precision):
    """As ``TrainingArguments(tf32=True)`` sets it; torch's older functions raise then."""
    points = shapes(6)["clusters"].float()
    strict = filtered._margin(points, 1.0)
    with torch.backends.flags(fp32_precision=precision):
        assert filtered._margin(points, 1.0) > 100 * strict
        assert_close(h0_deaths(points, engine="filtered"), prim(points))
    assert filtered._margin(points, 1.0) == strict


def test_rounding_within_the_margin_loses_no_edge(monkeypatch):
    """The computed squares off by as much as the margin allows, in the worst direction or any."""
    points = normal(240, 8, seed=7).float()
    product = torch.mm

    def off(rows, columns, out=None):
        found = product(rows, columns, out=out)
        noise = torch.rand(found.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return found.add_(noise.sign() * filtered._margin(points, radius) * 0.95)

    cloud = filtered._Cloud(points)
    everyone = torch.arange(240)
    scaled = cloud.about(cloud.mean(everyone), everyone, torch.float32)
    radius = float(scaled.square().sum(dim=1).max())
    monkeypatch.setattr(torch, "mm", off)
    assert_close(h0_deaths(points, engine="filtered"), prim(points))


def test_autocast_and_inference_mode_change_nothing():
    points = shapes(8)["clusters"].float()
    expected = h0_deaths(points, engine="filtered")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(h0_deaths(points, engine="filtered"), expected)
        assert torch.equal(h0_deaths(points, engine="dense"), h0_deaths(points))
    with torch.inference_mode():
        assert torch.equal(h0_deaths(points.clone(), engine="filtered"), expected)
    trained = points.clone().requires_grad_()
    assert not h0_deaths(trained, engine="filtered").requires_grad


def test_threads_and_repetitions_give_the_same_bits():
    points = shapes(9)["clumps of clumps"]
    expected = h0_deaths(points, engine="filtered")
    found = []

    def work():
        found.append(h0_deaths(points, engine="filtered"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(deaths, expected) for deaths in found)
    state = torch.get_rng_state()
    h0_deaths(points, engine="filtered")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["blob", "clumps of clumps", "clumps in float32", "duplicates"])
def test_wider_blocks_as_on_a_gpu_change_nothing(name, monkeypatch):
    points = shapes(13)[name]
    blocks = []
    product = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda *given, **into: blocks.append(1) or product(*given, **into)
    )
    expected = h0_deaths(points, engine="filtered")
    count = len(blocks)
    blocks.clear()
    monkeypatch.setattr(filtered, "_wider", lambda device: 3)
    torch.testing.assert_close(h0_deaths(points, engine="filtered"), expected, rtol=1e-7, atol=0)
    assert len(blocks) <= count / 3
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.undo()
    assert filtered.memory(10_000, 64, cpu) < filtered.memory(10_000, 64, gpu) < 2**30


def test_many_pairs_within_their_bounds_are_thinned_out(monkeypatch):
    monkeypatch.setattr(filtered, "_most_pairs", lambda points: 2 * points)
    calls = []
    thinned = filtered._thinned
    monkeypatch.setattr(filtered, "_thinned", lambda *given: calls.append(1) or thinned(*given))
    for name in ("blob", "grid", "duplicates"):
        points = shapes(10)[name]
        assert_close(h0_deaths(points, engine="filtered"), prim(points))
    assert len(calls) > 10


@pytest.mark.parametrize("name", ["clumps in float32", "two points many times"])
def test_a_clump_costs_no_more_than_its_own_tree(monkeypatch, name):
    """Its pairs are closer together than the margin, but are not all kept."""
    counts = []
    measured = filtered._measured

    def counted(cloud, first, second):
        counts.append(len(first))
        return measured(cloud, first, second)

    monkeypatch.setattr(filtered, "_measured", counted)
    h0_deaths(shapes(12)[name], engine="filtered")
    assert sum(counts) < 12 * 240
    if name != "two points many times":
        counts.clear()
        monkeypatch.setattr(filtered, "_TIGHT", 0)
        monkeypatch.setattr(filtered, "_CROWD", 10**6)
        h0_deaths(shapes(12)[name], engine="filtered")
        assert sum(counts) > 4 * 59 * 60 / 2 * 0.9


def test_memory_is_honoured_or_refused():
    points = normal(240, 8)
    assert_close(h0_deaths(points, max_memory=2**21), prim(points))
    with pytest.raises(ValueError, match=r"240 x 8 takes up to 2 MiB, but `max_memory` allows 1"):
        h0_deaths(points, max_memory=2**20)
    with pytest.raises(ValueError, match=r"takes up to \d+ MiB, but `max_memory` allows 1"):
        h0_deaths(points, engine="filtered", max_memory=2**20)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "fast"}, "expected `engine` auto, dense, filtered or ripser, got 'fast'"),
        (
            {"resample_indices": torch.zeros(2, 3)},
            r"expected `resample_indices` \(B, n\) int64 .* torch.float32",
        ),
        ({"resample_indices": torch.zeros(2, 1).long()}, r"with n >= 2, got \(2, 1\)"),
        ({"resample_indices": torch.tensor([[0, 9]])}, "expected `resample_indices` from 0 to 8"),
        ({"resample_indices": torch.tensor([[-1, 0]])}, "expected `resample_indices` from 0 to 8"),
    ],
)
def test_errors(given, message):
    with pytest.raises(ValueError, match=message):
        h0_deaths(normal(9, 2), **given)
    with pytest.raises(ValueError, match=r"expected one cloud \(N, D\) to resample"):
        h0_deaths(normal(2, 9, 2), torch.tensor([[0, 1]]))


# The trees of matrices


def weights(kind, size, n, seed):
    """``(size, n, n)`` symmetric; of integers many are equal."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(size, n, n, generator=generator, dtype=torch.float64)
    if kind == "few values":
        found = (4 * found).floor()
    elif kind == "equal":
        found = torch.ones_like(found)
    return torch.maximum(found, found.mT)


@pytest.mark.parametrize("n", [2, 3, 9, 64, 65])
@pytest.mark.parametrize("kind", ["different", "few values", "equal"])
def test_the_shortest_trees_are_those_of_scipy(kind, n):
    for seed in range(5):
        graphs = weights(kind, 7, n, seed)
        edges, lengths = dense.shortest_trees(graphs.clone())
        assert edges.shape == (7, n - 1, 2)
        for graph, ends, found in zip(graphs, edges, lengths, strict=True):
            assert torch.equal(graph[ends[:, 0], ends[:, 1]], found)
            assert (merged(torch.arange(n), ends[:, 0], ends[:, 1]) == 0).all()
            whole = (graph + 1).triu(diagonal=1).numpy()  # to SciPy 0 is no edge
            expected = np.sort(minimum_spanning_tree(whole).data) - 1
            np.testing.assert_allclose(found.sort().values.numpy(), expected, rtol=1e-12)


def test_trees_span_where_no_order_of_the_edges_is_kept():
    """Each point's nearest is another's farther one: rounding does that, in miniature."""
    graphs = torch.rand(50, 40, 40, generator=torch.Generator().manual_seed(0))
    edges, _ = dense.shortest_trees(graphs)
    for ends in edges:
        assert (merged(torch.arange(40), ends[:, 0], ends[:, 1]) == 0).all()


def test_an_upper_triangle_is_mirrored_in_place():
    for n in (2, 9, 65):
        found = torch.rand(3, n, n, generator=torch.Generator().manual_seed(0))
        upper = found.triu()
        found.masked_fill_(torch.ones(n, n, dtype=torch.bool).tril(-1), torch.nan)
        dense._mirror(found)
        assert torch.equal(found, upper + upper.triu(1).mT)


# The forest


def test_a_forest_of_two_parts_and_of_no_edges():
    first, second = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 0, 4, 1])
    weights = torch.tensor([1.0, 1.0, 1.0, 5.0, 0.5])
    kept = spanning_forest(6, first, second, weights)
    assert sorted(kept.tolist()) == [1, 3, 4]  # of equal weights the earlier edge
    assert spanning_forest(6, first[:0], second[:0], weights[:0]).tolist() == []


@pytest.mark.parametrize("at_once", [2, 3, 64, 1000])
def test_scales_at_once_give_the_same_order(at_once, monkeypatch):
    points = shapes(14)["clusters"]
    edges, lengths = h0_tree(points)
    expected = nested_order(edges[:, 0], edges[:, 1], lengths, 64)
    monkeypatch.setattr(forest, "_scales_at_once", lambda points, device: at_once)
    found = nested_order(edges[:, 0], edges[:, 1], lengths, 64)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_gaps_bound_the_paths_of_the_tree(levels):
    points = shapes(11)["clusters"]
    edges, lengths = h0_tree(points)
    order, gaps = nested_order(edges[:, 0], edges[:, 1], lengths, levels)
    assert sorted(order.tolist()) == list(range(len(points)))
    longest = torch.zeros(len(points), len(points), dtype=lengths.dtype)
    label = torch.arange(len(points))
    for (i, j), length in zip(edges.tolist(), lengths, strict=True):
        a, b = label == label[i], label == label[j]
        longest[a[:, None] & b[None, :]] = length
        longest[b[:, None] & a[None, :]] = length
        label = torch.where(b, label[i], label)
    between = gaps.expand(len(gaps), -1).triu().cummax(dim=1).values
    paths = longest[order][:, order]
    rows, columns = torch.triu_indices(len(gaps), len(gaps))
    assert (between[rows, columns] >= paths[rows, columns + 1]).all()
    if levels == 1000:  # all of them
        assert torch.equal(between[rows, columns], paths[rows, columns + 1])
