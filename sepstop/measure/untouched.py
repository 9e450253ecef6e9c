"""A model left as it was found: modes, attributes, buffers and random states."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sepstop.measure.backbone import is_divided

_OF_LIBRARIES = (
    "torch.nn.parallel",
    "torch.distributed",
    "torch._dynamo",
    "deepspeed",
    "bitsandbytes",
)
"""Modules whose attributes are a runtime's own; only their modes are restored."""

_CONTAINERS = (dict, list, set, deque)

_PLAIN = {bool, int, float, str, type(None)}
"""What cannot be changed in place."""

_CODES = 2**16
"""Integer buffers of more elements are quantized weights: checked, not copied."""

_Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, leaving the model and the random states as they were.

    A forward pass in evaluation mode can change a model: BigBird switches its attention for good,
    dynamic rotary embeddings keep the longest length seen. On exit, the attributes, submodules and
    buffers of every module are what they were before, in place, and so are the attributes of the
    objects that it holds, if their class is of the same package (a configuration, a cache).
    Containers are restored at any depth. Weights are not copied.

    Modes are set on each module: a ``train`` of the model's own can change weights, as that of
    loralib does, which merges its adapters.

    Not ``inference_mode``: a tensor that a module caches in it (rotary embeddings do) cannot be
    trained on afterwards.

    Raises:
        RuntimeError: the pass wrote into weights, which are too large to copy (RWKV rescales them).
    """
    device = next(model.parameters()).device
    before = _State(model)
    with same_randomness(device), torch.no_grad(), _no_stale_casts(device):
        for module in model.modules():
            # In evaluation mode on a CPU its 4-bit layers repack their weights for good, rounded.
            if not type(module).__module__.startswith("bitsandbytes"):
                module.training = False
        try:
            yield
        finally:
            before.restore()


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """The random states of torch (CPU and ``device``), NumPy and Python, restored on exit."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _no_stale_casts(device: torch.device) -> Iterator[None]:
    """Within the caller's autocast, no cast weight is cached: it would have no gradient later."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        yield
        return
    with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False):
        yield


class _State:
    """What a forward pass may change in a model, besides its weights."""

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._arrays: dict[int, tuple[Any, Any]] = {}
        self._generators: dict[int, tuple[Any, Any]] = {}
        self._weights: dict[int, tuple[str, Tensor, int]] = {}
        # FSDP and ZeRO swap parameters, and keep track of them elsewhere.
        self._has_own_weights = not is_divided(model)
        seen: set[int] = set()
        for name, module in model.named_modules():
            if type(module).__module__.startswith(_OF_LIBRARIES) and not _is_sharded(module):
                continue
            if self._has_own_weights:
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
        """Note what ``value`` is, if it can be changed in place."""
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
                if type(part) not in _PLAIN:  # of which there may be many, as in a vocabulary
                    self._keep(name if key is None else f"{name}.{key}".strip("."), part)
        elif isinstance(value, np.ndarray):
            self._arrays[id(value)] = value, value.copy()
        elif isinstance(value, _Generator):
            self._generators[id(value)] = value, _state_of(value)

    def _keep_weights(self, name: str, module: nn.Module) -> None:
        """Note which weights a module has, and how often they were written to."""
        weights = module._parameters
        self._containers[id(weights)] = weights, dict(weights)
        if isinstance(module, nn.RNNBase):  # its flatten_parameters moves them, unchanged
            return
        for key, weight in weights.items():
            if weight is not None and not weight.is_inference():  # such a tensor has no version
                self._weights[id(weight)] = f"{name}.{key}".strip("."), weight, weight._version

    def _keep_tensor(self, name: str, tensor: Tensor) -> None:
        if tensor.is_meta or id(tensor) in self._tensors:
            return
        if not tensor.is_floating_point() and tensor.numel() > _CODES:
            if not tensor.is_inference():
                self._weights[id(tensor)] = name, tensor, tensor._version
            return
        self._tensors[id(tensor)] = tensor, tensor.detach().clone()

    def restore(self) -> None:
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
                f"the forward pass writes into {changed[0]}, which is too large to be "
                "restored, so watching this model would change its training"
            )


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.bit_generator.state


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _is_of_same_package(part: Any, module: nn.Module) -> bool:
    """Whether ``part`` has attributes and the module's author is likely to have written its class.

    Not functions and classes, nor modules, which are visited by themselves.
    """
    if not hasattr(part, "__dict__") or isinstance(part, (type, nn.Module)) or callable(part):
        return False
    first, second = (type(thing).__module__.partition(".")[0] for thing in (part, module))
    return first == second


def _is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 made the class, in place of the user's own."""
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def _put_back(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Make ``now`` equal to ``before``, the order of keys included."""
    same = len(now) == len(before) and all(
        key is known and value is was
        for (key, value), (known, was) in zip(now.items(), before.items(), strict=True)
    )
    if not same:
        now.clear()
        now.update(before)
