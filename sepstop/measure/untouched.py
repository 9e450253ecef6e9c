"""A guard that restores a model and the random states after a forward pass."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sepstop.measure.backbone import is_fsdp2, is_sharded

_RUNTIMES = (
    "torch.nn.parallel",
    "torch.distributed",
    "torch._dynamo",
    "deepspeed",
    "bitsandbytes",
)
"""Packages whose modules manage their own attributes; only the modes of these are restored."""

_CONTAINERS = (dict, list, set, deque)

_IMMUTABLE = {bool, int, float, str, type(None)}

_MAX_COPIED = 2**16
"""Elements of an integer buffer. Larger ones are quantized weights: checked, not copied."""

_Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the model and the random states are restored on exit.

    A forward pass in evaluation mode can change a model: BigBird switches its attention for good,
    and dynamic rotary embeddings keep the longest length seen. On exit, the attributes, submodules
    and buffers of every module are what they were before, in place. So are the attributes of the
    objects that a module holds, if their class is of the module's package (a configuration, a
    cache). Containers are restored at any depth. Weights are not copied.

    The mode of each module is set directly, because a ``train`` method can change weights: that of
    loralib merges its adapters.

    This is not ``inference_mode``, because tensors that a module caches in it, as rotary
    embeddings do, cannot take part in training afterwards.

    Args:
        model: on its device; it needs at least one parameter.

    Raises:
        RuntimeError: the pass wrote into weights, which are too large to copy (RWKV rescales
            its weights).

    >>> model = nn.Linear(2, 1)
    >>> with untouched(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    device = next(model.parameters()).device
    snapshot = _Snapshot(model)
    with same_randomness(device), torch.no_grad(), _no_stale_casts(device):
        for module in model.modules():
            # On a CPU in evaluation mode, 4-bit layers repack and round their weights for good.
            if not type(module).__module__.startswith("bitsandbytes"):
                module.training = False
        try:
            yield
        finally:
            snapshot.restore()


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Restore the random states of torch (CPU and ``device``), NumPy and Python on exit."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _no_stale_casts(device: torch.device) -> Iterator[None]:
    """Turn off the weight cache of the caller's autocast.

    A weight that is cast and cached without gradients would have no gradient in training.
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        yield
        return
    with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False):
        yield


class _Snapshot:
    """All that a forward pass may change in a model, and versions of its weights."""

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._arrays: dict[int, tuple[Any, Any]] = {}
        self._generators: dict[int, tuple[Any, Any]] = {}
        self._weights: dict[int, tuple[str, Tensor, int]] = {}
        # FSDP and ZeRO swap parameters and manage them elsewhere.
        manages_weights = is_sharded(model)
        seen: set[int] = set()
        for name, module in model.named_modules():
            # FSDP2 replaces the class of the user's module by a class of torch.distributed.
            if type(module).__module__.startswith(_RUNTIMES) and not is_fsdp2(module):
                continue
            if not manages_weights:
                self._keep_weights(name, module)
            held = [part for part in vars(module).values() if _is_of_same_package(part, module)]
            for attributes in (part.__dict__ for part in (module, *held)):
                if id(attributes) not in seen:
                    seen.add(id(attributes))
                    self._attributes.append((attributes, dict(attributes)))
                    for key, value in attributes.items():
                        if key not in ("_parameters", "_buffers"):
                            self._keep(f"{name}.{key}".strip("."), value)
            self._keep(name, module._buffers)

    def _keep(self, name: str, value: Any) -> None:
        """Keep a copy of ``value`` if it can change in place."""
        if isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter):
                self._keep_tensor(name, value)
        elif isinstance(value, _CONTAINERS):
            if id(value) in self._containers:
                return
            plain = next(kind for kind in _CONTAINERS if isinstance(value, kind))
            self._containers[id(value)] = value, plain(value)
            parts = value.items() if isinstance(value, dict) else ((None, part) for part in value)
            for key, part in parts:
                if type(part) not in _IMMUTABLE:  # a vocabulary has many of these
                    self._keep(name if key is None else f"{name}.{key}".strip("."), part)
        elif isinstance(value, np.ndarray):
            self._arrays[id(value)] = value, value.copy()
        elif isinstance(value, _Generator):
            self._generators[id(value)] = value, _state_of(value)

    def _keep_weights(self, name: str, module: nn.Module) -> None:
        """Keep which weights a module has and their versions, which count writes in place.

        Inference tensors have no version.
        """
        weights = module._parameters
        self._containers[id(weights)] = weights, dict(weights)
        if isinstance(module, nn.RNNBase):  # flatten_parameters moves its weights, unchanged
            return
        for key, weight in weights.items():
            if weight is not None and not weight.is_inference():
                self._weights[id(weight)] = f"{name}.{key}".strip("."), weight, weight._version

    def _keep_tensor(self, name: str, tensor: Tensor) -> None:
        """Keep a copy of a tensor, or the version of a quantized weight."""
        if tensor.is_meta or id(tensor) in self._tensors:
            return
        if not tensor.is_floating_point() and tensor.numel() > _MAX_COPIED:
            if not tensor.is_inference():
                self._weights[id(tensor)] = name, tensor, tensor._version
            return
        self._tensors[id(tensor)] = tensor, tensor.detach().clone()

    def restore(self) -> None:
        """Restore everything in place.

        Raises:
            RuntimeError: weights were written to.
        """
        for module, training in self._modes:
            module.training = training
        for attributes, before in self._attributes:
            _put_back(attributes, before)
        for container, items in self._containers.values():
            if isinstance(container, dict):
                _put_back(container, items)
            elif isinstance(container, set):
                container.clear()
                container.update(items)
            elif len(container) != len(items) or any(
                now is not was for now, was in zip(container, items, strict=True)
            ):
                container.clear()
                container.extend(items)
        for tensor, copy in self._tensors.values():
            if not torch.equal(tensor, copy):
                with torch.inference_mode(tensor.is_inference()):
                    if tensor.shape != copy.shape:
                        tensor.resize_(copy.shape)
                    tensor.copy_(copy)
        for array, copy in self._arrays.values():
            if array.flags.writeable:
                array[...] = copy
        for generator, state in self._generators.values():
            _set_state(generator, state)
        changed = [name for name, tensor, was in self._weights.values() if tensor._version != was]
        if changed:
            raise RuntimeError(
                f"the forward pass writes into {changed[0]}, which is too large to restore; "
                "expected a model whose forward pass in evaluation mode leaves its weights "
                "unchanged, because measuring this one would change its training"
            )


def _state_of(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _is_of_same_package(part: Any, module: nn.Module) -> bool:
    """True if ``part`` is an object with attributes whose class is of the module's package.

    False for functions and classes, and for modules, which are visited on their own.
    """
    if not hasattr(part, "__dict__") or isinstance(part, (type, nn.Module)) or callable(part):
        return False
    first, second = (type(thing).__module__.partition(".")[0] for thing in (part, module))
    return first == second


def _put_back(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Make ``now`` equal to ``before``, including the order of keys."""
    same = len(now) == len(before) and all(
        key is known and value is was
        for (key, value), (known, was) in zip(now.items(), before.items(), strict=True)
    )
    if not same:
        now.clear()
        now.update(before)
