"""Rows of the page's tables: settings, records and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sepstop._version import __version__
from sepstop.report.candidates import average_cell, candidate_label, weights_label
from sepstop.report.html.descriptions import number, score_text
from sepstop.report.html.groups import Grouping
from sepstop.report.html.report_data import NO_DECISION, ReportData
from sepstop.report.html.sanitize import plain, shown
from sepstop.report.model_card import described, version_of
from sepstop.types import NO_SCORE, Record, Score

_TRAINER = {
    "global_step": "steps at the newest checkpoint",
    "max_steps": "planned steps",
    "num_train_epochs": "planned epochs",
    "train_batch_size": "batch size",
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
_MEASUREMENT = {
    "criterion": "deciding score",
    "extra_criteria": "other scores",
    "num_resamples": "resamples",
    "resample_size": "texts in a resample",
    "max_length": "maximum tokens of a text",
    "pool": "fingerprint of the pool",
    "pool_size": "texts in the pool",
    "outputs": "outputs of the model",
    "answers": "answers",
    "answer_end": "end of an answer",
}


def settings(run: ReportData) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings of the run in groups: (title, [(name, value), ...])."""
    policy = run.history.policy
    who = "the run itself" if run.is_monitored else "sepstop, after the run"
    decision = [
        *([("policy", described(policy))] if policy else []),
        ("deciding score", run.history.decides),
        ("decided by", "unknown" if run.decision is NO_DECISION else who),
    ]
    if run.kept is not None and run.kept.average is not None:
        weights = f"{weights_label(run.kept)}, {run.kept.average.count} steps in it"
        decision.append(("weights to keep", weights))
    measurement = [
        (_MEASUREMENT.get(key, key), _setting_text(value))
        for key, value in run.history.settings.items()
    ]
    training = _named(run.trainer_state, _TRAINER)
    if run.learning_rates:
        training.append(("highest learning rate in the log", number(max(run.learning_rates))))
    packages = ("torch", "transformers", "plotly")
    versions = [("sepstop", __version__), *((name, version_of(name)) for name in packages)]
    groups = [
        ("Decision", decision),
        ("Measurement", measurement),
        ("Training", training),
        ("Model", _named(run.model_config, _MODEL)),
        ("Versions that made this page", versions),
    ]
    return [
        (title, [(name, shown(value, run.folder)) for name, value in values])
        for title, values in groups
        if values
    ]


def _setting_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return described(value)
    if isinstance(value, list):
        return "; ".join(map(_setting_text, value)) or "none"
    return "default" if value is None else str(value)


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, str]]:
    """The values that ``names`` has a name for."""

    def text(value: Any) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return [(name, text(values[key])) for key, name in names.items() if values.get(key) is not None]


def record_row(record: Record, run: ReportData) -> dict[str, Any]:
    """A row of the scores' table; its scores are in the order of the history's names."""
    marks = [name for name, step in run.marks.items() if step == record.step]
    selection = run.selection
    if selection and run.marks["pick"] == selection.best_step and record.step in selection.ties:
        marks.append("tie")
    return {
        "step": str(record.step),
        "epoch": "" if record.epoch is None else f"{record.epoch:.2f}",
        "average": average_cell(record),
        "scores": _score_cells(record.scores, run),
        "seconds": f"{record.seconds:.1f}",
        "marks": " and ".join(marks),
    }


def candidate_rows(run: ReportData) -> list[dict[str, Any]]:
    """Rows of the other candidates at each step, with scores as in `record_row`."""
    return [
        {
            "step": str(record.step),
            "candidate": candidate_label(name),
            "scores": _score_cells(scores, run),
        }
        for record in run.history.records
        for name, scores in record.others.items()
    ]


def _score_cells(scores: Mapping[str, Score], run: ReportData) -> list[str]:
    return [score_text(scores.get(name, NO_SCORE)) for name in run.history.names]


def text_rows(run: ReportData, ways: Sequence[Grouping]) -> list[dict[str, str]] | None:
    """The texts of the map with their groups; None if the page does not show them."""
    if run.texts is None or not ways:
        return None
    first, last = ways[0], ways[-1]
    return [
        {
            "text": plain(text),
            "group": first.names[first.indices[0][i]],
            "label": last.names[last.indices[0][i]] if run.labels is not None else "",
        }
        for i, text in enumerate(run.texts)
    ]
