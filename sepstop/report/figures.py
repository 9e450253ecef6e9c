"""Tables and pictures of a history; reads records only."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepstop.runs.checkpoints import find_checkpoints
from sepstop.runs.history import RunHistory, read_run
from sepstop.runs.leftovers import of_unwatched_run
from sepstop.types import Record

if TYPE_CHECKING:
    from rich.table import Table

    from sepstop.decide.selection import Selection

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#6b6b6b"  # Okabe and Ito: safe for colour-blind eyes


def score_text(record: Record) -> str:
    """``0.4123 [0.4050, 0.4196]``, without an interval that is unknown, or "no score"."""
    if not record.is_finite:
        return "no score"
    if not math.isfinite(record.low + record.high):
        return f"{record.score:.4f}"
    return f"{record.score:.4f} [{record.low:.4f}, {record.high:.4f}]"


def information_text(record: Record) -> str:
    """As `score_text`."""
    values = (record.information, record.information_low, record.information_high)
    return score_text(replace(record, score=values[0], low=values[1], high=values[2]))


def ranking_table(
    selection: Selection, others: Mapping[str, Selection] | None = None, top: int | None = None
) -> Table:
    """The checkpoints from best to worst; the pick is marked, and scores that are not the log's.

    Args:
        others: the same checkpoints by other criteria, a column each.
        top: show so many.
    """
    others = others or {}
    from rich.table import Table

    criterion = selection.records[0].criterion
    direction = "higher" if selection.higher_is_better else "lower"
    title = f"{criterion}, {direction} is better, with 95 % interval"
    table = Table(
        title=f"information, more is better; {title}" if selection.by_information else title,
        box=None,
    )
    information = ["information"] if selection.by_information else []
    for column in ("rank", "step", "epoch", *information, criterion, *others):
        table.add_column(column, justify="right", min_width=len(column))
    table.add_column("")
    by_step = {name: {r.step: r for r in other.records} for name, other in others.items()}
    for rank, record in enumerate(selection.ranking[:top], start=1):
        picked = record.step == selection.best_step
        table.add_row(
            str(rank),
            str(record.step),
            "" if record.epoch is None else f"{record.epoch:.2f}",
            *([information_text(record)] if information else []),
            score_text(record),
            *(_other_text(others[name], found.get(record.step)) for name, found in by_step.items()),
            _mark(selection, record.step),
            style="bold" if picked else "",
        )
    return table


def _mark(selection: Selection, step: int) -> str:
    kind = "◀ pick" if step == selection.best_step else "≈ tie" * (step in selection.ties)
    return f"{kind} ≠ log".strip() if step in selection.differences else kind


def runs_table(
    selections: Mapping[str, Selection],
    best: str,
    tied: Sequence[str],
    others: Mapping[str, Mapping[str, Selection]],
) -> Table:
    """The picks of several runs from best to worst; the best and its ties are marked."""
    from rich.table import Table

    picks = {run: found.pick for run, found in selections.items()}
    decider = picks[best].criterion
    names = list(others[best])
    direction = "more" if selections[best].mode == "max" else "less"
    table = Table(title=f"the picks, {direction} {decider} is better, with 95 % interval", box=None)
    table.add_column("run", overflow="fold")
    for column in ("step", decider, *names, ""):
        table.add_column(column, justify="right", min_width=len(column))
    sign = -1 if selections[best].mode == "max" else 1
    for run in sorted(picks, key=lambda run: sign * picks[run].score):
        steps = {name: {r.step: r for r in others[run][name].records} for name in names}
        table.add_row(
            run,
            str(picks[run].step),
            score_text(picks[run]),
            *(_other_text(others[run][name], steps[name].get(picks[run].step)) for name in names),
            "◀ best" if run == best else "≈ tie" if run in tied else "",
            style="bold" if run == best else "",
        )
    return table


def history_of(run_dir: str | Path) -> RunHistory:
    """`read_run` of a run that was scored.

    Raises:
        FileNotFoundError: no scores there, or none yet.
        ValueError: a file is broken.

    Warns:
        UserWarning: checkpoints there are of a run that was not scored.
    """
    run = read_run(run_dir)
    if not run.records:
        raise FileNotFoundError(f"no scores in {run_dir} yet: the run was not scored so far")
    if run.is_online:
        with suppress(FileNotFoundError):  # a run may have kept no checkpoint
            checkpoints = find_checkpoints(run_dir)
            others = of_unwatched_run(checkpoints, [record.step for record in run.records])
            if others:
                warnings.warn(
                    f"sepstop: {', '.join(others)} in {run_dir} are of a run that sepstop did not "
                    "watch; the scores and the decision are of another run in the same folder",
                    stacklevel=2,
                )
    return run


def _other_text(selection: Selection, record: Record | None) -> str:
    if record is None or not record.is_finite:
        return "no score"
    return f"{record.score:.4f}{' ◀' if record.step == selection.best_step else ''}"


def draw_scores(run: RunHistory, path: str | Path, title: str = "") -> Path:
    """`draw_curve` of a run, with its pick and its stop if a decision was recorded."""
    decision = run.decision
    best_step = None if decision is None else decision.best_step
    stop_step = decision.step if decision is not None and decision.stop else None
    return draw_curve(run.records, path, best_step=best_step, stop_step=stop_step, title=title)


def draw_curve(
    history: Sequence[Record],
    path: str | Path,
    *,
    best_step: int | None = None,
    stop_step: int | None = None,
    accuracy: Mapping[int, float] | None = None,
    max_steps: int | None = None,
    title: str = "",
) -> Path:
    """Picture of the information and the score over the steps, and of the accuracy if it is known.

    Args:
        history: in order of steps; what is not finite is left out.
        path: .png, .svg or .pdf.
        best_step, stop_step: marked by lines.
        accuracy: step -> accuracy in [0, 1], for those who have labels to judge by.
        max_steps: right end of the axis.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
        ValueError: no record has a score.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'sepstop[plot]'") from error

    scored = [record for record in history if record.is_finite]
    informed = [record for record in history if math.isfinite(record.information)]
    if not scored and not informed:
        raise ValueError("no record of the history has a score to draw")
    panels = int(bool(scored)) + int(bool(informed))
    figure = Figure(figsize=(7.5, 1.6 + 2.6 * panels), layout="constrained")
    column = list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])
    if informed:
        axes, name = column[0], f"information of {informed[0].information_of}"
        values = [record.information for record in informed]
        low, high = (
            [getattr(r, f"information_{end}") for r in informed] for end in ("low", "high")
        )
        axes.fill_between(
            [r.step for r in informed], low, high, color=_BLUE, alpha=0.2, linewidth=0
        )
        _line(axes, informed, values, name)
        bounded = any(math.isfinite(bound) for bound in low)
        axes.set_ylabel(f"{name}, 95 % interval" if bounded else name, color=_BLUE)
    if scored:
        axes, name = column[-1], scored[0].criterion
        low, high = ([getattr(r, end) for r in scored] for end in ("low", "high"))
        steps = [record.step for record in scored]
        axes.fill_between(steps, low, high, color=_BLUE, alpha=0.2, linewidth=0)
        _line(axes, scored, [record.score for record in scored], name)
        axes.set_ylabel(f"{name}, 95 % interval", color=_BLUE)
    column[-1].set_xlabel("optimizer step")
    column[-1].set_xlim(0, max_steps)
    lines, labels = column[0].get_legend_handles_labels()
    if accuracy:
        right = column[0].twinx()
        ordered = sorted(accuracy)
        right.plot(
            ordered,
            [accuracy[step] for step in ordered],
            color=_ORANGE,
            marker="s",
            linestyle="--",
            label="test accuracy (never seen by the run)",
        )
        right.set_ylabel("test accuracy", color=_ORANGE)
        more = right.get_legend_handles_labels()
        lines, labels = lines + more[0], labels + more[1]
    marks = {"pick": best_step, "stop": stop_step}
    if best_step is not None and best_step == stop_step:
        marks = {"pick and stop": best_step}
    for (label, step), style in zip(marks.items(), ("-", ":"), strict=False):
        if step is not None:
            drawn = [ax.axvline(step, color=_GREY, linestyle=style, zorder=0) for ax in column]
            lines, labels = [*lines, drawn[0]], [*labels, f"{label}: step {step}"]
    column[0].legend(lines, labels, loc="lower right", frameon=True)
    if title:
        column[0].set_title(title)
    figure.savefig(path, dpi=150)
    return Path(path)


def _line(axes: Any, history: Sequence[Record], values: Sequence[float], name: str) -> None:
    steps = [record.step for record in history]
    axes.plot(steps, values, color=_BLUE, marker="o", label=f"{name} (no labels)")
