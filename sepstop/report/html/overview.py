"""Runs side by side, and which of them to keep."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from sepstop.decide.selection import best_run, tied_runs
from sepstop.report.html.run import Run
from sepstop.report.html.text import curve_in_words, number, plain, without_folders


def names_of(runs: Sequence[Run]) -> list[str]:
    """The folders' names, with the one above where two are alike and a number where that is too."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.folder.resolve().parent.name}/{run.name}" for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for place, name in enumerate(names, start=1)]
    return [plain(name, 80) for name in names]


def overview(runs: Sequence[Run]) -> dict[str, Any] | None:
    """One curve a run by what decided them, and the best run; None for a single run."""
    if len(runs) < 2:
        return None
    by_information = all(run.by_information for run in runs)
    lines = []
    shown = names_of(runs)
    for place, (run, name) in enumerate(zip(runs, shown, strict=True), start=1):
        values = {
            record.step: record.information if by_information else record.score
            for record in run.history
        }
        pick = run.decision.best_step
        lines.append(
            {
                "id": f"run-{place}",
                "name": name,
                "steps": list(values),
                "values": [v if math.isfinite(v) else None for v in values.values()],
                "pick": pick,
                "at_pick": number(None if pick is None else values.get(pick)),
                "stop": run.decision.step if run.decision.stop else None,
                "alt": curve_in_words(name, values, {"pick": pick}),
            }
        )
    best, notes = _best(runs, shown)
    names = {"information" if by_information else run.history[0].criterion for run in runs}
    return {
        "by": plain(" or ".join(sorted(names)), 80),
        "lines": lines,
        "best": best,
        "notes": notes,
        "alt": " ".join(str(line["alt"]) for line in lines),
    }


def _best(runs: Sequence[Run], names: Sequence[str]) -> tuple[str | None, list[str]]:
    """What is said of the best run, and what speaks against comparing them."""
    selections = {run.folder: run.selection for run in runs if run.selection is not None}
    if len(selections) < len(runs):
        return None, ["No run is named the best: not all have a pool and checkpoints to score."]
    if len({selection.settings.get("pool") for selection in selections.values()}) > 1:
        why = "The runs were scored on different pools, so their scores do not compare; --pool FILE"
        return None, [f"{why} scores all on one."]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            best = best_run(selections)
        except ValueError as error:
            why = str(error).partition(";")[0]
            return None, [
                f"No run is named the best: {why}; sepstop select --criterion compares by one."
            ]
    notes = [f"{without_folders(str(w.message), best)}." for w in caught]
    step = selections[best].best_step
    name = {run.folder: name for run, name in zip(runs, names, strict=True)}
    said = f"Of all, keep the checkpoint of step {step} of {name[best]}."
    tied = [name[run] for run in tied_runs(selections, best)]
    if tied:
        said += f" It is not significantly better than {', '.join(tied)}."
    return said, notes
