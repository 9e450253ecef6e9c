"""What contradicts itself in a run's arguments, said before training."""

from __future__ import annotations

import warnings

from transformers import TrainingArguments

from sepstop.criteria import Information, Separability
from sepstop.monitor import Monitor
from sepstop.types import Criterion, Policy


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
