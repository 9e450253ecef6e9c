"""Candidates of a run's steps: what they are called, and the scores of each over the run."""

from __future__ import annotations

from collections.abc import Sequence

from sepstop.report.html.sanitize import plain
from sepstop.runs.records import RunHistory
from sepstop.types import CHECKPOINT, NO_SCORE, Record, Series

MAX_LINES = 6
"""Maximum number of candidates with a line of their own in a figure."""

_MAX_NAME = 40  # characters


def candidate_label(name: str) -> str:
    """What a candidate is called; a name from a file is cut.

    >>> candidate_label("cumulative"), candidate_label(CHECKPOINT)
    ('cumulative average', 'checkpoint')
    """
    return name if name == CHECKPOINT else f"{plain(name, _MAX_NAME)} average"


def weights_label(record: Record) -> str:
    """What the scores of a record are of.

    >>> from sepstop.types import Average
    >>> weights_label(Record(80, None, {}))
    'checkpoint of step 80'
    >>> weights_label(Record(80, None, {}, average=Average("recent", 20, 80, 61)))
    'recent average of steps 20 to 80'
    >>> weights_label(Record(80, None, {}, average=Average("recent", 20, 75, 12)))
    'recent average of steps 20 to 75, scored at step 80'
    """
    average = record.average
    if average is None:
        return f"{CHECKPOINT} of step {record.step}"
    steps = f"steps {average.first_step} to {average.last_step}"
    when = "" if average.last_step == record.step else f", scored at step {record.step}"
    return f"{candidate_label(average.name)} of {steps}{when}"


def average_cell(record: Record) -> str:
    """A record's cell in the column "average of steps"; empty for a step's own weights.

    >>> from sepstop.types import Average
    >>> average_cell(Record(80, None, {}, average=Average("recent", 20, 80, 61)))
    '20 to 80, recent'
    """
    average = record.average
    if average is None:
        return ""
    return f"{average.first_step} to {average.last_step}, {plain(average.name, _MAX_NAME)}"


def has_averages(records: Sequence[Record]) -> bool:
    """True if any of the records is of an average."""
    return any(record.average is not None for record in records)


def kept_record(run: RunHistory) -> Record | None:
    """The record of the step that the newest decision keeps; None without one."""
    best_step = None if run.decision is None else run.decision.best_step
    return next((record for record in run.records if record.step == best_step), None)


def best_label(run: RunHistory) -> str:
    """What the line of the best candidates is called, with their names if they are few.

    >>> from sepstop.types import Average
    >>> first = Record(5, None, {})
    >>> second = Record(10, None, {}, average=Average("recent", 6, 10, 5))
    >>> best_label(RunHistory((first,))), best_label(RunHistory((first, second)))
    ('checkpoint', 'best candidate (checkpoint, recent average)')
    """
    names = dict.fromkeys(next(iter(record.candidates)) for record in run.records)
    labels = [candidate_label(name) for name in names]
    if len(labels) == 1:
        return labels[0]
    return "best candidate" + (f" ({', '.join(labels)})" if len(labels) <= 3 else "")


def other_names(run: RunHistory) -> list[str]:
    """Candidates that are not the best one at some step; the step's own weights come first.

    A candidate that is the best wherever it is scored is not among them: the line of the best
    candidates is its line.
    """
    found = dict.fromkeys(name for record in run.records for name in record.others)
    return sorted(found, key=lambda name: name != CHECKPOINT)


def candidate_series(run: RunHistory, candidate: str, name: str) -> Series:
    """One candidate's scores over the run; `NO_SCORE` where it was not scored.

    Args:
        candidate: its name.
        name: of the criterion.
    """
    return Series(
        name,
        run.higher_is_better.get(name, True),
        tuple(record.step for record in run.records),
        tuple(record.candidates.get(candidate, {}).get(name, NO_SCORE) for record in run.records),
    )
