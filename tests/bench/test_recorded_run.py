"""Recorded runs in files."""

import json

import numpy as np
import pytest
import torch
from helpers.recorded import toy_run, without_logits

from sepstop.bench.recorded_run import (
    RecordedRun,
    find_recorded_runs,
    fingerprint,
    load_run,
    save_run,
)
from sepstop.utils.files import pack_arrays


def test_round_trip(tmp_path):
    run = RecordedRun("toy", toy_run().arrays, {"noise": 0.4, "pooling": "mean"})
    path = save_run(tmp_path / "new folder", run)
    assert find_recorded_runs(tmp_path / "new folder") == [path]
    again = load_run(path)
    assert (again.name, again.settings) == ("toy", run.settings)
    assert path.stem == "toy"
    assert again.arrays.keys() == run.arrays.keys()
    for key, values in run.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], values)
        assert again.arrays[key].dtype == values.dtype
    assert fingerprint(again) == fingerprint(run)


def test_files_recorded_earlier(tmp_path):
    """They call the pooling "embedder", or have no settings."""
    settings = {"model": "model", "embedder": "last", "steps": 30}
    for name, more in (("with", {"settings": np.array(json.dumps(settings))}), ("without", {})):
        (tmp_path / f"{name}.npz").write_bytes(pack_arrays(toy_run().arrays | more))
    found = load_run(tmp_path / "with.npz").settings
    assert list(found.items()) == [("model", "model"), ("pooling", "last"), ("steps", 30)]
    assert load_run(tmp_path / "without.npz").settings == {}


@pytest.mark.slow
def test_shared_runs_can_be_read(shared):
    for path in find_recorded_runs(shared / "runs"):
        run = load_run(path)
        assert len(run) == len(run.steps) > 10
        assert run.observation(0).points.shape[0] == run.pool_size


def test_the_fingerprint_is_of_the_arrays():
    changed = toy_run()
    changed.arrays["te_acc"] = changed.arrays["te_acc"] + 0.01
    assert len({fingerprint(run) for run in (toy_run(), toy_run("other"), changed)}) == 2


def test_observations():
    run = toy_run()
    run.arrays["pool_d"] = run.arrays["pool_l"][:, :, ::-1].copy()
    seen = run.observation(2)
    assert seen.points.dtype == torch.float32
    np.testing.assert_array_equal(seen.points, run.arrays["pool_e"][2].astype(np.float32))
    np.testing.assert_array_equal(seen.logits, run.arrays["pool_l"][2])
    np.testing.assert_array_equal(seen.corrupted_logits, run.arrays["pool_d"][2])
    assert (run.outputs, seen.outputs) == ("classes", "classes")
    bare = without_logits(toy_run())
    assert bare.outputs == "none"
    assert bare.observation(0).logits is None
    assert bare.observation(0).corrupted_logits is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("te_acc"), "has no te_acc; it has pool_e, pool_l, steps, y"),
        (lambda a: a.update(te_acc=np.zeros(3)), "te_acc has 3 evaluations, steps 4"),
        (lambda a: a.update(te_acc=np.zeros((4, 1))), "of 1 dimensions in te_acc, got float64 of"),
        (lambda a: a.update(y=np.zeros(7)), r"pool_e of shape \(T, 7, ...\), got \(4, 40, 3\)"),
        (
            lambda a: a.update(steps=np.array([0, 2, 1, 3])),
            r"expected ascending steps, got \[0, 2, 1, 3\]",
        ),
        (lambda a: a.update(settings=np.array("[1]")), "expected the settings as a JSON object"),
    ],
)
def test_files_that_are_not_runs(tmp_path, change, message):
    arrays = toy_run().arrays
    change(arrays)
    path = tmp_path / "toy.npz"
    path.write_bytes(pack_arrays(arrays))
    with pytest.raises(ValueError, match=message):
        load_run(path)


def test_files_that_are_not_archives(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"expected an \.npz file at .*text\.npz"):
        load_run(tmp_path / "text.npz")
    with pytest.raises(FileNotFoundError, match=r"no recorded runs \(\.npz files\) in .*nowhere"):
        find_recorded_runs(tmp_path / "nowhere")
