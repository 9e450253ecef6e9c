"""Weights in the files of a checkpoint, compared with those of a live model."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER_CONFIG = "adapter_config.json"
SENTENCE_MODULES = "modules.json"  # of a SentenceTransformer or CrossEncoder
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_NAMED = 3  # tensors in a message


def weights_that_differ(model: nn.Module, checkpoint: str | Path) -> list[str]:
    """Names of tensors that a model and the files of a checkpoint do not share bit for bit.

    Saved values are cast to the model's dtype first, as loading does. One saved tensor is in memory
    at a time. Nothing is raised: where a folder cannot be compared, the list has one sentence that
    says so.

    Args:
        model: on any device, with its weights whole on this rank; wrapped by DDP, ``torch.compile``
            or PEFT as it may be.
        checkpoint: folder of a model, of a PEFT adapter of any name, or of a SentenceTransformer.

    Returns:
        Tensors of the files that the model lacks or holds otherwise, then those of the model that
        the files lack; empty if all are equal.
    """
    try:
        return list(_differing(model, Path(checkpoint)))
    except Exception as error:
        why = (str(error).splitlines() or [""])[0]
        return [f"{checkpoint} could not be compared: {type(error).__name__}: {why}"]


def adapter_folders(checkpoint: Path) -> dict[str, Path]:
    """Name -> folder of each PEFT adapter in a checkpoint.

    PEFT saves the adapter "default" in the folder itself, and others in a folder of their name.
    """
    inside = sorted(path.parent for path in checkpoint.glob(f"*/{ADAPTER_CONFIG}"))
    found = {path.name: path for path in inside if not path.name.startswith("checkpoint-")}
    if (checkpoint / ADAPTER_CONFIG).is_file():
        found = {"default": checkpoint} | found
    return found


def is_whole(checkpoint: Path) -> bool:
    """Whether a folder has the configuration and the weights of a model, not of an adapter alone.

    A configuration is often saved beside an adapter.
    """
    files = [checkpoint / name for name in (*_WHOLE, *(f"{name}.index.json" for name in _WHOLE))]
    return (checkpoint / "config.json").is_file() and any(path.is_file() for path in files)


def saved_tensors(folder: Path, names: Iterable[str] = _WHOLE) -> Iterator[tuple[str, Tensor]]:
    """Name and values of each tensor in a folder's weight files, on the CPU.

    Args:
        names: of the files, the first that is there; each may be divided into shards.

    Raises:
        FileNotFoundError: none is there.
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


def saved_shapes(adapter: Path) -> dict[str, torch.Size]:
    """Name -> shape of each tensor of an adapter."""
    return {name: tensor.shape for name, tensor in saved_tensors(adapter, _ADAPTER)}


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    found = sorted(names)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def address(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor's values lie: tied weights share it."""
    return tensor.device, tensor.data_ptr(), tensor.shape


def held_by_adapter(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The active adapter's tensors under the names that PEFT saves them by.

    Args:
        names: those of the files, which may have embeddings of the base too, under other names.
    """
    from peft import PeftModel, get_peft_model_state_dict

    name = _active_adapter(model)
    held = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    inside = re.compile(rf"\.{re.escape(name)}(?=\.|$)")
    whole = {inside.sub("", key): values for key, values in model.state_dict().items()}
    if not isinstance(model, PeftModel):  # transformers adds the prefix when it saves
        held = {f"base_model.model.{key}": values for key, values in held.items()}
        whole = {f"base_model.model.{key}": values for key, values in whole.items()}
    return held | {key: whole[key] for key in names if key in whole and key not in held}


def _active_adapter(model: Any) -> str:
    """Of a PeftModel, or of a model of transformers with an adapter inside."""
    active = model.active_adapters
    return str((active() if callable(active) else active)[0])


def _differing(model: nn.Module, path: Path) -> Iterator[str]:
    from accelerate.utils import extract_model_from_parallel

    body: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    if (path / SENTENCE_MODULES).is_file() and isinstance(body, nn.Sequential):
        yield from _differing_modules(body, path)
    elif getattr(body, "peft_config", None):
        folder = adapter_folders(path).get(_active_adapter(body), path)
        shapes = saved_shapes(folder)
        yield from _unlike(held_by_adapter(body, shapes), saved_tensors(folder, _ADAPTER))
    else:
        saved = _but_for_obsolete(body, saved_tensors(path))
        yield from _unlike(_as_saved(body), saved, dict(body.named_buffers()))


def _differing_modules(body: nn.Sequential, path: Path) -> Iterator[str]:
    """Those of the modules of a SentenceTransformer, each in its folder."""
    for module, entry in zip(body, json.loads((path / SENTENCE_MODULES).read_text()), strict=True):
        yield from _differing_module(module, path / str(entry["path"]))


def _differing_module(module: Any, folder: Path) -> Iterator[str]:
    inside = getattr(module, "auto_model", None)
    routes = folder / "router_config.json"
    if isinstance(inside, nn.Module):
        yield from _differing(inside, folder)
    elif routes.is_file():
        for route, names in json.loads(routes.read_text())["structure"].items():
            for part, name in zip(module.sub_modules[route], names, strict=True):
                yield from _differing_module(part, folder / name)
    elif module.state_dict():
        yield from _unlike(module.state_dict(), saved_tensors(folder))


def _as_saved(model: Any) -> dict[str, Tensor]:
    """The state of a whole model under the names that it is saved by, tied weights under each."""
    state = {name.replace("_orig_mod.", ""): values for name, values in model.state_dict().items()}
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        from transformers.core_model_loading import revert_weight_conversion

        state = revert_weight_conversion(model, state)
    return {name: values for name, values in state.items() if _is_tensor(values)}


def _but_for_obsolete(
    model: Any, saved: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Without tensors of older versions that the model's class itself says are of no use."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    state = model.state_dict()
    for name, values in saved:
        if name in state or not any(re.search(pattern, name) for pattern in patterns):
            yield name, values


def _unlike(
    held: Mapping[str, Tensor],
    saved: Iterable[tuple[str, Tensor]],
    buffers: Mapping[str, Tensor] | None = None,
) -> Iterator[str]:
    """Names of what differs.

    Args:
        buffers: which need not be saved, but have to be the same if they are.
    """
    found = set()
    for name, values in saved:
        mine = held.get(name, (buffers or {}).get(name))
        if mine is not None:
            found.add(address(mine))
        if mine is None or not _are_same(mine, values):
            yield name
    for name, mine in held.items():
        if mine.numel() and address(mine) not in found:
            yield name


def _are_same(mine: Tensor, saved: Tensor) -> bool:
    if mine.shape != saved.shape:
        return False
    both = [values.detach().cpu().to(mine.dtype).reshape(-1) for values in (mine, saved)]
    first, second = (values.contiguous().view(torch.uint8) for values in both)
    return torch.equal(first, second)


def _weight_files(folder: Path, names: Iterable[str]) -> list[Path]:
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = set(map(str, json.loads(index.read_text()).get("weight_map", {}).values()))
            return [folder / shard for shard in sorted(shards)]
    raise FileNotFoundError(f"no {' or '.join(names)} in {folder}")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
