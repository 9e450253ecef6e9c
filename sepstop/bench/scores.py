"""Scores of recorded runs: one pass of the run's own `Scorer`, and a cache of its results."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sepstop._version import __version__
from sepstop.bench.recorded_run import RecordedRun, fingerprint
from sepstop.config import SepStopConfig
from sepstop.criteria import CRITERIA
from sepstop.measure.monitor import MAX_RESAMPLE_SIZE
from sepstop.measure.resampling import draw_resamples
from sepstop.measure.scorer import Scorer, needs_of
from sepstop.runs.history import SCHEMA, read_history, try_to_write_history
from sepstop.runs.records import RunHistory
from sepstop.types import Criterion, Record, Series
from sepstop.utils.registry import describe

NUM_RESAMPLES = SepStopConfig().num_resamples
_SEED = SepStopConfig().seed


def can_score(run: RecordedRun, criterion: Criterion) -> bool:
    """True if the run has the criterion's inputs."""
    has = {"points", "neighbors"}
    if run.has_logits:
        has |= {"logits", "previous_logits", "neighbor_classes"}
    if "pool_d" in run.arrays:
        has.add("corrupted_logits")
    return has.issuperset(needs_of(criterion))


def score_run(
    run: RecordedRun, criteria: Sequence[Criterion], num_resamples: int = NUM_RESAMPLES
) -> dict[str, Series]:
    """Score a run as a `Monitor` with default settings would have scored it.

    A step that cannot be scored gets NaN, without a warning.

    Args:
        criteria: with different names; the run has their inputs, see `can_score`.

    Returns:
        The criteria's names -> their scores.
    """
    records = _records(run, criteria, num_resamples)
    return {one.name: Series.of(records, one.name, one.higher_is_better) for one in criteria}


def _records(run: RecordedRun, criteria: Sequence[Criterion], num_resamples: int) -> list[Record]:
    resample_size = min(run.pool_size // 2, MAX_RESAMPLE_SIZE)
    scorer = Scorer(criteria, draw_resamples(run.pool_size, num_resamples, resample_size, _SEED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a run that nobody can change anymore
        return [scorer(run.observation(t), step) for t, step in enumerate(run.steps)]


class ScoreCache:
    """`score_run` with a file for each run and criterion, so that judging again takes seconds.

    A file's name contains a hash of the run's arrays, the criterion's settings, the number of
    resamples and the version. Only the criteria without a file are scored. Criteria of your own are
    scored each time, since their name and settings do not tell what they compute.

    Args:
        folder: made if needed.
        num_resamples: as in `score_run`.
    """

    def __init__(self, folder: Path, num_resamples: int = NUM_RESAMPLES) -> None:
        self.folder, self.num_resamples = folder, num_resamples

    def __call__(self, run: RecordedRun, criteria: Sequence[Criterion]) -> dict[str, Series]:
        """As `score_run`.

        Raises:
            ValueError: a file is damaged.
        """
        arrays = fingerprint(run)
        paths = {one.name: self._path(run, arrays, one) for one in criteria}
        stored = {name: path for name, path in paths.items() if path and path.is_file()}
        missing = [one for one in criteria if one.name not in stored]
        records = _records(run, missing, self.num_resamples) if missing else []
        histories = {name: read_history(path) for name, path in stored.items()}
        for one in missing:
            histories[one.name] = _history_of(one, records)
            path = paths[one.name]
            if path is not None:
                try_to_write_history(path, histories[one.name])
        return {one.name: histories[one.name].series for one in criteria}

    def _path(self, run: RecordedRun, arrays: str, criterion: Criterion) -> Path | None:
        settings = describe(criterion, CRITERIA)
        is_own = not type(criterion).__module__.startswith("sepstop.")
        if is_own or "name" not in settings:
            return None
        key = f"{arrays} {json.dumps(settings)} {self.num_resamples} {__version__} {SCHEMA}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return self.folder / f"{run.name}-{criterion.name}-{digest}.jsonl"


def _history_of(criterion: Criterion, records: Sequence[Record]) -> RunHistory:
    """The scores of one criterion as a history without decisions."""
    name = criterion.name
    return RunHistory(
        records=tuple(replace(record, scores={name: record.scores[name]}) for record in records),
        decisions=(None,) * len(records),
        decides=name,
        higher_is_better={name: criterion.higher_is_better},
    )
