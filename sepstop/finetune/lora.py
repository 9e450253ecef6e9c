"""LoRA adapters on a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_lora(model: Any, settings: Mapping[str, Any]) -> Any:
    """The model with new adapters; nothing else is trained.

    Args:
        settings: of peft.LoraConfig.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'sepstop[peft]'") from error
    return get_peft_model(model, LoraConfig(**settings))
