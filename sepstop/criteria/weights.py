"""WeightWatcher's α: how heavy-tailed the spectra of the weights are. It needs no data at all."""

from __future__ import annotations

import contextlib
import io
import logging
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor, nn


def mean_alpha(model: nn.Module) -> Tensor:
    """Mean power-law exponent of the layers' weight spectra: -> ``()``, float64.

    References:
        Martin, Peng & Mahoney, Predicting trends in the quality of state-of-the-art neural
        networks without access to training or testing data, Nature Communications 2021.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it found on the machine
        import weightwatcher

        logging.getLogger("weightwatcher").setLevel(logging.ERROR)
        watcher = weightwatcher.WeightWatcher(model=model)
        return torch.tensor(watcher.get_summary(watcher.analyze())["alpha"], dtype=torch.float64)


@dataclass(frozen=True)
class WeightWatcher:
    """`mean_alpha` as a criterion; smaller is better trained, its source says, down to 2.

    Raises:
        ValueError: weightwatcher is not installed.
    """

    name: ClassVar[str] = "weightwatcher"
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("model",)

    def __post_init__(self) -> None:
        if find_spec("weightwatcher") is None:
            raise ValueError(
                "the criterion 'weightwatcher' needs: pip install 'sepstop[weightwatcher]'"
            )

    def __call__(self, model: nn.Module) -> Tensor:
        return mean_alpha(model)
