"""Running averages of a model's trainable weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from sepstop.measure.backbone import (
    is_cross_encoder,
    is_sentence_transformer,
    is_sharded,
    reshard,
    unwrapped,
)
from sepstop.types import Average

AVERAGES: Final[Mapping[str, int]] = {"cumulative": 0, "recent": 6}
"""Decay of each average, by name.

With decay d, the n-th of the averaged steps has a weight proportional to n (n + 1) ... (n + d - 1),
and the mean age of what the average holds is 1 / (d + 2) of the steps. "cumulative" weighs all
steps alike. "recent" has the mean age of the last quarter of the steps weighed alike, an eighth of
the steps, but needs one copy of the weights instead of one per evaluation.
"""


class RunningAverages:
    """Averages of a model's trainable weights over the steps of a run.

    They are kept in float32, or in float64 for weights in float64. Frozen weights have no average:
    they are the same at each step. Under FSDP2 each rank averages its shard.

    Args:
        model: on its device; may be wrapped.
        decays: name -> decay of each average, see `AVERAGES`.
        device: of the averages. Default: that of each weight.

    Attributes:
        count: number of steps in the averages.
        first_step, last_step: first and last step in them; 0 without one.

    Raises:
        ValueError: the model has no trainable weights; BatchNorm layers, whose statistics belong to
            one checkpoint; weights that DeepSpeed ZeRO 3 or the first version of FSDP divides; or
            a SentenceTransformer or CrossEncoder that is divided.

    References:
        Polynomial-decay averaging: Shamir and Zhang, arXiv:1212.1824.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> averages = RunningAverages(model)
    >>> for step, weight in enumerate((1.0, 2.0, 6.0), start=1):
    ...     _ = model.weight.data.fill_(weight)
    ...     averages.update(model, step)
    >>> with averages.applied(model, "cumulative"):
    ...     model.weight.item()
    3.0
    >>> model.weight.item()
    6.0
    """

    def __init__(
        self,
        model: nn.Module,
        decays: Mapping[str, int] = AVERAGES,
        device: str | torch.device | None = None,
    ) -> None:
        _check_can_average(model)
        self.decays, self.device = dict(decays), device
        self.count = self.first_step = self.last_step = 0
        self._averages: dict[str, dict[str, Tensor]] = {name: {} for name in self.decays}

    def __contains__(self, name: object) -> bool:
        return name in self.decays

    def described(self, name: str) -> Average:
        """Which steps an average holds."""
        return Average(name, self.first_step, self.last_step, self.count)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Add the model's weights to the averages, after an optimizer step.

        A weight that is trained from now on counts as if it had always had its present value.

        Args:
            model: of the constructor.
            step: optimizer steps taken.
        """
        weights = self._weights(model)
        self.count += 1
        self.first_step = step if self.count == 1 else self.first_step
        self.last_step = step
        for name, decay in self.decays.items():
            averages, share = self._averages[name], (decay + 1) / (self.count + decay)
            for key, weight in weights.items():
                if key in averages:
                    averages[key].lerp_(weight.to(averages[key]), share)
                else:
                    averages[key] = self._copy(weight)

    @contextmanager
    def applied(self, model: nn.Module, name: str) -> Iterator[None]:
        """Put an average into the model; on exit the weights are restored to the bit.

        It takes one more copy of the trainable weights meanwhile.
        """
        weights = self._weights(model)
        kept = {key: weight.clone() for key, weight in weights.items()}
        try:
            for key, weight in weights.items():
                if key in self._averages[name]:  # not what is trained since the last update
                    weight.copy_(self._averages[name][key])
            yield
        finally:
            for key, weight in weights.items():
                weight.copy_(kept[key])
            reshard(model)

    def state_dict(self) -> dict[str, Any]:
        """The state: plain numbers, and under "averages" a tensor per average and weight."""
        return {
            "decays": dict(self.decays),
            "count": self.count,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "averages": {name: dict(tensors) for name, tensors in self._averages.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Take over the state of a run that is resumed.

        Args:
            state: from `state_dict`; its tensors may be on another device.
            model: the run's model.

        Raises:
            ValueError: it belongs to other averages, or to a model with other weights.
        """
        if dict(state["decays"]) != self.decays:
            raise ValueError(f"expected averages {self.decays}, got {dict(state['decays'])}")
        own = {key: _local(weight) for key, weight in _parameters(model).items()}
        for tensors in state["averages"].values():
            for key, tensor in tensors.items():
                if key not in own or own[key].shape != tensor.shape:
                    raise ValueError(
                        f"the average of {key}, {tuple(tensor.shape)}, does not fit the model, "
                        + (f"{tuple(own[key].shape)}" if key in own else "which lacks it")
                    )
        self.count, self.first_step = int(state["count"]), int(state["first_step"])
        self.last_step = int(state["last_step"])
        self._averages = {
            name: {
                key: tensor.to(self.device or own[key].device, copy=True)
                for key, tensor in state["averages"][name].items()
            }
            for name in self.decays
        }

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights that are trained, or were at an earlier update."""
        known = next(iter(self._averages.values()))
        return {
            name: _local(weight)
            for name, weight in _parameters(model).items()
            if weight.requires_grad or name in known
        }

    def _copy(self, weight: Tensor) -> Tensor:
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return weight.to(self.device or weight.device, dtype, copy=True)


def local_weights(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """This rank's part of the floating-point parameters with these names, where the model has them.

    The names are those in `RunningAverages.state_dict`.
    """
    found = _parameters(model)
    return {name: _local(found[name]) for name in names if name in found}


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The floating-point parameters by name; tied ones once, those of FSDP2 as shards."""
    reshard(model)
    return {
        name.replace("_orig_mod.", ""): weight  # torch.compile of a module inside
        for name, weight in unwrapped(model).named_parameters()
        if weight.is_floating_point()
    }


def _local(weight: nn.Parameter) -> Tensor:
    """This rank's part of a parameter; in-place changes reach the model."""
    data: Any = weight.data
    local: Tensor = data.to_local() if hasattr(data, "to_local") else data
    return local


def _check_can_average(model: nn.Module) -> None:
    instead = "set average=False"
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(f"expected a model with trainable weights, got none to average; {instead}")
    if any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ValueError(f"weights that DeepSpeed ZeRO 3 divides can't be averaged; {instead}")
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "weights that the first version of FSDP divides can't be averaged; use FSDP2 "
            f"(fsdp_config={{'version': 2}}), or {instead}"
        )
    body = unwrapped(model)
    if is_sharded(body) and (is_sentence_transformer(body) or is_cross_encoder(body)):
        raise ValueError(f"a divided {type(body).__name__} can't be saved as an average; {instead}")
    batch_norm = nn.modules.batchnorm._BatchNorm
    for name, module in model.named_modules():
        if isinstance(module, batch_norm) and module.track_running_stats:
            raise ValueError(
                f"{name} is a BatchNorm layer, whose statistics belong to one checkpoint, so the "
                f"weights can't be averaged; {instead}"
            )
