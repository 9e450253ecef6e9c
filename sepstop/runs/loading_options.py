"""Loading options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes of loaded weights by name."""


@dataclass(frozen=True)
class Loading:
    """How the models of checkpoints are loaded.

    Attributes:
        base_model: folder or hub name of the model that training started from. Adapters are loaded
            onto it. Default: the base that each adapter names.
        model_class: class with ``from_pretrained``, or "module:Class". Default: the class that the
            checkpoint names.
        adapter: name of the PEFT adapter, for checkpoints that have several.
        device: where the model runs. Default: a GPU if there is one.
        dtype: "float32", "bfloat16" or "float16" for all weights. Default: as saved.
        trust_remote_code: allow a checkpoint to run the code that it brings.

    Raises:
        ValueError: unknown dtype.
    """

    base_model: str | Path | None = None
    model_class: Any = None
    adapter: str | None = None
    device: str | torch.device | None = None
    dtype: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"expected `dtype` among {', '.join(DTYPES)}, got {self.dtype!r}")

    @property
    def torch_device(self) -> torch.device:
        """The device, with the default resolved.

        Raises:
            ValueError: this machine has no such device.
        """
        name = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the latter
            raise ValueError(f"no device {name}: {str(error).splitlines()[0]}") from error
        return device

    def place(self, model: nn.Module) -> nn.Module:
        """``model`` itself, moved to the device and cast to the dtype."""
        return model.to(self.torch_device, None if self.dtype is None else DTYPES[self.dtype])
