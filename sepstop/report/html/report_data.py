"""Report data: everything the page shows of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sepstop.decide.selection import Selection
from sepstop.report.candidates import has_averages, kept_record
from sepstop.report.html.frames import Frame
from sepstop.runs.records import RunHistory
from sepstop.types import CHECKPOINT, NO_SCORE, Decision, Record, Score, Series

NO_DECISION = Decision(False, None, "the run recorded no decision")
"""The decision of a run that has none on disk."""


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows of a run.

    Attributes:
        folder: folder of the run.
        history: what the run recorded, or the selection if the run has no decision of its own.
        learning_rates: those in the Trainer's log.
        trainer_state: of the newest checkpoint.
        model_config: of the newest checkpoint's model and adapter.
        selection: the checkpoints scored on the pool; None without a pool or checkpoints.
        frames: one per checkpoint that could be embedded.
        has_classes: True if the groups of frames are predicted classes.
        map_name: key of `sepstop.report.html.maps.MAPS`.
        num_mapped: number of texts in the map.
        texts: those in the map, if the page is to show them.
        labels: of the texts in the map, if they were given.
        notes: warnings and remarks for the page.
    """

    folder: Path
    history: RunHistory
    learning_rates: Sequence[float] = ()
    trainer_state: Mapping[str, Any] = field(default_factory=dict)
    model_config: Mapping[str, Any] = field(default_factory=dict)
    selection: Selection | None = None
    frames: Sequence[Frame] = ()
    has_classes: bool = False
    map_name: str = "pca"
    num_mapped: int = 0
    texts: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def decision(self) -> Decision:
        return self.history.decision or NO_DECISION

    @property
    def is_monitored(self) -> bool:
        """True if the run itself decided."""
        return self.history.is_online and self.history.decision is not None

    @property
    def kept(self) -> Record | None:
        """The record of the weights to keep; None without one."""
        return kept_record(self.history)

    @property
    def has_averages(self) -> bool:
        """True if averages of the weights were scored."""
        return has_averages(self.history.records)

    @property
    def marks(self) -> dict[str, int | None]:
        """Steps of the pick and of the stop."""
        decision = self.decision
        return {"pick": decision.best_step, "stop": decision.step if decision.stop else None}

    @property
    def series(self) -> list[Series]:
        """All scores with a value, the deciding one first, then recorded ones, then others."""
        found = {name: self.history.series_of(name) for name in self.history.names}
        if self.selection is not None:
            for name in self.selection.higher_is_better:
                found.setdefault(name, self.selection.series_of(name))
        return [one for one in found.values() if any(score.is_finite for score in one.scores)]

    @property
    def class_names(self) -> Mapping[int, str]:
        return class_names(self.model_config)

    def checkpoint_score(self, step: int) -> Score | None:
        """The deciding score of a step's own weights, from the history or else from the selection.

        Returns:
            None if they were not scored, or the step was not.
        """
        recorded = self.history.records, self.selection.records if self.selection else ()
        for record in (one for records in recorded for one in records if one.step == step):
            scores = record.candidates.get(CHECKPOINT)
            if scores is not None:
                return scores.get(self.history.decides, NO_SCORE)
        return None


def class_names(model_config: Mapping[str, Any]) -> dict[int, str]:
    """Class -> name in a model's configuration; empty if it has none but placeholders.

    >>> class_names({"id2label": {"0": "glad", "1": "sad"}})
    {0: 'glad', 1: 'sad'}
    >>> class_names({"id2label": {"0": "LABEL_0"}})
    {}
    """
    names = model_config.get("id2label")
    if not isinstance(names, Mapping) or not all(
        key.isdecimal() and len(key) < 10 for key in map(str, names)
    ):
        return {}
    if all(str(name) == f"LABEL_{number}" for number, name in names.items()):
        return {}
    return {int(number): str(name) for number, name in names.items()}
