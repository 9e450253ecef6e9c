"""Model-card sections."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sepstop._version import __version__
from sepstop.report.figures import draw_scores
from sepstop.report.scored_run import read_scored_run
from sepstop.runs.records import RunHistory

_VERSIONS = ("transformers", "torch")


def model_card_section(run_dir: str | Path, figure: str | Path | None = None) -> str:
    """Markdown that says how the checkpoint of a run was chosen.

    Args:
        run_dir: folder of a run that its callback or `sepstop select` scored.
        figure: file (.png, .svg) to draw the scores into; the section shows it by its name.

    Raises:
        FileNotFoundError: no scores in the folder.
        ImportError: matplotlib is missing, for a figure.
        ValueError: nothing could be scored, no decision was recorded, or a file is broken.
    """
    run = read_scored_run(run_dir)
    decision, settings = run.decision, run.settings
    if decision is None:
        raise ValueError(
            f"{run_dir} has scores but no decision; run `sepstop select` to choose a checkpoint"
        )
    record = next((one for one in run.records if one.step == decision.best_step), None)
    if record is None:
        raise ValueError(f"nothing could be scored in {run_dir}: {decision.reason}")
    steps = max(run.records[-1].step, run.ended or 0)
    versions = ", ".join(f"{name} {version_of(name)}" for name in _VERSIONS)
    pooling = f" (pooling {described(settings['pooling'])})" if "pooling" in settings else ""
    subject = f"The policy ({described(run.policy)}) says" if run.policy else "The choice"
    image = ""
    if figure is not None:
        draw_scores(run, figure)
        image = f"![Scores over the steps, pick at step {record.step}]({Path(figure).name})\n\n"
    return f"""## How this checkpoint was chosen

These weights come from step {record.step} of {steps} training steps. sepstop {__version__}
({versions}) chose them without validation labels. At {len(run.records)} steps, the
model embedded {record.pool_size} unlabeled texts{pooling}, and sepstop scored them.
The score `{run.decides}` decides.

| score | at step {record.step} | range over the run |
| --- | ---: | ---: |
{_score_rows(run, record.step)}

{image}{subject}: {decision.reason}.

These scores use no labels, so they are no accuracy. Measure accuracy before you rely on it.
"""


def _score_rows(run: RunHistory, step: int) -> str:
    """Rows of the table, the deciding score first; scores that were never finite are left out."""
    rows = []
    for name in run.names:
        series = run.series_of(name)
        finite = [score.value for score in series.scores if score.is_finite]
        if finite:
            title = f"{name} (decides)" if name == run.decides else name
            values = f"{min(finite):.4f} to {max(finite):.4f}"
            rows.append(f"| {title} | {series.score_at(step)} | {values} |")
    return "\n".join(rows)


def described(settings: Mapping[str, Any]) -> str:
    """Settings from `sepstop.utils.registry.describe` on one line.

    >>> described({"name": "patience", "patience": 5, "warmup": 0})
    'patience, patience 5, warmup 0'
    """
    name = settings.get("name", settings.get("custom", "unknown"))
    others = {key: value for key, value in settings.items() if key not in ("name", "custom")}
    return ", ".join([str(name), *(f"{key} {value}" for key, value in others.items())])


def version_of(package: str) -> str:
    """Version of an installed package, or "unknown"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
