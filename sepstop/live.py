"""A run's scores in the terminal while it goes on; reads its files only."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sepstop import history as rows
from sepstop.policies import has_information, scored_by_information
from sepstop.report import history_of, information_text, score_text
from sepstop.types import Decision, Record

_SHOWN = 20  # newest evaluations
_WIDTH = 20  # of the bars, in characters


def follow(run_dir: str | Path, console: Console, once: bool = False, every: float = 1.0) -> None:
    """Show a run's scores as they come, until it is stopped by its policy or the user interrupts.

    On a terminal a table that is redrawn; elsewhere a line for each score.

    Args:
        once: show what is there and return.
        every: seconds between two looks.

    Raises:
        FileNotFoundError: no such folder; with ``once``, no scores in it.
        ValueError: a file is broken.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"no folder at {run_dir}")
    if once:
        console.print(view(*_state(run_dir), run_dir.resolve().name))
        return
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for history, decision in _changes(run_dir, every):
                live.update(view(history, decision, run_dir.resolve().name), refresh=True)
        return
    shown = -1
    for history, decision in _changes(run_dir, every):
        for record in history:
            if record.step > shown:
                console.print(_line(record), markup=False, highlight=False, soft_wrap=True)
                shown = record.step
        if decision is not None and decision.stop:
            console.print(f"stopped: {decision.reason}", markup=False, soft_wrap=True)


def view(history: Sequence[Record], decision: Decision | None, title: str) -> RenderableType:
    """The newest scores with bars for their intervals, and what was decided last."""
    if not history:
        return Text(f"{title}: waiting for the first score")
    informed = has_information(history)
    deciding = scored_by_information(history) if informed else list(history)
    name = "information" if informed else history[-1].criterion
    finite = [record for record in deciding if record.is_finite]
    ends = [end for record in finite for end in _interval(record)]
    low, span = (min(ends), max(max(ends) - min(ends), 1e-12)) if ends else (0.0, 1.0)
    best = None if decision is None else decision.best_step
    what = f", information of {history[-1].information_of}" if informed else ""
    table = Table(title=f"{title}, {len(history)} scores{what}")
    for column in ("step", name, "", *([history[-1].criterion] if informed else [])):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    table.add_column("")
    for record, shown in list(zip(history, deciding, strict=True))[-_SHOWN:]:
        table.add_row(
            str(record.step),
            score_text(shown),
            _bar(shown, low, span),
            *([f"{record.score:.4f}" if record.is_finite else "no score"] if informed else []),
            "◀ best" if record.step == best else "",
            style="bold" if record.step == best else "",
        )
    if decision is None:
        return table
    mark = Text("STOP: " if decision.stop else "", style="bold red")
    return Group(table, mark + Text(f"as of step {decision.step}: {decision.reason}"))


def _interval(record: Record) -> tuple[float, float]:
    bounded = math.isfinite(record.low) and math.isfinite(record.high)
    return (record.low, record.high) if bounded else (record.score, record.score)


def _bar(record: Record, low: float, span: float) -> RenderableType:
    """The record's interval on the scale of all, at least half a character wide."""
    if not record.is_finite:
        return ""
    begin, end = ((bound - low) / span * _WIDTH for bound in _interval(record))
    begin = min(begin, _WIDTH - 0.5)
    return Bar(_WIDTH, begin, max(end, begin + 0.5), width=_WIDTH, color="blue")


def _line(record: Record) -> str:
    informed = math.isfinite(record.information)
    information = f"  information {information_text(record)}" if informed else ""
    return f"step {record.step}  {record.criterion} {score_text(record)}{information}"


def _changes(run_dir: Path, every: float) -> Iterator[tuple[list[Record], Decision | None]]:
    """History and decision, now and whenever they have changed, until the run is stopped."""
    known: object = None
    while True:
        state = _state(run_dir, waits=True)
        if repr(state) != known:  # as NaN is no NaN
            known = repr(state)
            yield state
        if state[1] is not None and state[1].stop:
            return
        time.sleep(every)


def _state(run_dir: Path, waits: bool = False) -> tuple[list[Record], Decision | None]:
    """The scores so far, and the newest decision that a checkpoint knows."""
    decision: Decision | None = None
    try:
        history, decision = history_of(run_dir)
    except FileNotFoundError:
        if not waits:
            raise
        history = []
    newest = run_dir / rows.HISTORY_FILE
    if newest.is_file():
        whole = rows.read_history(newest)
        history = whole if len(whole) >= len(history) else history
    return history, decision
