"""How a run's checkpoint was chosen, as a section for its model card."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sepstop import __version__
from sepstop import history as rows
from sepstop.offline import newest_log_history
from sepstop.sources import find_checkpoints
from sepstop.types import Record

_VERSIONS = ("transformers", "torch")


def card(run_dir: str | Path) -> str:
    """Markdown on the choice that a monitored run made.

    Args:
        run_dir: folder with the run's ``checkpoint-*``.

    Raises:
        FileNotFoundError: no folder, or no checkpoints in it.
        ValueError: the run was not monitored, or nothing could be scored.
    """
    log = newest_log_history(find_checkpoints(run_dir))
    found = rows.rows_in(log)
    if not found:
        raise ValueError(f"no checkpoint in {run_dir} has scores: the run was not monitored")
    _, settings, policy, decision = found[-1]
    history = rows.records_in(log)
    best = next((record for record in history if record.step == decision.best_step), None)
    if best is None:
        raise ValueError(f"nothing could be scored in {run_dir}: {decision.reason}")
    versions = ", ".join(f"{name} {version_of(name)}" for name in _VERSIONS)
    return f"""## How this checkpoint was chosen

The weights are those of step {best.step}, of {history[-1].step} that were trained, chosen without
validation labels by sepstop {__version__} ({versions}): at
{len(history)} evaluations the model embedded {best.pool_size} unlabeled texts
({described(settings.get("embedder", {}))}), and the embeddings were scored.

| | at step {best.step} | range over the run |
| --- | ---: | ---: |
{_rows(best, history)}

The policy ({described(policy)}) says: {decision.reason}.

No labels were looked at, so these scores are no accuracy; measure that before you rely on it.
"""


def _rows(best: Record, history: list[Record]) -> str:
    lines = []
    for name, values, shown in (
        (f"information of {best.information_of}", [r.information for r in history], ""),
        (best.criterion, [r.score for r in history], f" [{best.low:.4f}, {best.high:.4f}]"),
    ):
        finite = [value for value in values if value == value]
        at_best = values[history.index(best)]
        if finite:
            span = f"{min(finite):.4f} to {max(finite):.4f}"
            lines.append(f"| {name} | {at_best:.4f}{shown} | {span} |")
    return "\n".join(lines)


def described(settings: Mapping[str, Any]) -> str:
    """Settings as `sepstop.names.describe` gives them, in words."""
    name = settings.get("name", settings.get("custom", "unknown"))
    others = {key: value for key, value in settings.items() if key not in ("name", "custom")}
    return ", ".join([str(name), *(f"{key} {value}" for key, value in others.items())])


def version_of(package: str) -> str:
    """Of an installed package, or "unknown"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
