"""What contradicts itself in a run's arguments, said before training."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments

from sepstop.criteria import Information, Separability
from sepstop.measure.monitor import Monitor
from sepstop.types import Criterion, Policy

FEWEST = 5
"""Scores that a policy needs before it can tell anything."""


def own_schedule(args: TrainingArguments) -> bool:
    """Whether the pool is scored without evaluations of the Trainer."""
    return bool(args.eval_strategy == "no")


def best_metric(args: TrainingArguments) -> str:
    """What ``metric_for_best_model`` names, without "eval_"; empty for nothing."""
    return (args.metric_for_best_model or "").removeprefix("eval_")


def names_information(args: TrainingArguments) -> bool:
    return not own_schedule(args) and best_metric(args) == Information.name


def check_policy(policy: Policy, monitor: Monitor) -> None:
    """
    Raises:
        ValueError: ``policy`` can't decide on the records of ``monitor``.
    """
    mode = "max" if monitor.criterion.higher_is_better else "min"
    if getattr(policy, "mode", mode) != mode:
        raise ValueError(
            f"the criterion {monitor.criterion.name!r} is better when "
            f"{'high' if mode == 'max' else 'low'}er: expected a policy with mode={mode!r}, "
            f"got {policy}"
        )
    if getattr(policy, "significance", None) and (
        len(monitor.resamples) < 2 or monitor.resample_size >= len(monitor.pool)
    ):
        raise ValueError(
            "a policy with `significance` needs at least 2 resamples smaller than the pool, "
            f"got {len(monitor.resamples)} of {monitor.resample_size} of {len(monitor.pool)} texts"
        )


def check_arguments(
    args: TrainingArguments,
    criterion: Criterion,
    load_best_at_end: bool,
) -> None:
    """
    Raises:
        ValueError: the Trainer's arguments contradict the callback's.
    """
    name, higher = criterion.name, bool(criterion.higher_is_better)
    metric = best_metric(args)
    if metric == Information.name and not args.greater_is_better:
        raise ValueError(f"metric_for_best_model={metric!r} needs greater_is_better=True")
    if metric == name and bool(args.greater_is_better) is not higher:
        raise ValueError(
            f"metric_for_best_model={metric!r} needs greater_is_better={higher}, "
            f"got {args.greater_is_better}"
        )
    if metric == Separability.name != name:
        raise ValueError(f"metric_for_best_model={metric!r}, but the criterion is {name!r}")
    if own_schedule(args):
        return
    if load_best_at_end:
        raise ValueError(
            "load_best_at_end is for runs with eval_strategy='no'; with evaluations, set "
            "TrainingArguments(load_best_model_at_end=True, "
            f"metric_for_best_model={name!r}, greater_is_better={higher}), "
            "or 'information' and True"
        )


def warn_of_arguments(args: TrainingArguments, expected: str, attached: bool) -> None:
    """Warn of arguments that are allowed but may not be meant.

    Args:
        expected: the metric that keeps what the policy picks.
        attached: whether the scores reach the trackers.
    """
    if args.report_to and not attached:
        warnings.warn(
            f"sepstop: the scores go to trainer_state.json but not to "
            f"{', '.join(args.report_to)}; call callback.attach(trainer) before training",
            stacklevel=3,
        )
    metric = best_metric(args) or expected
    if not own_schedule(args) and metric != expected:
        kept = "keeps" if args.save_total_limit is None else "keeps and deletes"
        warnings.warn(
            f"sepstop: metric_for_best_model is {metric!r}, so Trainer {kept} checkpoints "
            f"by that; set it to {expected!r} to keep the label-free pick",
            stacklevel=3,
        )


def warn_of_schedule(
    args: TrainingArguments, state: TrainerState, every_n_steps: int | None, dataloader: Any
) -> None:
    """Warn of a Trainer's run that will be scored too rarely to be decided."""
    count = _planned_scores(args, state, every_n_steps, dataloader)
    proposal = "every_n_steps={}" if own_schedule(args) else "eval_strategy='steps', eval_steps={}"
    warn_of_few_scores(count, state.max_steps, proposal)


def warn_of_few_scores(count: int, steps: int, proposal: str) -> None:
    """Warn where ``count`` scores in so many steps are too few and more can be had.

    Args:
        proposal: what to set, with ``{}`` for a number of steps.
    """
    every = max(1, steps // (2 * FEWEST))
    if count < FEWEST and count < steps // every:
        warnings.warn(
            f"sepstop: this run will have {count} score{'s' * (count != 1)} in {steps} steps, but "
            f"a policy needs at least {FEWEST}; for about {2 * FEWEST}, set "
            f"{proposal.format(every)}",
            stacklevel=4,
        )


def _planned_scores(
    args: TrainingArguments, state: TrainerState, every_n_steps: int | None, dataloader: Any
) -> int:
    """How often the pool will be scored; a stream of unknown length counts as one epoch."""
    try:
        updates = max(1, len(dataloader) // args.gradient_accumulation_steps)
    except TypeError:  # of an IterableDataset
        updates = state.max_steps
    last, by_epoch = state.max_steps, args.eval_strategy == "epoch"
    if own_schedule(args):
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


def warn_of_other_run(output_dir: str) -> None:
    """Warn where a new run begins in a folder with checkpoints of an earlier one."""
    found = sorted(Path(output_dir).glob("checkpoint-*"))
    if found:
        warnings.warn(
            f"sepstop: {output_dir} holds checkpoints of an earlier run, {found[0].name} among "
            "them; remove them or choose another output_dir, so that the two are not mixed",
            stacklevel=3,
        )
