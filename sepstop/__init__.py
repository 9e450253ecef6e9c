"""sepstop: when to stop a fine-tuning run and which checkpoint to keep, without labels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sepstop._version import __version__

if TYPE_CHECKING:
    from sepstop.callbacks.trainer import SepStopCallback
    from sepstop.config import SepStopConfig
    from sepstop.criteria import h0_separability
    from sepstop.decide.policies import FirstOptimum, PastPeak, Patience, Plateau, replay
    from sepstop.homology import h0_deaths, h0_tree
    from sepstop.measure.average import RunningAverages
    from sepstop.measure.monitor import Monitor
    from sepstop.measure.scorer import Scorer
    from sepstop.runs.loading import Loading
    from sepstop.runs.select import select_checkpoint
    from sepstop.types import Decision, Record, Score, Series

# Loaded on first use, so that `import sepstop` costs no torch and no transformers.
_MODULES = {
    "Decision": "types",
    "FirstOptimum": "decide.policies",
    "Loading": "runs.loading",
    "Monitor": "measure.monitor",
    "PastPeak": "decide.policies",
    "Patience": "decide.policies",
    "Plateau": "decide.policies",
    "Record": "types",
    "RunningAverages": "measure.average",
    "Score": "types",
    "Scorer": "measure.scorer",
    "SepStopCallback": "callbacks.trainer",
    "SepStopConfig": "config",
    "Series": "types",
    "h0_deaths": "homology",
    "h0_separability": "criteria",
    "h0_tree": "homology",
    "replay": "decide.policies",
    "select_checkpoint": "runs.select",
}

__all__ = [
    "Decision",
    "FirstOptimum",
    "Loading",
    "Monitor",
    "PastPeak",
    "Patience",
    "Plateau",
    "Record",
    "RunningAverages",
    "Score",
    "Scorer",
    "SepStopCallback",
    "SepStopConfig",
    "Series",
    "__version__",
    "h0_deaths",
    "h0_separability",
    "h0_tree",
    "replay",
    "select_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sepstop' has no attribute {name!r}")
    value = getattr(import_module(f"sepstop.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
