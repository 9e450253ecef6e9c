"""Comparison of the runs on a page."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from sepstop.decide.selection import best_run, tied_runs
from sepstop.report.candidates import weights_label
from sepstop.report.html.descriptions import describe_curve, number
from sepstop.report.html.report_data import ReportData
from sepstop.report.html.sanitize import plain, without_folders


def page_names(runs: Sequence[ReportData]) -> list[str]:
    """A name for each run: its folder's, with the parent or a number if names are not unique."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.folder.resolve().parent.name}/{run.name}" for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({position})" for position, name in enumerate(names, start=1)]
    return [plain(name, 80) for name in names]


def compare_runs(runs: Sequence[ReportData]) -> dict[str, Any] | None:
    """A curve per run and the best run, ready for JSON; None for a single run.

    Curves are of the deciding score if it is the same for all runs, else of the first score that
    all recorded, else of each run's own.
    """
    if len(runs) < 2:
        return None
    names = page_names(runs)
    shared = _shared_score(runs)
    lines = []
    for position, (run, name) in enumerate(zip(runs, names, strict=True), start=1):
        series = run.history.series if shared is None else run.history.series_of(shared)
        values = {step: score.value for step, score in series}
        pick = run.decision.best_step
        lines.append(
            {
                "id": f"run-{position}",
                "name": name,
                "steps": list(values),
                "values": [v if math.isfinite(v) else None for v in values.values()],
                "pick": pick,
                "average": weights_label(run.kept) if run.kept and run.kept.average else "",
                "at_pick": number(None if pick is None else values.get(pick)),
                "stop": run.decision.step if run.decision.stop else None,
                "alt": describe_curve(name, values, {"pick": pick}),
            }
        )
    best, notes = _best(runs, names)
    deciders = sorted({run.history.decides for run in runs})
    return {
        "score_name": plain(shared or " or ".join(deciders), 80),
        "lines": lines,
        "best": best,
        "notes": notes,
        "alt": " ".join(str(line["alt"]) for line in lines),
    }


def _shared_score(runs: Sequence[ReportData]) -> str | None:
    """The score to compare runs by; None if they recorded none in common."""
    first = runs[0].history
    if len({run.history.decides for run in runs}) == 1:
        return first.decides
    recorded = [set(run.history.names) for run in runs]
    return next((name for name in first.names if all(name in own for own in recorded)), None)


def _best(runs: Sequence[ReportData], names: Sequence[str]) -> tuple[str | None, list[str]]:
    """The best run as a sentence, and notes on the comparison."""
    selections = {run.folder: run.selection for run in runs if run.selection is not None}
    if len(selections) < len(runs):
        return None, ["No run is named the best: not all have a pool and checkpoints to score."]
    if len({selection.settings.get("pool") for selection in selections.values()}) > 1:
        return None, [
            "The runs were scored on different pools, so their scores do not compare. Pass "
            "--pool FILE to score all on one."
        ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            best = best_run(selections)
        except ValueError as error:
            why = str(error).partition(";")[0]
            return None, [
                f"No run is named the best: {why}. `sepstop select --criterion NAME` compares them "
                "by one score."
            ]
    texts = [str(w.message).removeprefix("sepstop: ") for w in caught]
    notes = [f"{text[0].upper()}{without_folders(text[1:], best)}." for text in texts]
    kept = next(one for one in selections[best].records if one.step == selections[best].best_step)
    name_of = {run.folder: name for run, name in zip(runs, names, strict=True)}
    verdict = f"Of all runs, keep the {weights_label(kept)} of {name_of[best]}."
    tied = [name_of[run] for run in tied_runs(selections, best)]
    if tied:
        verdict += f" It is not significantly better than {', '.join(tied)}."
    return verdict, notes
