"""A stand-in for a GPU on a machine without one.

`Elsewhere` tensors say that they are on another device, torch's "meta", and are computed on the
CPU. As on a GPU, an operation that mixes devices raises, and NumPy cannot read one. Unlike a GPU,
they say nothing about speed or rounding.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")


class Elsewhere(torch.Tensor):
    """A tensor on the other device; ``values`` is what it holds."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> Elsewhere:
        self = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=DEVICE
        )
        self.values = values
        return self

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def tolist(self) -> Any:
        return self.values.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("expected a tensor on the CPU; it is elsewhere")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _carry_out(operation, args, kwargs or {})


class _Everything(TorchDispatchMode):
    """Sees operations that make tensors on the other device, too."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _carry_out(operation, args, kwargs or {})


@contextlib.contextmanager
def other_device(monkeypatch: pytest.MonkeyPatch):
    """Within, ``.to("meta")`` gives an `Elsewhere` tensor."""
    autocast, tensor = torch.autocast, torch.tensor

    def autocast_here(device_type, **options):
        known = device_type != DEVICE.type
        return autocast(device_type, **options) if known else contextlib.nullcontext()

    def tensor_there(data, *, device=None, **options):
        made = tensor(data, **options)
        return made if device is None else made.to(device)

    with monkeypatch.context() as patch, _Everything():
        patch.setattr(torch, "autocast", autocast_here)
        patch.setattr(torch, "tensor", tensor_there)
        yield


def _carry_out(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, Elsewhere)]
    here = [each for each in tensors if not isinstance(each, Elsewhere) and each.ndim > 0]
    name = operation._schema.name
    is_copy = name in ("aten::_to_copy", "aten::copy_")
    by_places = name in ("aten::index", "aten::index_put_") and isinstance(args[0], Elsewhere)
    if there and here and not is_copy and not by_places:  # places may be on the CPU
        raise RuntimeError(f"expected all tensors on the same device in {name}")
    is_there = isinstance(args[0], Elsewhere) if name == "aten::copy_" else bool(there)
    if kwargs.get("device") is not None:
        is_there = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = kwargs | {"device": torch.device("cpu")}
    given = {id(each.values): each for each in there}

    def values(each: Any) -> Any:
        return each.values if isinstance(each, Elsewhere) else each

    def back(each: Any) -> Any:
        if not isinstance(each, torch.Tensor):
            return each
        if id(each) in given:  # of an operation in place
            return given[id(each)]
        return Elsewhere(each) if is_there else each

    return tree_map(back, operation(*tree_map(values, args), **tree_map(values, kwargs)))
