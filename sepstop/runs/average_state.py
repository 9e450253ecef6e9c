"""Files with the state of running averages, for resuming a run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sepstop.measure.average import RunningAverages, local_weights
from sepstop.measure.backbone import is_sharded
from sepstop.runs.saved_weights import fingerprint
from sepstop.utils.distributed import Ranks

_NAME = "sepstop_average_state"
_REMEDY = "; a run that is resumed from another folder needs its checkpoint in output_dir"


def state_folder(run_dir: str | Path, step: int) -> Path:
    """Folder beside the checkpoints for the state at ``step`` until its checkpoint is complete.

    Trainer pushes no file or folder to the hub whose name begins with an underscore.
    """
    return Path(run_dir) / f"_{_NAME}-{step}"


def save_state(
    folder: str | Path,
    averages: RunningAverages,
    model: nn.Module,
    step: int,
    writes: bool = True,
) -> None:
    """Write the state of the averages, bit for bit.

    Each rank of a sharded model writes a file. Otherwise those write that ``writes``. A file is
    written whole or not at all.

    Args:
        folder: a checkpoint, or `state_folder`; made if it is missing.
        averages: of the run.
        model: the run's model.
        step: optimizer steps taken.
        writes: True on the ranks that write for all, such as ``TrainingArguments.should_save``.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    from safetensors.torch import save_file

    if not (writes or is_sharded(model)):
        return
    path = Path(folder) / _file_name(model)
    state = averages.state_dict() | {"step": step}
    state["weights"] = _weights_key(state["averages"], model)
    tensors = {
        f"{average}/{name}": values.contiguous()
        for average, weights in state.pop("averages").items()
        for name, values in weights.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    save_file(tensors, unfinished, metadata={_NAME: json.dumps(state)})
    unfinished.replace(path)


def move_state(run_dir: str | Path, checkpoint: str | Path, step: int) -> None:
    """Move the state at ``step`` into its checkpoint, and remove states that wait for others.

    To be called on all ranks, in any order, when all have written theirs and the checkpoint is
    complete: with a disk of its own, each node has to move its files. The checkpoint may be gone
    already, if a folder has later checkpoints of an earlier run and a limit.
    """
    waiting = state_folder(run_dir, step)
    paths: list[Path] = []
    with suppress(FileNotFoundError):  # another rank moved all of them
        paths = list(waiting.iterdir())
    for path in paths:
        if path.name.startswith(_NAME):  # a hidden one is unfinished
            with suppress(FileNotFoundError):  # another rank moved this one
                path.replace(Path(checkpoint) / path.name)
    remove_states(run_dir)


def remove_states(run_dir: str | Path) -> None:
    """Remove the states that wait for their checkpoints, as when a run begins."""
    for waiting in Path(run_dir).glob(f"_{_NAME}-*"):
        shutil.rmtree(waiting, ignore_errors=True)


def read_state(checkpoint: str | Path, model: nn.Module, step: int) -> dict[str, Any]:
    """This rank's state of the averages at the checkpoint that a run is resumed from.

    It is in the checkpoint, or still waits beside it.

    Args:
        checkpoint: in the run's folder.
        model: with the weights of the checkpoint.
        step: optimizer steps taken.

    Returns:
        As `RunningAverages.state_dict`.

    Raises:
        FileNotFoundError, ValueError, safetensors.SafetensorError: it is missing or damaged, or
            belongs to another step, to other weights or to another number of processes.
    """
    from safetensors import safe_open

    name, checkpoint = _file_name(model), Path(checkpoint)
    places = [checkpoint, state_folder(checkpoint.parent, step)]
    path = next((place / name for place in places if (place / name).is_file()), None)
    if path is None:
        others = sorted(other.name for other in checkpoint.glob(f"{_NAME}*"))
        kind = f"; found {others[0]}, of another number of processes" if others else ""
        raise FileNotFoundError(f"no {name} in {checkpoint}{kind}{'' if kind else _REMEDY}")
    with safe_open(path, framework="pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()[_NAME])
        state["averages"] = {average: {} for average in state["decays"]}
        for key in file.keys():  # noqa: SIM118
            average, _, weight = key.partition("/")
            state["averages"][average][weight] = file.get_tensor(key)
    if state["step"] != step:
        raise ValueError(f"{path} is of step {state['step']}, not {step}")
    if state.pop("weights", None) != _weights_key(state["averages"], model):
        raise ValueError(f"{path} belongs to other weights than those of the checkpoint{_REMEDY}")
    return state


def _weights_key(averages: Mapping[str, Mapping[str, Tensor]], model: nn.Module) -> str:
    """A key of the present values of the averaged weights: SHA-256 of each tensor's sum of bits."""
    names = {name for tensors in averages.values() for name in tensors}
    sums = fingerprint(local_weights(model, names))
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _file_name(model: nn.Module) -> str:
    ranks = Ranks.of_run()
    part = f"-{ranks.rank + 1:05}-of-{ranks.size:05}" if is_sharded(model) else ""
    return f"{_NAME}{part}.safetensors"
