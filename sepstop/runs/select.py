"""Selection of a checkpoint on disk: observe, score, choose."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from torch import nn
from tqdm.auto import tqdm

from sepstop.decide.policies import policy_for
from sepstop.decide.selection import Selection, TieBreak, choose
from sepstop.measure.embedding import Observation
from sepstop.measure.neighbors import NEIGHBORS_FILE, Neighborhoods
from sepstop.measure.scorer import CriterionError, looks_at_neighbors, needs_of
from sepstop.runs.agreement import differences_from_log
from sepstop.runs.cache import CACHE_FOLDER, ObservationCache, observation_view
from sepstop.runs.checkpoints import find_run
from sepstop.runs.history import read_log_history, write_selection
from sepstop.runs.loading import Loading, load_base_model, load_model
from sepstop.runs.plan import Plan, resolve
from sepstop.runs.saved_weights import base_of_adapter
from sepstop.types import Record
from sepstop.utils.distributed import Ranks

_OF_NEIGHBORS = ("pool", "pool_size", "pooling", "max_length")  # settings that neighbors depend on


class NothingScoredError(ValueError):
    """No checkpoint of a run could be scored; the message says why."""


# The user's arguments, spelled out for editors; the functions below take few.
def select_checkpoint(
    run_dir: str | Path,
    pool: Any,
    *,
    policy: Any = None,
    ties: TieBreak | None = None,
    loading: Loading | None = None,
    cache: bool | str | Path = True,
    write_history: bool = True,
    distributed: bool = False,
    on_observed: Callable[[int, Observation], None] | None = None,
    **config: Any,
) -> Selection:
    """Score the checkpoints of a run and pick the best, without labels.

    A run that was monitored recorded its settings in its history file; they are the defaults here,
    so the scores and the pick are those of the training. Weights are loaded from safetensors, or
    from pickles with ``weights_only``.

    Args:
        run_dir: folder with the checkpoints of full models, PEFT adapters or SentenceTransformers,
            named ``checkpoint-<step>`` or otherwise with a number at the end; or one model, by its
            folder or its name on the hub.
        pool: unlabeled texts, see `sepstop.measure.pool.read_pool`.
        policy: replayed on the scores, it ends the run in hindsight where it would have stopped.
            Default: all checkpoints are candidates.
        ties: which to keep of the best checkpoint and those that it does not beat significantly
            (5 %, on the paired resamples): the "earliest", the "best" or the "latest". Default: the
            run's own pick if it is tied and no criterion is given, else the earliest; with a
            policy, the best.
        loading: how to load the models. Its ``base_model`` is also the model before training that
            neighbors refer to, if the run left none.
        cache: folder for observations of checkpoints, so that another call, interrupted or with
            another criterion, embeds only what is new. Default: ``sepstop_cache`` in the run's
            folder, or beside a single model. False keeps nothing. It takes 4 N (D + k) bytes per
            checkpoint.
        write_history: leave the scores in ``run_dir/sepstop_selection.jsonl``.
        distributed: divide the checkpoints over the processes of torch.distributed, which all make
            the same call, see the same disk, and get the same selection.
        on_observed: called with the step and the observation of each checkpoint that could be
            scored, by step; of several processes, on the first.
        **config: fields of `SepStopConfig` that replace what the run recorded. A mapping without
            a name changes parameters of the recorded criterion or pooling. ``batch_size`` starts at
            512 on a GPU.

    Raises:
        FileNotFoundError: no folder, or no checkpoints in it.
        NothingScoredError: no checkpoint could be scored; a ValueError.
        CriterionError: the criterion is for other outputs than the models'; a ValueError.
        ValueError: an unusable pool, model or setting.
    """
    if ties is not None and ties not in get_args(TieBreak):
        raise ValueError(f"expected `ties` among {', '.join(get_args(TieBreak))}, got {ties!r}")
    given = config if policy is None else config | {"policy": policy}
    loading = Loading() if loading is None else loading
    plan = resolve(find_run(run_dir), pool, loading, given, distributed)

    def selected(store: ObservationCache) -> Selection:
        scored = _score(plan, store, on_observed)
        selection = _choose(plan, scored, ties)
        if write_history and plan.run.is_trained:
            write_selection(plan.run.home, selection)
        return selection

    folder = plan.run.home / CACHE_FOLDER if cache is True else cache or None
    ranks = plan.ranks
    if ranks.size == 1:
        return selected(ObservationCache(folder))
    with _shared_folder(folder, ranks) as shared:
        store = ObservationCache(shared)
        ranks.together(lambda: _observe_share(plan, store))
        return ranks.of_first(ranks.together(lambda: selected(store) if ranks.rank == 0 else None))  # type: ignore[return-value]  # the first has one


# 1. Observe


def _observe(plan: Plan, store: ObservationCache) -> Iterator[tuple[int, Path, Any]]:
    """Step, folder, and the observation or the exception of each checkpoint, by step."""
    bar = tqdm(
        _reading_ahead(plan, plan.paths, store),
        total=len(plan.steps),
        desc="checkpoints",
        disable=not plan.shows_progress,
    )
    for step, path in zip(plan.steps, bar, strict=True):
        try:
            yield step, path, _observed(plan, path, store)
        except CriterionError:  # the others would have no score either
            raise
        except Exception as error:  # whatever a broken folder holds: the others still rank
            yield step, path, error


def _observed(plan: Plan, path: Path, store: ObservationCache) -> Observation:
    """The observation of a checkpoint, from the cache if it is there."""
    key = _key(plan, path, store)
    seen = store.get(key, plan.loading.torch_device)
    if seen is None:
        model = load_model(path, plan.loading, plan.bases)
        _set_padding(model, plan.monitor.observer.tokenizer)
        seen = plan.monitor.observe(model)
        store.put(key, seen)
    return seen


def _observe_share(plan: Plan, store: ObservationCache) -> None:
    """Put this process's part of the checkpoints into the cache, from which the first scores."""
    if not observation_view(plan.monitor, plan.loading):
        raise ValueError(
            "a pooling or model class of your own can't be divided over processes, which "
            "exchange observations by its name; expected one process"
        )
    paths = plan.paths[plan.ranks.rank :: plan.ranks.size]
    bar = tqdm(total=len(paths), desc="checkpoints", disable=not plan.shows_progress)
    for path in _reading_ahead(plan, paths, store):
        with suppress(Exception):  # the first process finds out again and says why
            _observed(plan, path, store)
        bar.update()
    bar.close()


def _key(plan: Plan, model: Path, store: ObservationCache, with_logits: bool = True) -> str:
    view = observation_view(plan.monitor, plan.loading, with_logits)
    return store.key(model, view, plan.loading.base_model if with_logits else None)


def _reading_ahead(plan: Plan, paths: Sequence[Path], store: ObservationCache) -> Iterator[Path]:
    """The paths; while one is embedded, another thread reads the files of the next.

    Reading alone: a model can't be built beside another at work, since transformers sets torch's
    default dtype for the whole process meanwhile.
    """
    base = plan.loading.base_model
    with ThreadPoolExecutor(max_workers=1) as reader:
        reading = reader.submit(store.content, paths[0], base) if paths else None
        for path, following in zip(paths, [*paths[1:], None], strict=True):
            if reading is not None:
                reading.exception()  # whatever it is, it comes again where the path is used
            reading = reader.submit(store.content, following, base) if following else None
            yield path


@contextmanager
def _shared_folder(folder: str | Path | None, ranks: Ranks) -> Iterator[Path]:
    """``folder``, or a temporary one if none is to be kept."""
    if folder is not None:
        yield Path(folder)
        return
    with TemporaryDirectory(prefix="sepstop-") as scratch:
        yield Path(ranks.of_first(scratch))
        ranks.together(lambda: None)  # until all are done with it


def _set_padding(model: nn.Module, tokenizer: Any) -> None:
    """Set the padding token, by which a decoder's head finds the last token; adapters lack it."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "pad_token_id", None) is None and config is not None:
        config.pad_token_id = getattr(tokenizer, "pad_token_id", None)


# 2. Score


@dataclass
class _Scored:
    """The records of a run's checkpoints, and why the others have none.

    Attributes:
        has_own_reference: True if scores refer to the neighbors that the run left.
    """

    records: list[Record] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)
    dimensions: int = 0
    has_own_reference: bool = False


def _score(
    plan: Plan,
    store: ObservationCache,
    on_observed: Callable[[int, Observation], None] | None,
) -> _Scored:
    """Score the observations, by step, with the neighbors before training as the reference."""
    scored, began = _Scored(has_own_reference=_set_reference(plan, store)), time.perf_counter()
    for step, path, seen in _observe(plan, store):
        try:
            if isinstance(seen, Exception):
                raise seen
            seen = plan.monitor.settled(seen)
            record = plan.monitor.score(seen, step, _epoch(path))
        except CriterionError:
            raise
        except Exception as error:
            lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines()]
            scored.skipped[path] = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        else:
            scored.dimensions = seen.points.shape[1]
            scored.records.append(replace(record, seconds=time.perf_counter() - began))
            if on_observed is not None:
                on_observed(step, seen)
        began = time.perf_counter()
    return scored


def _set_reference(plan: Plan, store: ObservationCache) -> bool:
    """Refer to the neighbors that the run left, or else to those of the model before training.

    Returns:
        True for the neighbors that the run left.
    """
    monitor = plan.monitor
    if not monitor.uses_neighbors:
        return False
    file = plan.run.home / NEIGHBORS_FILE
    monitor.neighborhoods = Neighborhoods.load(file, monitor.embedding_key, plan.steps[-1])
    if monitor.neighborhoods.steps:
        return True
    same = all(plan.recorded.settings.get(key) == monitor.settings[key] for key in _OF_NEIGHBORS)
    if file.is_file() and same:
        warnings.warn(
            f"sepstop: {file} is damaged or of another version, so scores that look at neighbors "
            "differ from those in the run's log",
            stacklevel=5,
        )
    _set_start(plan, store)
    return False


def _set_start(plan: Plan, store: ObservationCache) -> None:
    """Refer to the neighbors before training, if the model is known.

    Raises:
        ValueError: the user's ``base_model`` gives no embeddings.
    """
    monitor, loading = plan.monitor, plan.loading
    start = loading.base_model or base_of_adapter(plan.paths[0])
    if start is None:
        return
    try:
        key = _key(plan, Path(start), store, False) if Path(start).is_dir() else ""
        seen = store.get(key, loading.torch_device)
        if seen is None:
            seen = monitor.embed(load_base_model(start, loading))
            store.put(key, seen)
        if seen.points.isfinite().all():
            monitor.neighborhoods.add(0, seen.points)
    except Exception as error:
        if loading.base_model is None:
            return  # a checkpoint that needs it says so itself
        raise ValueError(
            f"the model before training, {str(start)!r}, gives no embeddings: "
            f"{type(error).__name__}: {error}"
        ) from error


def _epoch(checkpoint: Path) -> float | None:
    """Epochs at a checkpoint, from its newest log row."""
    # A broken trainer state does not keep weights from being scored.
    with suppress(ArithmeticError, TypeError, ValueError):
        for row in reversed(read_log_history(checkpoint)):
            if "epoch" in row:
                return float(row["epoch"])
    return None


# 3. Choose


def _choose(plan: Plan, scored: _Scored, ties: TieBreak | None) -> Selection:
    monitor, run = plan.monitor, plan.run
    if not scored.records:
        raise _nothing_scored(plan, scored)
    policy = None
    if "policy" in plan.given:
        directions = monitor.higher_is_better
        policy = policy_for(plan.given["policy"], monitor.decides, directions[monitor.decides])
    online = None if plan.recorded.decision is None else plan.recorded.decision.best_step
    differences = _differences(plan, scored)
    # The run's own pick is none of these weights if they score otherwise than they did.
    own = None if "criterion" in plan.given or online in differences else online
    decision, tied = choose(monitor.series(scored.records), policy, ties, own)
    if decision.best_step is None:
        raise _nothing_scored(plan, scored)
    reference_step = monitor.scorer.reference_step
    if run.is_trained and reference_step:
        warnings.warn(
            f"sepstop: {run.name} has no trace of the model before training, so {monitor.decides} "
            f"refers to step {reference_step}; name the model, if you have it: "
            "Loading(base_model=...) (--base-model)",
            stacklevel=4,
        )
    return Selection(
        decision=decision,
        decides=monitor.decides,
        higher_is_better=monitor.higher_is_better,
        records=tuple(scored.records),
        paths=run.checkpoints,
        skipped=scored.skipped,
        online_best_step=online,
        ties=tied,
        settings=monitor.settings,
        dimensions=scored.dimensions,
        reference_step=reference_step,
        differences=differences,
    )


def _differences(plan: Plan, scored: _Scored) -> dict[int, str]:
    """How scores differ from those in the run's own log, by step; each is a warning."""
    monitor, recorded = plan.monitor, plan.recorded
    depend_on_others = [
        one.name
        for one in monitor.scorer.criteria
        if "previous_logits" in needs_of(one)
        or (looks_at_neighbors(one) and not scored.has_own_reference)
    ]
    found = differences_from_log(
        scored.records,
        recorded.measured_alike,
        monitor.settings,
        recorded.settings,
        in_half_precision=_is_half(plan) or (monitor.observer.precision or "no") != "no",
        left_out=depend_on_others,
    )
    for step, what in found.items():
        warnings.warn(f"sepstop: {plan.run.checkpoints[step].name}: {what}", stacklevel=5)
    return found


def _is_half(plan: Plan) -> bool:
    """True if weights are in half precision, by the user's choice or their configuration."""
    dtypes = {plan.loading.dtype}
    for path in plan.paths:
        folder = plan.loading.base_model or base_of_adapter(path) or path
        with suppress(OSError, ValueError, AttributeError):
            dtypes.add(json.loads((Path(folder) / "config.json").read_text()).get("dtype"))
    return bool(dtypes & {"bfloat16", "float16"})


def _nothing_scored(plan: Plan, scored: _Scored) -> NothingScoredError:
    first = {why: path.name for path, why in reversed(scored.skipped.items())}
    causes = [f"{name}: {why}" for why, name in reversed(first.items())]
    return NothingScoredError(
        f"none of the {len(plan.steps)} checkpoints in {plan.run.name} could be scored; "
        + ("; ".join(causes[:3]) or "every score is NaN")
    )
