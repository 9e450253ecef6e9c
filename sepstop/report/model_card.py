"""Model-card sections."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment

from sepstop._version import __version__
from sepstop.report.candidates import kept_record, weights_label
from sepstop.report.figures import draw_scores
from sepstop.report.scored_run import read_scored_run
from sepstop.runs.records import RunHistory

_VERSIONS = ("transformers", "torch")


def model_card_section(
    run_dir: str | Path,
    figure: str | Path | None = None,
    template: str | Path | None = None,
) -> str:
    """Markdown that says how the weights of a run were chosen: an average or a checkpoint.

    A template of your own gets the variables of `card_variables`.

    Args:
        run_dir: folder of a run that its callback or `sepstop select` scored.
        figure: file (.png, .svg) to draw the scores into; the section shows it by its name.
        template: Jinja file. Default: sepstop's own, ``model_card.md.j2`` beside this module.

    Raises:
        FileNotFoundError: no scores in the folder, or no such template.
        ImportError: matplotlib is missing, for a figure.
        ValueError: nothing could be scored, no decision was recorded, or a file is broken; the
            template has an error, or names a variable that does not exist.
    """
    own = files("sepstop.report") / "model_card.md.j2"
    text = (own if template is None else Path(template)).read_text(encoding="utf-8")
    run = read_scored_run(run_dir)
    variables = card_variables(run, run_dir, figure)
    # Sandboxed: a template from elsewhere can write text and nothing else.
    environment = SandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    try:
        section = environment.from_string(text).render(variables)
    except TemplateSyntaxError as error:
        raise ValueError(f"{template}, line {error.lineno}: {error.message}") from error
    except TemplateError as error:
        known = ", ".join(variables)
        raise ValueError(f"{template}: {error}; a template has the variables {known}") from error
    if figure is not None:
        draw_scores(run, figure)
    return section


def card_variables(
    run: RunHistory, run_dir: str | Path, figure: str | Path | None = None
) -> dict[str, Any]:
    """What a template can name.

    Returns:
        A dictionary of

        - ``weights``: what is kept, such as "recent average of steps 20 to 80", escaped for HTML;
        - ``is_average``: False if that is a checkpoint;
        - ``step``: at which it was scored; ``steps``: of the whole run;
        - ``evaluations``: number of steps with a score; ``pool_size``: texts of the pool;
        - ``decides``: name of the score that decides;
        - ``scores``: that one first, each with ``name``, ``at_step`` (with its interval),
          ``lowest`` and ``highest``; scores that were never finite are left out;
        - ``policy``, ``pooling``: name and parameters; empty if they were not recorded;
        - ``reason``: of the decision;
        - ``figure``: name of the figure's file; empty without one;
        - ``sepstop_version``; ``versions``: of transformers and torch.

    Raises:
        ValueError: nothing could be scored, or no decision was recorded.
    """
    decision, settings = run.decision, run.settings
    if decision is None:
        raise ValueError(
            f"{run_dir} has scores but no decision; run `sepstop select` to choose a checkpoint"
        )
    record = kept_record(run)
    if record is None:
        raise ValueError(f"nothing could be scored in {run_dir}: {decision.reason}")
    return {
        "weights": escape(weights_label(record)),
        "is_average": record.average is not None,
        "step": record.step,
        "steps": max(run.records[-1].step, run.ended or 0),
        "evaluations": len(run.records),
        "pool_size": record.pool_size,
        "decides": run.decides,
        "scores": _scores(run, record.step),
        "policy": described(run.policy) if run.policy else "",
        "pooling": described(settings["pooling"]) if "pooling" in settings else "",
        "reason": decision.reason,
        "figure": "" if figure is None else Path(figure).name,
        "sepstop_version": __version__,
        "versions": ", ".join(f"{name} {version_of(name)}" for name in _VERSIONS),
    }


def _scores(run: RunHistory, step: int) -> list[dict[str, str]]:
    """Rows of the table, the deciding score first."""
    rows = []
    for name in run.names:
        series = run.series_of(name)
        finite = [score.value for score in series.scores if score.is_finite]
        if finite:
            at_step, lowest, highest = series.score_at(step), min(finite), max(finite)
            rows.append(
                {
                    "name": name,
                    "at_step": str(at_step),
                    "lowest": f"{lowest:.4f}",
                    "highest": f"{highest:.4f}",
                }
            )
    return rows


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
