"""Tables of scored checkpoints and runs for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sepstop.decide.selection import Selection
from sepstop.report.candidates import average_cell, has_averages
from sepstop.types import Record, Score

AVERAGE_OF = "average of steps"
"""Heading of the column that says what an average is of."""


def ranking_table(selection: Selection, top: int | None = None) -> Table:
    """Checkpoints from best to worst, with all their scores.

    The pick and its ties are marked, and so are checkpoints whose scores differ from those in the
    run's log. In each further column, "◀" marks the best score. If averages of checkpoints are
    among them, a column says of which steps.

    Args:
        selection: see `sepstop.runs.select.select_checkpoint`.
        top: number of rows. Default: all.
    """
    table = Table(title=_title(selection), box=None)
    others = _other_names([selection])
    averages = has_averages(selection.records)
    _add_numbers(table, ["rank", "step", "epoch"])
    if averages:
        table.add_column(AVERAGE_OF)
    _add_numbers(table, [selection.decides, *others])
    table.add_column("")
    for rank, record in enumerate(selection.ranking[:top], start=1):
        table.add_row(
            str(rank),
            str(record.step),
            "" if record.epoch is None else f"{record.epoch:.2f}",
            *([Text(average_cell(record))] if averages else []),
            str(selection.series.score_at(record.step)),
            *(_other_score(selection, name, record.step) for name in others),
            _mark(selection, record),
            style="bold" if record.step == selection.best_step else "",
        )
    return table


def runs_table(selections: Mapping[str, Selection], best: str, tied: Sequence[str]) -> Table:
    """The picks of several runs from best to worst; the best run and its ties are marked.

    Args:
        selections: by run; one score decides them all.
        best: run with the best pick.
        tied: runs that it does not beat significantly.
    """
    first = selections[best]
    table = Table(title=_title(first), box=None)
    others = _other_names([first, *selections.values()])
    picks = {run: _picked(found) for run, found in selections.items()}
    averages = has_averages([*picks.values()])
    table.add_column("run", overflow="fold")
    _add_numbers(table, ["step"])
    if averages:
        table.add_column(AVERAGE_OF)
    _add_numbers(table, [first.decides, *others])
    table.add_column("")
    sign = first.series.sign
    for run, found in sorted(selections.items(), key=lambda pair: -sign * pair[1].pick.value):
        table.add_row(
            run,
            str(found.best_step),
            *([Text(average_cell(picks[run]))] if averages else []),
            str(found.pick),
            *(_other_score(found, name, found.best_step) for name in others),
            "◀ best" if run == best else "≈ tie" if run in tied else "",
            style="bold" if run == best else "",
        )
    return table


def value_text(score: Score) -> str:
    """A score without its interval.

    >>> value_text(Score(0.41234, 0.4, 0.5)), value_text(Score(float("nan")))
    ('0.4123', 'no score')
    """
    return f"{score.value:.4f}" if score.is_finite else "no score"


def _title(selection: Selection) -> str:
    direction = "higher" if selection.series.higher_is_better else "lower"
    return f"{selection.decides} decides, {direction} is better, with 95 % interval"


def _picked(selection: Selection) -> Record:
    """The record of what is to be kept."""
    return next(one for one in selection.records if one.step == selection.best_step)


def _add_numbers(table: Table, names: Sequence[str]) -> None:
    for name in names:
        table.add_column(escape(name), justify="right", min_width=len(name))


def _other_names(selections: Sequence[Selection]) -> list[str]:
    """Scores other than the deciding one, each once."""
    names = dict.fromkeys(name for found in selections for name in found.higher_is_better)
    return [name for name in names if name != selections[0].decides]


def _other_score(selection: Selection, name: str, step: int) -> str:
    series = selection.series_of(name)
    return value_text(series.score_at(step)) + (" ◀" if step == series.best_step else "")


def _mark(selection: Selection, record: Record) -> str:
    step = record.step
    marks = ["◀ pick"] if step == selection.best_step else ["≈ tie"] * (step in selection.ties)
    return " ".join([*marks, *["≠ log"] * (step in selection.differences)])
