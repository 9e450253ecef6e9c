"""Recorded runs in files."""

import json

import numpy as np
import pytest
import torch
from helpers.recorded import toy_run, with_average, without_copies, without_logits

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


def test_averages():
    run = with_average(toy_run(), "cumulative", (0.1, 0.6, 0.95, 0.8))
    run.arrays["plain_te_acc"] = np.array([0.9])
    run.arrays["va_acc"] = run.arrays["pool_acc"] = np.zeros(4)
    run.settings["plain"] = ["EMA 0.99"]
    assert run.averages == ("cumulative",)
    assert run.candidates == ("checkpoint", "cumulative")
    assert run.test_accuracy_of("cumulative").tolist() == [0.1, 0.6, 0.95, 0.8]
    assert run.test_accuracy_of("checkpoint").tolist() == [0.1, 0.5, 0.9, 0.7]
    assert run.best_accuracy == 0.9
    assert run.plain_accuracy == {"EMA 0.99": 0.9}
    assert run.first_average == 1  # the first evaluation is the model's own
    seen = run.observation(2, "cumulative")
    np.testing.assert_array_equal(seen.logits, run.arrays["cumulative_pool_l"][2])
    np.testing.assert_array_equal(
        seen.points, run.arrays["cumulative_pool_e"][2].astype(np.float32)
    )
    np.testing.assert_array_equal(seen.corrupted_logits, run.arrays["cumulative_pool_d"][2])
    assert without_copies(run).observation(2, "cumulative").corrupted_logits is None
    with pytest.raises(ValueError, match="no candidate 'EMA', only checkpoint, cumulative"):
        run.test_accuracy_of("EMA")


def test_a_run_without_averages():
    run = toy_run(accuracy=(0.9, 0.5, 0.8, 0.7))
    assert (run.averages, run.candidates) == ((), ("checkpoint",))
    assert (run.plain_accuracy, run.first_average) == ({}, 4)
    assert run.best_accuracy == 0.8  # step 0 has no checkpoint


def test_files_that_call_the_cumulative_average_avg(tmp_path):
    arrays = with_average(toy_run(), "avg", (0.1, 0.6, 0.95, 0.8)).arrays
    (tmp_path / "toy.npz").write_bytes(pack_arrays(arrays))
    assert load_run(tmp_path / "toy.npz").averages == ("cumulative",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a.pop("recent_te_acc"),
            "has recent_pool_e but no recent_te_acc",
        ),
        (
            lambda a: a.pop("recent_pool_e"),
            r"recent_pool_e of the shape of pool_e, \(4, 40, 3\), got no such array",
        ),
        (
            lambda a: a.update(recent_te_acc=np.zeros(3)),
            r"recent_te_acc of the shape of te_acc, \(4,\), got \(3,\)",
        ),
        (
            lambda a: a.update(recent_pool_l=np.zeros((4, 40, 5))),
            r"recent_pool_l of the shape of pool_l, \(4, 40, 2\), got \(4, 40, 5\)",
        ),
        (
            lambda a: a.pop("pool_d"),
            r"recent_pool_d of the shape of pool_d, no such array, got \(4, 40, 2\)",
        ),
        (
            lambda a: a.update(plain_te_acc=np.zeros(2)),
            r"expected plain_te_acc of shape \(0,\), one for each name .*, got \(2,\)",
        ),
    ],
)
def test_averages_that_do_not_fit(tmp_path, change, message):
    arrays = with_average(toy_run(), "recent", (0.1, 0.6, 0.95, 0.8)).arrays
    change(arrays)
    (tmp_path / "toy.npz").write_bytes(pack_arrays(arrays))
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path / "toy.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("te_acc"), "has no te_acc; it has pool_d, pool_e, pool_l, steps, y"),
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
