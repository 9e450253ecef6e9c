"""Checkpoints of an older run in the folder of a newer one."""

import json
import os
import warnings

import pytest
from conftest import make_encoder
from helpers.training import TRAINS_AGAIN, train

from sepstop import SepStopCallback, select_checkpoint
from sepstop.runs.checkpoints import find_checkpoints, find_run
from sepstop.runs.history import HISTORY_FILE, KEY, write_history
from sepstop.runs.records import RunHistory, record_to_dict
from sepstop.types import Record, Score


def record(step, run):
    return Record(step, float("nan"), {"separability": Score(step / 100 + run)})


def write_records(folder, run):
    records = tuple(record(step, run) for step in (6, 12, 18, 24))
    history = RunHistory(records, (None,) * 4, decides="separability")
    write_history(folder / HISTORY_FILE, history)


def rows(until, run, scored=True):
    """What a run logged until a step."""
    found = []
    for step in range(6, until + 1, 6):
        found.append({"step": step, "loss": run + 1 / step, "grad_norm": float("nan")})
        if scored:
            found.append({"step": step, KEY: {"record": record_to_dict(record(step, run))}})
    return found


@pytest.fixture
def save(tmp_path):
    clock = iter(range(1, 100))

    def save(steps, run, log=rows, at=None, **options):
        for step in steps:
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir(exist_ok=True)
            path = folder / "trainer_state.json"
            path.write_text(json.dumps({"log_history": log(step, run, **options)}))
            time = next(clock) if at is None else at
            os.utime(path, (time, time))

    return save


def steps_in(folder):
    """And what is said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = find_checkpoints(folder)
    return sorted(found), " ".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize("scored", [True, False])
def test_those_of_an_older_run_are_left_out(tmp_path, save, scored):
    save([6, 12, 18, 24, 30, 36], run=1, scored=scored)
    assert steps_in(tmp_path) == ([6, 12, 18, 24, 30, 36], "")
    save([6, 12, 18], run=2, scored=scored)
    found, said = steps_in(tmp_path)
    assert found == [6, 12, 18]
    assert "checkpoint-24, checkpoint-30, checkpoint-36 in" in said


def test_the_longer_run_may_be_the_newer(tmp_path, save):
    save([6, 12], run=1)
    save([18, 24], run=2)
    found, said = steps_in(tmp_path)
    assert found == [18, 24]
    assert "checkpoint-6, checkpoint-12 in" in said


def test_the_history_decides_and_not_the_clock(tmp_path, save):
    """As in a copy."""
    save([6, 12, 18], run=2, at=5)
    save([24, 30, 36], run=1, at=7)
    write_records(tmp_path, run=2)
    assert steps_in(tmp_path)[0] == [6, 12, 18]
    save([24, 30, 36], run=1, at=5)
    assert steps_in(tmp_path)[0] == [6, 12, 18]


def test_a_newer_run_without_the_callback_leaves_the_old_history(tmp_path, save):
    save([6, 12, 18, 24], run=1)
    write_records(tmp_path, run=1)
    save([6, 12], run=2, scored=False)
    assert steps_in(tmp_path)[0] == [6, 12]


def test_going_back_to_an_older_checkpoint(tmp_path, save):
    def resumed(until, run):
        return rows(12, 1) + rows(until, run)[4:]

    save([6, 12, 18, 24], run=1)
    save([18], run=2, log=resumed)
    found, said = steps_in(tmp_path)
    assert found == [6, 12, 18]
    assert "checkpoint-24 in" in said


def test_where_nothing_tells_all_stay(tmp_path, save):
    save([24, 30], run=1, at=5)
    save([6, 12], run=2, at=5)
    found, said = steps_in(tmp_path)
    assert found == [6, 12, 24, 30]
    assert "several runs, and neither the history nor the file times tell" in said


def test_checkpoints_without_a_history_stay(tmp_path, save):
    save([12, 18], run=1)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-6").mkdir()
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text("{")
    save([12], run=2)
    assert steps_in(tmp_path)[0] == [3, 6, 12]


def silent(*_):
    """The log of a run that saves more often than it logs."""
    return []


@pytest.mark.parametrize("steps", [[24, 30], [6, 12, 18, 24, 30]])
def test_an_empty_log_after_a_longer_one_is_of_another_run(tmp_path, save, steps):
    save(steps, run=1, log=silent)
    save([6, 12, 18], run=2)
    found, said = steps_in(tmp_path)
    assert found == [6, 12, 18]
    assert "checkpoint-24, checkpoint-30 in" in said


def test_a_run_that_logged_nothing_yet_may_be_the_newest(tmp_path, save):
    save([6, 12, 18, 24], run=1)
    save([6, 12], run=2, log=silent)
    found, said = steps_in(tmp_path)
    assert found == [6, 12, 18, 24]
    assert "several runs, and neither" in said


def test_where_nothing_was_logged_the_time_is_a_warning(tmp_path, save):
    save([6, 12, 18, 24], run=1, log=silent)
    save([30], run=1, log=lambda step, run: rows(step, run)[-2:])
    assert steps_in(tmp_path) == ([6, 12, 18, 24, 30], "")
    save([6, 12], run=2, log=silent)
    found, said = steps_in(tmp_path)
    assert found == [6, 12, 18, 24, 30]
    assert "checkpoint-18, checkpoint-24, checkpoint-30 in" in said
    assert "were written before checkpoint-12" in said


@TRAINS_AGAIN
def test_a_real_run_begun_again(tmp_path, tokenizer, train_rows, pool):
    """Saving and scoring at the same steps makes each history begin the next."""
    for steps, seed in ((16, 0), (8, 1)):
        callback = SepStopCallback(pool, every_n_steps=4)
        model = make_encoder(seed)
        train(tmp_path, tokenizer, train_rows, callback, model, max_steps=steps)
        if seed == 0:
            assert steps_in(tmp_path) == ([4, 8, 12, 16], "")
    with pytest.warns(UserWarning, match=r"checkpoint-12, checkpoint-16 in .* left out"):
        selection = select_checkpoint(tmp_path, pool, progress=False, average=False)
    assert [r.step for r in selection.records] == [4, 8]
    assert selection.online_best_step == callback.decision.best_step
    assert selection.differences == {}


@pytest.mark.parametrize(("times", "is_sure"), [((1, 2, 3), True), ((2, 3, 1), False)])
def test_checkpoints_without_logs_are_told_apart_by_their_times(tmp_path, times, is_sure):
    for step, time in zip((10, 20, 30), times, strict=True):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        os.utime(folder / "config.json", (time, time))
    assert find_run(tmp_path).is_one_run is is_sure
