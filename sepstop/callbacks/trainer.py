"""Callback for the Hugging Face Trainer: its events to those of a `Session`.

Relies on these habits of transformers' Trainer (5.23): an evaluation hands the same dict to ``log``
and then to every callback's ``on_evaluate``, to the best-metric choice and to the plateau
scheduler; rows of ``state.log_history`` are saved with each checkpoint and come back on resume;
``control.should_save`` set in an event saves at that very step.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from sepstop.callbacks.checks import (
    best_metric,
    deciding_criterion,
    has_own_schedule,
    warn_of_arguments,
    warn_of_other_run,
    warn_of_schedule,
)
from sepstop.callbacks.session import Session
from sepstop.config import CriterionSpec, PolicySpec, PoolingSpec, Precision, SepStopConfig
from sepstop.measure.backbone import is_sharded
from sepstop.measure.monitor import Monitor
from sepstop.measure.training_labels import label_names, training_labels
from sepstop.runs.history import HISTORY_FILE, KEY, continuation, from_log, row_to_dict, scalars
from sepstop.runs.records import RunHistory
from sepstop.runs.saved_weights import weights_that_differ
from sepstop.types import Decision, Record
from sepstop.utils.distributed import Ranks

_TWO = (
    "expected one SepStopCallback in a Trainer, got two SepStopCallbacks; remove one with "
    "trainer.remove_callback"
)


class SepStopCallback(TrainerCallback):
    """Scores an unlabeled pool during training, stops by a policy, keeps the best checkpoint.

    With evaluations (``eval_strategy`` other than "no"), the pool is scored at each of them, and
    the scores join their metrics, such as ``eval_neighbor_mi``. Name one in
    ``metric_for_best_model``, and it decides. Without evaluations, the pool is scored every
    ``every_n_steps`` steps, by default at the end of each epoch. Training is left untouched: a run
    that is not stopped ends with the same weights as without the callback.

    Errors that can be known in advance are raised before training begins. A measurement that fails
    later gives a warning and scores of NaN, and training goes on.

    Trackers (TensorBoard, W&B, ...) get the scores after ``callback.attach(trainer)``.

    Args:
        pool: unlabeled texts, see `sepstop.measure.pool.read_pool`.
        policy, criterion, ...: the fields of `sepstop.config.SepStopConfig`.

    Attributes:
        session: measures, decides and remembers.
        history: the records so far, those before a resume included.
        decision: the newest decision; None before the first record.

    Raises:
        FileNotFoundError, ValueError: on construction, when the Trainer is made, or when training
            begins, as soon as the error can be known.
    """

    # The fields of SepStopConfig, spelled out for editors; a test keeps them alike.
    def __init__(
        self,
        pool: Any,
        *,
        policy: PolicySpec = "auto",
        criterion: CriterionSpec = "auto",
        extra_criteria: Sequence[CriterionSpec] = ("auto", "separability"),
        pooling: PoolingSpec = "auto",
        num_resamples: int = 20,
        resample_size: int | None = None,
        seed: int = 0,
        tokenizer: Any = None,
        text_column: str = "text",
        pool_size: int | None = 2000,
        max_length: int = 256,
        batch_size: int = 64,
        padding: bool | None = None,
        precision: Precision | None = None,
        outputs: Literal["auto", "classes", "labels", "none"] = "auto",
        every_n_steps: int | None = None,
        load_best_model_at_end: bool = False,
        continue_after_stop: bool = False,
        on_error: Literal["skip", "raise"] = "skip",
        progress: bool = True,
        verbose: bool = True,
    ) -> None:
        self.config = SepStopConfig.of(locals())
        self.session = Session(pool, self.config)
        self._trainer: Any = None
        self._training = False
        self._saved_step = -1
        self._asked_to_load: bool | None = None  # args.load_best_model_at_end as the user set it

    @property
    def monitor(self) -> Monitor:
        """Measures the model."""
        return self.session.monitor

    @property
    def history(self) -> list[Record]:
        return self.session.records

    @property
    def decision(self) -> Decision | None:
        return self.session.decision

    def attach(self, trainer: Any) -> SepStopCallback:
        """Send the scores to the trackers in ``report_to``; adds the callback if it is missing.

        Raises:
            ValueError: as when the Trainer is made; the callback is not added then.
        """
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            if any(isinstance(other, SepStopCallback) for other in callbacks):
                raise ValueError(_TWO)
            self._check(trainer.args)
            trainer.add_callback(self)
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
        **kwargs: Any,
    ) -> None:
        self._claim(state)
        self._check(args)
        model = _trained(model, **kwargs)
        if state.global_step == 0 and Ranks.of_run().rank == 0:
            warn_of_other_run(args.output_dir)
        # All ranks of a tensor-parallel model must see the same texts.
        self.monitor.observer.distributed = getattr(model, "tp_size", None) in (None, 1)
        labels = training_labels(kwargs.get("train_dataloader"), label_names(model, args))
        session = self.session
        session.prepare(model, processing_class, labels)
        warn_of_arguments(args, session.decides, attached=self._attached_to(state) is not None)
        warn_of_schedule(args, state, self.config.every_n_steps, kwargs.get("train_dataloader"))
        session.announce_start(self._what_is_kept(args))
        self._resume(args, state, control)
        if not session.stays_stopped:
            measured = args.eval_on_start and not has_own_schedule(args)
            session.set_reference(args.output_dir, state.global_step, model, measured)
        self._saved_step = -1
        self._training = True

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        if self.session.stays_stopped:
            # Trainer takes one step before it reads should_training_stop; make it change nothing.
            optimizer.zero_grad(set_to_none=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        last = state.global_step >= state.max_steps
        every = self.config.every_n_steps
        if self.session.stays_stopped:
            _leave_no_trace(control)
        elif has_own_schedule(args) and every and (state.global_step % every == 0 or last):
            self._measure(args, state, control, _trained(**kwargs))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.session.stays_stopped:
            _leave_no_trace(control)
        elif has_own_schedule(args) and not self.config.every_n_steps:
            self._measure(args, state, control, _trained(**kwargs))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = {} if logs is None else logs
        if any(key.startswith("eval_") and key.endswith("_runtime") for key in logs):
            # All callbacks get the same dict in on_evaluate, whatever their order.
            self._add_scores(args, state, control, logs, **kwargs)
        # The totals of the run are logged right before Trainer loads state.best_model_checkpoint.
        # Until then the arguments stay as they were, in case the run is interrupted.
        if self._training and self.config.load_best_model_at_end and "train_runtime" in logs:
            self._asked_to_load = args.load_best_model_at_end
            args.load_best_model_at_end = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics is not None:  # for a Trainer whose own log copies the dict
            self._add_scores(args, state, control, metrics, **kwargs)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._saved_step = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False
        self.session.end(
            args.output_dir,
            state.global_step,
            "expected evaluations that reach the Trainer's callbacks; an `evaluate` of your own "
            "has to call super().evaluate(), or use eval_strategy='no' with every_n_steps",
        )
        if args.load_best_model_at_end and Ranks.of_run().rank == 0:
            self._verify_best(args, state, _trained(**kwargs))
        if self._asked_to_load is not None:
            args.load_best_model_at_end = self._asked_to_load
            self._asked_to_load = None

    # Measure, decide, control

    def _add_scores(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Score the pool, if that is due, and add the scores to an evaluation's metrics."""
        if not self._training:
            return
        is_last = state.global_step >= state.max_steps
        if not has_own_schedule(args) and self.session.is_due(state.global_step, is_last):
            self._measure(args, state, control, _trained(**kwargs))
        # If no score was due, the last one is repeated: Trainer needs its metric each time.
        history = self.history
        if history and (self.config.every_n_steps or history[-1].step == state.global_step):
            metrics.update(scalars(history[-1]))

    def _measure(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any
    ) -> None:
        """Score the pool once for this global step and act on the decision."""
        scored = self.session.measure(model, state.global_step, state.epoch, args.output_dir)
        if scored is None:
            return
        record, decision = scored
        if decision.best_step == record.step:
            self._keep(args, state, control)
        if decision.stop:
            control.should_training_stop = True
        if args.save_strategy != "no" and (
            decision.stop or self._saved_step == record.step  # saved without this record
        ):
            control.should_save = True
        self._publish(state, control, record, decision)

    def _keep(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Save a new best now, so that score and weights on disk belong together."""
        if has_own_schedule(args) or args.metric_for_best_model is None:
            # Trainer must know which checkpoint is best, to protect it and to load it.
            self._point_to_best(state)
            if self._loads_best(args) and args.save_strategy == "no":
                state.best_model_checkpoint = str(_checkpoint(args, state.global_step))
        if args.save_strategy != "no" or self._loads_best(args):
            control.should_save = True

    def _point_to_best(self, state: TrainerState) -> None:
        step = None if self.decision is None else self.decision.best_step
        for record in self.history:
            if record.step == step:
                state.best_metric = record.scores[self.session.decides].value
                state.best_global_step = record.step

    def _publish(
        self, state: TrainerState, control: TrainerControl, record: Record, decision: Decision
    ) -> None:
        """Send the scores to the log history, to the trackers if attached, and to the terminal.

        ``trainer.log`` is not used: TRL's trainers add the metrics gathered so far to each row that
        is logged, and then reset them.
        """
        epoch = {} if state.epoch is None else {"epoch": state.epoch}
        values = {**scalars(record), **epoch}
        state.log_history.append({**values, "step": state.global_step})
        trainer = self._attached_to(state)
        if trainer is not None:
            wanted = control.should_log
            trainer.callback_handler.on_log(trainer.args, state, control, values)
            control.should_log = wanted  # logging cleared it, but the loss may be due
        recorded = self.session.recorded()
        state.log_history[-1][KEY] = row_to_dict(record, decision, recorded)
        self.session.announce(record, decision)

    def _resume(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        """Restore a resumed run from the rows in its checkpoint, and write its history file.

        A checkpoint that was saved before its step's score lacks it; the history file has it.
        """
        whole = from_log(state.log_history)
        if whole.records:
            whole = continuation(Path(args.output_dir) / HISTORY_FILE, whole)
        session = self.session
        session.resume(whole.where(lambda record: record.step <= state.global_step))
        if session.decision is not None and not session.decision.stop:
            self._look_beyond(args, state, session.own_part(whole))
        session.share()
        if session.records and has_own_schedule(args):
            self._point_to_best(state)
            best = _checkpoint(args, state.best_global_step)
            if best.is_dir():  # not if the run was moved, or the best checkpoint is a later one
                state.best_model_checkpoint = str(best)
        if session.settle_stop():
            control.should_training_stop = True
        session.write(args.output_dir)

    def _look_beyond(self, args: TrainingArguments, state: TrainerState, whole: RunHistory) -> None:
        """Take over a stop that was decided after the newest checkpoint on disk.

        With ``save_total_limit=1``, the checkpoint of the stop is deleted if another one is the
        best. A run that is resumed from an older checkpoint than the newest goes back instead.
        """
        newest = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
        if newest is None or Path(newest).name != f"checkpoint-{state.global_step}":
            return
        decision = self.session.decide(list(whole.records))
        if decision.stop and _checkpoint(args, decision.best_step).is_dir():
            self.session.take_over_stop(whole, decision, state.global_step)

    def _verify_best(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Warn if the model does not hold the weights of the best checkpoint."""
        decided = None if self.decision is None else self.decision.best_step
        keeps_ours = has_own_schedule(args) or best_metric(args) in ("", self.session.decides)
        if decided is None and keeps_ours:
            return
        loaded = state.best_model_checkpoint
        why = ""
        if loaded is None:
            why = "Trainer loaded no checkpoint"
        elif keeps_ours and Path(loaded).name != f"checkpoint-{decided}":
            why = f"Trainer loaded {loaded}"
        elif not Path(loaded).is_dir():
            why = f"there is no folder {loaded}"
        elif not is_sharded(model):  # a shard cannot be compared
            differ = weights_that_differ(model, loaded)
            if differ:
                first = ", ".join(differ[:3])
                why = f"{len(differ)} tensors differ from those in {loaded}, such as {first}"
        if why:
            best = f"step {decided}" if keeps_ours else str(loaded)
            warnings.warn(
                "sepstop: the trained model does not hold the best weights, those of "
                f"{best}: {why}; load them from the checkpoint's folder",
                RuntimeWarning,
                stacklevel=4,
            )

    def _attached_to(self, state: TrainerState) -> Any:
        """The Trainer of this run if attached; None for a callback that was attached to another."""
        return self._trainer if getattr(self._trainer, "state", None) is state else None

    def _loads_best(self, args: TrainingArguments) -> bool:
        return bool(self.config.load_best_model_at_end or args.load_best_model_at_end)

    def _check(self, args: TrainingArguments) -> None:
        self.session.decide_by(deciding_criterion(args, self.config))

    def _what_is_kept(self, args: TrainingArguments) -> str:
        """What happens to the best checkpoint, as a clause."""
        metric = best_metric(args)
        if not has_own_schedule(args) and metric not in ("", self.session.decides):
            return f"checkpoints are kept by metric_for_best_model={metric!r}"
        if self._loads_best(args):
            return "the best checkpoint is loaded at the end"
        if args.save_strategy == "no":
            return "no checkpoint is kept (save_strategy='no')"
        return "the best checkpoint is kept on disk"

    def _claim(self, state: TrainerState) -> None:
        """Raise if the Trainer has another instance; they share nothing but the state."""
        if getattr(state, "_sepstop_callback", self) is not self:
            raise ValueError(_TWO)
        state._sepstop_callback = self


def _trained(model: Any, **others: Any) -> Any:
    """The model of an event; SetFit's trainer passes the one that it trains as ``st_model``."""
    return others.get("st_model", model)


def _checkpoint(args: TrainingArguments, step: int | None) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"


def _leave_no_trace(control: TrainerControl) -> None:
    """Neither log, evaluate nor save."""
    control.should_log = control.should_evaluate = control.should_save = False
