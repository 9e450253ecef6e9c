"""The averages of a run that is training: which steps enter them, resuming, and errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sepstop.config import SepStopConfig
from sepstop.measure.average import RunningAverages
from sepstop.utils.distributed import Ranks


class AveragedSteps:
    """Updates a run's averages from the end of the warm-up on.

    Args:
        config: of the run.

    Attributes:
        averages: running averages of the weights; None before `prepare`, without averages, and
            after an error.
        make: makes the averages of a model, called as `RunningAverages`.
        first_step: the end of the warm-up. Until then the model itself is scored.
    """

    def __init__(self, config: SepStopConfig) -> None:
        self.averages: RunningAverages | None = None
        self.make: Callable[..., RunningAverages] = RunningAverages
        self.first_step = 1
        self._wanted, self._device = config.average, config.average_device
        self._every = config.average_every_n_steps
        self._error: Exception | None = None  # of this rank

    def prepare(self, model: nn.Module) -> None:
        """Make averages without a step, if the configuration wants them.

        Raises:
            ValueError: the model can't be averaged, or the device is unknown.
        """
        self.averages = self._error = None
        if not self._wanted:
            return
        try:
            torch.empty(0, device=self._device)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"expected a device as `average_device`, got {self._device!r}"
            ) from error
        self.averages = self.make(model, device=self._device)

    @property
    def to_save(self) -> RunningAverages | None:
        """The averages if they hold a step and this rank could update them.

        They are the same on all ranks only after a `check`.
        """
        averages = self.averages
        return averages if averages is not None and averages.count and not self._error else None

    def begin_at(self, step: int) -> None:
        """Update the averages from ``step`` on, at least from the first step on."""
        self.first_step = max(1, step)

    def have_begun(self, step: int) -> bool:
        """True if a step up to ``step`` is in the averages of this run."""
        return self.averages is not None and step - step % self._every >= self.first_step

    def update(self, model: nn.Module, step: int) -> None:
        """Add the weights to the averages, at multiples of ``average_every_n_steps``.

        Call it once after each optimizer step. It is not collective; `check` tells all ranks of an
        error.
        """
        if self.averages is None or self._error is not None:
            return
        if step >= self.first_step and step % self._every == 0:
            try:
                self.averages.update(model, step)
            except Exception as error:  # such as a lack of memory
                self._error = error

    def check(self) -> None:
        """Give up the averages on all ranks if they could not be updated on one.

        Raises:
            Exception: the error of the update; a `RankError` on the other ranks.
        """
        if self.averages is None:
            return
        try:
            Ranks.of_run().together(self._raise_error)
        except Exception:
            self.averages = None
            raise

    def restore(self, read: Callable[[], Mapping[str, Any]], model: nn.Module, step: int) -> None:
        """Take over the averages of a run that is resumed; on all ranks, or else on none.

        Args:
            read: gives this rank's state, from `RunningAverages.state_dict`, or raises.
            model: the run's model.
            step: at which training goes on.

        Warns:
            UserWarning: no state, or one that does not fit: the averages begin anew.
        """
        averages = self.averages
        if averages is None or not self.have_begun(step):
            return
        try:
            Ranks.of_run().together(lambda: averages.load_state_dict(read(), model))
        except Exception as error:
            self.prepare(model)
            why = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"sepstop: the averages of the weights can't be resumed ({why}); they begin anew "
                f"after step {step}",
                stacklevel=3,
            )

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
