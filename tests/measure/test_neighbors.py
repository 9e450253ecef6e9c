"""Nearest neighbors of each text, and those of a whole run."""

import numpy as np
import pytest
import torch

from sepstop.measure import neighbors
from sepstop.measure.neighbors import Neighborhoods, nearest_neighbors


def cloud(rows, seed=0):
    return torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 10, 64])
def test_neighbors_are_the_nearest_by_cosine_whatever_the_length(monkeypatch, rows):
    monkeypatch.setattr(neighbors, "_ROWS", rows)
    points = cloud(50)
    unit = torch.nn.functional.normalize(points.double(), dim=-1)
    expected = torch.cdist(unit, unit).fill_diagonal_(torch.inf).argsort(dim=-1)[:, :3]
    lengths = torch.rand(50, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    assert torch.equal(nearest_neighbors(points * lengths), expected)


def test_autocast_around_a_loop_changes_no_neighbors():
    points = cloud(50) + 10  # cosines that bfloat16 cannot tell apart
    expected = nearest_neighbors(points)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_neighbors(points), expected)


def test_few_points_have_few_neighbors():
    assert nearest_neighbors(cloud(2)).tolist() == [[1], [0]]


def test_neighbors_of_all_evaluations_so_far():
    known = Neighborhoods()
    for step in (0, 10, 20):
        known.add(step, cloud(30, seed=step))
    found = known.until(10, of_predictions=True)
    assert found.shape == (30, 2, 3)  # not those of step 20
    assert torch.equal(known.until(10, of_predictions=False), found)
    assert torch.equal(found[:, 0], nearest_neighbors(cloud(30, seed=0)))
    assert torch.equal(found[:, 1], nearest_neighbors(cloud(30, seed=10)))
    assert known.until(15, of_predictions=True) is None
    assert known.until(15, of_predictions=False) is None


@pytest.mark.parametrize("of_predictions", [True, False])
def test_the_first_of_several_steps_is_what_the_others_refer_to(of_predictions):
    known = Neighborhoods()
    for step, expected in ((20, None), (30, 20), (10, 10)):
        known.add(step, cloud(30))
        assert known.first_reference(of_predictions=of_predictions) == expected


def two_clumps(rows):
    """Points, and logits of two classes that keep to one clump each."""
    side = (torch.arange(rows) % 2 * 2 - 1).float()[:, None]
    return cloud(rows) / 10 + side, torch.cat([side, -side], dim=1)


def test_a_start_whose_classes_agree_anyway_is_no_reference(tmp_path):
    points, logits = two_clumps(30)
    known = Neighborhoods()
    known.add(0, points, logits)
    known.add(10, cloud(30, seed=10), logits)
    assert not known.refers_back
    alone = nearest_neighbors(cloud(30, seed=10))
    assert torch.equal(known.until(10, of_predictions=True), alone[:, None])
    assert known.first_reference(of_predictions=True) is None
    # Embeddings have no predictions to agree with: they refer to the start all the same.
    both = torch.stack([nearest_neighbors(points), alone], dim=1)
    assert torch.equal(known.until(10, of_predictions=False), both)
    assert known.first_reference(of_predictions=False) == 0
    known.save(tmp_path / "neighbors.npz", "")
    found = Neighborhoods.load(tmp_path / "neighbors.npz", "", until=10)
    assert not found.refers_back
    assert found.start_agreement == known.start_agreement


def test_labels_that_agree_anyway_are_counted_on_average():
    """A part of log 2 each: a quarter of them may agree, and constant ones never do."""
    points, logits = two_clumps(400)
    agree, mixed, constant = logits[:, :1], cloud(400, seed=1)[:, :4], torch.ones(400, 1)
    for labels, refers_back in (
        ((agree,), False),
        ((agree, mixed[:, :2]), False),
        ((agree, mixed), True),
        ((constant,), True),
        ((agree, -agree, constant), False),
    ):
        known = Neighborhoods()
        known.add(0, points, torch.cat(labels, dim=1), "labels")
        assert known.refers_back is refers_back
    known = Neighborhoods()
    known.add(0, points, logits, "none")  # targets of a regression
    assert known.refers_back


@pytest.mark.parametrize(("step", "classes"), [(0, "mixed"), (0, "one"), (10, "agree")])
def test_a_start_that_tells_nothing_is_a_reference(step, classes):
    points, logits = two_clumps(400)
    logits = {"mixed": cloud(400, seed=1)[:, :2], "one": logits[:, :1], "agree": logits}[classes]
    known = Neighborhoods()
    known.add(step, points, logits)  # classes of a trained model may agree
    assert known.refers_back


def test_a_file_gives_back_what_was_measured_alike(tmp_path):
    path = tmp_path / "new" / "neighbors.npz"
    known = Neighborhoods()
    for step in (0, 10, 20):
        known.add(step, cloud(30, seed=step))
    known.save(path, "this pool")
    assert [file.name for file in path.parent.iterdir()] == ["neighbors.npz"]
    found = Neighborhoods.load(path, "this pool", until=10)
    assert found.steps == [0, 10]
    expected = known.until(10, of_predictions=True)
    assert torch.equal(found.until(10, of_predictions=True), expected)
    assert Neighborhoods.load(path, "another pool", until=10).steps == []
    assert Neighborhoods.load(tmp_path / "none.npz", "this pool", until=10).steps == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", "other"])
def test_a_broken_file_is_as_good_as_none(tmp_path, content):
    path = tmp_path / "neighbors.npz"
    if content == "other":
        np.savez(path, steps=np.arange(3))
    else:
        path.write_bytes(content)
    assert Neighborhoods.load(path, "this pool", until=10).steps == []


def test_a_disk_that_takes_no_file_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="^sepstop: could not write"):
        Neighborhoods().save(tmp_path / "file" / "neighbors.npz", "")
