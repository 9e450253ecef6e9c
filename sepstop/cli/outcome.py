"""What `sepstop select` found, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from sepstop.decide.selection import Selection


@dataclass(frozen=True)
class Outcome:
    """The selections of all runs.

    Attributes:
        selections: by run.
        best: run with the best weights.
        tied: runs that it does not beat significantly.
        unscored: why other runs have no selection.
    """

    selections: Mapping[str, Selection]
    best: str
    tied: Sequence[str]
    unscored: Mapping[str, str]

    @property
    def kept(self) -> Selection:
        """The selection of the best run."""
        return self.selections[self.best]

    @property
    def is_one(self) -> bool:
        """True if the user named one run."""
        return len(self.selections) + len(self.unscored) == 1

    @property
    def skipped(self) -> list[tuple[Path, str]]:
        """Checkpoints and runs that could not be scored, and why."""
        inside = [item for found in self.selections.values() for item in found.skipped.items()]
        return inside + [(Path(run), why) for run, why in self.unscored.items()]

    @property
    def skips_in_averages(self) -> bool:
        """True if averages are made without a checkpoint that was skipped."""
        return any(
            record.has_average_candidates
            for found in self.selections.values()
            for record in found.records
            if found.skipped
        )

    def with_kept(self, kept: Selection) -> Outcome:
        """The same, with another selection of the best run."""
        return replace(self, selections={**self.selections, self.best: kept})


def print_tables(outcome: Outcome, top: int | None) -> None:
    """
    Args:
        top: number of rows of a ranking. None shows all.
    """
    from sepstop.report.tables import runs_table

    out = Console()
    for run, found in outcome.selections.items():
        if outcome.is_one:
            _print_ranking(out, found, top, f"keep {described(found)}")
        elif len(found.records) > 1:  # a single model has its row in the table below
            out.print(run, style="bold", markup=False, soft_wrap=True)
            _print_ranking(out, found, top)
    if not outcome.is_one:
        out.print(runs_table(outcome.selections, outcome.best, outcome.tied))
        line = f"of all, keep {described(outcome.kept)}"
        out.print(line, style="bold", markup=False, soft_wrap=True)


def _print_ranking(out: Console, found: Selection, top: int | None, verdict: str = "") -> None:
    from sepstop.report.tables import ranking_table

    out.print(ranking_table(found, top))
    if verdict:
        out.print(verdict, style="bold", markup=False, soft_wrap=True)
    out.print(found.decision.reason, markup=False, soft_wrap=True)
    if found.asked is not None:
        asked = f"texts to label are in {found.asked}; fill them in and pass the file as --labels"
        out.print(asked, markup=False, soft_wrap=True)
    online = _kept_online(found)
    if online:
        out.print(f"the run itself kept {online}", markup=False, soft_wrap=True)


def described(found: Selection) -> str:
    """What to keep, and where it is."""
    average, checkpoint = found.best_record.average, found.paths[found.best_step]
    if average is None:
        return f"{checkpoint}, copied to {found.output}" if found.output else str(checkpoint)
    where = f"in {found.output}" if found.output else "which --output FOLDER writes"
    return f"the {average} of {checkpoint.parent}, {where}"


def _kept_online(found: Selection) -> str:
    """What the run itself kept; empty if it was not monitored or the checkpoint is gone."""
    from sepstop.runs.average_files import average_folder, read_average

    step, online, here = found.online_best_step, found.online_average, found.best_record.average
    if step is None or (online is None and step not in found.paths):
        return ""
    if online is None:
        is_same = found.best_folder == found.paths[step] and read_average(found.paths[step]) is None
        return "the same checkpoint" if is_same else f"the checkpoint of step {step}"
    folder = average_folder(next(iter(found.paths.values())).parent, step)
    kept = f"the {online}, {f'in {folder.name}' if folder.is_dir() else 'which is not on disk'}"
    is_same = step == found.best_step and here is not None and here.name == online.name
    return f"{kept}: the same kind at the same step, but of all steps" if is_same else kept


def as_json(outcome: Outcome, top: int | None) -> dict[str, Any]:
    """What `--json` prints: of one run its selection, of several those of all."""
    each = [_selection_as_json(found, top) for found in outcome.selections.values()]
    if outcome.is_one:
        return each[0]
    of_all = {"ties": list(outcome.tied), "runs": each, "skipped": dict(outcome.unscored)}
    return {**_pick_as_json(outcome.kept), **of_all}


def _pick_as_json(found: Selection) -> dict[str, Any]:
    """The weights to keep: a checkpoint, or an average and its sources; and where they are."""
    average, sources = found.best_record.average, found.sources[found.best_step]
    return {
        "best_checkpoint": str(found.paths[found.best_step]) if average is None else None,
        "best_average": None if average is None else asdict(average),
        "best_sources": [str(path) for path in sources],
        "output": None if found.output is None else str(found.output),
    }


def _selection_as_json(found: Selection, top: int | None) -> dict[str, Any]:
    from sepstop.runs.records import record_to_dict

    online = found.online_average
    return {
        **_pick_as_json(found),
        **asdict(found.decision),
        "decides": found.decides,
        "higher_is_better": dict(found.higher_is_better),
        "online_best_step": found.online_best_step,
        "online_average": None if online is None else asdict(online),
        "ties": list(found.ties),
        "label_choice": None if found.label_choice is None else asdict(found.label_choice),
        "asked": None if found.asked is None else str(found.asked),
        "ranking": [
            {
                "checkpoint": None if record.average else str(found.paths[record.step]),
                "sources": [str(path) for path in found.sources[record.step]],
                **record_to_dict(record),
            }
            for record in found.ranking[:top]
        ],
        "best_steps": {name: found.series_of(name).best_step for name in found.higher_is_better},
        "skipped": {str(path): why for path, why in found.skipped.items()},
        "differences": {str(found.paths[step]): why for step, why in found.differences.items()},
    }
