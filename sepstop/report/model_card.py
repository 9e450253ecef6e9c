"""How a run's checkpoint was chosen, as a section for its model card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sepstop._version import __version__
from sepstop.report.figures import draw_scores, history_of, information_text, score_text
from sepstop.types import Record

_VERSIONS = ("transformers", "torch")


def card(run_dir: str | Path, figure: str | Path | None = None) -> str:
    """Markdown on how the checkpoint to keep was chosen, by the run itself or afterwards.

    Args:
        run_dir: folder of a run, as its callback or `sepstop select` left it.
        figure: a picture (.png, .svg) to draw of the scores and to show by its name.

    Raises:
        FileNotFoundError: no scores there.
        ImportError: matplotlib is missing, for a figure.
        ValueError: nothing could be scored, no decision was recorded, or a file is broken.
    """
    run = history_of(run_dir)
    history, decision, settings = run.records, run.decision, run.settings
    if decision is None:
        raise ValueError(
            f"{run_dir} has scores but no decision on them; `sepstop select` makes one"
        )
    best = next((record for record in history if record.step == decision.best_step), None)
    if best is None:
        raise ValueError(f"nothing could be scored in {run_dir}: {decision.reason}")
    steps = max(history[-1].step, run.ended or 0)
    versions = ", ".join(f"{name} {version_of(name)}" for name in _VERSIONS)
    embedder = f" ({described(settings['embedder'])})" if "embedder" in settings else ""
    says = f"The policy ({described(run.policy)}) says" if run.policy else "The choice"
    picture = ""
    if figure is not None:
        draw_scores(run, figure)
        picture = f"![Scores over the steps, with the pick at {best.step}]({Path(figure).name})\n\n"
    return f"""## How this checkpoint was chosen

The weights are those of step {best.step}, of {steps} that were trained, chosen without
validation labels by sepstop {__version__} ({versions}): at {len(history)} steps
the model embedded {best.pool_size} unlabeled texts{embedder}, and the
embeddings were scored.

| | at step {best.step} | range over the run |
| --- | ---: | ---: |
{_rows(best, history)}

{picture}{says}: {decision.reason}.

No labels were looked at, so these scores are no accuracy; measure that before you rely on it.
"""


def _rows(best: Record, history: Sequence[Record]) -> str:
    lines = []
    for name, values, shown in (
        (
            f"information of {best.information_of}",
            [r.information for r in history],
            information_text(best),
        ),
        (best.criterion, [r.score for r in history], score_text(best)),
    ):
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            lines.append(f"| {name} | {shown} | {min(finite):.4f} to {max(finite):.4f} |")
    return "\n".join(lines)


def described(settings: Mapping[str, Any]) -> str:
    """Settings as `sepstop.utils.registry.describe` gives them, in words."""
    name = settings.get("name", settings.get("custom", "unknown"))
    others = {key: value for key, value in settings.items() if key not in ("name", "custom")}
    return ", ".join([str(name), *(f"{key} {value}" for key, value in others.items())])


def version_of(package: str) -> str:
    """Of an installed package, or "unknown"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
