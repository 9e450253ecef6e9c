"""Live view of a run's scores in the terminal."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sepstop.report.candidates import has_averages, kept_record, weights_label
from sepstop.report.html.sanitize import plain
from sepstop.report.scored_run import read_scored_run
from sepstop.report.tables import value_text
from sepstop.runs.history import read_online, read_run
from sepstop.runs.records import RunHistory
from sepstop.types import NO_SCORE, Record, Score

_MAX_ROWS = 20
_OTHER_LINES = 8  # lines that everything but the rows takes
_BAR_WIDTH = 20  # characters


def follow(run_dir: str | Path, console: Console, once: bool = False, every: float = 1.0) -> None:
    """Show a run's scores as they come, until its training ends or the user interrupts.

    Reads the run's files only. On a terminal, a table is redrawn; elsewhere each score is a line. A
    run that crashed does not record its end: it is followed until the user interrupts.

    Args:
        run_dir: folder of the run.
        console: where to show the scores.
        once: show the scores so far and return.
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
        console.print(view(read_scored_run(run_dir), name))
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for run in _changes(run_dir, every):
                live.update(view(run, name, console.height), refresh=True)
    else:
        before = RunHistory()
        for run in _changes(run_dir, every):
            for line in _new_lines(before, run):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            before = run


def view(run: RunHistory, title: str, height: int = 100) -> RenderableType:
    """The newest scores, with bars for the intervals of the deciding one, and the newest decision.

    Args:
        run: may have no record yet.
        title: shown above the table.
        height: maximum number of lines.
    """
    end = [] if run.ended is None else [Text(_end_text(run.ended))]
    if not run.records:
        return Group(Text(f"{title}: {'no score' if end else 'waiting for the first score'}"), *end)
    decision, kept = run.decision, kept_record(run)
    best = []
    if kept is not None and kept.average is not None:
        best = [Text(f"best: {weights_label(kept)}", style="bold")]
    parts: list[RenderableType] = [_score_table(run, title, height - len(best)), *best]
    if decision is not None:
        stop = Text("STOP: " if decision.stop else "", style="bold red")
        parts.append(stop + Text(f"as of step {decision.step}: {decision.reason}"))
    return Group(*parts, *end)


def _score_table(run: RunHistory, title: str, height: int) -> Table:
    others = [name for name in run.names if name != run.decides]
    best_step = None if run.decision is None else run.decision.best_step
    low, span = _range(run)
    table = Table(
        title=escape(f"{title}, {len(run.records)} scores"), box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column(escape(f"{run.decides} (decides)"), justify="right", no_wrap=True)
    table.add_column("", max_width=_BAR_WIDTH)  # shrinks on a narrow terminal
    for name in others:
        table.add_column(escape(name), justify="right", no_wrap=True)
    shown = run.records[-max(1, min(_MAX_ROWS, height - _OTHER_LINES)) :]
    averages = has_averages(shown)
    if averages:
        table.add_column("weights", no_wrap=True, max_width=20)
    table.add_column("", no_wrap=True)
    for record in shown:
        step, score = record.step, record.scores.get(run.decides, NO_SCORE)
        is_best = step == best_step
        table.add_row(
            str(step),
            str(score),
            _bar(score, low, span),
            *(value_text(run.series_of(name).score_at(step)) for name in others),
            *([Text(plain(next(iter(record.candidates))))] if averages else []),
            "◀ best" if is_best else "",
            style="bold" if is_best else "",
        )
    return table


def _range(run: RunHistory) -> tuple[float, float]:
    """Lower end and length of the range that all intervals of the deciding score span."""
    finite = [score for score in run.series.scores if score.is_finite]
    if not finite:
        return 0.0, 1.0
    ends = [end for score in finite for end in _interval(score)]
    return min(ends), max(max(ends) - min(ends), 1e-12)


def _interval(score: Score) -> tuple[float, float]:
    if math.isfinite(score.low) and math.isfinite(score.high):
        return score.low, score.high
    return score.value, score.value


def _bar(score: Score, low: float, span: float) -> RenderableType:
    """The interval on a common scale, at least half a character wide."""
    if not score.is_finite:
        return ""
    begin, end = ((bound - low) / span * _BAR_WIDTH for bound in _interval(score))
    begin = min(begin, _BAR_WIDTH - 0.5)
    return Bar(_BAR_WIDTH, begin, max(end, begin + 0.5), color="blue")


def _new_lines(before: RunHistory, run: RunHistory) -> Iterator[str]:
    """What changed in a run since ``before``, a line each."""
    known = 0
    for old, new in zip(before.records, run.records, strict=False):
        if repr(old) != repr(new):  # NaN is not equal to itself
            break
        known += 1
    if known < len(before.records):
        yield f"back to step {run.records[known - 1].step}" if known else "a new run"
    if run.decides and run.decides != before.decides:
        yield f"{run.decides} decides"
    for record, decision in zip(run.records[known:], run.decisions[known:], strict=True):
        yield _record_line(run, record)
        if decision is not None and decision.stop:
            yield f"stopped: {decision.reason}"
    if run.ended is not None:
        yield _end_text(run.ended)


def _record_line(run: RunHistory, record: Record) -> str:
    scores = [f"{name} {record.scores[name]}" for name in run.names if name in record.scores]
    average = [] if record.average is None else [weights_label(record)]
    return "  ".join([f"step {record.step}", *scores, *average])


def _end_text(step: int) -> str:
    return f"training ended at step {step}"


def _changes(run_dir: Path, every: float) -> Iterator[RunHistory]:
    """The history of a run, now and whenever it changes, until its training ends."""
    known: RunHistory | None = None
    while True:
        with warnings.catch_warnings():
            if known is not None:
                warnings.simplefilter("ignore")  # the first look warned
            run = _read_so_far(run_dir)
        if repr(run) != repr(known):  # NaN is not equal to itself
            known = run
            yield run
        if run.ended is not None:
            return
        time.sleep(every)


def _read_so_far(run_dir: Path) -> RunHistory:
    """The history so far, without records if there is nothing yet."""
    with suppress(FileNotFoundError):
        return read_online(run_dir) or read_run(run_dir)
    return RunHistory()
