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
_AROUND = 8  # lines that the rest takes
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
            for state in _changes(run_dir, every):
                live.update(view(*state, run_dir.resolve().name, console.height), refresh=True)
        return
    shown = -1
    for history, decision, _ in _changes(run_dir, every):
        for record in history:
            if record.step > shown:
                console.print(_line(record), markup=False, highlight=False, soft_wrap=True)
                shown = record.step
        if decision is not None and decision.stop:
            console.print(f"stopped: {decision.reason}", markup=False, soft_wrap=True)


def view(
    history: Sequence[Record],
    decision: Decision | None,
    by_information: bool,
    title: str,
    height: int = 100,
) -> RenderableType:
    """The newest scores with bars for their intervals, and what was decided last.

    Args:
        by_information: whether it goes by the information, where there is any.
        height: lines that there are.
    """
    if not history:
        return Text(f"{title}: waiting for the first score")
    informed, criterion = has_information(history), history[-1].criterion
    deciding, others = list(history), scored_by_information(history)
    name, other = criterion, "information"
    if by_information and informed:
        deciding, others, name, other = others, deciding, other, name
    finite = [record for record in deciding if record.is_finite]
    ends = [end for record in finite for end in _interval(record)]
    low, span = (min(ends), max(max(ends) - min(ends), 1e-12)) if ends else (0.0, 1.0)
    best = None if decision is None else decision.best_step
    what = f", information of {history[-1].information_of}" if informed else ""
    table = Table(title=f"{title}, {len(history)} scores{what}")
    for column in ("step", name, "", *([other] if informed else [])):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    table.add_column("")
    most = max(1, min(_SHOWN, height - _AROUND))
    for record, beside in list(zip(deciding, others, strict=True))[-most:]:
        table.add_row(
            str(record.step),
            score_text(record),
            _bar(record, low, span),
            *([f"{beside.score:.4f}" if beside.is_finite else "no score"] if informed else []),
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


_State = tuple[list[Record], Decision | None, bool]


def _changes(run_dir: Path, every: float) -> Iterator[_State]:
    """History, decision and whether by the information, now and whenever they have changed.

    Until the run is stopped.
    """
    known: object = None
    while True:
        state = _state(run_dir, waits=True)
        if repr(state) != known:  # as NaN is no NaN
            known = repr(state)
            yield state
        if state[1] is not None and state[1].stop:
            return
        time.sleep(every)


def _state(run_dir: Path, waits: bool = False) -> _State:
    """The scores so far, and the newest decision that a checkpoint knows."""
    history: list[Record] = []
    decision, by_information = None, True
    try:
        history, decision, by_information = history_of(run_dir)
    except FileNotFoundError:
        if not waits:
            raise
    newest = run_dir / rows.HISTORY_FILE
    if newest.is_file():
        whole = rows.read_history(newest)
        history = whole if len(whole) >= len(history) else history
    return history, decision, by_information
