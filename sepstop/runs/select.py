"""Selection among the checkpoints of a run and their averages: observe, score, choose."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

from sepstop.decide.policies import policy_for
from sepstop.decide.selection import Selection, TieBreak, choose
from sepstop.measure.embedding import Observation
from sepstop.measure.neighbors import NEIGHBORS_FILE, Neighborhoods
from sepstop.measure.scorer import CriterionError, looks_at_neighbors, needs_of
from sepstop.runs.agreement import differences_from_log
from sepstop.runs.average_files import read_average
from sepstop.runs.best_folder import check_free, write_best
from sepstop.runs.cache import CACHE_FOLDER, ObservationCache, observation_view
from sepstop.runs.candidates import Candidates
from sepstop.runs.checkpoints import find_run
from sepstop.runs.few_labels import FewLabels
from sepstop.runs.history import read_log_history, write_selection
from sepstop.runs.loading import Loading, load_base_model
from sepstop.runs.plan import Plan, resolve
from sepstop.runs.records import RunHistory
from sepstop.runs.saved_weights import base_of_adapter
from sepstop.types import Average, Policy, Record, candidate_name
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
    output: str | Path | None = None,
    labels: Any = None,
    label_column: str = "label",
    ask: int = 0,
    ask_output: str | Path | None = None,
    **config: Any,
) -> Selection:
    """Score averages of a run's checkpoints, or the checkpoints, and pick the best without labels.

    At each checkpoint the candidates are averages of the checkpoints so far, see
    `sepstop.runs.averaging.CHECKPOINT_AVERAGES`, and the checkpoint itself with
    ``score_checkpoints`` or where an average would hold it alone. It is the only candidate with
    ``average=False``, and where no average can be made: at the first step, of a single model, and
    of checkpoints that do not belong together. An average takes the memory of one model and 8 bytes
    per weight; see ``average_device``.

    A run that was monitored recorded its settings in its history file; they are the defaults here,
    so the scores of checkpoints are those of the training. Weights are loaded from safetensors, or
    from pickles with ``weights_only``.

    Args:
        run_dir: folder with the checkpoints of full models, PEFT adapters or SentenceTransformers,
            named ``checkpoint-<step>`` or otherwise with a number at the end; or one model, by its
            folder or its name on the hub.
        pool: unlabeled texts, see `sepstop.measure.pool.read_pool`.
        policy: replayed on the scores, it ends the run in hindsight where it would have stopped.
            Default: all steps are candidates.
        ties: which step to keep of the best and those that it does not beat significantly (5 %, on
            the paired resamples): the "earliest", the "best" or the "latest". Default: the run's
            own pick if it is tied, of the same kind, and no criterion is given, else the earliest;
            of averages, and with a policy, the best.
        loading: how to load the models. Its ``base_model`` is also the model before training that
            neighbors refer to, if the run left none.
        cache: folder for observations, so that another call, interrupted or with another
            criterion, embeds only what is new. Default: ``sepstop_cache`` in the run's folder, or
            beside a single model. False keeps nothing. It takes 4 N (D + 2 k) bytes per candidate.
        write_history: leave the scores in ``run_dir/sepstop_selection.jsonl``, unless the run is on
            the hub or its checkpoints were deleted.
        distributed: divide the steps over the processes of torch.distributed, which all make the
            same call, see the same disk, and get the same selection. For averages, each process
            reads all checkpoints.
        on_observed: called with the step and the observation of its best candidate, for each step
            that could be scored; of several processes, on the first.
        output: write what is to keep to this folder, as a complete model without the state of the
            training. It must not exist, or be empty.
        labels: a few labeled texts, see `sepstop.utils.labels.read_labeled`. They need not be in
            the pool. A step replaces the one that the score alone would keep if it is clearly right
            more often on them, see `sepstop.decide.few_labels.choose_by_labels`.
        label_column: column of ``labels`` with the classes, by name or number.
        ask: write this many texts of the pool whose labels would tell the candidates apart, to be
            filled in and passed as ``labels``; see `sepstop.decide.few_labels.telling_texts`.
        ask_output: file for them, which must not exist. Default: ``sepstop_ask.jsonl`` in the run's
            folder; of a repository on the hub, in the working directory.
        **config: fields of `SepStopConfig` that replace what the run recorded. A mapping without
            a name changes parameters of the recorded criterion or pooling.

    Raises:
        FileNotFoundError: no folder, or no checkpoints in it.
        NothingScoredError: no checkpoint could be scored; a ValueError.
        CriterionError: the criterion is for other outputs than the models'; a ValueError.
        ValueError: an unusable pool, model or setting, labels that are no classes of the models,
            or ``output`` is in use.
        FileExistsError: ``ask_output`` exists.

    Warns:
        UserWarning: checkpoints are in no average, with the reason; or scores differ from those in
            the run's log.
    """
    if output is not None:
        check_free(output)
    if ties is not None and ties not in get_args(TieBreak):
        raise ValueError(f"expected `ties` among {', '.join(get_args(TieBreak))}, got {ties!r}")
    given = config if policy is None else config | {"policy": policy}
    loading = Loading() if loading is None else loading
    plan = resolve(find_run(run_dir), pool, loading, given, distributed)
    few = None
    if labels is not None or ask:
        few = FewLabels(plan, labels, label_column, ask, ask_output)

    def selected(store: ObservationCache) -> Selection:
        scored = _score(plan, store, on_observed if few is None else few.watching(on_observed))
        selection = _choose(plan, scored, ties)
        if few is not None:
            selection = few.choose(selection, store)
        is_own = plan.run.store is None and not plan.run.is_pruned  # where the scores belong
        if write_history and plan.run.is_trained and is_own:
            write_selection(plan.run.home, selection)
        return selection if output is None else write_best(selection, output, loading)

    folder = (plan.run.store or plan.run.home) / CACHE_FOLDER if cache is True else cache or None
    ranks = plan.ranks
    if ranks.size == 1:
        return selected(ObservationCache(folder))
    with _shared_folder(folder, ranks) as shared:
        store = ObservationCache(shared)
        ranks.together(Candidates(plan, store).observe_share)

        def of_first_rank() -> Selection | NothingScoredError | None:
            try:
                return selected(store) if ranks.rank == 0 else None
            except NothingScoredError as error:  # raised on all ranks below
                return error

        found = ranks.of_first(ranks.together(of_first_rank))
        if isinstance(found, NothingScoredError):
            raise found
        assert found is not None
        return found


@contextmanager
def _shared_folder(folder: str | Path | None, ranks: Ranks) -> Iterator[Path]:
    """``folder``, or a temporary one if none is to be kept."""
    if folder is not None:
        yield Path(folder)
        return
    with TemporaryDirectory(prefix="sepstop-") as scratch:
        yield Path(ranks.of_first(scratch))
        ranks.together(lambda: None)  # until all are done with it


# Score


@dataclass
class _Scored:
    """The records of a run, and why other checkpoints have none.

    Attributes:
        sources: the checkpoints in each record's weights, by step.
        skipped: why checkpoints could not be scored.
        left_out: why checkpoints are in no average.
        has_own_reference: True if scores refer to the neighbors that the run left.
    """

    records: list[Record] = field(default_factory=list)
    sources: dict[int, tuple[Path, ...]] = field(default_factory=dict)
    skipped: dict[Path, str] = field(default_factory=dict)
    left_out: Mapping[Path, str] = field(default_factory=dict)
    dimensions: int = 0
    has_own_reference: bool = False


def _score(
    plan: Plan,
    store: ObservationCache,
    on_observed: Callable[[int, Observation], None] | None,
) -> _Scored:
    """Score the candidates, by step, with the neighbors before training as the reference."""
    candidates = Candidates(plan, store)
    scored, began = _Scored(has_own_reference=_set_reference(plan, store)), time.perf_counter()
    for step, path, found in candidates:
        try:
            if isinstance(found, Exception):
                raise found
            record = plan.monitor.score(found.observations, step, _epoch(path), found.averages)
        except CriterionError:
            raise
        except Exception as error:
            lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines()]
            scored.skipped[path] = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        else:
            name = candidate_name(record.average)
            seen = found.observations[name]
            scored.dimensions = seen.points.shape[1]
            scored.records.append(replace(record, seconds=time.perf_counter() - began))
            scored.sources[step] = found.sources[name]
            if on_observed is not None:
                on_observed(step, plan.monitor.settled(seen))
        began = time.perf_counter()
    scored.left_out = candidates.left_out
    _warn_of_left_out(scored)
    return scored


def _warn_of_left_out(scored: _Scored) -> None:
    """Say which checkpoints are in no average; a skipped one is reported as such."""
    by_reason: dict[str, list[str]] = {}
    for path, why in scored.left_out.items():
        if path not in scored.skipped:
            by_reason.setdefault(why, []).append(path.name)
    for why, names in by_reason.items():
        warnings.warn(f"sepstop: {', '.join(names)}: in no average, as {why}", stacklevel=5)


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
    of_adapter = base_of_adapter(plan.paths[0])
    if loading.base_model is not None:
        start, revision = loading.base_model, None
    elif of_adapter is not None:
        start, revision = of_adapter
    else:
        return
    try:
        view = observation_view(monitor, loading, with_logits=False)
        key = store.key([Path(start)], view) if Path(start).is_dir() else ""
        seen = store.get(key, loading.torch_device)
        if seen is None:
            seen = monitor.embed(load_base_model(start, loading, revision))
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


# Choose


def _choose(plan: Plan, scored: _Scored, ties: TieBreak | None) -> Selection:
    monitor, run = plan.monitor, plan.run
    if not scored.records:
        raise _nothing_scored(plan, scored)
    differences = _differences(plan, scored)
    online = _online_pick(plan.recorded)
    of_averages = any(record.has_average_candidates for record in scored.records)
    chosen = choose(
        monitor.series(scored.records),
        _policy(plan),
        # Early averages hold little training, so of these the earliest is no safe choice.
        ties or ("best" if of_averages else None),
        _own_pick(plan, scored, online, differences),
        "steps" if of_averages else "checkpoints",
    )
    if chosen[0].best_step is None:
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
        decision=chosen[0],
        decides=monitor.decides,
        higher_is_better=monitor.higher_is_better,
        records=tuple(scored.records),
        paths=run.checkpoints,
        sources=scored.sources,
        skipped=scored.skipped,
        online_best_step=None if online is None else online.step,
        online_average=None if online is None else online.average,
        ties=chosen[1],
        settings=monitor.settings,
        dimensions=scored.dimensions,
        reference_step=reference_step,
        differences=differences,
    )


def _policy(plan: Plan) -> Policy | None:
    """The policy that the user gave, which is replayed."""
    if "policy" not in plan.given:
        return None
    decides = plan.monitor.decides
    return policy_for(plan.given["policy"], decides, plan.monitor.higher_is_better[decides])


class _OnlinePick(NamedTuple):
    step: int
    average: Average | None


def _online_pick(recorded: RunHistory) -> _OnlinePick | None:
    """What the run itself kept; None if it was not monitored."""
    step = None if recorded.decision is None else recorded.decision.best_step
    if step is None:
        return None
    averages = {record.step: record.average for record in recorded.records}
    return _OnlinePick(step, averages.get(step))


def _own_pick(
    plan: Plan, scored: _Scored, online: _OnlinePick | None, differences: Mapping[int, str]
) -> int | None:
    """The step of the run's own pick, if the record of this step is of the same kind of weights.

    Weights that score otherwise than they did are others.
    """
    if online is None or "criterion" in plan.given or online.step in differences:
        return None
    here = {record.step: candidate_name(record.average) for record in scored.records}
    return online.step if here.get(online.step) == candidate_name(online.average) else None


def _differences(plan: Plan, scored: _Scored) -> dict[int, str]:
    """How scores differ from those in the run's own log, by step; each is a warning."""
    monitor, recorded = plan.monitor, plan.recorded
    # Neighbors are those of a step's first candidate, and averages here are not those of the run.
    same_neighbors = scored.has_own_reference and not any(
        record.has_average_candidates for record in (*scored.records, *recorded.records)
    )
    depend_on_others = [
        one.name
        for one in monitor.scorer.criteria
        if "previous_logits" in needs_of(one) or (looks_at_neighbors(one) and not same_neighbors)
    ]
    paths = plan.run.checkpoints  # an average may be left of a run whose checkpoints were deleted
    of_checkpoints = [one for one in scored.records if read_average(paths[one.step]) is None]
    found = differences_from_log(
        of_checkpoints,
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
        of_adapter = base_of_adapter(path)
        folder = plan.loading.base_model or (of_adapter.source if of_adapter else path)
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
