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
from sepstop.types import Decision, Record, Series
from sepstop.utils.labels import class_names

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
        frames: one per step with finite embeddings, of the weights of the selection's record.
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

    @property
    def frame_records(self) -> list[Record]:
        """The selection's record of each frame's step, ``(F,)``: both are of the same weights."""
        records = () if self.selection is None else self.selection.records
        by_step = {record.step: record for record in records}
        return [by_step[frame.step] for frame in self.frames]

    @property
    def shows_averages(self) -> bool:
        """True if any of the frames is of an average."""
        return has_averages(self.frame_records)
