"""sepstop: when to stop a fine-tuning run and which checkpoint to keep, without labels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sepstop.callback import SepStopCallback
    from sepstop.criteria import h0_separability
    from sepstop.homology import h0_deaths, h0_tree
    from sepstop.monitor import Monitor
    from sepstop.offline import select_checkpoint
    from sepstop.policies import Auto, Patience, Plateau, replay
    from sepstop.types import Decision, Record

__version__ = "0.1.0"

# Loaded on first use, so that `import sepstop` costs no torch and no transformers.
_HOMES = {
    "SepStopCallback": "callback",
    "Monitor": "monitor",
    "Record": "types",
    "Decision": "types",
    "Auto": "policies",
    "Patience": "policies",
    "Plateau": "policies",
    "replay": "policies",
    "h0_deaths": "homology",
    "h0_separability": "criteria",
    "h0_tree": "homology",
    "select_checkpoint": "offline",
}

__all__ = [
    "Auto",
    "Decision",
    "Monitor",
    "Patience",
    "Plateau",
    "Record",
    "SepStopCallback",
    "h0_deaths",
    "h0_separability",
    "h0_tree",
    "replay",
    "select_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sepstop' has no attribute {name!r}")
    value = getattr(import_module(f"sepstop.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
