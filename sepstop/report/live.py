"""A run's scores in the terminal while it goes on; reads its files only."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sepstop.decide.policies import has_information, scored_by_information
from sepstop.report.figures import history_of, information_text, score_text
from sepstop.runs.history import RunHistory, read_online, read_run
from sepstop.types import Decision, Record

_SHOWN = 20  # newest evaluations
_AROUND = 8  # lines that the rest takes
_WIDTH = 20  # of the bars, in characters


def follow(run_dir: str | Path, console: Console, once: bool = False, every: float = 1.0) -> None:
    """Show a run's scores as they come, until its training ends or the user interrupts.

    On a terminal, a table that is redrawn; elsewhere a line for each score. A run that crashed
    leaves no word of its end: it is followed until the user interrupts.

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
    name = run_dir.resolve().name
    if once:
        console.print(_view_of(history_of(run_dir), name))
        return
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for run in _changes(run_dir, every):
                live.update(_view_of(run, name, console.height), refresh=True)
        return
    before = RunHistory()
    for run in _changes(run_dir, every):
        for line in _news(before, run):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        before = run


def view(
    history: Sequence[Record],
    decision: Decision | None,
    by_information: bool,
    title: str,
    height: int = 100,
    ended: int | None = None,
) -> RenderableType:
    """The newest scores with bars for their intervals, and the newest decision.

    Args:
        by_information: True if the information decides, where there is any.
        height: number of lines to fill at most.
        ended: step at which training ended; None while it goes on.
    """
    end = [] if ended is None else [Text(_end_text(ended))]
    if not history:
        return Group(Text(f"{title}: {'no' if end else 'waiting for the first'} score"), *end)
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
        return Group(table, *end)
    mark = Text("STOP: " if decision.stop else "", style="bold red")
    return Group(table, mark + Text(f"as of step {decision.step}: {decision.reason}"), *end)


def _view_of(run: RunHistory, title: str, height: int = 100) -> RenderableType:
    return view(run.records, run.decision, run.by_information, title, height, run.ended)


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


def _news(before: RunHistory, run: RunHistory) -> Iterator[str]:
    """What a run says that it did not say ``before``, a line each."""
    known = 0
    for old, new in zip(before.records, run.records, strict=False):
        if repr(old) != repr(new):  # as NaN is not equal to itself
            break
        known += 1
    if known < len(before.records):
        yield f"back to step {run.records[known - 1].step}" if known else "a new run"
    pairs = zip(run.records[known:], run.decisions[known:], strict=True)
    for record, decision in pairs:
        informed = math.isfinite(record.information)
        information = f"  information {information_text(record)}" if informed else ""
        yield f"step {record.step}  {record.criterion} {score_text(record)}{information}"
        if decision is not None and decision.stop:
            yield f"stopped: {decision.reason}"
    if run.ended is not None:
        yield _end_text(run.ended)


def _end_text(step: int) -> str:
    return f"training ended at step {step}"


def _changes(run_dir: Path, every: float) -> Iterator[RunHistory]:
    """The history of a run, now and whenever it changes, until its training ends."""
    known: RunHistory | None = None
    while True:
        with warnings.catch_warnings():
            if known is not None:
                warnings.simplefilter("ignore")  # the first look said it
            run = _look(run_dir)
        if repr(run) != repr(known):  # as NaN is not equal to itself
            known = run
            yield run
        if run.ended is not None:
            return
        time.sleep(every)


def _look(run_dir: Path) -> RunHistory:
    """The history so far, without records if there is nothing yet."""
    with suppress(FileNotFoundError):
        return read_online(run_dir) or read_run(run_dir)
    return RunHistory()
