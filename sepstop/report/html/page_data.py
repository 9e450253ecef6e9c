"""Report data as JSON-ready values for the template and the script; all text is plain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sepstop.report.candidates import (
    MAX_LINES,
    best_label,
    candidate_label,
    candidate_series,
    other_names,
    weights_label,
)
from sepstop.report.html.descriptions import (
    describe_curve,
    describe_decision,
    describe_frames,
    describe_groups,
    describe_shown_weights,
    describe_step,
    number,
)
from sepstop.report.html.frames import Frame
from sepstop.report.html.groups import Grouping, groupings, reference_frame
from sepstop.report.html.report_data import ReportData
from sepstop.report.html.sanitize import plain, shown
from sepstop.report.html.tables import candidate_rows, record_row, settings, text_rows
from sepstop.runs.records import RunHistory
from sepstop.types import Record, Series

_MAP_SCALE = 1000  # map positions are integers up to this
_MAP_TITLES = {"pca": "PCA", "umap": "UMAP", "pacmap": "PaCMAP"}


def page_data(run: ReportData, position: int, name: str) -> dict[str, Any]:
    """What the template and the script need of a run.

    Args:
        run: see `sepstop.report.html.report_data.ReportData`.
        position: of the run on the page, from 1.
        name: of the run on the page.
    """
    ways = groupings(run)
    policy = run.history.policy
    return {
        "id": f"run-{position}",
        "name": name,
        "summary": describe_decision(run.decision, run.is_monitored, run.kept),
        "reason": shown(run.decision.reason, run.folder),
        "policy": plain(policy.get("name", policy.get("custom", "")), 60),
        "decides": plain(run.history.decides, 60),
        "marks": run.marks,
        "kept": None if run.kept is None or run.kept.average is None else weights_label(run.kept),
        "has_averages": run.has_averages,
        "lines": lines(run),
        "curves": curves(run),
        "frames": frames(run, ways),
        "frames_of": describe_frames(run.shows_averages, run.is_monitored, run.has_averages),
        "start": reference_frame(run) if run.frames else 0,
        "longest": max((_rounded(frame.deaths[-1]) for frame in run.frames), default=None),
        "groupings": [asdict(way) for way in ways],
        "map_name": _MAP_TITLES[run.map_name],
        "num_mapped": run.num_mapped,
        "num_bars": len(run.frames[0].deaths) + 1 if run.frames else 0,
        "has_pool": run.selection is not None,
        "criteria": criteria(run),
        "supervised": supervised(run),
        "settings": settings(run),
        "score_names": [plain(one, 60) for one in run.history.names],
        "records": [record_row(record, run) for record in run.history.records],
        "candidates": candidate_rows(run),
        "texts": text_rows(run, ways),
        "notes": [
            shown(note, run.folder) for note in [*other_pick(run), *steps_without(run), *run.notes]
        ],
    }


def curves(run: ReportData) -> list[dict[str, Any]]:
    """The recorded scores over the steps, the deciding one first.

    Where averages were scored, each has what its scores are of, and lines of other candidates.
    """
    recorded, others = set(run.history.names), other_names(run.history)[:MAX_LINES]
    found = []
    for series in run.series:
        if series.name in recorded:
            lines = [_line(run.history, one, series.name) for one in others]
            alt = " ".join(str(line["alt"]) for line in lines)
            curve = _curve(series, run)
            found.append(curve | {"alt": f"{curve['alt']} {alt}".strip(), "others": lines})
    if run.has_averages:
        weights = [weights_label(record) for record in run.history.records]
        found = [curve | {"weights": weights} for curve in found]
    return found


def _line(history: RunHistory, candidate: str, name: str) -> dict[str, Any]:
    """The line of a candidate that is not the best one at some step."""
    series, label = candidate_series(history, candidate, name), candidate_label(candidate)
    values = {step: score.value for step, score in series}
    return {
        "name": label,
        "values": _finite(values.values()),
        "alt": describe_curve(f"{label}, {plain(name, 60)}", values, {}),
    }


def lines(run: ReportData) -> list[str]:
    """What the lines of a panel are of, the best candidates first; empty for a single line."""
    names = [candidate_label(name) for name in other_names(run.history)]
    return [best_label(run.history), *names] if names else []


def criteria(run: ReportData) -> list[dict[str, Any]]:
    """All scores with the step that each would pick, the deciding one first.

    Empty for a single score.
    """
    found = []
    for series in run.series:
        curve = _curve(series, run)
        pick = run.decision.best_step if curve["decides"] else series.best_step
        found.append(
            curve
            | {
                "pick": pick,
                "higher_is_better": series.higher_is_better,
                "agrees": pick == run.decision.best_step,
                "alt": describe_curve(curve["name"], _by_step(curve), {"pick": pick}),
            }
        )
    return found if len(found) > 1 else []


def _curve(series: Series, run: ReportData) -> dict[str, Any]:
    curve: dict[str, Any] = {
        "name": plain(series.name, 60),
        "decides": series.name == run.history.decides,
        "steps": list(series.steps),
        "values": _finite(score.value for score in series.scores),
    }
    bounds = {
        end: _finite(getattr(score, end) for score in series.scores) for end in ("low", "high")
    }
    if any(bound is not None for bound in bounds["low"]):  # more than one resample
        curve |= bounds
    return curve | {"alt": describe_curve(curve["name"], _by_step(curve), run.marks)}


def frames(run: ReportData, ways: Sequence[Grouping]) -> list[dict[str, Any]]:
    """Map, barcode and description of each frame. Deaths are rounded to four digits.

    Args:
        ways: of `groupings`.
    """
    if not run.frames:
        return []
    reach = max(float(np.abs(frame.positions).max()) for frame in run.frames)
    scale = _MAP_SCALE / reach if reach > 0 else 0.0
    way = ways[min(1, len(ways) - 1)] if run.has_classes else ways[0]
    frames_and_records = zip(run.frames, run.frame_records, strict=True)
    return [
        _frame(frame, record, way.at(index), way, run, scale)
        for index, (frame, record) in enumerate(frames_and_records)
    ]


def _frame(
    frame: Frame,
    record: Record,
    groups: Sequence[int],
    way: Grouping,
    run: ReportData,
    scale: float,
) -> dict[str, Any]:
    x, y = np.rint(frame.positions * scale).astype(int).T.tolist()
    deaths = frame.deaths
    longest = float(deaths[-1])
    explained = None if frame.explained is None else f"{frame.explained:.0%}"
    variance = "" if explained is None else f" It shows {explained} of their variance."
    sizes = describe_groups([way.names[group] for group in groups])
    weights = describe_shown_weights(record) if run.shows_averages else ""
    place = f"at step {frame.step}" + (f", {weights}" if weights else "")
    return {
        "step": frame.step,
        "x": x,
        "y": y,
        "deaths": [_rounded(death) for death in deaths],
        "separability": number(1 - float(deaths.mean()) / longest if longest > 0 else 0.0),
        "explained": explained,
        "value": _slider_text(record, weights, run),
        "map_alt": f"Map of {len(x)} texts {place}.{variance} By {way.title}: {sizes}.",
        "bars_alt": f"Barcode of {len(deaths)} merges {place}: the median is at "
        f"distance {number(float(np.median(deaths)))}, the last at {number(longest)}.",
    }


def _slider_text(record: Record, weights: str, run: ReportData) -> str:
    return describe_step(
        record.step,
        weights,
        plain(run.history.decides, 60),
        record.scores.get(run.history.decides),
        run.decision,
        is_kept=run.kept is None or run.kept.average == record.average,
    )


def supervised(run: ReportData) -> list[dict[str, Any]]:
    """Agreement with given labels over the steps; empty without labels."""
    names = dict.fromkeys(name for frame in run.frames for name in frame.supervised)
    steps = [frame.step for frame in run.frames]
    found = []
    for name in names:
        values = _finite(frame.supervised.get(name, math.nan) for frame in run.frames)
        curve: dict[str, Any] = {"name": name, "steps": steps, "values": values}
        found.append(curve | {"alt": describe_curve(name, _by_step(curve), run.marks)})
    return found


def other_pick(run: ReportData) -> list[str]:
    """A note if the checkpoints, scored now, have another pick than the run."""
    if not run.is_monitored or run.selection is None:
        return []
    best_step = run.selection.best_step
    if run.decision.best_step in (None, best_step):
        return []
    best = next(one for one in run.selection.records if one.step == best_step)
    kept = f"step {run.decision.best_step}"
    if run.kept is not None and run.kept.average is not None:
        kept = f"the {weights_label(run.kept)}"
    return [
        f"scored now, the pick is the {weights_label(best)} "
        f"({run.selection.decision.reason}); the run itself kept {kept}"
    ]


def steps_without(run: ReportData) -> list[str]:
    """A note that names the steps without the deciding score."""
    steps = [str(step) for step, score in run.history.series if not score.is_finite]
    if not steps:
        return []
    return [f"no {run.history.decides} at step {', '.join(steps)}: the pool could not be scored"]


def _by_step(curve: Mapping[str, Any]) -> dict[int, float]:
    values = (math.nan if value is None else value for value in curve["values"])
    return dict(zip(curve["steps"], values, strict=True))


def _finite(values: Iterable[float]) -> list[float | None]:
    """Values with six digits, None for those that are not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
