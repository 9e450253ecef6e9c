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

_OF_LIBRARIES = (
    "torch.nn.parallel",
    "torch.distributed",
    "torch._dynamo",
    "deepspeed",
    "bitsandbytes",
)
"""Modules whose attributes are a runtime's own; only their modes are restored."""

_CONTAINERS = (dict, list, set, deque)

_CODES = 2**16
"""Integer buffers of more elements are quantized weights: checked, not copied."""


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, leaving the model and the random states as they were.

    A forward pass in evaluation mode can change a model: BigBird switches its attention for good,
    dynamic rotary embeddings keep the longest length seen. On exit, the attributes, submodules and
    buffers of every module are what they were before, in place, and so are the attributes of the
    objects that it holds, if their class is of the same package (a configuration, a cache).
    Weights are not copied.

    Not ``inference_mode``: a tensor that a module caches in it (rotary embeddings do) cannot be
    trained on afterwards.

    Raises:
        RuntimeError: the pass wrote into quantized weights, which are too large to copy.
    """
    device = next(model.parameters()).device
    before = _State(model)
    with same_randomness(device), torch.no_grad(), _no_stale_casts(device):
        model.eval()
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
        self._codes: dict[int, tuple[str, Tensor, int]] = {}
        seen: set[int] = set()
        for name, module in model.named_modules():
            if type(module).__module__.startswith(_OF_LIBRARIES) and not _is_sharded(module):
                continue
            held = [part for part in vars(module).values() if _is_of_same_package(part, module)]
            for attributes in (part.__dict__ for part in (module, *held)):
                if id(attributes) not in seen:
                    seen.add(id(attributes))
                    self._keep(name, attributes)

    def _keep(self, name: str, attributes: dict[str, Any]) -> None:
        self._attributes.append((attributes, dict(attributes)))
        for key, value in attributes.items():
            if key == "_parameters":  # FSDP swaps them, and keeps track of it elsewhere
                continue
            named = [(key, value)]
            if isinstance(value, _CONTAINERS):
                plain = next(kind for kind in _CONTAINERS if isinstance(value, kind))
                self._containers[id(value)] = value, plain(value)
                parts = value.values() if isinstance(value, dict) else value
                named = [(key, part) for part in parts]
            if key == "_buffers":
                named = list(value.items())
            for known_as, tensor in named:
                if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                    self._keep_tensor(f"{name}.{known_as}".strip("."), tensor)

    def _keep_tensor(self, name: str, tensor: Tensor) -> None:
        if tensor.is_meta or id(tensor) in self._tensors:
            return
        if not tensor.is_floating_point() and tensor.numel() > _CODES:
            if not tensor.is_inference():  # such a tensor has no version
                self._codes[id(tensor)] = name, tensor, tensor._version
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
                    tensor.resize_(copy.shape).copy_(copy)
        changed = [name for name, tensor, was in self._codes.values() if tensor._version != was]
        if changed:
            raise RuntimeError(
                f"the forward pass writes into {changed[0]}, which is too large to be "
                "restored, so watching this model would change its training"
            )


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
