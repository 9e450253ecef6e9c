"""A run as the page's script and its tables want it; all of it ready for JSON, all text plain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sepstop.report.html.groups import Grouping, fixed_frame, groupings
from sepstop.report.html.run import Run
from sepstop.report.html.tables import record_row, settings, texts
from sepstop.report.html.text import (
    curve_in_words,
    decision_in_words,
    groups_in_words,
    number,
    plain,
    said,
    step_in_words,
)

_FAR = 1000  # the map's coordinates are whole numbers up to this


def run_data(run: Run, place: int, name: str) -> dict[str, Any]:
    """What the template and the script need of a run, the ``place``-th of the page, by its name."""
    ways = groupings(run)
    policy = run.log.get("policy", {})
    return {
        "id": f"run-{place}",
        "name": name,
        "summary": decision_in_words(run.decision, run.monitored),
        "reason": said(run.decision.reason, run.folder),
        "policy": plain(policy.get("name", policy.get("custom", "")), 60),
        "marks": run.marks,
        "curves": curves(run),
        "frames": frames(run, ways),
        "start": fixed_frame(run) if run.frames else 0,
        "longest": max((_rounded(frame.deaths[-1]) for frame in run.frames), default=None),
        "ways": [
            {"title": way.title, "names": way.names, "of": way.of, "rest": way.rest} for way in ways
        ],
        "map_name": {"pca": "PCA", "umap": "UMAP", "pacmap": "PaCMAP"}[run.map_name],
        "mapped": run.mapped,
        "barred": len(run.frames[0].deaths) + 1 if run.frames else 0,
        "has_pool": run.selection is not None,
        "classifies": run.classifies,
        "others": others(run),
        "supervised": supervised(run),
        "settings": settings(run),
        "records": [record_row(record, run) for record in run.history],
        "texts": texts(run, ways),
        "notes": [said(note, run.folder) for note in [*offline(run), *unscored(run), *run.notes]],
    }


def curves(run: Run) -> list[dict[str, Any]]:
    """The information and the criterion's score over steps, what decided first."""
    first = run.history[0]
    steps = [record.step for record in run.history]
    information: dict[str, Any] = {
        "key": "information",
        "title": f"information of {run.history[-1].information_of}",
        "steps": steps,
        "values": _finite(record.information for record in run.history),
        "low": _finite(record.information_low for record in run.history),
        "high": _finite(record.information_high for record in run.history),
    }
    score: dict[str, Any] = {
        "key": first.criterion,
        "title": plain(first.criterion, 60),
        "steps": steps,
        "values": _finite(record.score for record in run.history),
        "low": _finite(record.low for record in run.history),
        "high": _finite(record.high for record in run.history),
    }
    order = [information, score] if run.by_information else [score, information]
    for curve in order:
        if all(bound is None for bound in curve["low"]):  # of a single resample, or an older record
            del curve["low"], curve["high"]
    found = [curve for curve in order if any(value is not None for value in curve["values"])]
    for curve in found:
        curve["alt"] = curve_in_words(curve["title"], _by_step(curve), run.marks)
    return found


def frames(run: Run, ways: Sequence[Grouping]) -> list[dict[str, Any]]:
    """Coordinates in whole numbers, deaths to four digits, and each picture in words."""
    if not run.frames:
        return []
    reach = max(float(np.abs(frame.places).max()) for frame in run.frames)
    scale = _FAR / reach if reach > 0 else 0.0
    by = "information" if run.by_information else run.history[0].criterion
    found = []
    for place, frame in enumerate(run.frames):
        x, y = np.rint(frame.places * scale).astype(int).T.tolist()
        deaths = [_rounded(death) for death in frame.deaths]
        way = ways[min(1, len(ways) - 1)] if run.classifies else ways[0]
        spread = 1 - frame.deaths.mean() / frame.deaths[-1] if frame.deaths[-1] > 0 else 0.0
        spoken = step_in_words(frame.step, run.record.get(frame.step), run.decision, by)
        seen = "" if frame.shown is None else f" {frame.shown:.0%} of their variance is shown."
        sizes = groups_in_words([way.names[group] for group in way.at(place)])
        found.append(
            {
                "step": frame.step,
                "x": x,
                "y": y,
                "deaths": deaths,
                "spread": number(float(spread)),
                "shown": None if frame.shown is None else f"{frame.shown:.0%}",
                "value": spoken,
                "map_alt": f"Map of {len(x)} texts at step {frame.step}.{seen} "
                f"By the {way.title}: {sizes}.",
                "bars_alt": f"Barcode of {len(deaths)} merges at step {frame.step}: half are over "
                f"at distance {number(float(np.median(frame.deaths)))}, the last is at "
                f"{number(float(frame.deaths[-1]))}.",
            }
        )
    return found


def others(run: Run) -> list[dict[str, Any]]:
    """Criteria with their curve and their pick, what decided the run first."""
    found = [
        {
            "name": curve["title"],
            "steps": curve["steps"],
            "values": curve["values"],
            "pick": pick,
            "higher": higher,
            "decided": place == 0 and run.decision.best_step is not None,
        }
        for place, curve in enumerate(curves(run))
        for pick, higher in [_best_of(run, curve)]
    ]
    for name, selection in run.others.items():
        records = selection.records
        found.append(
            {
                "name": plain(name, 60),
                "steps": [record.step for record in records],
                "values": _finite(record.score for record in records),
                "pick": selection.best_step,
                "higher": selection.higher_is_better,
                "decided": False,
            }
        )
    for curve in found:
        curve["alt"] = curve_in_words(curve["name"], _by_step(curve), {"pick": curve["pick"]})
        curve["agrees"] = curve["pick"] == run.decision.best_step
    return found if run.others else []


def _best_of(run: Run, curve: Mapping[str, Any]) -> tuple[int | None, bool]:
    """The step that a curve would keep, and whether it is better when higher."""
    higher = curve["key"] == "information" or run.selection is None
    higher = higher or bool(run.selection and run.selection.higher_is_better)
    decides = (curve["key"] == "information") == run.by_information
    if decides:
        return run.decision.best_step, higher
    values = {step: v for step, v in _by_step(curve).items() if math.isfinite(v) and step > 0}
    if not values:
        return None, higher
    sign = 1 if higher else -1
    return max(values, key=lambda step: (sign * values[step], -step)), higher


def supervised(run: Run) -> list[dict[str, Any]]:
    """What the labels say over steps; empty without any."""
    names = dict.fromkeys(name for frame in run.frames for name in frame.supervised)
    steps = [frame.step for frame in run.frames]
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "steps": steps,
            "values": _finite(frame.supervised.get(name, math.nan) for frame in run.frames),
        }
        for name in names
    ]
    for curve in found:
        curve["alt"] = curve_in_words(curve["name"], _by_step(curve), run.marks)
    return found


def offline(run: Run) -> list[str]:
    """Where the checkpoints, scored afterwards, say otherwise than the run itself."""
    if not run.monitored or run.selection is None:
        return []
    best = run.selection.best_step
    if run.decision.best_step in (None, best):
        return []
    return [
        f"scored afterwards, the checkpoint of step {best} is the better one "
        f"({run.selection.decision.reason}); the run itself kept step {run.decision.best_step}"
    ]


def unscored(run: Run) -> list[str]:
    """Steps without a score: the gaps in the curve."""
    steps = [str(record.step) for record in run.history if not record.is_finite]
    if not steps:
        return []
    return [f"no score at step {', '.join(steps)}: the embeddings could not be scored there"]


def _by_step(curve: Mapping[str, Any]) -> dict[int, float]:
    values = (math.nan if value is None else value for value in curve["values"])
    return dict(zip(curve["steps"], values, strict=True))


def _finite(values: Iterable[float]) -> list[float | None]:
    """Six digits, None for what is not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
