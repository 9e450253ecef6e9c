"""A run as the page's script and its tables want it; all of it ready for JSON, all text plain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sepstop import __version__
from sepstop.card import described, version_of
from sepstop.page.groups import OTHER, Grouping, fixed_frame, groupings
from sepstop.page.run import Run
from sepstop.page.words import (
    curve_in_words,
    decision_in_words,
    groups_in_words,
    number,
    plain,
    step_in_words,
    without_folders,
)
from sepstop.types import Record

_FAR = 1000  # the map's coordinates are whole numbers up to this
_TRAINER = {
    "global_step": "steps trained when the newest checkpoint was saved",
    "max_steps": "steps planned",
    "num_train_epochs": "epochs planned",
    "train_batch_size": "texts in a training batch",
    "save_steps": "steps between saves",
}
_MODEL = {
    "architectures": "architecture",
    "model_type": "model",
    "hidden_size": "hidden size",
    "num_hidden_layers": "layers",
    "peft_type": "adapter",
    "r": "rank of the adapter",
    "base_model_name_or_path": "base of the adapter",
    "transformers_version": "saved by transformers",
}
_MEASURED = {"pool": "pool, its fingerprint", "pool_size": "texts in the pool"}
_MEASURED |= {"resample_size": "texts in a resample", "max_length": "tokens a text is cut at"}
_WORDS = 300  # characters of a reason or a note that are shown


def run_data(run: Run, place: int, name: str) -> dict[str, Any]:
    """What the template and the script need of a run, the ``place``-th of the page, by its name."""
    ways = groupings(run)
    return {
        "id": f"run-{place}",
        "name": name,
        "summary": decision_in_words(run.decision, run.monitored),
        "reason": _said(run, run.decision.reason),
        "policy": plain(run.log.get("policy", {}).get("name", ""), 60),
        "marks": marks(run),
        "curves": curves(run),
        "frames": frames(run, ways),
        "start": fixed_frame(run) if run.frames else 0,
        "longest": max((_rounded(frame.deaths[-1]) for frame in run.frames), default=None),
        "ways": [
            {"title": way.title, "names": way.names, "of": way.of, "other": OTHER} for way in ways
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
        "notes": [_said(run, note) for note in [*offline(run), *unscored(run), *run.notes]],
    }


def marks(run: Run) -> dict[str, int | None]:
    """The steps of the pick and of the stop."""
    decision = run.decision
    return {"pick": decision.best_step, "stop": decision.step if decision.stop else None}


def curves(run: Run) -> list[dict[str, Any]]:
    """The information and the criterion's score over steps, what decided first."""
    first = run.history[0]
    steps = [record.step for record in run.history]
    information: dict[str, Any] = {
        "key": "information",
        "title": f"information of {run.history[-1].information_of}",
        "steps": steps,
        "values": _finite(record.information for record in run.history),
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
    if all(bound is None for bound in score["low"]):  # of a single resample
        del score["low"], score["high"]
    found = [curve for curve in order if any(value is not None for value in curve["values"])]
    for curve in found:
        curve["alt"] = curve_in_words(curve["title"], _by_step(curve), marks(run))
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
        curve["alt"] = curve_in_words(curve["name"], _by_step(curve), marks(run))
    return found


def offline(run: Run) -> list[str]:
    """Where the checkpoints, scored afterwards, say otherwise than the run itself."""
    if not run.monitored or run.selection is None:
        return []
    best = run.selection.best_step
    if best == run.decision.best_step:
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


def settings(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the run was made and measured with, in groups of names and values."""
    measured = [
        (_MEASURED.get(key, key), described(value) if isinstance(value, Mapping) else str(value))
        for key, value in run.settings.items()
    ]
    policy = run.log.get("policy")
    decided = [("policy", described(policy))] if policy else []
    decided += [
        ("decided by", "the run itself" if run.monitored else "the checkpoints, afterwards")
    ]
    rates = run.log.get("rates") or []
    trained = _named_values(run.state, _TRAINER)
    trained += [("learning rate, highest in the log", number(max(rates)))] if rates else []
    packages = ("torch", "transformers", "plotly")
    made = [("sepstop", __version__), *((name, version_of(name)) for name in packages)]
    groups = [
        ("Decision", decided),
        ("Measured with", measured),
        ("Training", trained),
        ("Model", _named_values(run.config, _MODEL)),
        ("Versions with which this page was made", made),
    ]
    return [
        (title, [(name, _said(run, value)) for name, value in values])
        for title, values in groups
        if values
    ]


def _named_values(found: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return [(name, text(found[key])) for key, name in names.items() if found.get(key) is not None]


def record_row(record: Record, run: Run) -> dict[str, str]:
    """A row of the table."""
    what = [name for name, step in marks(run).items() if step == record.step]
    bounds = [record.low, record.high]
    known = all(math.isfinite(bound) for bound in bounds)
    return {
        "step": str(record.step),
        "epoch": "" if record.epoch is None else f"{record.epoch:.2f}",
        "information": number(record.information) if math.isfinite(record.information) else "",
        "score": number(record.score),
        "interval": f"{number(record.low)} to {number(record.high)}" if known else "",
        "seconds": f"{record.seconds:.1f}",
        "what": " and ".join(what),
    }


def texts(run: Run, ways: Sequence[Grouping]) -> list[dict[str, str]] | None:
    """The texts on the map with their groups; None if they are not to be shown."""
    if run.texts is None or not ways:
        return None
    first, last = ways[0], ways[-1]
    return [
        {
            "text": plain(text),
            "group": first.names[first.of[0][i]],
            "label": last.names[last.of[0][i]] if run.labels is not None else "",
        }
        for i, text in enumerate(run.texts)
    ]


def _by_step(curve: Mapping[str, Any]) -> dict[int, float]:
    values = (math.nan if value is None else value for value in curve["values"])
    return dict(zip(curve["steps"], values, strict=True))


def _finite(values: Iterable[float]) -> list[float | None]:
    """Six digits, None for what is not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _said(run: Run, text: str) -> str:
    return plain(without_folders(text, run.folder), _WORDS)
