"""Plan of a selection: the run on disk, what it recorded, and how its checkpoints are measured."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sepstop.config import AUTO, SepStopConfig
from sepstop.criteria import CRITERIA
from sepstop.measure.monitor import Monitor
from sepstop.measure.pool import read_pool
from sepstop.measure.pooling import POOLINGS
from sepstop.measure.scorer import build_criterion
from sepstop.measure.tokens import load_tokenizer
from sepstop.runs.averaging import without_misfits
from sepstop.runs.checkpoints import CheckpointRun
from sepstop.runs.history import SELECTION_FILE, from_log, newest_log_history, read_online
from sepstop.runs.loading import BaseCache, Loading
from sepstop.runs.records import RunHistory
from sepstop.utils.distributed import Ranks
from sepstop.utils.registry import describe

_RECORDED = (  # settings of a run that are the defaults here
    "criterion",
    "extra_criteria",
    "pooling",
    "num_resamples",
    "resample_size",
    "seed",
    "max_length",
    "padding",
    "precision",
    "outputs",
    "answers",
    "answer_end",
    "pool_size",
    "average",
    "score_checkpoints",
)


@dataclass(frozen=True)
class Plan:
    """A run on disk, what it recorded, and how its checkpoints are measured here.

    Attributes:
        given: the fields of the configuration that the user gave.
        averaged: the checkpoints that averages are made of, by step; empty without averages.
        misfits: why other checkpoints are in no average, by folder.
    """

    run: CheckpointRun
    recorded: RunHistory
    monitor: Monitor
    loading: Loading
    given: Mapping[str, Any]
    ranks: Ranks
    averaged: Sequence[Path] = ()
    misfits: Mapping[Path, str] = field(default_factory=dict)
    bases: BaseCache = field(default_factory=BaseCache)

    @property
    def steps(self) -> list[int]:
        return sorted(self.run.checkpoints)

    @property
    def paths(self) -> list[Path]:
        """The checkpoints, by step."""
        return [self.run.checkpoints[step] for step in self.steps]

    @property
    def config(self) -> SepStopConfig:
        return self.monitor.config

    @property
    def shows_progress(self) -> bool:
        return self.monitor.observer.progress and self.ranks.rank == 0


def resolve(
    run: CheckpointRun,
    pool: Any,
    loading: Loading,
    given: Mapping[str, Any],
    distributed: bool,
) -> Plan:
    """The plan to score a run's checkpoints as the run did, except for what is given.

    Args:
        run: on disk.
        pool: see `sepstop.measure.pool.read_pool`.
        loading: how to load the models.
        given: fields of the configuration that the user gave.
        distributed: divide the work over the processes of torch.distributed.

    Raises:
        ValueError: an unusable pool or setting, or a criterion or pooling that is not sepstop's and
            not given.

    Warns:
        UserWarning: the run was measured differently, some of its criteria are left out, its
            checkpoints may be of several runs, so they are not averaged, or were deleted.
    """
    if run.is_pruned:
        warnings.warn(
            f"sepstop: {run.name} has only what was kept when its checkpoints were deleted; a "
            f"score that refers to earlier steps differs from that in {SELECTION_FILE}",
            stacklevel=3,
        )
    recorded = _recorded(run)
    values = _with_recorded(given, recorded.settings)
    tokenizer = values.get("tokenizer")
    if tokenizer is None:
        values["tokenizer"] = _saved_tokenizer(run.checkpoints, loading.trust_remote_code)
    elif isinstance(tokenizer, (str, Path)):
        values["tokenizer"] = load_tokenizer(tokenizer, loading.trust_remote_code)
    config = SepStopConfig(**values)
    texts = read_pool(pool, config.text_column, config.pool_size, config.seed)
    if texts.fingerprint != recorded.settings.get("pool", texts.fingerprint):
        warnings.warn(
            "sepstop: this is not the pool that the run was monitored with, so its scores differ "
            "from those in the log; the ranking holds among these checkpoints",
            stacklevel=3,
        )
        if "resample_size" not in given:
            config = replace(config, resample_size=None)
    monitor = Monitor(texts, config)
    _warn_of_precision(monitor, recorded, loading.dtype)
    ranks = Ranks.of_run() if distributed else Ranks()
    averaged, misfits = _averaged(run, config.average, "average" in given)
    return Plan(run, recorded, monitor, loading, given, ranks, averaged, misfits)


def _averaged(
    run: CheckpointRun, average: bool, is_asked_for: bool
) -> tuple[list[Path], dict[Path, str]]:
    """The checkpoints that averages are made of, and why others are not among them."""
    paths = [path for _, path in sorted(run.checkpoints.items())]
    if not average or len(paths) < 2:
        return [], {}
    if not run.is_one_run and not is_asked_for:
        warnings.warn(
            f"sepstop: the models in {run.name} may be of several runs, so they are scored one by "
            "one; if they are checkpoints of one run, average=True (--average) scores averages",
            stacklevel=4,
        )
        return [], {}
    return without_misfits(paths)


def _recorded(run: CheckpointRun) -> RunHistory:
    """What the run itself recorded; without records if it was not monitored.

    Of a single checkpoint, its own trainer_state.json comes before the history file beside it.
    """
    if run.is_trained:
        return read_online(run.home) or RunHistory()
    copies = from_log(newest_log_history(run.checkpoints))
    of_run = all(re.fullmatch(r"checkpoint-\d+", path.name) for path in run.checkpoints.values())
    if copies.records or not of_run:
        return copies
    return read_online(run.home) or copies


def _with_recorded(given: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the configuration that are ``given``, and those that the run recorded."""
    values = {key: recorded[key] for key in _RECORDED if key in recorded} | dict(given)
    for kind, known in (("criterion", CRITERIA), ("pooling", POOLINGS)):
        spec, of_run = values.get(kind), recorded.get(kind, {})
        if not isinstance(spec, Mapping) or "name" in given.get(kind, {}):
            continue
        # A name in a file imports nothing: only the user says what code is run.
        if of_run and of_run.get("name") not in known:
            own = of_run.get("name", of_run.get("custom"))
            raise ValueError(
                f"the run's {kind} is its own, {own}; pass {kind}=, for instance as "
                "'module:attribute', if you trust it"
            )
        by_default = {"name": AUTO} if kind == "pooling" else {}
        values[kind] = by_default | of_run | dict(spec)
    if "extra_criteria" not in given and "extra_criteria" in recorded:
        values["extra_criteria"] = _trusted(_beside(values.get("criterion", AUTO), recorded))
    return values


def _beside(criterion: Any, recorded: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The criteria that a run recorded, without the one that decides here and its variants."""
    decides = {} if criterion == AUTO else describe(build_criterion(criterion), CRITERIA)
    of_run = [recorded.get("criterion", {}), *recorded["extra_criteria"]]
    return [one for one in of_run if one and one.get("name", one) != decides.get("name", decides)]


def _trusted(recorded: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The extra criteria of a run that are sepstop's own."""
    own = [one for one in recorded if one.get("name") not in CRITERIA]
    if own:
        names = ", ".join(str(one.get("name", one.get("custom"))) for one in own)
        warnings.warn(
            f"sepstop: the run recorded criteria of its own, which are left out: {names}; pass "
            "extra_criteria= (--extra-criteria) if you trust them",
            stacklevel=5,
        )
    return [one for one in recorded if one not in own]


def _warn_of_precision(monitor: Monitor, recorded: RunHistory, dtype: str | None) -> None:
    """Warn if a run is scored in another precision than it scored itself in."""
    own, precision = recorded.settings.get("precision"), monitor.observer.precision
    if own is None:
        return
    if dtype is not None:
        warnings.warn(
            f"sepstop: weights cast to {dtype} are not those that the run scored; leave out dtype= "
            "(--dtype) to score as the run did",
            stacklevel=4,
        )
    if precision != own:
        warnings.warn(
            f"sepstop: the pool is read in precision {precision!r}, but the run read it in {own!r}",
            stacklevel=4,
        )


def _saved_tokenizer(checkpoints: Mapping[int, Path], trust_remote_code: bool) -> Any:
    """The tokenizer that Trainer left with a checkpoint; None lets the Monitor ask the model."""
    for path in checkpoints.values():
        if (path / "tokenizer_config.json").is_file():
            with suppress(ValueError):  # a broken folder; the next may do
                return load_tokenizer(path, trust_remote_code)
    return None
