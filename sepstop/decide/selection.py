"""The step to keep among scored ones, and the best of several runs."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from sepstop.decide.few_labels import LabelChoice
from sepstop.decide.policies import replay
from sepstop.statistics import improvement_p_value
from sepstop.types import Average, Decision, Policy, Record, Score, Series

K = TypeVar("K")

TieBreak = Literal["best", "earliest", "latest"]
"""Which of the tied steps to keep."""

_LEVEL = 0.05


@dataclass(frozen=True)
class Selection:
    """The scored steps of a run and the weights to keep.

    Attributes:
        decision: which step's weights to keep, and why.
        decides: name of the score that decided.
        higher_is_better: direction of each score, by name.
        records: one per checkpoint, by step: the best candidate of the step, which is the
            checkpoint or an average of checkpoints.
        paths: step -> folder of the checkpoint.
        skipped: folder -> why it could not be scored. Averages are made without it.
        online_best_step: the run's own pick; None if the run was not monitored.
        online_average: what the run's own pick is an average of; None for a checkpoint.
        ties: other steps tied with the one to keep.
        settings: how the checkpoints were measured, as `sepstop.measure.monitor.Monitor.settings`.
        dimensions: D of the embeddings.
        reference_step: first step whose neighbors the deciding score refers to, 0 for the model
            before training; None if it looks at each checkpoint alone.
        differences: step -> how its scores differ from those in the run's own log, if they differ
            by more than rounding.
        sources: step -> folders of the checkpoints in the weights of its record: several for an
            average.
        output: folder that the weights to keep were written to; None if they were not.
        label_choice: what labels say about the step to keep, with steps for candidates; None
            without labels.
        asked: file with the texts to label; None if none were asked for.
    """

    decision: Decision
    decides: str
    higher_is_better: Mapping[str, bool]
    records: tuple[Record, ...]
    paths: dict[int, Path]
    skipped: dict[Path, str] = field(default_factory=dict)
    online_best_step: int | None = None
    ties: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    dimensions: int = 0
    reference_step: int | None = None
    differences: Mapping[int, str] = field(default_factory=dict)
    sources: Mapping[int, tuple[Path, ...]] = field(default_factory=dict)
    online_average: Average | None = None
    output: Path | None = None
    label_choice: LabelChoice | None = None
    asked: Path | None = None

    @property
    def best_step(self) -> int:
        assert self.decision.best_step is not None  # select_checkpoint raises otherwise
        return self.decision.best_step

    @property
    def best_record(self) -> Record:
        """The record of the weights to keep."""
        return next(record for record in self.records if record.step == self.best_step)

    @property
    def best_folder(self) -> Path | None:
        """Folder of the weights to keep; None for an average that was not written."""
        if self.output is not None:
            return self.output
        return self.paths[self.best_step] if self.best_record.average is None else None

    @property
    def best(self) -> Path:
        """Folder of the weights to keep.

        Raises:
            ValueError: they are an average that was not written.
        """
        if self.best_folder is None:
            raise ValueError(
                f"the weights to keep, the {self.best_record.average}, are in no folder yet; "
                "write them: select_checkpoint(..., output=FOLDER) (--output FOLDER)"
            )
        return self.best_folder

    @property
    def series(self) -> Series:
        """The score that decided."""
        return self.series_of(self.decides)

    def series_of(self, name: str) -> Series:
        return Series.of(self.records, name, self.higher_is_better.get(name, True))

    @property
    def pick(self) -> Score:
        """The deciding score of the checkpoint to keep."""
        return self.series.score_at(self.best_step)

    @property
    def ranking(self) -> list[Record]:
        """Records from best to worst by the score that decided, those without it last."""

        def rank(record: Record) -> tuple[bool, float, int]:
            score = self.series.score_at(record.step)
            value = -self.series.sign * score.value if score.is_finite else 0.0
            return not score.is_finite, value, record.step

        return sorted(self.records, key=rank)


def choose(
    series: Series,
    policy: Policy | None,
    ties: TieBreak | None,
    online_best_step: int | None,
    what: str = "checkpoints",
) -> tuple[Decision, tuple[int, ...]]:
    """The step to keep and the others tied with it.

    Args:
        policy: replayed; if it stops, later steps are no candidates.
        ties: which of the tied steps to keep. None keeps the best if a policy chose. Without
            a policy, it keeps ``online_best_step`` if that is tied, else the earliest.
        online_best_step: the run's own pick; None without one.
        what: what the steps stand for, in the plural, for the reason.
    """
    decision = _best_of(series, what) if policy is None else replay(policy, series)
    until = decision.step if decision.stop and decision.step is not None else math.inf
    candidates = series.between(1, until)  # no checkpoint of step 0 is kept
    if decision.best_step not in candidates.steps:
        return decision, ()
    best_step = decision.best_step
    assert best_step is not None
    tied = tied_steps(candidates, best_step)
    if not tied:
        return decision, ()
    together = sorted((best_step, *tied))
    if ties is None and policy is None and online_best_step in together:
        kept, which = online_best_step, "the run's own pick"
    else:
        ties = ties or ("best" if policy is not None else "earliest")
        kept = {"best": best_step, "earliest": together[0], "latest": together[-1]}[ties]
        which = f"the {ties}"
    steps = f"step{'s' * (len(tied) > 1)} {', '.join(map(str, tied))}"
    why = f"{decision.reason}; step {best_step} is not significantly better than {steps}"
    if kept != best_step:
        why += f"; of these {which} is kept, step {kept}"
    others = tuple(step for step in together if step != kept)
    return replace(decision, best_step=kept, reason=why), others


def _best_of(series: Series, what: str) -> Decision:
    best = series.best_step
    if best is None:
        return Decision(False, None, "nothing could be scored")
    why = f"best {series.name} of {len(series)} {what}"
    return Decision(False, best, why, series.steps[-1])


def tied_steps(series: Series, best_step: int) -> tuple[int, ...]:
    """Steps that ``best_step`` does not beat significantly (5 %, paired resamples)."""
    best = series.score_at(best_step)
    return tuple(
        step
        for step, score in series
        if step != best_step and score.is_finite and not _beats(series, best, score)
    )


def _beats(series: Series, best: Score, other: Score) -> bool:
    """True if ``best`` beats ``other`` significantly on the paired resamples."""
    pairs = zip(best.resample_values, other.resample_values, strict=True)
    gains = [series.sign * (high - low) for high, low in pairs]
    try:
        return improvement_p_value(gains, series.resample_size, series.pool_size) < _LEVEL
    except ValueError:  # one resample: nothing to tell them apart by
        return not math.isclose(best.value, other.value)


def best_run(selections: Mapping[K, Selection]) -> K:
    """The run with the best pick, the first of equals.

    Args:
        selections: by run, of one pool.

    Raises:
        ValueError: the runs were decided by different scores, which do not compare at all.

    Warns:
        UserWarning: the runs were measured differently, so their scores may not compare.
    """
    deciders = {found.decides for found in selections.values()}
    if len(deciders) > 1:
        raise ValueError(
            f"the runs are decided by different scores, {' and '.join(sorted(deciders))}; name one "
            "for all: criterion= (--criterion)"
        )
    compared = [_comparable(found) for found in selections.values()]
    for what in compared[0]:
        if len({found[what] for found in compared}) > 1:
            warnings.warn(
                f"sepstop: the runs have {what}, so their scores may not compare; those of "
                "`infomax` do, since they depend only on the predictions",
                stacklevel=2,
            )
    sign = next(iter(selections.values())).series.sign
    return max(selections, key=lambda run: sign * selections[run].pick.value)


def tied_runs(selections: Mapping[K, Selection], best: K) -> list[K]:
    """Other runs whose pick the best one's does not beat significantly, on the same resamples."""
    first = selections[best]
    paired = ("pool", "seed", "num_resamples", "resample_size")
    return [
        run
        for run, found in selections.items()
        if run != best
        and all(found.settings.get(key) == first.settings.get(key) for key in paired)
        and not _beats(first.series, first.pick, found.pick)
    ]


def _comparable(selection: Selection) -> dict[str, Any]:
    """What should be equal for scores of two runs to compare, by what to say if it is not."""
    return {
        "different texts in their pools": selection.settings.get("pool"),
        "embeddings of different dimensions": selection.dimensions,
        "different settings of the criterion": json.dumps(selection.settings.get("criterion")),
        "different pooling": json.dumps(selection.settings.get("pooling")),
        "texts truncated to different lengths": selection.settings.get("max_length"),
        "resamples of different sizes": selection.settings.get("resample_size"),
        "different reference neighbors (name the model before training: base_model=, "
        "--base-model)": selection.reference_step,
    }
