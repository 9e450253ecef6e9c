"""Figures of a run's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sepstop.report.candidates import (
    MAX_LINES,
    best_label,
    candidate_label,
    candidate_series,
    kept_record,
    other_names,
    weights_label,
)
from sepstop.runs.records import RunHistory
from sepstop.types import Series

_BLUE, _ORANGE, _GRAY = "#0072B2", "#D55E00", "#6b6b6b"  # Okabe and Ito: safe for color blindness
_OTHERS = [  # colors and dashes of the candidates that are not the best
    ("#009E73", "--"),
    ("#CC79A7", ":"),
    ("#4b5563", "-."),
    ("#E69F00", "--"),
    ("#56B4E9", ":"),
    ("#000000", "-."),
]


def draw_scores(
    run: RunHistory,
    path: str | Path,
    title: str = "",
    accuracy: Mapping[int, float] | None = None,
    max_steps: int | None = None,
) -> Path:
    """Draw a run's scores over its steps, a panel per score, the deciding one first.

    The thick line is the score of each step's best candidate. Where a step has several candidates,
    such as an average and the checkpoint, a thin line shows each of the others. Lines mark the pick
    and the stop if a decision was recorded. Scores that are not finite are left out.

    Args:
        run: see `sepstop.runs.history.read_run`.
        path: .png, .svg or .pdf file to write.
        title: shown above the panels.
        accuracy: step -> accuracy in [0, 1], for users who have labels to compare with.
        max_steps: right end of the step axis.

    Returns:
        ``path``.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
        ValueError: no record has a score.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'sepstop[plot]'") from error

    found = [series for name in run.names if len(series := _finite(run.series_of(name)))]
    if not found:
        raise ValueError("no record of the run has a score to draw")
    figure = Figure(figsize=(7.5, 1.6 + 2.6 * len(found)), layout="constrained")
    panels = list(figure.subplots(len(found), sharex=True, squeeze=False)[:, 0])
    others = other_names(run)[:MAX_LINES]
    handles: list[Any] = []
    for panel, series in zip(panels, found, strict=True):
        lines = [
            _draw_series(panel, series, run, of=best_label(run) if others else ""),
            *_draw_others(panel, run, others, series.name),
        ]
        handles = handles or lines
    if accuracy:
        handles += _draw_accuracy(panels[0].twinx(), accuracy)
    handles += _draw_marks(panels, run)
    if others:  # too many for the panel
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    else:
        panels[0].legend(handles=handles, loc="lower right", frameon=True)
    panels[-1].set_xlabel("optimizer step")
    panels[-1].set_xlim(0, max_steps)
    if title:
        panels[0].set_title(title)
    figure.savefig(path, dpi=150, bbox_inches="tight")  # a long legend is wider than the panels
    return Path(path)


def _finite(series: Series) -> Series:
    """The part of ``series`` that has a score."""
    pairs = [(step, score) for step, score in series if score.is_finite]
    steps, scores = zip(*pairs, strict=True) if pairs else ((), ())
    return Series(series.name, series.higher_is_better, steps, scores)


def _draw_series(panel: Any, series: Series, run: RunHistory, of: str) -> Any:
    """Draw the best candidates' score with its interval; returns the line.

    Args:
        of: the best candidates in words; empty if there are no others.
    """
    low, high = ([getattr(score, end) for score in series.scores] for end in ("low", "high"))
    panel.fill_between(series.steps, low, high, color=_BLUE, alpha=0.2, linewidth=0)
    (line,) = panel.plot(
        series.steps,
        [score.value for score in series.scores],
        color=_BLUE,
        marker="o",
        label=_text(of) if of else f"{series.name} (no labels)",
    )
    label = f"{series.name} (decides)" if series.name == run.decides else series.name
    if any(map(math.isfinite, low)):
        label += "\n95 % interval"
    panel.set_ylabel(label, color=_BLUE)
    return line


def _draw_others(panel: Any, run: RunHistory, others: Sequence[str], name: str) -> list[Any]:
    """Draw the score ``name`` of the other candidates as thin lines; returns the lines."""
    lines = []
    for candidate, (color, dashes) in zip(others, _OTHERS, strict=False):
        series = candidate_series(run, candidate, name)
        lines += panel.plot(
            series.steps,
            [score.value for score in series.scores],
            color=color,
            linestyle=dashes,
            linewidth=1.3,
            zorder=1.9,  # below the best one's line
            marker=".",
            markersize=4,
            label=_text(candidate_label(candidate)),
        )
    return lines


def _text(label: str) -> str:
    """A label from a file, without math."""
    return label.replace("$", r"\$")


def _draw_accuracy(panel: Any, accuracy: Mapping[int, float]) -> list[Any]:
    steps = sorted(accuracy)
    panel.set_ylabel("test accuracy", color=_ORANGE)
    return list(
        panel.plot(
            steps,
            [accuracy[step] for step in steps],
            color=_ORANGE,
            marker="s",
            linestyle="--",
            label="test accuracy (not seen by the run)",
        )
    )


def _draw_marks(panels: Sequence[Any], run: RunHistory) -> list[Any]:
    """Draw lines at the pick and the stop; returns one of each for the legend."""
    decision, kept = run.decision, kept_record(run)
    if decision is None:
        return []
    marks = {"pick": decision.best_step, "stop": decision.step if decision.stop else None}
    if marks["pick"] is not None and marks["pick"] == marks["stop"]:
        marks = {"pick and stop": marks["pick"]}
    handles = []
    for (name, step), style in zip(marks.items(), ("-", ":"), strict=False):
        if step is not None:
            label = f"{name}: step {step}"
            if kept is not None and kept.average is not None and name != "stop":
                label = f"{name}: {_text(weights_label(kept))}"
            handles += [
                panel.axvline(step, color=_GRAY, linestyle=style, zorder=0, label=label)
                for panel in panels
            ][:1]
    return handles
