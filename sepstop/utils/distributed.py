"""Work shared by the processes of a distributed run.

All methods except `Ranks.share` are collective: every rank has to call them, in the same order.
They end by the time limit of their process group (``ddp_timeout`` in TrainingArguments).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class RankError(RuntimeError):
    """Shared work failed on another rank."""


@dataclass(frozen=True)
class Ranks:
    """This process and those that it works with. The default is a process that works alone.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of_run(cls) -> Ranks:
        """All processes of torch.distributed; this process alone if it is not initialized."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def share(self, count: int) -> list[int]:
        """Indices of this rank's share of ``count`` items, dealt out in turn.

        All shares are equally long, so that every rank calls a sharded model equally often. If
        ``count`` is not a multiple of the number of ranks, the last index is repeated.
        """
        return [min(place + self.rank, count - 1) for place in range(0, count, self.size)]

    def gathered(self, part: Tensor, count: int) -> Tensor:
        """Put the results of all shares together.

        Args:
            part: ``(ceil(count / size), ...)`` results of this rank's `share`, on any device.
            count: number of items.

        Returns:
            ``(count, ...)`` results in the order of the items, on the device of ``part``.
        """
        if self.size == 1:
            return part
        device = "cpu" if dist.get_backend() == "gloo" else part.device
        mine = part.detach().to(device).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.stack(parts, dim=1).flatten(end_dim=1)[:count].to(part.device)

    def collected(self, part: list[T], count: int) -> list[T]:
        """`gathered` for lists of small Python objects."""
        if self.size == 1:
            return part
        parts: list[list[T]] = [[]] * self.size
        dist.all_gather_object(parts, part)
        return [parts[place % self.size][place // self.size] for place in range(count)]

    def together(self, work: Callable[[], T]) -> T:
        """Call ``work`` on every rank and return its result if all ranks succeed.

        Raises:
            RankError: ``work`` failed on another rank. On the rank where it failed, its own
                exception is raised.
        """
        if self.size == 1:
            return work()
        error: Exception | None = None
        try:
            result = work()
        except Exception as caught:
            error = caught
        messages: list[Any] = [None] * self.size
        mine = None if error is None else f"{type(error).__name__}: {error}"
        dist.all_gather_object(messages, mine)
        if error is not None:
            raise error
        failed = [f"rank {rank}: {what}" for rank, what in enumerate(messages) if what is not None]
        if failed:
            raise RankError("; ".join(failed))
        return result

    @contextmanager
    def entered(self, context: AbstractContextManager[T]) -> Iterator[T]:
        """The ``context``, once all ranks have entered theirs.

        Raises:
            RankError: as `together`.
        """
        with ExitStack() as stack:
            yield self.together(lambda: stack.enter_context(context))

    def of_first(self, value: T) -> T:
        """The ``value`` of rank 0, on all ranks."""
        if self.size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]
