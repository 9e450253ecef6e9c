"""Model-card sections."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sepstop._version import __version__
from sepstop.report.candidates import kept_record, weights_label
from sepstop.report.figures import draw_scores
from sepstop.report.scored_run import read_scored_run
from sepstop.runs.records import RunHistory
from sepstop.types import Record

_VERSIONS = ("transformers", "torch")


def model_card_section(run_dir: str | Path, figure: str | Path | None = None) -> str:
    """Markdown that says how the weights of a run were chosen: an average or a checkpoint.

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
    record = kept_record(run)
    if record is None:
        raise ValueError(f"nothing could be scored in {run_dir}: {decision.reason}")
    steps = max(run.records[-1].step, run.ended or 0)
    pooling = f" (pooling {described(settings['pooling'])})" if "pooling" in settings else ""
    subject = f"The policy ({described(run.policy)}) says" if run.policy else "The choice"
    image = ""
    if figure is not None:
        draw_scores(run, figure)
        image = f"![Scores over the steps, pick at step {record.step}]({Path(figure).name})\n\n"
    what = "this checkpoint was" if record.average is None else "these weights were"
    return f"""## How {what} chosen

{_origin(record, steps)} At {len(run.records)} steps, the
model embedded {record.pool_size} unlabeled texts{pooling}, and sepstop scored them.
The score `{run.decides}` decides.

| score | at step {record.step} | range over the run |
| --- | ---: | ---: |
{_score_rows(run, record.step)}

{image}{subject}: {decision.reason}.

These scores use no labels, so they are no accuracy. Measure accuracy before you rely on it.
"""


def _origin(record: Record, steps: int) -> str:
    """Where the weights come from, in a run of ``steps`` training steps."""
    versions = ", ".join(f"{name} {version_of(name)}" for name in _VERSIONS)
    if record.average is None:
        return (
            f"These weights come from step {record.step} of {steps} training steps. sepstop "
            f"{__version__}\n({versions}) chose them without validation labels."
        )
    return (
        f"The weights are the {escape(weights_label(record))}, chosen without labels by\nsepstop "
        f"{__version__} ({versions}), in a run of {steps} training steps."
    )


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
