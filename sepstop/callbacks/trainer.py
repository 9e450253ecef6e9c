"""Callback for the Hugging Face Trainer: its events to those of a `Session`.

Relies on these habits of transformers' Trainer (5.23): an evaluation hands the same dict to ``log``
and then to every callback's ``on_evaluate``, to the best-metric choice and to the plateau
scheduler; rows of ``state.log_history`` are saved with each checkpoint and come back on resume;
``control.should_save`` set in an event saves at that very step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from sepstop.callbacks.alerts import send_alert
from sepstop.callbacks.best_weights import BestWeights, best_record, checkpoint_folder, folder_of
from sepstop.callbacks.checks import (
    deciding_criterion,
    has_own_schedule,
    saves_as_best,
    warn_of_arguments,
    warn_of_other_run,
    warn_of_schedule,
)
from sepstop.callbacks.session import Session
from sepstop.config import (
    AnswersSpec,
    CriterionSpec,
    PolicySpec,
    PoolingSpec,
    Precision,
    SepStopConfig,
)
from sepstop.measure.monitor import Monitor
from sepstop.measure.training_labels import label_names, training_labels
from sepstop.runs.average_state import (
    move_state,
    read_state,
    remove_states,
    save_state,
    state_folder,
)
from sepstop.runs.history import HISTORY_FILE, KEY, continuation, from_log, row_to_dict, scalars
from sepstop.runs.records import RunHistory
from sepstop.types import Decision, Record
from sepstop.utils.distributed import Ranks

_TWO = (
    "expected one SepStopCallback in a Trainer, got two SepStopCallbacks; remove one with "
    "trainer.remove_callback"
)


class SepStopCallback(TrainerCallback):
    """Scores an unlabeled pool during training, stops by a policy, keeps the best weights.

    With evaluations (``eval_strategy`` other than "no"), the pool is scored at each of them, and
    the scores join their metrics, such as ``eval_robust_mi``. Name one in
    ``metric_for_best_model``, and it decides. Without evaluations, the pool is scored every
    ``every_n_steps`` steps, by default at the end of each epoch. Training is left untouched: a run
    that is not stopped ends with the same weights as without the callback.

    By default, running averages of the weights are scored, from the end of the warm-up on, and
    before it the checkpoint. A new best average is saved as the folder ``average-STEP``, and older
    ones are removed by ``save_total_limit``. A new best checkpoint is saved at its step, as the
    Trainer saves. With ``save_strategy="no"``, both are kept only if the best weights are loaded at
    the end. A new best average takes no checkpoint: these come as
    the ``save_strategy`` says, and when the policy stops the run.

    If the best weights are loaded at the end (``load_best_model_at_end`` here or of the Trainer),
    an average is loaded in place by the callback, whatever Trainer it is; then
    ``state.best_model_checkpoint`` names its folder, and ``save_model`` writes it. If
    ``metric_for_best_model`` is another metric than the score that decides, the Trainer's choice is
    loaded, and the best average stays on disk. Each checkpoint carries the state of the averages,
    so a resumed run goes on with them, except with ``save_only_model``.

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
        run_dir: the folder of the run, known when training begins.

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
        extra_criteria: Sequence[CriterionSpec] = ("separability",),
        pooling: PoolingSpec = "auto",
        num_resamples: int = 20,
        resample_size: int | None = None,
        seed: int = 0,
        tokenizer: Any = None,
        text_column: str = "text",
        pool_size: int | None = 1000,
        max_length: int = 256,
        batch_size: int | None = None,
        padding: bool | None = None,
        precision: Precision | None = None,
        outputs: Literal["auto", "classes", "labels", "none"] = "auto",
        answers: AnswersSpec | None = None,
        answer_end: str = "",
        average: bool = True,
        score_checkpoints: bool = False,
        average_every_n_steps: int = 1,
        average_device: str | None = None,
        every_n_steps: int | None = None,
        max_overhead: float | None = None,
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
        self._best = BestWeights(self.session)
        self.run_dir = Path()
        self._saved_step = self._state_step = -1

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
        self.run_dir = self._best.run_dir = self._folder_of_run(args, state)
        if state.global_step == 0 and Ranks.of_run().rank == 0:
            warn_of_other_run(self.run_dir)
            remove_states(self.run_dir)
        # All ranks of a tensor-parallel model must see the same texts.
        self.monitor.observer.distributed = getattr(model, "tp_size", None) in (None, 1)
        labels = training_labels(kwargs.get("train_dataloader"), label_names(model, args))
        session = self.session
        session.prepare(model, processing_class, labels)
        warn_of_arguments(args, session.decides, attached=self._attached_to(state) is not None)
        warn_of_schedule(args, state, self.config.every_n_steps, kwargs.get("train_dataloader"))
        session.averaged_steps.begin_at(args.get_warmup_steps(state.max_steps))
        session.announce_start(self._best.described(args), state.max_steps)
        self._resume(args, state, control, model, processing_class)
        if not session.stays_stopped:
            measured = args.eval_on_start and not has_own_schedule(args)
            session.set_reference(self.run_dir, state.global_step, model, measured)
        self._saved_step = self._state_step = -1
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
        if self.session.stays_stopped:
            _leave_no_trace(control)
            return
        self.session.after_step(_trained(**kwargs), state.global_step)
        if has_own_schedule(args) and self._ends_interval(state) and self._is_affordable(state):
            self._measure(args, state, control, **kwargs)
        if control.should_save:
            self._save_state(args, state, _trained(**kwargs))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.session.stays_stopped:
            _leave_no_trace(control)
            return
        # An epoch of unknown length, or one that is cut short, was not scored at its last step.
        is_due = has_own_schedule(args) and not self.config.every_n_steps
        if is_due and self._is_affordable(state):
            self._measure(args, state, control, **kwargs)
        if control.should_save:
            self._save_state(args, state, _trained(**kwargs))

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
        if self._training and "train_runtime" in logs:
            args = kwargs.get("st_args", args)
            self._best.load(args, state, _trained(**kwargs), self._saved_step)

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
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved_step = step = state.global_step
        self._best.saved(args)
        self._save_state(args, state, _trained(**kwargs))  # if another callback asked for the save
        if self._state_step == step:
            Ranks.of_run().together(lambda: None)  # the checkpoint is complete
            try:
                move_state(self.run_dir, checkpoint_folder(self.run_dir, step), step)
            except OSError as error:
                self.session.fail("could not move the state of the averages", error)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False
        self.session.end(
            self.run_dir,
            state.global_step,
            "expected evaluations that reach the Trainer's callbacks; an `evaluate` of your own "
            "has to call super().evaluate(), or use eval_strategy='no' with every_n_steps",
        )
        if Ranks.of_run().rank == 0:
            remove_states(self.run_dir)
        self._best.finish(kwargs.get("st_args", args), state, _trained(**kwargs))

    # Measure, decide, control

    def _ends_interval(self, state: TrainerState) -> bool:
        """True if a score is due at this step, without evaluations: before the step is saved."""
        if state.global_step >= state.max_steps:
            return True
        every = self.config.every_n_steps
        if every:
            return state.global_step % every == 0
        return state.epoch is not None and float(state.epoch).is_integer()

    def _is_affordable(self, state: TrainerState) -> bool:
        is_last = state.global_step >= state.max_steps
        return self.session.is_affordable(state.global_step, is_last)

    def _add_scores(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Score the pool, if that is due, and add the scores to an evaluation's metrics."""
        if not self._training or self.session.stays_stopped:
            return
        is_last = state.global_step >= state.max_steps
        if not has_own_schedule(args) and self.session.is_due(state.global_step, is_last):
            self._measure(args, state, control, **kwargs)
        # If no score was due, the last one is repeated: Trainer needs its metric each time.
        history, leaves_out = self.history, self.config.every_n_steps or self.config.max_overhead
        if history and (leaves_out or history[-1].step == state.global_step):
            self._merge(metrics, scalars(history[-1]))
        if control.should_save or saves_as_best(args, state, metrics):
            self._save_state(args, state, _trained(**kwargs))

    def _merge(self, metrics: dict[str, float], scores: dict[str, float]) -> None:
        """Add the scores to an evaluation's metrics, unless a metric has the name of a score."""
        try:
            _check_names(metrics, scores)
        except ValueError as error:
            self.session.fail("the scores do not join the evaluation's metrics", error)
        else:
            metrics.update(scores)

    def _measure(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Score the pool once for this global step and act on the decision."""
        model = _trained(**kwargs)
        scored = self.session.measure(model, state.global_step, state.epoch, self.run_dir)
        if scored is None:
            return
        record, decision = scored
        if decision.best_step == record.step:
            with self.session.overhead.counted():
                self._best.keep(args, state, control, model, processing_class)
        if decision.stop:
            control.should_training_stop = True
        if args.save_strategy != "no" and (
            decision.stop or self._saved_step == record.step  # saved without this record
        ):
            control.should_save = True
        self._publish(state, control, record, decision)
        if decision.stop and state.is_world_process_zero:
            title = f"sepstop stopped the run at step {state.global_step}"
            send_alert(args.report_to or (), title, decision.reason)

    def _save_state(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Write the state of the averages, for the checkpoint that Trainer saves now.

        It waits beside the checkpoints until `on_save`, so that a run that is killed in between can
        be resumed from the checkpoint. With ``save_only_model`` nothing is written. All ranks have
        written theirs when it returns; an error of one gives a warning on all.
        """
        step = state.global_step
        if args.save_only_model or self._state_step == step:
            return
        self.session.check_averages()
        averages = self.session.averaged_steps.to_save
        if averages is None:
            return
        self._state_step = step
        folder = state_folder(self.run_dir, step)
        try:
            Ranks.of_run().together(
                lambda: save_state(folder, averages, model, step, args.should_save)
            )
        except Exception as error:
            self.session.fail("could not save the state of the averages", error)

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
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any,
        tokenizer: Any,
    ) -> None:
        """Restore a resumed run from its checkpoint, and write its history file.

        A checkpoint that was saved before its step's score lacks it; the history file has it.
        """
        whole = from_log(state.log_history)
        if whole.records:
            whole = continuation(self.run_dir / HISTORY_FILE, whole)
        session = self.session
        session.resume(whole.where(lambda record: record.step <= state.global_step))
        if session.decision is not None and not session.decision.stop:
            self._look_beyond(args, state, session.own_part(whole))
        session.share()
        step = state.global_step
        if session.settle_stop():
            control.should_training_stop = True
        is_over = session.stays_stopped and self._best.is_kept()
        if not is_over:
            checkpoint = checkpoint_folder(self.run_dir, step)
            session.averaged_steps.restore(lambda: read_state(checkpoint, model, step), model, step)
        self._best.resume(args, state, model, tokenizer)
        session.write(self.run_dir)

    def _look_beyond(self, args: TrainingArguments, state: TrainerState, whole: RunHistory) -> None:
        """Take over a stop that was decided after the newest checkpoint on disk.

        With ``save_total_limit=1``, the checkpoint of the stop is deleted if another one is the
        best. A run that is resumed from an older checkpoint than the newest goes back instead.
        """
        newest = get_last_checkpoint(self.run_dir) if self.run_dir.is_dir() else None
        if newest is None or Path(newest).name != f"checkpoint-{state.global_step}":
            return
        decision = self.session.decide(list(whole.records))
        best = best_record(list(whole.records), decision)
        if decision.stop and best is not None and folder_of(self.run_dir, best).is_dir():
            self.session.take_over_stop(whole, decision, state.global_step)

    def _attached_to(self, state: TrainerState) -> Any:
        """The Trainer of this run if attached; None for a callback that was attached to another."""
        return self._trainer if getattr(self._trainer, "state", None) is state else None

    def _folder_of_run(self, args: TrainingArguments, state: TrainerState) -> Path:
        """The run's folder; in a hyperparameter search that of the trial.

        Raises:
            ValueError: the folder of the trial is not known.
        """
        trainer = self._attached_to(state)
        if not state.is_hyper_param_search or (trainer is None and args.save_strategy == "no"):
            return Path(args.output_dir)
        if trainer is None:
            raise ValueError(
                "in a hyperparameter search each trial saves to a folder of its own; call "
                "callback.attach(trainer) before the search, so that sepstop's files go there"
            )
        return Path(trainer._get_output_dir(trainer._trial))

    def _check(self, args: TrainingArguments) -> None:
        self.session.decide_by(deciding_criterion(args, self.config))

    def _claim(self, state: TrainerState) -> None:
        """Raise if the Trainer has another instance; they share nothing but the state."""
        if getattr(state, "_sepstop_callback", self) is not self:
            raise ValueError(_TWO)
        state._sepstop_callback = self


def _trained(model: Any, **others: Any) -> Any:
    """The model of an event; SetFit's trainer passes the one that it trains as ``st_model``."""
    return others.get("st_model", model)


def _check_names(metrics: Mapping[str, float], scores: Mapping[str, float]) -> None:
    """
    Raises:
        ValueError: a metric has the name of a score. Scores that are there already, as `on_log` and
            `on_evaluate` get the same metrics, are none.
    """
    taken = [
        key.removeprefix("eval_")
        for key, score in scores.items()
        if key in metrics and repr(metrics[key]) != repr(score)  # NaN is not equal to itself
    ]
    if taken:
        names = ", ".join(taken)
        raise ValueError(f"expected no metric with the name of a score; rename yours: {names}")


def _leave_no_trace(control: TrainerControl) -> None:
    """Neither log, evaluate nor save."""
    control.should_log = control.should_evaluate = control.should_save = False
