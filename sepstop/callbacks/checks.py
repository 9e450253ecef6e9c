"""Checks of a run's arguments before training begins."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments

from sepstop.config import AUTO, CriterionSpec, SepStopConfig
from sepstop.criteria import CRITERIA
from sepstop.measure.average import AVERAGES
from sepstop.measure.monitor import Monitor
from sepstop.measure.scorer import MUTUAL_INFORMATION, build_criterion
from sepstop.runs.average_files import find_averages
from sepstop.types import CHECKPOINT, Policy

MIN_SCORES = 5
"""Number of scores below which a policy can hardly decide."""


def has_own_schedule(args: TrainingArguments) -> bool:
    """True if the pool is scored without evaluations of the Trainer."""
    return bool(args.eval_strategy == "no")


def best_metric(args: TrainingArguments) -> str:
    """The metric in ``metric_for_best_model``, without "eval_"; empty for none."""
    return (args.metric_for_best_model or "").removeprefix("eval_")


def saves_as_best(
    args: TrainingArguments, state: TrainerState, metrics: Mapping[str, float]
) -> bool:
    """True if Trainer saves a checkpoint because these metrics are the best (save_strategy="best").

    Also if they lack the metric: that of another evaluation set may be the best.
    """
    if args.save_strategy != "best":
        return False
    value, best = metrics.get(f"eval_{best_metric(args)}"), state.best_metric
    if value is None or best is None:
        return True
    return bool(value > best if args.greater_is_better else value < best)


def check_significance(policy: Policy, monitor: Monitor) -> None:
    """
    Raises:
        ValueError: ``policy`` tests for significance, and the resamples do not allow it.
    """
    count, size, texts = len(monitor.resample_indices), monitor.resample_size, len(monitor.pool)
    if getattr(policy, "significance", None) and (count < 2 or size >= texts):
        raise ValueError(
            "a policy with `significance` needs at least 2 resamples smaller than the pool, "
            f"got {count} of {size} of {texts} texts"
        )


def deciding_criterion(args: TrainingArguments, config: SepStopConfig) -> CriterionSpec:
    """The criterion that decides a Trainer's run: the score in ``metric_for_best_model``, if any.

    If the configuration leaves the choice open, it may be any of `CRITERIA`.

    Raises:
        ValueError: the Trainer's arguments contradict the configuration.
    """
    metric = best_metric(args)
    possible = [build_criterion(spec) for spec in _possible(config)]
    if config.criterion == AUTO and metric in CRITERIA:
        possible.append(CRITERIA[metric]())
    criterion = next((one for one in possible if one.name == metric), None)
    if not has_own_schedule(args) and config.load_best_model_at_end:
        raise ValueError(
            "SepStopCallback(load_best_model_at_end=True) is for runs with eval_strategy='no'; "
            "with evaluations, set TrainingArguments(load_best_model_at_end=True, "
            "metric_for_best_model='robust_mi'), or another score that the run records"
        )
    if criterion is None:
        if not has_own_schedule(args):
            _check_is_recorded(metric, [one.name for one in possible])
        return config.criterion
    higher = bool(criterion.higher_is_better)
    if bool(args.greater_is_better) is not higher:
        raise ValueError(
            f"metric_for_best_model={metric!r} needs greater_is_better={higher}, "
            f"got {args.greater_is_better}"
        )
    if config.criterion == AUTO:
        return criterion
    decides = build_criterion(config.criterion).name
    if decides != metric:
        raise ValueError(f"metric_for_best_model={metric!r}, but the criterion is {decides!r}")
    return config.criterion


def _check_is_recorded(metric: str, recorded: Collection[str]) -> None:
    """
    Raises:
        ValueError: a criterion's name, or that of a candidate's score, is the best metric, and the
            run does not record it at each evaluation.
    """
    score, of, candidate = metric.partition("_of_")
    if of and candidate in (*AVERAGES, CHECKPOINT) and score in (*CRITERIA, *recorded):
        raise ValueError(
            f"metric_for_best_model={metric!r} is the score of one candidate, which evaluations "
            f"before the averages lack; name the score itself: {score!r}"
        )
    if metric in CRITERIA:
        raise ValueError(
            f"metric_for_best_model={metric!r} is not recorded: name it as criterion= or in "
            "extra_criteria=, or choose another metric; if it is your own, rename it"
        )


def _possible(config: SepStopConfig) -> list[Any]:
    """All criteria that the run may record; which ones depends on the model's outputs."""
    possible: list[Any] = []
    for spec in (config.criterion, *config.extra_criteria):
        possible += MUTUAL_INFORMATION.values() if spec == AUTO else [spec]
    return possible


def warn_of_arguments(args: TrainingArguments, expected: str, attached: bool) -> None:
    """Warn of arguments that are valid but probably unintended.

    Args:
        args: the Trainer's.
        expected: name of the score that decides.
        attached: True if the scores reach the trackers.

    Warns:
        UserWarning: the scores reach no tracker, or Trainer keeps checkpoints by another metric.
    """
    trackers = [name for name in args.report_to or () if name != "none"]
    if trackers and not attached:
        warnings.warn(
            f"sepstop: the scores go to trainer_state.json but not to {', '.join(trackers)}; call "
            "callback.attach(trainer) before training",
            stacklevel=3,
        )
    metric = best_metric(args) or expected
    if not has_own_schedule(args) and metric != expected:
        kept = "keeps" if args.save_total_limit is None else "keeps and deletes"
        warnings.warn(
            f"sepstop: metric_for_best_model is {metric!r}, so Trainer {kept} checkpoints by that "
            f"metric; set it to {expected!r} to keep the label-free pick",
            stacklevel=3,
        )


def warn_of_schedule(
    args: TrainingArguments, state: TrainerState, every_n_steps: int | None, dataloader: Any
) -> None:
    """Warn if a Trainer's run will have too few scores for a policy."""
    count = _planned_scores(args, state, every_n_steps, dataloader)
    proposal = (
        "every_n_steps={}" if has_own_schedule(args) else "eval_strategy='steps', eval_steps={}"
    )
    warn_of_few_scores(count, state.max_steps, proposal)


def warn_of_few_scores(count: int, steps: int, proposal: str) -> None:
    """Warn if ``count`` scores are too few and more are possible.

    Args:
        count: number of scores that the run will have.
        steps: number of optimizer steps of the run.
        proposal: the setting to change, with ``{}`` for a number of steps.
    """
    every = max(1, steps // (2 * MIN_SCORES))
    if count < MIN_SCORES and count < steps // every:
        warnings.warn(
            f"sepstop: this run will have {count} score{'s' * (count != 1)} in {steps} steps, but "
            f"a policy needs at least {MIN_SCORES}; for about {2 * MIN_SCORES}, set "
            f"{proposal.format(every)}",
            stacklevel=4,
        )


def _planned_scores(
    args: TrainingArguments, state: TrainerState, every_n_steps: int | None, dataloader: Any
) -> int:
    """Number of scores that the run will have; a stream of unknown length is one epoch."""
    try:
        updates = max(1, math.ceil(len(dataloader) / args.gradient_accumulation_steps))
    except TypeError:  # of an IterableDataset
        updates = state.max_steps
    last, by_epoch = state.max_steps, args.eval_strategy == "epoch"
    if has_own_schedule(args):
        return math.ceil(last / (every_n_steps or updates))
    start = 0.0 if args.eval_delay is None else args.eval_delay * (updates if by_epoch else 1)
    between = max(updates if by_epoch else state.eval_steps, 1)
    evaluations = [step for step in range(between, last + 1, between) if step >= start]
    if (not evaluations or evaluations[-1] != last) and last >= start:
        evaluations.append(last)  # Trainer evaluates at the end, and an epoch that is cut short
    scored: list[int] = []
    for step in evaluations:
        if not scored or step == last or step - scored[-1] >= (every_n_steps or 1):
            scored.append(step)
    return len(scored)


def warn_of_other_run(output_dir: Path) -> None:
    """Warn if a new run begins in a folder with checkpoints of an earlier one."""
    checkpoints = sorted(output_dir.glob("checkpoint-*"))
    found = [*checkpoints, *find_averages(output_dir).values()]
    if found:
        warnings.warn(
            f"sepstop: {output_dir} holds checkpoints of an earlier run, such as {found[0].name}; "
            "remove them or choose another output_dir, so that the two runs are not mixed",
            stacklevel=3,
        )
