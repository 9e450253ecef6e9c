"""Trainer events to measure, decide, control; nothing else.

Relies on these habits of transformers' Trainer (5.23): keys added to ``metrics`` in
``on_evaluate`` reach the best-metric choice and the plateau scheduler but no tracker; rows
of ``state.log_history`` are saved with each checkpoint and come back on resume;
``control.should_save`` set in an event saves at that very step.
"""

from __future__ import annotations

import logging
import math
import traceback
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sepstop import history as rows
from sepstop.criteria import CRITERIA
from sepstop.monitor import Monitor
from sepstop.names import build
from sepstop.policies import POLICIES, Mode, Plateau, decide
from sepstop.types import Decision, Policy, Record

logger = logging.getLogger(__name__)


class SepStopCallback(TrainerCallback):
    """Scores the unlabeled pool during training, stops by a policy, keeps the best checkpoint.

    With evaluations (``eval_strategy`` other than "no") the pool is scored at each of them,
    and ``eval_separability`` joins their metrics, so that ``metric_for_best_model=
    "separability"`` and all that builds on it work. Without, it is scored on a schedule of
    its own. Training itself is left untouched: a run that is not stopped ends with the
    weights it would have had.

    What can be known to be wrong is raised before training begins. What goes wrong in a
    measurement later is a warning and a score of NaN, and training goes on.

    Trackers (TensorBoard, W&B, ...) get the scores after ``callback.attach(trainer)``.

    Args:
        pool: unlabeled texts, see `sepstop.pool.read_pool`; or a `Monitor`, which then
            brings its criterion and embedder along.
        criterion, embedder: see `Monitor`.
        policy: when to stop: "patience", "plateau", a mapping with the settings too, or a
            function ``history -> Decision``. `Plateau` by default.
        every_n_steps: own schedule, for ``eval_strategy="no"`` only; each epoch by default.
        load_best_at_end: load the best checkpoint when training ends, for
            ``eval_strategy="no"``; with evaluations, Trainer's ``load_best_model_at_end``
            does that.
        continue_after_stop: a run that was stopped goes on when it is resumed, its policy
            starting afresh there; by default it stays stopped.
        on_error: "skip" a measurement that fails, with a warning, or "raise".
        verbose: print a line for each score.
        **monitor_options: further arguments of `Monitor`: ``resamples``, ``max_length``,
            ``tokenizer``, ``text_column``, ...

    Attributes:
        history: the records so far, those before a resume included.
        decision: the newest decision; None before the first record.

    Raises:
        FileNotFoundError, ValueError: on construction, when the Trainer is made, or when
            training begins, whichever can know first.
    """

    def __init__(
        self,
        pool: Any,
        criterion: Any = "separability",
        policy: Any = None,
        embedder: Any = "mean",
        *,
        every_n_steps: int | None = None,
        load_best_at_end: bool = False,
        continue_after_stop: bool = False,
        on_error: Literal["skip", "raise"] = "skip",
        verbose: bool = True,
        **monitor_options: Any,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"expected `every_n_steps` >= 1, got {every_n_steps}")
        if on_error not in ("skip", "raise"):
            raise ValueError(f"expected `on_error` 'skip' or 'raise', got {on_error!r}")
        if isinstance(pool, Monitor):
            if monitor_options:
                raise ValueError(f"give {sorted(monitor_options)} to the Monitor instead")
            self.monitor = pool
        else:
            self.monitor = Monitor(pool, embedder, criterion, **monitor_options)
        mode: Mode = "max" if self._higher_is_better else "min"
        self.policy: Policy = (
            Plateau(mode=mode) if policy is None else build("policy", policy, POLICIES)
        )
        if getattr(self.policy, "mode", mode) != mode:
            raise ValueError(
                f"the criterion {self._name!r} is better when {'high' if mode == 'max' else 'low'}"
                f"er: expected a policy with mode={mode!r}, got {self.policy}"
            )
        self._mode = mode
        self._check_significance()
        self.every_n_steps = every_n_steps
        self.load_best_at_end = load_best_at_end
        self.continue_after_stop = continue_after_stop
        self.on_error = on_error
        self.verbose = verbose
        self.history: list[Record] = []
        self.decision: Decision | None = None
        self._trainer: Any = None
        self._training = False
        self._stopped_before = False  # resumed after a stop: the weights stay as they are
        self._asked_to_load: bool | None = None  # args.load_best_model_at_end as the user set it

    def attach(self, trainer: Any) -> SepStopCallback:
        """Let the scores reach the trackers in ``report_to``; adds the callback if need be."""
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
            self._check(trainer.args)
        self._trainer = trainer
        return self

    # Events, in the order in which Trainer fires them

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._claim(state)
        self._check(args)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        self._claim(state)
        self._check(args)
        self.monitor.prepare(model, processing_class)
        self._warn(args)
        self._training = True
        self._restore(state, control)
        if self.load_best_at_end:
            if self._asked_to_load is None:  # else the training before ended in an error
                self._asked_to_load = args.load_best_model_at_end
            args.load_best_model_at_end = True  # Trainer loads state.best_model_checkpoint

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        if self._stopped_before:
            # Trainer takes one step before it looks at should_training_stop: an empty one.
            optimizer.zero_grad(set_to_none=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        last = state.global_step >= state.max_steps
        every = self.every_n_steps
        if self._stopped_before:
            _leave_no_trace(control)
        elif _own_schedule(args) and every and (state.global_step % every == 0 or last):
            self._measure(args, state, control, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._stopped_before:
            _leave_no_trace(control)
        elif _own_schedule(args) and not self.every_n_steps:
            self._measure(args, state, control, kwargs["model"])

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not self._training or metrics is None:
            return
        if not _own_schedule(args):
            self._measure(args, state, control, kwargs["model"])
        if self.history and self.history[-1].step == state.global_step:
            metrics.update(rows.scalars(self.history[-1]))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._training = False
        if self._asked_to_load is not None:
            args.load_best_model_at_end = self._asked_to_load
            self._asked_to_load = None

    # Measure, decide, control

    def _measure(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any
    ) -> None:
        """Score the pool once for this global step and act on the decision."""
        if self.history and self.history[-1].step == state.global_step:
            return  # a second evaluation set, or an evaluation right after resuming
        record = _same_on_all_ranks(self._record(state, model))
        self.history.append(record)
        self.decision = decide(self.policy, self.history, self._mode)
        if self.decision.best_step == record.step:
            self._keep(args, state, control, record)
        if self.decision.stop:
            control.should_training_stop = True
            if args.save_strategy != "no":
                control.should_save = True  # with the decision in it, so that it stays stopped
        self._publish(state, control, record, self.decision)

    def _record(self, state: TrainerState, model: Any) -> Record:
        try:
            return self.monitor.measure(model, state.global_step, state.epoch)
        except Exception as error:
            if self.on_error == "raise":
                raise
            logger.debug("measurement failed", exc_info=True)
            warnings.warn(
                f"sepstop could not measure step {state.global_step}; training goes on without "
                f"this score: {type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}",
                RuntimeWarning,
                stacklevel=2,
            )
            return Record(state.global_step, state.epoch, math.nan, criterion=self._name)

    def _keep(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, record: Record
    ) -> None:
        """Save a new best now, so that score and weights on disk belong together."""
        if _own_schedule(args) or args.metric_for_best_model is None:
            # Nobody else tells Trainer which checkpoint is best, to be protected and loaded.
            state.best_metric = record.score
            state.best_global_step = record.step
            if self._loads_best(args) and args.save_strategy == "no":
                state.best_model_checkpoint = str(
                    Path(args.output_dir) / f"checkpoint-{record.step}"
                )
        if args.save_strategy != "no" or self._loads_best(args):
            control.should_save = True

    def _publish(
        self, state: TrainerState, control: TrainerControl, record: Record, decision: Decision
    ) -> None:
        """To the log history, to the trackers if attached, and to the terminal."""
        if self._trainer is not None:
            wanted = control.should_log
            self._trainer.log(rows.scalars(record))
            control.should_log = wanted  # logging cleared it, but the loss may still be due
        else:
            epoch = {} if state.epoch is None else {"epoch": state.epoch}
            state.log_history.append({**rows.scalars(record), **epoch, "step": state.global_step})
        state.log_history[-1][rows.KEY] = {
            "record": rows.to_dict(record),
            "settings": self.monitor.settings,
            "decision": {
                "stop": decision.stop,
                "best_step": decision.best_step,
                "reason": decision.reason,
            },
        }
        self._say(
            state,
            f"sepstop: step {record.step}  {record.criterion} {record.score:.4f} "
            f"[{record.low:.4f}, {record.high:.4f}]  "
            f"{'STOP' if decision.stop else 'go on'}: {decision.reason}",
        )

    def _restore(self, state: TrainerState, control: TrainerControl) -> None:
        """History and decision of a resumed run, from the rows that came with its checkpoint."""
        self.history = [r for r in rows.records_in(state.log_history) if r.criterion == self._name]
        self.decision = None
        self._stopped_before = False
        if not self.history:
            return
        measured_with = rows.settings_in(state.log_history)
        changed = [
            f"{key} was {value!r} and is {self.monitor.settings[key]!r}"
            for key, value in (measured_with or {}).items()
            if self.monitor.settings.get(key, value) != value
        ]
        if changed:
            warnings.warn(
                "sepstop: the resumed run was measured otherwise, so its scores may not compare "
                f"with new ones: {'; '.join(changed)}",
                stacklevel=2,
            )
        self.decision = decide(self.policy, self.history, self._mode)
        if self.decision.stop and not self.continue_after_stop:
            self._stopped_before = True
            control.should_training_stop = True
            self._say(
                state,
                f"sepstop: this run was stopped before and stays stopped ({self.decision.reason}); "
                "continue_after_stop=True goes on",
            )

    def _say(self, state: TrainerState, line: str) -> None:
        logger.info(line)
        if self.verbose and state.is_world_process_zero:
            tqdm.write(line)

    # Checks before training

    @property
    def _name(self) -> str:
        return self.monitor.criterion.name

    @property
    def _higher_is_better(self) -> bool:
        return self.monitor.criterion.higher_is_better

    def _loads_best(self, args: TrainingArguments) -> bool:
        return self.load_best_at_end or args.load_best_model_at_end

    def _claim(self, state: TrainerState) -> None:
        """One instance a Trainer; the state is the only thing that two instances share."""
        owner = getattr(state, "_sepstop_callback", self)
        if owner is not self:
            raise ValueError(
                "two SepStopCallbacks in one Trainer: expected one; remove the other with "
                "trainer.remove_callback"
            )
        state._sepstop_callback = self

    def _check_significance(self) -> None:
        monitor = self.monitor
        if getattr(self.policy, "significance", None) and (
            len(monitor.resamples) < 2 or monitor.resample_size >= len(monitor.pool)
        ):
            raise ValueError(
                "a policy with `significance` needs at least 2 resamples smaller than the pool, "
                f"got {len(monitor.resamples)} of {monitor.resample_size} "
                f"of {len(monitor.pool)} texts"
            )

    def _check(self, args: TrainingArguments) -> None:
        metric = (args.metric_for_best_model or "").removeprefix("eval_")
        if metric == self._name and args.greater_is_better is not self._higher_is_better:
            raise ValueError(
                f"metric_for_best_model={metric!r} needs greater_is_better="
                f"{self._higher_is_better}, got {args.greater_is_better}"
            )
        if metric in CRITERIA and metric != self._name:
            raise ValueError(
                f"metric_for_best_model={metric!r}, but the criterion is {self._name!r}"
            )
        if _own_schedule(args):
            return
        if self.every_n_steps is not None:
            raise ValueError(
                f"every_n_steps={self.every_n_steps} is for runs with eval_strategy='no'; this "
                f"one scores at each evaluation (eval_strategy={args.eval_strategy.value!r})"
            )
        if self.load_best_at_end:
            raise ValueError(
                "load_best_at_end is for runs with eval_strategy='no'; with evaluations, set "
                "TrainingArguments(load_best_model_at_end=True, "
                f"metric_for_best_model={self._name!r}, greater_is_better="
                f"{self._higher_is_better})"
            )

    def _warn(self, args: TrainingArguments) -> None:
        if self._trainer is None and args.report_to:
            warnings.warn(
                f"sepstop: the scores go to trainer_state.json but not to "
                f"{', '.join(args.report_to)}; call callback.attach(trainer) before training",
                stacklevel=2,
            )
        metric = (args.metric_for_best_model or self._name).removeprefix("eval_")
        if not _own_schedule(args) and metric != self._name:
            kept = "keeps" if args.save_total_limit is None else "keeps and deletes"
            warnings.warn(
                f"sepstop: metric_for_best_model is {metric!r}, so Trainer {kept} checkpoints "
                f"by that; set it to {self._name!r} to keep the label-free pick",
                stacklevel=2,
            )


def _own_schedule(args: TrainingArguments) -> bool:
    return bool(args.eval_strategy == "no")


def _leave_no_trace(control: TrainerControl) -> None:
    control.should_log = control.should_evaluate = control.should_save = False


def _same_on_all_ranks(record: Record) -> Record:
    """The first rank's record, so that every rank decides alike."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return record
    shared = [record]
    distributed.broadcast_object_list(shared, src=0)
    return shared[0]
