"""A run's settings, scores and texts as rows of tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sepstop._version import __version__
from sepstop.report.html.groups import Grouping
from sepstop.report.html.run import UNKNOWN, Run
from sepstop.report.html.text import number, plain, said
from sepstop.report.model_card import described, version_of
from sepstop.types import Record

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
_MEASURED |= {"outputs": "outputs of the model"}


def settings(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the run was made and measured with, in groups of names and values."""
    measured = [
        (_MEASURED.get(key, key), described(value) if isinstance(value, Mapping) else str(value))
        for key, value in run.settings.items()
    ]
    policy = run.log.get("policy")
    decided = [("policy", described(policy))] if policy else []
    who = "the run itself" if run.monitored else "the checkpoints, afterwards"
    decided += [("decided by", "unknown" if run.decision is UNKNOWN else who)]
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
        (title, [(name, said(value, run.folder)) for name, value in values])
        for title, values in groups
        if values
    ]


def _named_values(found: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return [(name, text(found[key])) for key, name in names.items() if found.get(key) is not None]


def record_row(record: Record, run: Run) -> dict[str, str]:
    """A row of the table."""
    what = [name for name, step in run.marks.items() if step == record.step]
    selection = run.selection
    if selection and run.marks["pick"] == selection.best_step and record.step in selection.ties:
        what.append("tie")
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
