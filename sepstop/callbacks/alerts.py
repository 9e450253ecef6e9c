"""Alerts of a run's trackers."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable

TRACKERS = ("trackio", "wandb")
"""Trackers with alerts: modules with ``alert`` and ``AlertLevel``, alike in both."""


def send_alert(report_to: Iterable[str], title: str, text: str) -> None:
    """Send an alert to those trackers in ``report_to`` that have alerts.

    Warns:
        RuntimeWarning: a tracker took no alert, for example because it has no run.
    """
    for name in report_to:
        if name not in TRACKERS:
            continue
        try:
            tracker = importlib.import_module(name)
            tracker.alert(title=title, text=text, level=tracker.AlertLevel.INFO)
        except Exception as error:  # training goes on, whatever happens to a message
            warnings.warn(
                f"sepstop: could not send an alert to {name}: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=3,
            )
