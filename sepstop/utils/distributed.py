"""The processes of a distributed run, which divide the work and come to one result.

Every method but `share` is collective: each rank has to call it, in the same order. Collectives
end by the time limit of their process group (``ddp_timeout`` of the TrainingArguments).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class RankError(RuntimeError):
    """What was done together failed on another rank."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together; by default it is alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_run(cls) -> Ranks:
        """All processes of torch.distributed, where it is in use."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def share(self, count: int) -> list[int]:
        """Places of this rank's part of ``count`` things, dealt out in turn.

        Parts are equally long, so that every rank calls a sharded model as often: the last place
        is repeated where the deal does not come out even.
        """
        return [min(place + self.rank, count - 1) for place in range(0, count, self.size)]

    def gathered(self, part: Tensor, count: int) -> Tensor:
        """All ranks' parts, ``(ceil(count / size), ...)`` as dealt by `share`: ``(count, ...)``."""
        if self.size == 1:
            return part
        device = "cpu" if dist.get_backend() == "gloo" else part.device
        mine = part.detach().to(device).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.stack(parts, dim=1).flatten(end_dim=1)[:count].to(part.device)

    def collected(self, part: list[T], count: int) -> list[T]:
        """As `gathered`, of a few small things."""
        if self.size == 1:
            return part
        parts: list[list[T]] = [[]] * self.size
        dist.all_gather_object(parts, part)
        return [parts[place % self.size][place // self.size] for place in range(count)]

    def together(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, if it went well on every rank.

        Raises:
            RankError: it failed elsewhere. Where it failed, its own exception.
        """
        if self.size == 1:
            return work()
        error: Exception | None = None
        try:
            result = work()
        except Exception as caught:
            error = caught
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        failed = [f"rank {rank}: {what}" for rank, what in enumerate(said) if what is not None]
        if failed:
            raise RankError("; ".join(failed))
        return result

    def of_first(self, value: T) -> T:
        """The first rank's ``value``, on all of them."""
        if self.size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]
