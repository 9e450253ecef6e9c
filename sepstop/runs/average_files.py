"""Folders of averages: complete models beside a run's checkpoints."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import patch_environment
from torch import Tensor, nn

from sepstop.measure.backbone import is_sharded, unwrapped
from sepstop.runs.saved_weights import Counterparts, counterparts, shorten
from sepstop.types import Average

AVERAGE_FILE = "sepstop_average.json"
"""File in an average's folder that says which steps the average holds."""

_UNFINISHED = ".average-*.unfinished"  # not yet the folder, or no longer


def average_folder(run_dir: str | Path, step: int) -> Path:
    """The folder of the average that was scored at ``step``."""
    return Path(run_dir) / f"average-{step}"


def find_averages(run_dir: str | Path) -> dict[int, Path]:
    """Step -> folder of each average in a run's folder, the earliest first."""
    found = {}
    for path in Path(run_dir).glob("average-*"):
        number = re.fullmatch(r"average-(\d+)", path.name)
        if number and path.is_dir():
            found[int(number[1])] = path
    return dict(sorted(found.items()))


def read_average(folder: str | Path) -> Average | None:
    """What the model in a folder is an average of; None if the folder does not say."""
    with suppress(OSError, ValueError, TypeError):
        return Average(**json.loads((Path(folder) / AVERAGE_FILE).read_text()))
    return None


def save_average(
    folder: str | Path, model: nn.Module, tokenizer: Any, average: Average, writes: bool = True
) -> None:
    """Write a model that holds an average, as its library saves it.

    The folder is built under a hidden name and renamed at the end. If the process is killed, there
    is no folder or a complete one. An earlier folder of this name is replaced, and what a killed
    process left in the run's folder is removed.

    All ranks have to call it: a sharded model is gathered, one tensor at a time.

    Args:
        folder: see `average_folder`.
        model: with the average in it. Wrappers (DDP, ``torch.compile``) are looked through. Of a
            model with adapters only these are saved.
        tokenizer: tokenizer or processor that is saved beside the model; None for none.
        average: which steps the average holds.
        writes: True on the ranks that write, such as ``TrainingArguments.should_save``.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    write_average(folder, model, tokenizer, average, writes)
    if writes:
        finish_average(folder)


def write_average(
    folder: str | Path, model: nn.Module, tokenizer: Any, average: Average, writes: bool = True
) -> Path:
    """The first half of `save_average`: write the files into a hidden folder.

    Returns:
        The hidden folder, to which more can be added before `finish_average`.
    """
    folder = Path(folder)
    unfinished = _unfinished(folder)
    body = unwrapped(model)
    state = _gathered(body, keep=writes) if is_sharded(body) else None
    if not writes:
        return unfinished
    for leftover in folder.parent.glob(_UNFINISHED):
        shutil.rmtree(leftover)
    unfinished.mkdir(parents=True)
    _save_model(unfinished, body, state)
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(unfinished))
    (unfinished / AVERAGE_FILE).write_text(json.dumps(asdict(average), indent=2) + "\n")
    return unfinished


def finish_average(folder: str | Path) -> None:
    """The second half of `save_average`, on one rank: give the hidden folder its name."""
    folder = Path(folder)
    if folder.exists():
        replaced = folder.with_name(f".{folder.name}.replaced.unfinished")
        folder.rename(replaced)
        _unfinished(folder).rename(folder)
        shutil.rmtree(replaced)
    else:
        _unfinished(folder).rename(folder)


@torch.no_grad()
def load_average(folder: str | Path, model: nn.Module) -> None:
    """Put the weights in an average's folder into a model, in place.

    Each rank reads the files; a rank of an FSDP2 or tensor-parallel model takes its shards.

    Args:
        folder: see `save_average`.
        model: as it was saved; may be wrapped.

    Raises:
        OSError: the folder has no weights.
        ValueError: a trainable weight was not saved, or a tensor does not fit; the message names
            it. The model may hold a part of the saved weights then.
    """
    body = unwrapped(model)
    loaded, misfits = set(), []
    for part in counterparts(body, Path(folder)):
        part = _in_place(part)
        for name, values in part.saved:
            held = part.held_as(name)
            if held is None or held.shape != values.shape:
                misfits.append(name)
            else:
                _copy(held, values)
                loaded.add(id(held))
    missing = [
        name
        for name, weight in body.named_parameters()
        if weight.requires_grad and id(weight) not in loaded
    ]
    reasons = [
        f"{what}: {shorten(names)}"
        for what, names in [
            ("trainable weights that are not in the folder", missing),
            ("tensors that the model lacks or has in another shape", misfits),
        ]
        if names
    ]
    if reasons:
        raise ValueError(f"{folder} does not fit {type(body).__name__}: {'; '.join(reasons)}")


def prune_averages(
    run_dir: str | Path, keep: int | None, best_step: int | None = None, known: int | None = None
) -> None:
    """Remove older averages, as ``save_total_limit`` removes checkpoints.

    Args:
        run_dir: the run's folder.
        keep: number of averages to keep; None or 0 keeps all.
        best_step: step of the best average, which stays.
        known: step of the average that a resumed run would take for the best, which stays too.
    """
    found = find_averages(run_dir)
    if not keep or keep < 0:
        return
    stay = found.keys() & {best_step, known}
    removable = [path for step, path in found.items() if step not in stay]
    kept = keep - len(stay)
    for path in removable[: max(0, len(removable) - kept)]:
        # A folder that is removed halfway must not be taken for an average.
        gone = path.with_name(f".{path.name}.removed.unfinished")
        path.rename(gone)
        shutil.rmtree(gone)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.unfinished")


def _save_model(folder: Path, body: Any, state: dict[str, Tensor] | None) -> None:
    """
    Args:
        state: the whole tensors of a sharded model; None for one that is not sharded.
    """
    if state is not None and hasattr(body, "save_pretrained"):
        body.save_pretrained(str(folder), state_dict=state)
    elif hasattr(body, "save_pretrained"):
        body.save_pretrained(str(folder))
    else:
        from safetensors.torch import save_file

        own = body.state_dict(keep_vars=True) if state is None else state
        once = {id(value): (name, value) for name, value in reversed(own.items())}
        tensors = {name: value.detach().contiguous() for name, value in once.values()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _gathered(body: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The whole tensors of a sharded model, on the CPU; empty unless this rank keeps them."""
    whole: dict[int, Tensor] = {}  # a tied weight stays one tensor
    state = {}
    for name, value in body.state_dict(keep_vars=True).items():
        if id(value) not in whole:
            full = value.full_tensor() if hasattr(value, "full_tensor") else value
            whole[id(value)] = full.detach().cpu() if keep else full.new_empty(0)
        state[name] = whole[id(value)]
    return state if keep else {}


def _in_place(part: Counterparts) -> Counterparts:
    """The same, with tensors of the model instead of their converted copies, such as experts.

    ``from_pretrained`` converts the saved tensors.
    """
    own = {id(tensor) for tensor in (*part.module.parameters(), *part.module.buffers())}
    if hasattr(part.module, "peft_config") or all(
        id(tensor) in own for tensor in part.held.values()
    ):
        return part
    kind: Any = next(kind for kind in type(part.module).__mro__ if "FSDP" not in kind.__name__)
    is_double = any(weight.dtype == torch.float64 for weight in part.module.parameters())
    # In a type that holds each weight exactly, whatever the configuration says; on all ranks.
    dtype = torch.float64 if is_double else torch.float32
    with patch_environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false"):
        read = kind.from_pretrained(part.folder, dtype=dtype)
    held = part.module.state_dict(keep_vars=True)
    return replace(part, held=held, saved=read.state_dict().items())


def _copy(held: Any, values: Tensor) -> None:
    """Copy whole values into a tensor of the model, or its part of them into a sharded one."""
    if hasattr(held, "placements"):
        from torch.distributed.tensor import distribute_tensor

        values = values.to(held.device, held.dtype)
        own = distribute_tensor(values, held.device_mesh, held.placements, src_data_rank=None)
        held.to_local().copy_(own.to_local())
    else:
        held.copy_(values)
