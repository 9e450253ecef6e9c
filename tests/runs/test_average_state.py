"""The state of averages beside checkpoints."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from conftest import make_encoder
from helpers.averages import are_equal, averaged, with_lora
from safetensors import SafetensorError

from sepstop.measure.average import RunningAverages
from sepstop.runs.average_state import (
    move_state,
    read_state,
    remove_states,
    save_state,
    state_folder,
)

FILE = "sepstop_average_state.safetensors"


def resumed_from(checkpoint, model, step=4):
    averages = RunningAverages(model)
    averages.load_state_dict(read_state(checkpoint, model, step), model)
    return averages


def is_same(first, second):
    first, second = first.state_dict(), second.state_dict()
    tensors, others = first.pop("averages"), second.pop("averages")
    return first == second and all(are_equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.parametrize("make", [make_encoder, lambda: make_encoder().double(), with_lora])
def test_it_comes_back_to_the_bit(tmp_path, make):
    model = make()
    averages = averaged(model)
    save_state(tmp_path / "checkpoint-4", averages, model, step=4)
    assert is_same(averages, resumed_from(tmp_path / "checkpoint-4", model))
    assert [path.name for path in (tmp_path / "checkpoint-4").iterdir()] == [FILE]
    empty = RunningAverages(model)  # during the warm-up
    save_state(tmp_path / "checkpoint-4", empty, model, step=4)
    assert is_same(empty, resumed_from(tmp_path / "checkpoint-4", model))


def test_it_waits_beside_the_checkpoint(tmp_path):
    """The process may be killed before, while or after the checkpoint is saved."""
    model, checkpoint = make_encoder(), tmp_path / "checkpoint-4"
    averages = averaged(model)
    save_state(state_folder(tmp_path, 3), averages, model, step=3)  # its checkpoint never came
    save_state(state_folder(tmp_path, 4), averages, model, step=4)
    checkpoint.mkdir()
    assert is_same(averages, resumed_from(checkpoint, model))
    move_state(tmp_path, checkpoint, step=4)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    assert is_same(averages, resumed_from(checkpoint, model))
    save_state(state_folder(tmp_path, 8), averages, model, step=8)
    remove_states(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_ranks_move_it_at_once(tmp_path):
    """Each rank finds files and folders that others are moving and removing."""
    ranks = 8
    with ThreadPoolExecutor(ranks) as threads:
        for step in range(1, 200):
            checkpoint = tmp_path / f"checkpoint-{step}"
            checkpoint.mkdir()
            waiting = state_folder(tmp_path, step)
            waiting.mkdir()
            for rank in range(ranks):
                (waiting / f"sepstop_average_state-{rank}.safetensors").touch()
            start = Barrier(ranks)

            def move(checkpoint=checkpoint, step=step, start=start):
                start.wait()
                move_state(tmp_path, checkpoint, step)

            for moved in [threads.submit(move) for _ in range(ranks)]:
                moved.result()
            assert len(list(checkpoint.iterdir())) == ranks
            assert not waiting.exists()


def test_a_rank_that_does_not_write(tmp_path):
    model = make_encoder()
    save_state(tmp_path / "checkpoint-4", averaged(model), model, step=4, writes=False)
    assert not list(tmp_path.iterdir())


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def no_tensors(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "step", "said"),
    [
        (lambda path: path.unlink(), 4, f"no {FILE} in "),
        (cut, 4, "Error while deserializing header"),
        (no_tensors, 4, "Error while deserializing header"),
        (None, 8, "is of step 4, not 8"),
    ],
)
def test_a_state_that_is_missing_damaged_or_of_another_step(tmp_path, damage, step, said):
    model, checkpoint = make_encoder(), tmp_path / f"checkpoint-{step}"
    save_state(checkpoint, averaged(model), model, step=4)
    if damage:
        damage(checkpoint / FILE)
    with pytest.raises((OSError, ValueError, SafetensorError), match=said):
        read_state(checkpoint, model, step)


def test_the_state_of_another_model(tmp_path):
    averages = averaged(model := make_encoder())
    save_state(tmp_path, averages, model, step=4)
    message = r"belongs to other weights than those of the checkpoint; .* in output_dir"
    for other in (with_lora(), make_encoder(seed=1)):
        with pytest.raises(ValueError, match=message):
            resumed_from(tmp_path, other)
