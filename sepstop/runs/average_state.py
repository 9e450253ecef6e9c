"""Files with the state of running averages, for resuming a run."""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from sepstop.measure.average import RunningAverages
from sepstop.measure.backbone import is_sharded
from sepstop.utils.distributed import Ranks

_NAME = "sepstop_average_state"


def state_folder(run_dir: str | Path, step: int) -> Path:
    """Folder beside the checkpoints for the state at ``step`` until its checkpoint is complete."""
    return Path(run_dir) / f".{_NAME}-{step}"


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
    state = averages.state_dict()
    tensors = {
        f"{average}/{name}": values.contiguous()
        for average, weights in state.pop("averages").items()
        for name, values in weights.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    save_file(tensors, unfinished, metadata={_NAME: json.dumps(state | {"step": step})})
    unfinished.replace(path)


def move_state(run_dir: str | Path, checkpoint: str | Path, step: int) -> None:
    """Move the state at ``step`` into its checkpoint, and remove states that wait for others.

    To be called on all ranks when the checkpoint is complete.
    """
    waiting = state_folder(run_dir, step)
    for path in waiting.glob(f"{_NAME}*"):
        with suppress(FileNotFoundError):  # another rank moved it
            path.replace(Path(checkpoint) / path.name)
    remove_states(run_dir)


def remove_states(run_dir: str | Path) -> None:
    """Remove the states that wait for their checkpoints, as when a run begins."""
    for waiting in Path(run_dir).glob(f".{_NAME}-*"):
        shutil.rmtree(waiting, ignore_errors=True)


def load_state(
    checkpoint: str | Path,
    averages: RunningAverages,
    model: nn.Module,
    step: int,
) -> bool:
    """Take over the state of the averages at the checkpoint that a run is resumed from.

    The state is in the checkpoint or still waits beside it. All ranks have to call it.

    Returns:
        True if all ranks found theirs. Otherwise the averages are left as they were.

    Warns:
        UserWarning: the state is missing or damaged, or belongs to other averages, to another
            model or to another number of processes.
    """
    name, ranks = _file_name(model), Ranks.of_run()
    places = [Path(checkpoint), state_folder(Path(checkpoint).parent, step)]
    path = next((place / name for place in places if (place / name).is_file()), places[0] / name)
    before = averages.state_dict()
    why = ""
    try:
        averages.load_state_dict(_read(path, step), model)
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
    reasons = [found for found in ranks.collected([why], ranks.size) if found]
    if reasons:
        averages.load_state_dict(before, model)
        warnings.warn(
            f"sepstop: the averages of the weights can't be resumed from {checkpoint} "
            f"({reasons[0]}); they begin anew at step {step}",
            stacklevel=2,
        )
    return not reasons


def _file_name(model: nn.Module) -> str:
    ranks = Ranks.of_run()
    part = f"-{ranks.rank + 1:05}-of-{ranks.size:05}" if is_sharded(model) else ""
    return f"{_NAME}{part}.safetensors"


def _read(path: Path, step: int) -> dict[str, Any]:
    from safetensors import safe_open

    if not path.is_file():
        others = sorted(other.name for other in path.parent.glob(f"{_NAME}*"))
        kind = f"; found {others[0]}, of another number of processes" if others else ""
        raise FileNotFoundError(f"no {path.name}{kind}")
    with safe_open(path, framework="pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()[_NAME])
        state["averages"] = {name: {} for name in state["decays"]}
        for key in file.keys():  # noqa: SIM118
            average, _, weight = key.partition("/")
            state["averages"][average][weight] = file.get_tensor(key)
    if state["step"] != step:
        raise ValueError(f"{path.name} is of step {state['step']}, not {step}")
    return state
