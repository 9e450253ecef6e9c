"""sepstop: when to stop a fine-tuning run and which checkpoint to keep, without labels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sepstop._version import __version__

if TYPE_CHECKING:
    from sepstop.callbacks.trainer import SepStopCallback
    from sepstop.criteria import h0_separability
    from sepstop.decide.policies import Auto, Patience, Plateau, replay
    from sepstop.homology import h0_deaths, h0_tree
    from sepstop.measure.monitor import Monitor
    from sepstop.runs.select import select_checkpoint
    from sepstop.types import Decision, Record


# Loaded on first use, so that `import sepstop` costs no torch and no transformers.
_HOMES = {
    "SepStopCallback": "callbacks.trainer",
    "Monitor": "measure.monitor",
    "Record": "types",
    "Decision": "types",
    "Auto": "decide.policies",
    "Patience": "decide.policies",
    "Plateau": "decide.policies",
    "replay": "decide.policies",
    "h0_deaths": "homology",
    "h0_separability": "criteria",
    "h0_tree": "homology",
    "select_checkpoint": "runs.select",
}

__all__ = [
    "Auto",
    "Decision",
    "Monitor",
    "Patience",
    "Plateau",
    "Record",
    "SepStopCallback",
    "__version__",
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
