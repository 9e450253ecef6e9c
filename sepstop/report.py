"""Tables and pictures of a history; reads records only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sepstop.types import Record

if TYPE_CHECKING:
    from rich.table import Table

    from sepstop.offline import Selection

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#6b6b6b"  # Okabe and Ito: safe for colour-blind eyes


def score_text(record: Record) -> str:
    """``0.4123 [0.4050, 0.4196]``, or "no score"."""
    if not record.is_finite:
        return "no score"
    return f"{record.score:.4f} [{record.low:.4f}, {record.high:.4f}]"


def ranking_table(
    selection: Selection, others: Mapping[str, Selection] | None = None, top: int | None = None
) -> Table:
    """The checkpoints from best to worst; the pick is marked.

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
        title=f"information, more is better; {title}" if selection.by_information else title
    )
    information = ["information"] if selection.by_information else []
    for column in ("rank", "step", "epoch", *information, criterion, *others, "seconds"):
        table.add_column(column, justify="right")
    table.add_column("")
    by_step = {name: {r.step: r for r in other.records} for name, other in others.items()}
    for rank, record in enumerate(selection.ranking[:top], start=1):
        picked = record.step == selection.best_step
        table.add_row(
            str(rank),
            str(record.step),
            "" if record.epoch is None else f"{record.epoch:.2f}",
            *([f"{record.information:.4f}"] if information else []),
            score_text(record),
            *(_other_text(others[name], found.get(record.step)) for name, found in by_step.items()),
            f"{record.seconds:.1f}",
            "◀ pick" if picked else "",
            style="bold" if picked else "",
        )
    return table


def _other_text(selection: Selection, record: Record | None) -> str:
    if record is None or not record.is_finite:
        return "no score"
    return f"{record.score:.4f}{' ◀' if record.step == selection.best_step else ''}"


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
    """Picture of the score over the steps, and of the accuracy if it is known.

    Args:
        history: in order of steps; records without a score are left out.
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

    shown = [record for record in history if record.is_finite]
    if not shown:
        raise ValueError("no record of the history has a score to draw")
    steps = [record.step for record in shown]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(
        steps,
        [record.low for record in shown],
        [record.high for record in shown],
        color=_BLUE,
        alpha=0.2,
        linewidth=0,
    )
    name = shown[0].criterion
    axes.plot(steps, [r.score for r in shown], color=_BLUE, marker="o", label=f"{name} (no labels)")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"{name}, 95 % interval", color=_BLUE)
    axes.set_xlim(0, max_steps)
    lines, labels = axes.get_legend_handles_labels()
    if accuracy:
        right = axes.twinx()
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
            line = axes.axvline(step, color=_GREY, linestyle=style, zorder=0)
            lines, labels = [*lines, line], [*labels, f"{label}: step {step}"]
    axes.legend(lines, labels, loc="lower right", frameon=True)
    if title:
        axes.set_title(title)
    figure.savefig(path, dpi=150)
    return Path(path)
