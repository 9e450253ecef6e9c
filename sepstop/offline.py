"""Checkpoints on disk to a ranking, with the same Monitor as during training."""

from __future__ import annotations

import json
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from sepstop import history as rows
from sepstop.embedding import Observation
from sepstop.loading import Bases, load_model
from sepstop.monitor import Monitor, load_tokenizer
from sepstop.names import build
from sepstop.neighbors import NEIGHBORS_FILE, Neighborhoods
from sepstop.policies import (
    POLICIES,
    Auto,
    Mode,
    best_record,
    has_information,
    replay,
    scored_by_information,
)
from sepstop.pool import read_pool
from sepstop.resampling import improvement_p_value
from sepstop.store import STORE, ObservationStore
from sepstop.types import Decision, Record

_DEFAULTS = {"criterion": "separability", "embedder": "auto"}
_SETTINGS = ("criterion", "embedder", "resamples", "resample_size", "seed", "max_length")


class NothingScoredError(ValueError):
    """No checkpoint of a run could be scored; the message says why."""


@dataclass(frozen=True)
class Selection:
    """The checkpoints of a run, scored.

    Attributes:
        decision: which to keep and why.
        records: one a checkpoint, in order of steps.
        paths: step -> folder of the checkpoint.
        skipped: folder -> why it could not be scored.
        higher_is_better: direction of the score.
        online_best_step: what the run itself kept, if it was monitored; else None.
        by_information: whether the information and not the score decided.
        settings: how all were measured.
        width: dimensions of the embeddings.
    """

    decision: Decision
    records: tuple[Record, ...]
    paths: dict[int, Path]
    skipped: dict[Path, str]
    higher_is_better: bool
    online_best_step: int | None
    by_information: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    width: int = 0

    @property
    def best_step(self) -> int:
        assert self.decision.best_step is not None  # select_checkpoint raises otherwise
        return self.decision.best_step

    @property
    def best(self) -> Path:
        """Folder of the checkpoint to keep."""
        return self.paths[self.best_step]

    @property
    def ranking(self) -> list[Record]:
        """Records from best to worst by what decided, those without it last."""
        sign = 1 if self.higher_is_better else -1
        values = {
            r.step: r.information if self.by_information else sign * r.score for r in self.records
        }
        return sorted(
            self.records,
            key=lambda r: (
                not math.isfinite(values[r.step]),
                -values[r.step] if math.isfinite(values[r.step]) else 0.0,
                r.step,
            ),
        )


def select_checkpoint(
    run_dir: str | Path,
    pool: Any,
    *,
    policy: Any = None,
    start: str | Path | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    text_column: str = "text",
    pool_size: int | None = None,
    progress: bool = True,
    write_history: bool = True,
    cache: bool | str | Path = True,
    on_observed: Callable[[int, Observation], None] | None = None,
    **monitor_options: Any,
) -> Selection:
    """Score every ``checkpoint-*`` in a folder and pick the best, without labels.

    A run that was monitored left its settings in trainer_state.json; they are the defaults
    here, so that the scores and the pick are the ones seen during training. Weights are
    loaded from safetensors, or from pickles with ``weights_only``.

    Args:
        run_dir: folder with the checkpoints of full models or PEFT adapters.
        pool: see `sepstop.pool.read_pool`.
        policy: replayed on the records, it ends the run in hindsight where it would have
            stopped; by default all checkpoints are candidates. The pick is that of the policy, or
            by default the checkpoint with the most information, unless a criterion is given or the
            run was decided by its score.
        start: folder or hub name of the model before training, which the information refers
            to. By default what the callback left in the folder, or the base of an adapter, or else
            the earliest checkpoint.
        device: where the models run; by default a GPU if there is one.
        trust_remote_code: allow a model to bring code of its own.
        text_column, pool_size, **monitor_options: see `Monitor`.
        progress: show a bar.
        write_history: leave the records in ``run_dir/sepstop_selection.jsonl``.
        cache: folder for what was observed of checkpoints, so that another call, interrupted or
            with another criterion, embeds only what is new; by default ``run_dir/sepstop_cache``;
            False keeps nothing. It takes 4 N (D + k) bytes a checkpoint.
        on_observed: called with the step and what was observed of each checkpoint that could be
            scored, in order of steps.

    Raises:
        FileNotFoundError: no folder, or no checkpoints in it.
        NothingScoredError: no checkpoint could be scored; a ValueError.
        ValueError: an unusable pool or setting.
    """
    checkpoints = find_checkpoints(run_dir)
    log_history = newest_log_history(checkpoints)
    recorded = rows.settings_in(log_history) or {}
    options = _with_recorded(monitor_options, recorded)
    texts = read_pool(
        pool, text_column, pool_size or recorded.get("pool_size", 2000), options.get("seed", 0)
    )
    same_pool = texts.fingerprint == recorded.get("pool", texts.fingerprint)
    if not same_pool:
        warnings.warn(
            "this is not the pool that the run was monitored with, so its scores differ from "
            "those in the log; the ranking holds among these checkpoints",
            stacklevel=2,
        )
        if "resample_size" not in monitor_options:
            options["resample_size"] = None
    tokenizer = options.get("tokenizer")
    if tokenizer is None:
        options["tokenizer"] = _saved_tokenizer(checkpoints, trust_remote_code)
    elif isinstance(tokenizer, (str, Path)):
        options["tokenizer"] = load_tokenizer(tokenizer, trust_remote_code)
    monitor = Monitor(texts, **options)
    mode: Mode = "max" if monitor.criterion.higher_is_better else "min"
    policy = None if policy is None else build("policy", policy, POLICIES)
    if getattr(policy, "mode", mode) != mode:
        raise ValueError(f"expected a policy with mode={mode!r} for this criterion, got {policy}")
    device = _device(device)

    store = ObservationStore(Path(run_dir) / STORE if cache is True else cache or None)
    records: dict[int, Record] = {}
    skipped: dict[Path, str] = {}
    width = 0
    loads = _Loader(device, trust_remote_code, monitor.tokenizer)
    _recall_start(monitor, Path(run_dir), start, checkpoints, loads, store)
    for step, path in tqdm(sorted(checkpoints.items()), desc="checkpoints", disable=not progress):
        try:
            began = time.perf_counter()
            seen, model = _observed(monitor, path, loads, store)
            width = seen.points.shape[1]
            record = monitor.score(seen, step, _epoch(path), model)
            records[step] = replace(record, seconds=time.perf_counter() - began)
            if on_observed is not None:
                on_observed(step, seen)
        except Exception as error:  # whatever a broken folder holds: the others still rank
            skipped[path] = f"{type(error).__name__}: {error}".splitlines()[0]
    history = [records[step] for step in sorted(records)]
    by_score = "criterion" in monitor_options or _decided_by_score(log_history)
    by_information = policy is None and not by_score and has_information(history)
    if policy is not None:
        decision = replay(policy, history)
        by_information = isinstance(policy, Auto) and has_information(history)
    else:
        decision = _pick(scored_by_information(history) if by_information else history, mode)
    if decision.best_step is None:
        causes = [f"{path.name}: {why}" for path, why in skipped.items()]
        raise NothingScoredError(
            f"none of the {len(checkpoints)} checkpoints in {run_dir} could be scored; "
            + ("; ".join(causes[:3]) or "every score is NaN")
        )
    if write_history:
        rows.try_to_write(Path(run_dir) / rows.SELECTION_FILE, history)
    return Selection(
        decision=decision,
        records=tuple(history),
        paths=checkpoints,
        skipped=skipped,
        higher_is_better=mode == "max",
        online_best_step=_online_best_step(log_history),
        by_information=by_information,
        settings=monitor.settings,
        width=width,
    )


def best_run(selections: Mapping[Path, Selection]) -> Path:
    """The run whose pick is best, the first of equals; a warning says why they may not compare.

    Args:
        selections: by the run's folder, of one pool.

    Raises:
        ValueError: the runs were decided by different criteria, which do not compare at all.
    """
    first = next(iter(selections.values()))
    why = {_decider(found) for found in selections.values()}
    if len(why) > 1:
        raise ValueError(
            f"the runs are decided by different scores, {' and '.join(sorted(why))}; name one for "
            "all: criterion= (--criterion)"
        )
    for what in ("embeddings of another width", "another embedder", "resamples of another size"):
        if len({_comparable(found)[what] for found in selections.values()}) > 1:
            warnings.warn(
                f"the runs have {what}, so their scores may not compare; those of `infomax` do, "
                "which looks at the predictions alone",
                stacklevel=2,
            )
    sign = 1 if first.higher_is_better or first.by_information else -1
    return max(selections, key=lambda run: sign * _value(selections[run]))


def _decider(selection: Selection) -> str:
    record = selection.records[0]
    if selection.by_information:
        return f"information of {record.information_of}"
    return record.criterion


def _comparable(selection: Selection) -> dict[str, Any]:
    return {
        "embeddings of another width": selection.width,
        "another embedder": json.dumps(selection.settings.get("embedder")),
        "resamples of another size": selection.settings.get("resample_size"),
    }


def _value(selection: Selection) -> float:
    (record,) = (r for r in selection.records if r.step == selection.best_step)
    return record.information if selection.by_information else record.score


@dataclass(frozen=True)
class _Loader:
    """Loads models, ready to be measured."""

    device: torch.device
    trust_remote_code: bool
    tokenizer: Any
    bases: Bases = field(default_factory=Bases)

    def __call__(self, source: str | Path, with_head: bool = True) -> nn.Module:
        model = load_model(source, self.trust_remote_code, with_head, self.bases).to(self.device)
        if with_head:
            _set_padding(model, self.tokenizer)
        return model


def _observed(
    monitor: Monitor, path: Path, loads: _Loader, store: ObservationStore
) -> tuple[Observation, Any]:
    """What a checkpoint shows, from the store where it was seen before, and the model if needed."""
    key = store.key(path, monitor)
    seen = store.get(key, loads.device)
    if seen is not None and "model" not in monitor.needs:
        return seen, None
    model = loads(path)
    if seen is None:
        seen = monitor.observe(model)
        store.put(key, seen)
    return seen, model


def _recall_start(
    monitor: Monitor,
    run_dir: Path,
    start: str | Path | None,
    checkpoints: dict[int, Path],
    loads: _Loader,
    store: ObservationStore,
) -> None:
    """The neighbours from before training, where they can be had."""
    named = start is not None
    if start is None:
        path = run_dir / NEIGHBORS_FILE
        monitor.neighborhoods = Neighborhoods.load(path, monitor.places, max(checkpoints))
        if monitor.neighborhoods.steps:
            return
        start = _base_of_adapter(checkpoints[min(checkpoints)])
        if start is None:
            return
    try:
        key = store.key(start, monitor) if Path(start).is_dir() else ""
        key = key and f"start{key}"  # without its head
        seen = store.get(key, loads.device)
        if seen is None:
            seen = monitor.embed(loads(start, with_head=False))
            store.put(key, seen)
        monitor.note(seen)
    except Exception as error:
        if not named:
            return  # a checkpoint that needs it says so itself
        raise ValueError(
            f"the model before training, {str(start)!r}, gives no embeddings: "
            f"{type(error).__name__}: {error}"
        ) from error


def _base_of_adapter(checkpoint: Path) -> str | None:
    with suppress(OSError, ValueError, KeyError):  # a broken folder is found out when it is loaded
        base = json.loads((checkpoint / "adapter_config.json").read_text())
        return str(base["base_model_name_or_path"])
    return None


def _with_recorded(options: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """``options`` for the Monitor, what they leave open taken from the run's own settings.

    A mapping without a "name" changes parameters of the recorded criterion or embedder.
    """
    options = {key: recorded[key] for key in _SETTINGS if key in recorded} | options
    for kind in ("criterion", "embedder"):
        settings, of_run = options.get(kind), recorded.get(kind, {})
        if not isinstance(settings, Mapping) or "name" in settings:
            continue
        if "custom" in of_run:
            raise ValueError(
                f"the run used a {kind} of its own, {of_run['custom']}, which its settings can't "
                f"make again; pass {kind}=, for instance as 'module:attribute'"
            )
        options[kind] = {"name": _DEFAULTS[kind]} | of_run | dict(settings)
    return options


def find_checkpoints(run_dir: str | Path) -> dict[int, Path]:
    """Step -> folder of each ``checkpoint-<step>`` in ``run_dir``.

    Raises:
        FileNotFoundError: there is none; the message says what is there.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"no folder at {run_dir}")
    found = {
        int(match[1]): path
        for path in run_dir.iterdir()
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    if not found:
        names = ", ".join(sorted(path.name for path in run_dir.iterdir())[:8]) or "nothing"
        hint = "; give the folder above it" if run_dir.name.startswith("checkpoint-") else ""
        raise FileNotFoundError(
            f"expected folders named checkpoint-<step> in {run_dir}, found {names}{hint}"
        )
    return found


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


def _pick(history: list[Record], mode: Mode) -> Decision:
    best = best_record(history, mode)
    if best is None:
        return Decision(False, None, "nothing could be scored")
    sign = 1 if mode == "max" else -1
    ties = [r.step for r in history if r is not best and r.is_finite and not _above(best, r, sign)]
    why = f"best {best.criterion} of {len(history)} checkpoints"
    if ties:
        steps = ", ".join(map(str, ties))
        why += f"; not significantly better than step{'s' * (len(ties) > 1)} {steps}"
    return Decision(False, best.step, why, history[-1].step)


def _above(best: Record, other: Record, sign: int) -> bool:
    """Whether ``best`` beats ``other`` significantly (5 %) on the paired resamples."""
    gains = [sign * (high - low) for high, low in zip(best.resamples, other.resamples, strict=True)]
    try:
        return improvement_p_value(gains, best.resample_size, best.pool_size) < 0.05
    except ValueError:  # one resample: nothing to tell them apart by
        return not math.isclose(best.score, other.score)


def newest_log_history(checkpoints: dict[int, Path]) -> list[dict[str, Any]]:
    """That of the last checkpoint whose log can be read."""
    for step in sorted(checkpoints, reverse=True):
        try:
            return rows.read_log_history(checkpoints[step])
        except ValueError as error:
            warnings.warn(f"{error}; looking into the checkpoint before", stacklevel=3)
    return []


def _online_best_step(log_history: list[dict[str, Any]]) -> int | None:
    for row in reversed(log_history):
        if rows.KEY in row:
            step = row[rows.KEY].get("decision", {}).get("best_step")
            return step if isinstance(step, int) else None
    return None


def _decided_by_score(log_history: list[dict[str, Any]]) -> bool:
    """Whether the run's own policy kept the best score; not said by runs without one."""
    for row in reversed(log_history):
        if rows.KEY in row:
            policy = row[rows.KEY].get("policy", {"name": "plateau"})  # of older versions
            return policy.get("name") != "auto"
    return False


def _epoch(checkpoint: Path) -> float | None:
    """Epochs at a checkpoint, from its newest log row."""
    with suppress(ValueError):  # a broken trainer state does not keep weights from being scored
        for row in reversed(rows.read_log_history(checkpoint)):
            if "epoch" in row:
                return float(row["epoch"])
    return None
