"""Saved weights: the tensors in a checkpoint's files, compared with those of a live model."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sepstop.utils.text import listed

ADAPTER_CONFIG = "adapter_config.json"
SENTENCE_MODULES = "modules.json"  # of a SentenceTransformer or CrossEncoder
LAST_CHECKPOINT = "last-checkpoint"  # of Trainer, in a repository on the hub
_NO_ADAPTERS = ("checkpoint-", LAST_CHECKPOINT, ".")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_SHOWN = 3  # tensors in a message


@dataclass(frozen=True)
class Counterparts:
    """The tensors of a model, or of a module of it, and those in its files.

    Attributes:
        module: the model, or the module of it.
        folder: of its files.
        held: its tensors by the names that they are saved under. Those that transformers converts
            when it saves, such as experts, are copies.
        saved: name and values of each tensor in the files, read one at a time, on the CPU.
        buffers: further tensors of the model, which may be missing from the files.
    """

    module: Any
    folder: Path
    held: Mapping[str, Tensor]
    saved: Iterable[tuple[str, Tensor]]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def held_as(self, name: str) -> Tensor | None:
        """The model's tensor that is saved under a name; None without one."""
        return self.held.get(name, self.buffers.get(name))


def weights_that_differ(model: nn.Module, checkpoint: str | Path) -> list[str]:
    """Names of the tensors that differ between a model and the files of a checkpoint.

    The comparison is bit for bit, after the saved values are cast to the model's dtype, as loading
    does. It holds one saved tensor in memory at a time. It raises nothing: if a folder can't be
    compared, the list has one sentence that says so.

    Args:
        model: on any device, with its weights whole on this rank. Wrappers (DDP, ``torch.compile``,
            PEFT) are looked through.
        checkpoint: folder of a model, of a PEFT adapter of any name, or of a SentenceTransformer.

    Returns:
        Saved tensors that the model lacks or holds with other values, then tensors of the model
        that were not saved. Empty if all are equal.
    """
    try:
        parts = counterparts(model, Path(checkpoint))
        return [name for part in parts for name in _unequal(part)]
    except Exception as error:
        why = (str(error).splitlines() or [""])[0]
        return [f"{checkpoint} could not be compared: {type(error).__name__}: {why}"]


def adapter_folders(checkpoint: Path) -> dict[str, Path]:
    """Name -> folder of each PEFT adapter in a checkpoint.

    PEFT saves the adapter "default" in the folder itself, and others in folders of their names.
    In a run's folder, checkpoints and what sepstop wrote are no adapters of the final model.
    """
    inside = sorted(path.parent for path in checkpoint.glob(f"*/{ADAPTER_CONFIG}"))
    found = {
        path.name: path
        for path in inside
        if not path.name.startswith(_NO_ADAPTERS) and not any(path.glob("sepstop_*.json"))
    }
    if (checkpoint / ADAPTER_CONFIG).is_file():
        found = {"default": checkpoint} | found
    return found


class BaseName(NamedTuple):
    """The base model of an adapter: folder or hub name, and its revision there if it is pinned."""

    source: str
    revision: str | None = None


def base_of_adapter(checkpoint: Path) -> BaseName | None:
    """The base that a checkpoint's first adapter names.

    None if there is no adapter, if it names no base, or if its configuration can't be read.
    """
    with suppress(OSError, ValueError, KeyError, TypeError, StopIteration):
        folder = next(iter(adapter_folders(checkpoint).values()))
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        base = config["base_model_name_or_path"]
        return None if base is None else BaseName(str(base), config.get("revision"))
    return None


def has_whole_model(checkpoint: Path) -> bool:
    """True if a folder has the configuration and the weights of a model, not of an adapter alone.

    The weights decide: a configuration is often saved beside an adapter.
    """
    files = [checkpoint / name for name in (*_WHOLE, *(f"{name}.index.json" for name in _WHOLE))]
    return (checkpoint / "config.json").is_file() and any(path.is_file() for path in files)


def shards(index: Path) -> set[str]:
    """Names of the weight files in the index of a sharded model."""
    return set(map(str, json.loads(index.read_text()).get("weight_map", {}).values()))


def saved_shapes(adapter: Path) -> dict[str, torch.Size]:
    """Name -> shape of each tensor in an adapter's folder."""
    return {name: tensor.shape for name, tensor in _saved_tensors(adapter, _ADAPTER)}


def shorten(names: Iterable[str]) -> str:
    """The first names in order, and the number of the others.

    >>> shorten(["e", "d", "c", "b", "a"])
    'a, b, c and 2 more'
    """
    return listed(sorted(names), _SHOWN)


def address(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor's values lie. Tied weights have the same address."""
    return tensor.device, tensor.data_ptr(), tensor.shape


def adapter_tensors(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of the active adapter, under the names that PEFT saves them by.

    Args:
        model: a PeftModel, or a transformers model with an adapter inside.
        names: tensors in the adapter's files. Those of the base among them, such as saved
            embeddings, are returned too.
    """
    from peft import PeftModel, get_peft_model_state_dict

    name = active_adapter(model)
    state = model.state_dict(keep_vars=True)
    found = get_peft_model_state_dict(
        model, state_dict=state, adapter_name=name, save_embedding_layers=False
    )
    if "prompt_embeddings" in found:  # a copy of the encoder's only weight, if it has one
        encoder: Any = model.prompt_encoder
        weights = list(encoder[name].parameters())
        found |= {"prompt_embeddings": weights[0]} if len(weights) == 1 else {}
    inside = re.compile(rf"\.{re.escape(name)}(?=\.|$)")
    whole = {inside.sub("", key): values for key, values in state.items()}
    if not isinstance(model, PeftModel):  # transformers adds the prefix when it saves
        found = {f"base_model.model.{key}": values for key, values in found.items()}
        whole = {f"base_model.model.{key}": values for key, values in whole.items()}
    return found | {key: whole[key] for key in names if key in whole and key not in found}


def active_adapter(model: Any) -> str:
    """Name of the active adapter of a PeftModel, or of a transformers model with one inside."""
    active = model.active_adapters
    return str((active() if callable(active) else active)[0])


def fingerprint(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Sum of the bits of each tensor, the same on every device."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = {}
    for name, weight in weights.items():
        values = weight.detach().reshape(-1).contiguous()
        bits = torch.view_as_real(values).reshape(-1) if values.is_complex() else values
        sums[name] = int(bits.view(kinds[bits.element_size()]).sum(dtype=torch.int64))
    return sums


# Files


def _saved_tensors(folder: Path, names: Iterable[str] = _WHOLE) -> Iterator[tuple[str, Tensor]]:
    """Name and values of each tensor in the first of the weight files ``names``, on the CPU.

    Raises:
        FileNotFoundError: the folder has none of the files.
    """
    for path in _weight_files(folder, names):
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
        else:
            mapped = zipfile.is_zipfile(path)
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            yield from ((name, value) for name, value in weights.items() if _is_tensor(value))


def _weight_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """The first of the files ``names``, or its shards."""
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / shard for shard in sorted(shards(index))]
    raise FileNotFoundError(f"no {' or '.join(names)} in {folder}")


# Comparison


def counterparts(model: nn.Module, folder: Path) -> Iterator[Counterparts]:
    """The tensors of a model and those in a folder, one module of a SentenceTransformer at a time.

    Args:
        model: as `weights_that_differ` takes it.
        folder: of a model of the same kind.

    Raises:
        OSError: the folder lacks weights.
        ValueError: it holds other modules.
    """
    from accelerate.utils import extract_model_from_parallel

    body: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    if (folder / SENTENCE_MODULES).is_file() and isinstance(body, nn.Sequential):
        for module, entry in zip(
            body, json.loads((folder / SENTENCE_MODULES).read_text()), strict=True
        ):
            yield from _counterparts_of_module(module, folder / str(entry["path"]))
    elif getattr(body, "peft_config", None):
        inside = adapter_folders(folder).get(active_adapter(body), folder)
        names = saved_shapes(inside)
        yield Counterparts(
            body, inside, adapter_tensors(body, names), _saved_tensors(inside, _ADAPTER)
        )
    else:
        saved = _without_obsolete(body, _saved_tensors(folder))
        yield Counterparts(body, folder, _state_as_saved(body), saved, dict(body.named_buffers()))


def _counterparts_of_module(module: Any, folder: Path) -> Iterator[Counterparts]:
    """Those of a module of a SentenceTransformer, which has a folder of its own."""
    inside = getattr(module, "auto_model", None)
    routes = folder / "router_config.json"
    if isinstance(inside, nn.Module):
        yield from counterparts(inside, folder)
    elif routes.is_file():
        for route, names in json.loads(routes.read_text())["structure"].items():
            for part, name in zip(module.sub_modules[route], names, strict=True):
                yield from _counterparts_of_module(part, folder / name)
    elif module.state_dict():
        yield Counterparts(
            module, folder, module.state_dict(keep_vars=True), _saved_tensors(folder)
        )


def _state_as_saved(model: Any) -> dict[str, Tensor]:
    """The tensors of a whole model by the names in its files, tied weights under each name."""
    from transformers import PreTrainedModel

    own = model.state_dict(keep_vars=True)
    state = {name.replace("_orig_mod.", ""): values for name, values in own.items()}
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    if isinstance(model, PreTrainedModel):
        from transformers.core_model_loading import revert_weight_conversion

        with torch.no_grad():  # the converted tensors
            state = revert_weight_conversion(model, state)
    return {name: values for name, values in state.items() if _is_tensor(values)}


def _without_obsolete(
    model: Any, saved: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """The saved tensors without those of older versions, which the model's class ignores."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    state = model.state_dict()
    for name, values in saved:
        if name in state or not any(re.search(pattern, name) for pattern in patterns):
            yield name, values


def _unequal(part: Counterparts) -> Iterator[str]:
    """Names of tensors that are not equal, or that only one side has."""
    found = set()
    for name, values in part.saved:
        mine = part.held_as(name)
        if mine is not None:
            found.add(address(mine))
        if mine is None or not _are_equal(mine, values):
            yield name
    for name, mine in part.held.items():
        if mine.numel() and address(mine) not in found:
            yield name


def _are_equal(mine: Tensor, saved: Tensor) -> bool:
    if mine.shape != saved.shape:
        return False
    both = [values.detach().cpu().to(mine.dtype).reshape(-1) for values in (mine, saved)]
    first, second = (values.contiguous().view(torch.uint8) for values in both)
    return torch.equal(first, second)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
