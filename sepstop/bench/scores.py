"""Scores of recorded runs: one pass of the run's own `Scorer`, and a cache of its results."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import sepstop
from sepstop.bench.recorded_run import RecordedRun, fingerprint
from sepstop.bench.scored import Scored
from sepstop.config import SepStopConfig
from sepstop.criteria import CRITERIA
from sepstop.measure.monitor import MAX_RESAMPLE_SIZE
from sepstop.measure.resampling import draw_resamples
from sepstop.measure.scorer import Scorer, needs_of
from sepstop.runs.history import SCHEMA, read_history, try_to_write_history
from sepstop.runs.records import RunHistory
from sepstop.types import CHECKPOINT, Average, Criterion, Record
from sepstop.utils.registry import describe

NUM_RESAMPLES = SepStopConfig().num_resamples
ONLY_CHECKPOINTS = (CHECKPOINT,)

_SEED = SepStopConfig().seed
_SCORING = (
    "bench/recorded_run.py",
    "criteria/*.py",
    "homology/*.py",
    "measure/embedding.py",
    "measure/neighbors.py",
    "measure/resampling.py",
    "measure/scorer.py",
    "statistics.py",
)
"""Sources that every score depends on."""


def can_score(
    run: RecordedRun, criterion: Criterion, candidates: Sequence[str] = ONLY_CHECKPOINTS
) -> bool:
    """True if the run has these candidates and, of each, the criterion's inputs."""
    if not set(candidates) <= set(run.candidates):
        return False
    has = {"points", "neighbors"}
    if run.has_logits:
        has |= {"logits", "previous_logits", "neighbor_classes"}
    # Before the first average, the checkpoints' stand in.
    corrupted = {"pool_d"} | {f"{name}_pool_d" for name in candidates if name != CHECKPOINT}
    if corrupted <= run.arrays.keys():
        has.add("corrupted_logits")
    return has.issuperset(needs_of(criterion))


def score_run(
    run: RecordedRun,
    criteria: Sequence[Criterion],
    candidates: Sequence[str] = ONLY_CHECKPOINTS,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Scored]:
    """Score a run as a `Monitor` with default settings would have scored it.

    Each criterion chooses among the candidates by itself. Before the first average, the only
    candidate is the checkpoint. A step that cannot be scored gets NaN, without a warning.

    Args:
        criteria: with different names; the run has their inputs, see `can_score`.
        candidates: names among ``run.candidates``. All are scored with the neighbors of the first.

    Returns:
        The criteria's names -> their scores.

    Raises:
        ValueError: the run has no such candidate.
    """
    return {
        one.name: Scored.of_records(
            _records(run, one, candidates, num_resamples), one.name, one.higher_is_better
        )
        for one in criteria
    }


def _records(
    run: RecordedRun, criterion: Criterion, candidates: Sequence[str], num_resamples: int
) -> list[Record]:
    for name in candidates:
        run.test_accuracy_of(name)  # raises for an unknown one
    resample_size = min(run.pool_size // 2, MAX_RESAMPLE_SIZE)
    scorer = Scorer([criterion], draw_resamples(run.pool_size, num_resamples, resample_size, _SEED))
    records, first_average = [], run.first_average
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a run that nobody can change anymore
        for t, step in enumerate(run.steps):
            names = candidates if t >= first_average else ONLY_CHECKPOINTS
            seen = {name: run.observation(t, name) for name in names}
            # Files do not say which steps an average holds.
            averages = {name: Average(name, 0, step, 0) for name in names if name != CHECKPOINT}
            records.append(scorer.best_of(seen, step, averages=averages))
    return records


class ScoreCache:
    """`score_run` with a file for each run, criterion and set of candidates.

    Judging again takes seconds. A file's name contains a hash of the run's arrays, the criterion's
    settings, the candidates, the number of resamples and the source of the scoring, so a changed
    criterion is scored again. Criteria of your own are scored each time, since their name and
    settings do not tell what they compute.

    Args:
        folder: made if needed.
        num_resamples: as in `score_run`.
    """

    def __init__(self, folder: Path, num_resamples: int = NUM_RESAMPLES) -> None:
        self.folder, self.num_resamples = folder, num_resamples
        self._fingerprints: dict[int, tuple[RecordedRun, str]] = {}

    def __call__(
        self,
        run: RecordedRun,
        criteria: Sequence[Criterion],
        candidates: Sequence[str] = ONLY_CHECKPOINTS,
    ) -> dict[str, Scored]:
        """As `score_run`.

        Raises:
            ValueError: a file is damaged.
        """
        return {one.name: self._scored(run, one, candidates) for one in criteria}

    def _scored(self, run: RecordedRun, criterion: Criterion, candidates: Sequence[str]) -> Scored:
        name, higher_is_better = criterion.name, criterion.higher_is_better
        path = self._path(run, criterion, candidates)
        if path is not None and path.is_file():
            return Scored.of_records(read_history(path).records, name, higher_is_better)
        records = _records(run, criterion, candidates, self.num_resamples)
        if path is not None:
            history = RunHistory(
                records=tuple(records),
                decisions=(None,) * len(records),
                decides=name,
                higher_is_better={name: higher_is_better},
            )
            try_to_write_history(path, history)
        return Scored.of_records(records, name, higher_is_better)

    def _path(
        self, run: RecordedRun, criterion: Criterion, candidates: Sequence[str]
    ) -> Path | None:
        settings = describe(criterion, CRITERIA)
        is_own = not type(criterion).__module__.startswith("sepstop.")
        if is_own or "name" not in settings:
            return None
        parts = (self._fingerprint(run), json.dumps(settings), ",".join(candidates))
        key = " ".join([*parts, f"{self.num_resamples} {SCHEMA}", source_version(type(criterion))])
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return self.folder / f"{run.name}-{criterion.name}-{digest}.jsonl"

    def _fingerprint(self, run: RecordedRun) -> str:
        """The run's fingerprint, computed once for each object."""
        known, digest = self._fingerprints.get(id(run), (None, ""))
        if known is not run:
            digest = fingerprint(run)
            self._fingerprints = {id(run): (run, digest)}
        return digest


@cache
def source_version(criterion: type) -> str:
    """Hash of the source of a criterion's module and of all that scoring depends on."""
    root = Path(inspect.getfile(sepstop)).parent
    files = {path for pattern in _SCORING for path in root.glob(pattern)}
    digest = hashlib.sha256()
    for path in sorted(files | {Path(inspect.getfile(criterion))}):
        digest.update(path.read_bytes())
    return digest.hexdigest()
