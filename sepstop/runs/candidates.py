"""Candidates of a run on disk: its checkpoints and averages of them, each observed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from sepstop.measure.embedding import Observation
from sepstop.measure.scorer import CriterionError
from sepstop.runs.averaging import (
    CHECKPOINT_AVERAGES,
    CannotAverageError,
    CheckpointAverages,
    averages_of,
)
from sepstop.runs.cache import ObservationCache, observation_view
from sepstop.runs.loading import load_model
from sepstop.runs.plan import Plan
from sepstop.types import CHECKPOINT, Average


@dataclass(frozen=True)
class StepCandidates:
    """What was observed of the candidates of a step, by name; averages come first.

    Attributes:
        observations: of each candidate.
        averages: which candidates are averages, and of what.
        sources: the checkpoints in each candidate, by step.
    """

    observations: Mapping[str, Observation]
    averages: Mapping[str, Average]
    sources: Mapping[str, tuple[Path, ...]]


class Candidates:
    """Observes the candidates of a run, from the cache where they are in it.

    A step has an average of each kind, and its checkpoint if an average would hold it alone or if
    ``score_checkpoints`` is set. A checkpoint that can't be loaded or averaged is found out when it
    is needed; the averages go on without it.

    Attributes:
        left_out: why checkpoints are in no average, by folder. Those that can't be loaded have an
            exception instead.
    """

    def __init__(self, plan: Plan, store: ObservationCache) -> None:
        self.left_out: dict[Path, str] = dict(plan.misfits)
        self._plan, self._store = plan, store
        self._averaged = list(plan.averaged)
        self._view = observation_view(plan.monitor, plan.loading)
        self._averages = CheckpointAverages(self._load, plan.config.average_device)

    def __iter__(self) -> Iterator[tuple[int, Path, Any]]:
        """Step, folder, and the `StepCandidates` or the exception of each checkpoint, by step."""
        for step, path in self._with_progress(self._plan.steps):
            try:
                yield step, path, self.at(path)
            except CriterionError:  # the others would have no score either
                raise
            except Exception as error:  # whatever a broken folder holds: the others still rank
                yield step, path, error

    def observe_share(self) -> None:
        """Put this process's part of the steps into the cache, from which the first scores.

        Raises:
            ValueError: the observations can't be told apart by a key.
        """
        if not self._view:
            raise ValueError(
                "a pooling or model class of your own can't be divided over processes, which "
                "exchange observations by its name; expected one process"
            )
        ranks = self._plan.ranks
        for _, path in self._with_progress(self._plan.steps[ranks.rank :: ranks.size]):
            with suppress(Exception):  # the first process finds out again and says why
                self.at(path)

    def at(self, path: Path) -> StepCandidates:
        """The candidates of the step of a checkpoint.

        Raises:
            Exception: of any kind, if the checkpoint can't be loaded or observed.
        """
        while True:
            sources = self._sources(path)
            try:
                seen = self._observed(path, sources)
            except CannotAverageError as error:
                if error.checkpoint not in self._averaged:
                    raise error.__cause__ or error from None
                self._averaged.remove(error.checkpoint)
                if error.__cause__ is None or error.checkpoint != path:
                    self.left_out[error.checkpoint] = str(error)
            else:
                averages = {
                    name: self._described(name, paths)
                    for name, paths in sources.items()
                    if name != CHECKPOINT
                }
                return StepCandidates(seen, averages, sources)

    def _sources(self, path: Path) -> dict[str, tuple[Path, ...]]:
        """The checkpoints in each candidate of a step."""
        found: dict[str, tuple[Path, ...]] = {}
        if path in self._averaged:
            found = averages_of(self._averaged[: self._averaged.index(path) + 1])
        if len(found) < len(CHECKPOINT_AVERAGES) or self._plan.config.score_checkpoints:
            found[CHECKPOINT] = (path,)
        return found

    def _observed(
        self, newest: Path, sources: Mapping[str, tuple[Path, ...]]
    ) -> dict[str, Observation]:
        plan, store = self._plan, self._store
        keys = {name: self._key(name, paths) for name, paths in sources.items()}
        seen = {name: store.get(key, plan.loading.torch_device) for name, key in keys.items()}
        missing = {
            name: paths
            for name, paths in sources.items()
            if (cached := seen[name]) is None or not plan.monitor.is_complete(cached)
        }
        if missing:
            for name, model in self._averages.models(newest, missing):
                observed = seen[name] = plan.monitor.observe(model)
                store.put(keys[name], observed)
        return {name: one for name, one in seen.items() if one is not None}

    def _key(self, name: str, paths: Sequence[Path]) -> str:
        average = "" if name == CHECKPOINT else name
        return self._store.key(paths, self._view, self._plan.loading.base_model, average)

    def _load(self, path: Path) -> nn.Module:
        """
        Raises:
            CannotAverageError: from whatever kept the checkpoint from being loaded.
        """
        try:
            model = load_model(path, self._plan.loading, self._plan.bases)
        except Exception as error:
            raise CannotAverageError(path, "it can't be loaded") from error
        _set_padding(model, self._plan.monitor.observer.tokenizer)
        return model

    def _described(self, name: str, paths: Sequence[Path]) -> Average:
        steps = {path: step for step, path in self._plan.run.checkpoints.items()}
        return Average(name, steps[paths[0]], steps[paths[-1]], len(paths))

    def _with_progress(self, steps: Sequence[int]) -> Iterator[tuple[int, Path]]:
        """Step and folder; while one is embedded, another thread reads the files of the next.

        Reading alone: a model can't be built beside another at work, since transformers sets
        torch's default dtype for the whole process meanwhile.
        """
        base, checkpoints = self._plan.loading.base_model, self._plan.run.checkpoints
        bar = tqdm(steps, desc="checkpoints", disable=not self._plan.shows_progress)
        with ThreadPoolExecutor(max_workers=1) as reader:
            reading = None
            for step, following in zip(bar, [*steps[1:], None], strict=True):
                if reading is not None:
                    reading.exception()  # whatever it is, it comes again where the path is used
                path = checkpoints[following] if following is not None else None
                reading = reader.submit(self._store.content, path, base) if path else None
                yield step, checkpoints[step]


def _set_padding(model: nn.Module, tokenizer: Any) -> None:
    """Set the padding token, by which a decoder's head finds the last token; adapters lack it."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "pad_token_id", None) is None and config is not None:
        config.pad_token_id = getattr(tokenizer, "pad_token_id", None)
