"""Checkpoints on disk to a ranking, with the same Monitor as during training."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
from torch import nn
from tqdm.auto import tqdm

from sepstop.criteria import CRITERIA
from sepstop.decide.policies import POLICIES, Mode
from sepstop.decide.selection import Rule, Selection, choose
from sepstop.measure.embedding import EMBEDDERS, Observation
from sepstop.measure.monitor import CriterionError, Monitor
from sepstop.measure.neighbors import NEIGHBORS_FILE, Neighborhoods
from sepstop.measure.pool import read_pool
from sepstop.measure.tokens import load_tokenizer
from sepstop.runs import history as rows
from sepstop.runs.agreement import differences_from_log
from sepstop.runs.cache import STORE, ObservationStore
from sepstop.runs.checkpoints import Run, find_run
from sepstop.runs.loading import DTYPES, Bases, load_model, load_start
from sepstop.runs.saved_weights import ADAPTER_CONFIG, adapter_folders
from sepstop.types import Record
from sepstop.utils.distributed import Ranks
from sepstop.utils.registry import build

_DEFAULTS = {"criterion": "separability", "embedder": "auto"}
_ON_GPU = 512  # texts in a forward pass, to begin with
_SETTINGS = (
    "criterion",
    "embedder",
    "resamples",
    "resample_size",
    "seed",
    "max_length",
    "padding",
    "precision",
    "outputs",
)


class NothingScoredError(ValueError):
    """No checkpoint of a run could be scored; the message says why."""


def select_checkpoint(
    run_dir: str | Path,
    pool: Any,
    *,
    policy: Any = None,
    ties: Rule | None = None,
    base_model: str | Path | None = None,
    model_class: Any = None,
    adapter: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    text_column: str = "text",
    pool_size: int | None = None,
    progress: bool = True,
    write_history: bool = True,
    cache: bool | str | Path = True,
    distributed: bool = False,
    on_observed: Callable[[int, Observation], None] | None = None,
    **monitor_options: Any,
) -> Selection:
    """Score the checkpoints of a run and pick the best, without labels.

    A run that was monitored recorded its settings in its history file; they are the defaults
    here, so that the scores and the pick are the ones seen during training. Weights are
    loaded from safetensors, or from pickles with ``weights_only``.

    Args:
        run_dir: folder with the checkpoints of full models, PEFT adapters or SentenceTransformers,
            named ``checkpoint-<step>`` or otherwise with a number at the end; or one model, by its
            folder or its name on the hub.
        pool: see `sepstop.measure.pool.read_pool`.
        policy: replayed on the records, it ends the run in hindsight where it would have
            stopped; by default all checkpoints are candidates. The pick is that of the policy, or
            by default the checkpoint with the most information, unless a criterion is given or the
            run was decided by its score.
        ties: which is kept of the best and those that it does not beat significantly (5 %, on the
            paired resamples): the "earliest", the "best" or the "latest". By default what the run
            itself kept, if it is one of them and no criterion was given, or else the earliest; and
            with a policy what that keeps, the best.
        base_model: folder or hub name of the model that the run started from. Adapters are loaded
            onto it, by default onto the base that they name. Where the callback left no neighbors
            in the folder, the information refers to this model, by default to the adapters' base,
            or else to the earliest checkpoint.
        model_class: class that the checkpoints were trained as, with ``from_pretrained``, or
            "module:Class". By default the one that they name.
        adapter: name of the PEFT adapter, where checkpoints have several.
        device: where the models run; by default a GPU if there is one.
        dtype: "float32", "bfloat16" or "float16" for all models; by default as they were saved.
        trust_remote_code: allow a model to bring code of its own.
        text_column, pool_size, **monitor_options: see `Monitor`; the ``batch_size`` starts here at
            512 on a GPU, which has nothing else to hold, and is halved until it fits.
        progress: show a bar.
        write_history: leave the records in ``run_dir/sepstop_selection.jsonl``.
        cache: folder for what was observed of checkpoints, so that another call, interrupted or
            with another criterion, embeds only what is new; by default ``sepstop_cache`` in the
            run's folder, or beside that of a single model; False keeps nothing. It takes
            4 N (D + k) bytes a checkpoint.
        distributed: divide the checkpoints over the processes of torch.distributed, which all have
            to make the same call, see the same disk, and get the same selection.
        on_observed: called with the step and what was observed of each checkpoint that could be
            scored, in order of steps; of several processes on the first.

    Raises:
        FileNotFoundError: no folder, or no checkpoints in it.
        NothingScoredError: no checkpoint could be scored; a ValueError.
        ValueError: an unusable pool or setting, or a criterion that is for other outputs than the
            models' (`sepstop.measure.monitor.CriterionError`).
    """
    for name, value, known in (("ties", ties, get_args(Rule)), ("dtype", dtype, tuple(DTYPES))):
        if value is not None and value not in known:
            raise ValueError(f"expected `{name}` among {', '.join(known)}, got {value!r}")
    run = find_run(run_dir)
    recorded = _recorded(run)
    on = _device(device)
    if on.type != "cpu":
        monitor_options = {"batch_size": _ON_GPU} | monitor_options
    monitor = _monitor_as_in(
        run, recorded, pool, text_column, pool_size, trust_remote_code, monitor_options
    )
    mode: Mode = "max" if monitor.criterion.higher_is_better else "min"
    policy = None if policy is None else build("policy", policy, POLICIES)
    if getattr(policy, "mode", mode) != mode:
        raise ValueError(f"expected a policy with mode={mode!r} for this criterion, got {policy}")
    loads = _Loader(
        on, dtype, trust_remote_code, monitor.tokenizer, base_model, model_class, adapter
    )
    _warn_of_precision(monitor, recorded, dtype)
    ranks = Ranks.of_run() if distributed else Ranks()

    def scored(store: ObservationStore) -> Selection:
        records, skipped, width = _score(run, monitor, loads, store, progress, on_observed)
        online = None if recorded.decision is None else recorded.decision.best_step
        decided_by_score = bool(recorded.decides) and not recorded.by_information
        by_score = "criterion" in monitor_options or decided_by_score
        found = differences_from_log(
            records,
            recorded.measured_alike,
            monitor.settings,
            recorded.settings,
            loads.halved(run.checkpoints) or (monitor.precision or "no") != "no",
            (run.home / NEIGHBORS_FILE).is_file(),
        )
        for step, what in found.items():
            warnings.warn(f"sepstop: {run.checkpoints[step].name}: {what}", stacklevel=3)
        # The run's own pick is none of these weights if they score otherwise than they did.
        own = None if "criterion" in monitor_options or online in found else online
        decision, by_information, tied = choose(records, policy, mode, by_score, ties, own)
        if decision.best_step is None:
            first = {why: path.name for path, why in reversed(skipped.items())}
            causes = [f"{name}: {why}" for why, name in reversed(first.items())]
            raise NothingScoredError(
                f"none of the {len(run.checkpoints)} checkpoints in {run_dir} could be scored; "
                + ("; ".join(causes[:3]) or "every score is NaN")
            )
        since = monitor.neighborhoods.since
        if by_information and run.is_trained and since:
            warnings.warn(
                f"{run.name} has no trace of the model before training, so the information refers "
                f"to step {since}; name the model, if you have it: base_model= (--base-model)",
                stacklevel=3,
            )
        if write_history and run.is_trained:
            chosen = rows.RunHistory(
                tuple(records),
                (*[None] * (len(records) - 1), decision),
                settings=monitor.settings,
                decides=rows.INFORMATION if by_information else monitor.criterion.name,
            )
            rows.try_to_write_run(run.home / rows.SELECTION_FILE, chosen)
        return Selection(
            decision=decision,
            records=tuple(records),
            paths=run.checkpoints,
            skipped=skipped,
            higher_is_better=mode == "max",
            online_best_step=online,
            by_information=by_information,
            ties=tied,
            settings=monitor.settings,
            width=width,
            since=since,
            differences=found,
        )

    folder = run.home / STORE if cache is True else cache or None
    if ranks.size == 1:
        return scored(ObservationStore(folder))
    with _shared_folder(folder, ranks) as shared:
        store = ObservationStore(shared)
        ranks.together(lambda: _observe_share(run, monitor, loads, store, ranks, progress))
        return ranks.of_first(ranks.together(lambda: scored(store) if ranks.rank == 0 else None))  # type: ignore[return-value]  # the first has one


def _recorded(run: Run) -> rows.RunHistory:
    """What the run itself recorded; without records if it was not monitored.

    Of a single checkpoint, its own trainer_state.json comes before the history file beside it.
    """
    if run.is_trained:
        return rows.read_online(run.home) or rows.RunHistory()
    copies = rows.from_log(rows.newest_log_history(run.checkpoints))
    of_run = all(re.fullmatch(r"checkpoint-\d+", path.name) for path in run.checkpoints.values())
    if copies.records or not of_run:
        return copies
    return rows.read_online(run.home) or copies


def _monitor_as_in(
    run: Run,
    recorded: rows.RunHistory,
    pool: Any,
    text_column: str,
    pool_size: int | None,
    trust_remote_code: bool,
    given: dict[str, Any],
) -> Monitor:
    """The Monitor that the run had, but for what is ``given``."""
    settings = recorded.settings
    options = _with_recorded(given, settings)
    texts = read_pool(
        pool, text_column, pool_size or settings.get("pool_size", 2000), options.get("seed", 0)
    )
    same_pool = texts.fingerprint == settings.get("pool", texts.fingerprint)
    if not same_pool:
        warnings.warn(
            "this is not the pool that the run was monitored with, so its scores differ from "
            "those in the log; the ranking holds among these checkpoints",
            stacklevel=3,
        )
        if "resample_size" not in given:
            options["resample_size"] = None
    tokenizer = options.get("tokenizer")
    if tokenizer is None:
        options["tokenizer"] = _saved_tokenizer(run.checkpoints, trust_remote_code)
    elif isinstance(tokenizer, (str, Path)):
        options["tokenizer"] = load_tokenizer(tokenizer, trust_remote_code)
    return Monitor(texts, **options)


def _warn_of_precision(monitor: Monitor, recorded: rows.RunHistory, dtype: str | None) -> None:
    """Warn where a run is scored in another precision than it scored itself in."""
    own = recorded.settings.get("precision")
    if own is None:
        return
    if dtype is not None:
        warnings.warn(
            f"sepstop: weights cast to {dtype} are not those that the run scored; leave out dtype= "
            "(--dtype) to score as the run did",
            stacklevel=3,
        )
    if monitor.precision != own:
        warnings.warn(
            f"sepstop: the pool is read in precision {monitor.precision!r}, but the run read it in "
            f"{own!r}",
            stacklevel=3,
        )


@dataclass(frozen=True)
class _Loader:
    """Loads models, ready to be measured."""

    device: torch.device
    dtype: str | None
    trust_remote_code: bool
    tokenizer: Any
    base_model: str | Path | None = None
    model_class: Any = None
    adapter: str | None = None
    bases: Bases = field(default_factory=Bases)

    def __call__(self, checkpoint: Path) -> nn.Module:
        model = load_model(
            checkpoint,
            self.trust_remote_code,
            self.bases,
            base_model=self.base_model,
            model_class=self.model_class,
            adapter=self.adapter,
        )
        model = self._placed(model)
        _set_padding(model, self.tokenizer)
        return model

    def start(self, source: str | Path) -> nn.Module:
        """The model that the run started from."""
        return self._placed(load_start(source, self.trust_remote_code, self.model_class))

    def _placed(self, model: nn.Module) -> nn.Module:
        return model.to(self.device, DTYPES[self.dtype] if self.dtype else None)

    def key(self, store: ObservationStore, checkpoint: Path, monitor: Monitor) -> str:
        """Of what a checkpoint shows in the store; a class of the user's own tells no content."""
        if self.model_class is not None:
            return ""
        how = [str(part) for part in (self.dtype, self.adapter) if part is not None]
        return store.key(checkpoint, monitor, *how, base_model=self.base_model)

    def halved(self, checkpoints: Mapping[int, Path]) -> bool:
        """Whether weights are in half precision, by what is asked for or the configuration."""
        dtypes = {self.dtype}
        for path in checkpoints.values():
            folder = self.base_model or _base_of_adapter(path) or path
            with suppress(OSError, ValueError, AttributeError):
                dtypes.add(json.loads((Path(folder) / "config.json").read_text()).get("dtype"))
        return bool(dtypes & {"bfloat16", "float16"})


def _score(
    run: Run,
    monitor: Monitor,
    loads: _Loader,
    store: ObservationStore,
    progress: bool,
    on_observed: Callable[[int, Observation], None] | None,
) -> tuple[list[Record], dict[Path, str], int]:
    """The records, why the others have none, and the embeddings' dimensions."""
    records: list[Record] = []
    skipped: dict[Path, str] = {}
    width = 0
    _recall_start(monitor, run, loads, store)
    steps = sorted(run.checkpoints)
    paths = _reading_ahead([run.checkpoints[step] for step in steps], store)
    bar = tqdm(paths, total=len(steps), desc="checkpoints", disable=not progress)
    for step, path in zip(steps, bar, strict=True):
        try:
            began = time.perf_counter()
            seen, model = _observed(monitor, path, loads, store)
            seen = monitor.settled(seen)
            width = seen.points.shape[1]
            record = monitor.score(seen, step, _epoch(path), model)
            records.append(replace(record, seconds=time.perf_counter() - began))
            if on_observed is not None:
                on_observed(step, seen)
        except CriterionError:  # nor would the others have a score
            raise
        except Exception as error:  # whatever a broken folder holds: the others still rank
            lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines()]
            skipped[path] = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return records, skipped, width


def _observe_share(
    run: Run,
    monitor: Monitor,
    loads: _Loader,
    store: ObservationStore,
    ranks: Ranks,
    progress: bool,
) -> None:
    """This process's part of the checkpoints into the store, from which the first scores all."""
    if not store.keeps(monitor) or loads.model_class is not None:
        raise ValueError(
            "an embedder or model class of your own can't be divided over processes, which "
            "exchange what they observed by its name; expected one process"
        )
    paths = [run.checkpoints[step] for step in sorted(run.checkpoints)][ranks.rank :: ranks.size]
    bar = tqdm(total=len(paths), desc="checkpoints", disable=not progress or ranks.rank > 0)
    for path in _reading_ahead(paths, store):
        with suppress(Exception):  # the first process finds out again and says why
            _observed(monitor, path, loads, store)
        bar.update()
    bar.close()


def _reading_ahead(paths: Sequence[Path], store: ObservationStore) -> Iterator[Path]:
    """The paths; while one is embedded, another thread reads the next, to tell what it holds.

    Reading alone: a model can't be built beside another at work, since transformers sets torch's
    default dtype for the whole process meanwhile.
    """
    with ThreadPoolExecutor(max_workers=1) as reader:
        reading = reader.submit(store.content, paths[0]) if paths else None
        for path, following in zip(paths, [*paths[1:], None], strict=True):
            if reading is not None:
                reading.exception()  # whatever it is, it comes again where the path is used
            reading = reader.submit(store.content, following) if following else None
            yield path


@contextmanager
def _shared_folder(folder: str | Path | None, ranks: Ranks) -> Iterator[Path]:
    """``folder``, or one for the time being where none is to be kept."""
    if folder is not None:
        yield Path(folder)
        return
    with TemporaryDirectory(prefix="sepstop-") as scratch:
        yield Path(ranks.of_first(scratch))
        ranks.together(lambda: None)  # nobody needs it any longer


def _observed(
    monitor: Monitor, path: Path, loads: _Loader, store: ObservationStore
) -> tuple[Observation, Any]:
    """What a checkpoint shows, from the store where it was seen before, and the model if needed."""
    key = loads.key(store, path, monitor)
    seen = store.get(key, loads.device)
    if seen is not None and "model" not in monitor.needs:
        return seen, None
    model = loads(path)
    if seen is None:
        seen = monitor.observe(model)
        store.put(key, seen)
    return seen, model


def _recall_start(monitor: Monitor, run: Run, loads: _Loader, store: ObservationStore) -> None:
    """The neighbours that the run left, or else those of the model that it started from."""
    path, latest = run.home / NEIGHBORS_FILE, max(run.checkpoints)
    monitor.neighborhoods = Neighborhoods.load(path, monitor.places, latest)
    if monitor.neighborhoods.steps:
        return
    start = loads.base_model or _base_of_adapter(run.checkpoints[min(run.checkpoints)])
    if start is None:
        return
    try:
        how = () if loads.dtype is None else (loads.dtype,)
        key = store.key(Path(start), monitor, *how) if Path(start).is_dir() else ""
        key = key and f"start{key}"  # without its head
        seen = store.get(key, loads.device)
        if seen is None:
            seen = monitor.embed(loads.start(start))
            store.put(key, seen)
        monitor.note(seen)
    except Exception as error:
        if loads.base_model is None:
            return  # a checkpoint that needs it says so itself
        raise ValueError(
            f"the model before training, {str(start)!r}, gives no embeddings: "
            f"{type(error).__name__}: {error}"
        ) from error


def _base_of_adapter(checkpoint: Path) -> str | None:
    # A broken folder is found out when it is loaded.
    with suppress(OSError, ValueError, KeyError, TypeError, StopIteration):
        folder = next(iter(adapter_folders(checkpoint).values()))
        base = json.loads((folder / ADAPTER_CONFIG).read_text())
        return str(base["base_model_name_or_path"])
    return None


def _with_recorded(options: dict[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` for the Monitor, what they leave open taken from the run's own settings.

    A mapping without a "name" changes parameters of the recorded criterion or embedder.
    """
    given = options
    options = {key: recorded[key] for key in _SETTINGS if key in recorded} | options
    for kind, known in (("criterion", CRITERIA), ("embedder", EMBEDDERS)):
        settings, of_run = options.get(kind), recorded.get(kind, {})
        if not isinstance(settings, Mapping) or (kind in given and "name" in settings):
            continue
        # A name in a file imports nothing: what is run is for the user to say.
        if of_run and of_run.get("name") not in known:
            own = of_run.get("name", of_run.get("custom"))
            raise ValueError(
                f"the run's {kind} is its own, {own}; pass {kind}=, for instance as "
                "'module:attribute', if you trust it"
            )
        options[kind] = {"name": _DEFAULTS[kind]} | of_run | dict(settings)
    return options


def _device(device: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"no device {device}: {str(error).splitlines()[0]}") from error
    return device


def _set_padding(model: nn.Module, tokenizer: Any) -> None:
    """A decoder's head looks for the last token that is no padding; adapters do not keep which."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "pad_token_id", None) is None and config is not None:
        config.pad_token_id = getattr(tokenizer, "pad_token_id", None)


def _saved_tokenizer(checkpoints: dict[int, Path], trust_remote_code: bool) -> Any:
    """The tokenizer that Trainer left with a checkpoint; None lets the Monitor ask the model."""
    for path in checkpoints.values():
        if (path / "tokenizer_config.json").is_file():
            with suppress(ValueError):  # a broken folder; the next may do
                return load_tokenizer(path, trust_remote_code)
    return None


def _epoch(checkpoint: Path) -> float | None:
    """Epochs at a checkpoint, from its newest log row."""
    # A broken trainer state does not keep weights from being scored.
    with suppress(ArithmeticError, TypeError, ValueError):
        for row in reversed(rows.read_log_history(checkpoint)):
            if "epoch" in row:
                return float(row["epoch"])
    return None
