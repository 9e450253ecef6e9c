"""Averages of the checkpoints of one run on disk."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from sepstop.runs.adapter_base import weights_in_use
from sepstop.runs.saved_weights import active_adapter, adapter_tensors, address, fingerprint
from sepstop.types import CHECKPOINT

CHECKPOINT_AVERAGES: Final[Mapping[str, Callable[[int], int]]] = {
    "cumulative": lambda count: count,
    "recent": lambda count: math.ceil(count / 4),
}
"""Name -> number of checkpoints in an average, given the number of checkpoints so far.

An average holds the newest ones, with equal weights: "cumulative" all of them, "recent" the last
quarter, which has the mean age of a run's own "recent" average.
"""

_SETTINGS = ("config.json", "adapter_config.json", "modules.json", "router_config.json")
_SAYS_MOST = ("architectures", "model_type")
_PART = 2**20  # elements
_MAY_DIFFER = {"_name_or_path", "transformers_version", "peft_version"}


class CannotAverageError(ValueError):
    """A checkpoint has no place in an average.

    Attributes:
        checkpoint: its folder.
    """

    def __init__(self, checkpoint: Path, why: str) -> None:
        super().__init__(why)
        self.checkpoint = checkpoint


def averages_of(paths: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Name -> checkpoints of each average that ends with the last of ``paths``.

    One that would hold that checkpoint alone is left out.

    Args:
        paths: the checkpoints of a run so far, by step.

    >>> [path.name for path in averages_of([Path(name) for name in "abcde"])["recent"]]
    ['d', 'e']
    """
    sizes = {name: size(len(paths)) for name, size in CHECKPOINT_AVERAGES.items()}
    return {name: tuple(paths[-size:]) for name, size in sizes.items() if size > 1}


def without_misfits(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """The checkpoints that have the configuration of the newest one, and why the others do not fit.

    The configurations of the model, the adapter and the modules of a SentenceTransformer count, so
    other architectures, bases and ranks are told apart.

    Args:
        paths: the checkpoints of a run, by step.
    """
    found = {path: _settings(path) for path in paths}
    # One that was cut short while it was saved may have none.
    newest = next((settings for path in reversed(paths) if (settings := found[path])), {})
    misfits = {}
    for path, settings in found.items():
        if settings is None:
            misfits[path] = "its configuration can't be read"
        elif settings != newest:
            keys = settings.keys() | newest.keys()
            # A setting may be None in one and missing in the other.
            differing = [key for key in keys if settings.get(key, ...) != newest.get(key, ...)]
            first = min(differing, key=lambda key: (not key.startswith(_SAYS_MOST), key))
            misfits[path] = f"{first} is not that of the newest checkpoint"
    return [path for path in paths if path not in misfits], misfits


def averaged_model(paths: Sequence[Path], load: Callable[[Path], nn.Module]) -> nn.Module:
    """The model of the last checkpoint, with the average of the weights of all.

    Args:
        paths: checkpoints of one run, by step.
        load: loads a checkpoint.

    Raises:
        CannotAverageError: as `CheckpointAverages.models`.
    """
    models = CheckpointAverages(load).models(paths[-1], {"average": paths})
    return next(model for _, model in models)


class CheckpointAverages:
    """Puts averages of checkpoints into the model of the newest one.

    Checkpoints are loaded one at a time. Beside the one model in memory are the sums of the
    averaged weights, one per average, in float64, or in float32 if the weights are in half
    precision: 8 or 4 bytes a weight. A sum goes on from the average before. Where that takes a
    checkpoint out again, as for the last quarter, the checkpoint is loaded once more and
    subtracted: holding the weights of all of them would take more memory than a run may have. Such
    sums are practically exact, so the averages do not depend on the way that they took.

    All floating-point parameters are averaged, of an adapter's model those of the adapter.

    Args:
        load: loads a checkpoint. The model of the call before is not used any more.
        device: of the sums. Default: that of each weight.
    """

    def __init__(
        self, load: Callable[[Path], nn.Module], device: str | torch.device | None = None
    ) -> None:
        self._load, self._device = load, device
        self._sums: dict[str, _Sum] = {}
        self._form: dict[str, Any] = {}

    def models(
        self, newest: Path, wanted: Mapping[str, Sequence[Path]]
    ) -> Iterator[tuple[str, nn.Module]]:
        """Name and model of each candidate; a model holds until the next one.

        Args:
            newest: the checkpoint whose model is used.
            wanted: name -> checkpoints in the average, ``newest`` among them. The name `CHECKPOINT`
                stands for the checkpoint itself, which comes first.

        Raises:
            CannotAverageError: a checkpoint has weights that are not finite, or differs from the
                first one that was loaded in the names or shapes of its weights, or in what can't be
                averaged, such as the statistics of BatchNorm.
        """
        averages = {name: paths for name, paths in wanted.items() if name != CHECKPOINT}
        changes: dict[Path, list[tuple[_Sum, int]]] = {}
        for name, paths in averages.items():
            total = self._sums.setdefault(name, _Sum(self._device))
            for path, sign in total.changes(paths):
                changes.setdefault(path, []).append((total, sign))
        of_newest = changes.pop(newest, [])
        for path, uses in changes.items():
            self._add(path, self._load(path), uses)
        model = self._load(newest)
        if CHECKPOINT in wanted:
            yield CHECKPOINT, model
        if averages:
            self._add(newest, model, of_newest)
        for name in averages:
            self._sums[name].put_mean(_averaged_weights(model))
            yield name, model

    def _add(self, path: Path, model: nn.Module, sums: Sequence[tuple[_Sum, int]]) -> None:
        weights = _averaged_weights(model)
        self._check(path, model, weights)
        for total, sign in sums:
            total.add(path, weights, sign)

    def _check(self, path: Path, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """
        Raises:
            CannotAverageError: the checkpoint can't be averaged with the first one.
        """
        for name, weight in weights.items():
            if weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
                raise CannotAverageError(path, f"{name} is not finite")
        state = weights_in_use(model) if _is_adapted(model) else _state(model)
        rest = {name: values for name, values in state.items() if name not in weights}
        form = {name: tuple(weight.shape) for name, weight in weights.items()} | fingerprint(rest)
        self._form = self._form or form
        for name in form | self._form:
            if name not in form or name not in self._form:
                raise CannotAverageError(path, f"{name} is not in all checkpoints")
            if form[name] == self._form[name]:
                continue
            if name in weights:
                what = f"{name} has shape {form[name]}, in earlier checkpoints {self._form[name]}"
            else:
                what = f"{name} differs from earlier checkpoints, and only parameters are averaged"
            raise CannotAverageError(path, what)


class _Sum:
    """The sum of the weights of some checkpoints.

    Args:
        device: of the sum. Default: that of each weight.
    """

    def __init__(self, device: str | torch.device | None) -> None:
        self._device = device
        self._paths: list[Path] = []
        self._sums: dict[str, Tensor] = {}

    def changes(self, paths: Sequence[Path]) -> list[tuple[Path, int]]:
        """Checkpoints to add (1) and to take away (-1) until the sum is that of ``paths``.

        The sum starts from zero if that takes no more checkpoints.
        """
        leaving = [path for path in self._paths if path not in paths]
        coming = [path for path in paths if path not in self._paths]
        if len(leaving) + len(coming) >= len(paths):
            self._paths, self._sums = [], {}
            leaving, coming = [], list(paths)
        return [(path, -1) for path in leaving] + [(path, 1) for path in coming]

    @torch.no_grad()
    def add(self, path: Path, weights: Mapping[str, Tensor], sign: int) -> None:
        """Add the weights of a checkpoint, or take them away."""
        is_first = not self._sums
        if is_first:
            self._sums = _in_blocks(weights, self._on)
        for name, weight in weights.items():
            for total, values in _parts(self._sums[name], weight.to(self._on(weight))):
                if is_first:
                    total.copy_(values)
                else:
                    total.add_(values.to(total.dtype), alpha=sign)
        if sign > 0:
            self._paths.append(path)
        else:
            self._paths.remove(path)

    @torch.no_grad()
    def put_mean(self, weights: Mapping[str, Tensor]) -> None:
        """Put the mean into the weights of a model, in their dtype."""
        _own_memory(weights)
        for name, weight in weights.items():
            for total, values in _parts(self._sums[name], weight.data):
                mean = total / len(self._paths)
                values.copy_(mean if mean.device == values.device else mean.to(values.dtype))

    def _on(self, weight: Tensor) -> torch.device:
        """The device of a weight's sum."""
        device = self._device or ("cpu" if weight.device.type == "mps" else weight.device)
        return torch.device(device)


def _own_memory(weights: Mapping[str, Tensor]) -> None:
    """Give weights on a CPU other memory, without values.

    Loaded weights may lie in a mapped file, where each page costs time when it is written to.
    """
    for weight in weights.values():
        if weight.device.type == "cpu":
            weight.data = torch.empty_like(weight)


def _precise(weight: Tensor) -> torch.dtype:
    """The dtype of sums of a weight."""
    return torch.float32 if weight.dtype.itemsize < 4 else torch.float64


def _in_blocks(
    weights: Mapping[str, Tensor], device_of: Callable[[Tensor], torch.device]
) -> dict[str, Tensor]:
    """Tensors for sums of the weights, without values, in one block per device and dtype.

    The system gives memory faster in large blocks.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, weight in weights.items():
        groups.setdefault((device_of(weight), _precise(weight)), []).append(name)
    found: dict[str, Tensor] = {}
    for (device, dtype), names in groups.items():
        sizes = [weights[name].numel() for name in names]
        block = torch.empty(sum(sizes), dtype=dtype, device=device)
        for name, part in zip(names, block.split(sizes), strict=True):
            found[name] = part.view(weights[name].shape)
    return found


def _parts(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of two tensors of one shape, of few elements each on a CPU.

    There, results of the size of a large layer take several times as long.
    """
    if first.device.type == "cpu" and first.is_contiguous() and second.is_contiguous():
        yield from zip(first.view(-1).split(_PART), second.view(-1).split(_PART), strict=True)
    else:
        yield first, second


def _averaged_weights(model: Any) -> dict[str, Tensor]:
    """The floating-point parameters by name, tied ones once; of an adapter's model what it saves.

    The latter are the adapter's own and, with ``bias="lora_only"`` or "all", biases of the base.
    """
    weights = {
        name: weight for name, weight in model.named_parameters() if weight.is_floating_point()
    }
    if not _is_adapted(model):
        return weights
    of_adapter = re.compile(rf"\.{re.escape(active_adapter(model))}(\.|$)")
    saved = set(map(address, adapter_tensors(model, ()).values()))
    return {
        name: weight
        for name, weight in weights.items()
        if of_adapter.search(name) or address(weight) in saved
    }


def _is_adapted(model: nn.Module) -> bool:
    """True for a PeftModel."""
    return hasattr(model, "get_base_model")


def _state(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _settings(checkpoint: Path) -> dict[str, Any] | None:
    """What the configurations in a checkpoint say, by file and key; None if one can't be read."""
    found = {}
    try:
        for file in sorted(path for name in _SETTINGS for path in checkpoint.rglob(name)):
            values = json.loads(file.read_text())
            values = values if isinstance(values, dict) else {"": values}
            name = file.relative_to(checkpoint).as_posix()
            for key, value in values.items():
                if key not in _MAY_DIFFER:
                    found[f"{key} in {name}" if key else name] = _in_order(value)
    except (OSError, RecursionError, ValueError):
        return None
    return found


def _in_order(value: Any) -> Any:
    """Lists of names are sorted: PEFT writes its sets in any order."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted(value)
    return value
