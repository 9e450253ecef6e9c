"""Trainer events to measure, decide, control; nothing else.

Relies on these habits of transformers' Trainer (5.23): an evaluation hands the same dict to ``log``
and then to every callback's ``on_evaluate``, to the best-metric choice and to the plateau
scheduler; rows of ``state.log_history`` are saved with each checkpoint and come back on resume;
``control.should_save`` set in an event saves at that very step.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from sepstop.callbacks.checks import (
    best_metric,
    check_arguments,
    names_information,
    own_schedule,
    warn_of_arguments,
    warn_of_other_run,
    warn_of_schedule,
)
from sepstop.callbacks.session import Watch
from sepstop.criteria import Information
from sepstop.decide.policies import Auto, Plateau
from sepstop.measure.backbone import is_divided
from sepstop.measure.heads import label_names, training_labels
from sepstop.runs import history as rows
from sepstop.runs.saved_weights import weights_that_differ
from sepstop.types import Decision, Record
from sepstop.utils.distributed import Ranks

_TWO = (
    "two SepStopCallbacks in one Trainer: expected one; remove the other with "
    "trainer.remove_callback"
)


class SepStopCallback(Watch, TrainerCallback):
    """Scores the unlabeled pool during training, stops by a policy, keeps the best checkpoint.

    With evaluations (``eval_strategy`` other than "no") the pool is scored at each of them,
    and ``eval_separability`` and ``eval_information`` join their metrics; name one in
    ``metric_for_best_model`` and all that builds on it works. Without evaluations, the pool is
    scored on a schedule of its own. Training itself is left untouched: a run that is not stopped
    ends with the weights it would have had.

    What can be known to be wrong is raised before training begins. What goes wrong in a
    measurement later is a warning and a score of NaN, and training goes on.

    Trackers (TensorBoard, W&B, ...) get the scores after ``callback.attach(trainer)``.

    Args:
        pool: unlabeled texts, see `sepstop.measure.pool.read_pool`; or a `Monitor`, which then
            brings its criterion and embedder along.
        criterion, embedder: see `Monitor`, which has the defaults.
        policy: when to stop: "auto", "patience", "plateau", a mapping with the settings too, or a
            function ``history -> Decision``. By default `Auto`, which decides by the information;
            but `Plateau` where you name a criterion, here or in ``metric_for_best_model``.
        every_n_steps: score at those evaluations that come so many steps after the last score, by
            default at all; with ``eval_strategy="no"`` a schedule of its own, by default each
            epoch.
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
        decisions: the decision made at each record.

    Raises:
        FileNotFoundError, ValueError: on construction, when the Trainer is made, or when
            training begins, whichever can know first.
    """

    def __init__(
        self,
        pool: Any,
        criterion: Any = None,
        policy: Any = None,
        embedder: Any = None,
        *,
        every_n_steps: int | None = None,
        load_best_at_end: bool = False,
        continue_after_stop: bool = False,
        on_error: Literal["skip", "raise"] = "skip",
        verbose: bool = True,
        **monitor_options: Any,
    ) -> None:
        super().__init__(
            pool,
            criterion,
            policy,
            embedder,
            every_n_steps=every_n_steps,
            continue_after_stop=continue_after_stop,
            on_error=on_error,
            verbose=verbose,
            **monitor_options,
        )
        self.load_best_at_end = load_best_at_end
        self._trainer: Any = None
        self._training = False
        self._saved_step = -1
        self._asked_to_load: bool | None = None  # args.load_best_model_at_end as the user set it

    def attach(self, trainer: Any) -> SepStopCallback:
        """Let the scores reach the trackers in ``report_to``; adds the callback if need be.

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
        # The ranks of a tensor-parallel model have to see the same texts.
        self.monitor.distributed = getattr(model, "tp_size", None) in (None, 1)
        labels = training_labels(kwargs.get("train_dataloader"), label_names(model, args))
        self.monitor.prepare(model, processing_class, labels)
        warn_of_arguments(args, self._best_metric, attached=self._attached_to(state) is not None)
        warn_of_schedule(args, state, self.every_n_steps, kwargs.get("train_dataloader"))
        self._resume(args, state, control)
        if not self._stopped_before:
            measured = args.eval_on_start and not own_schedule(args)
            self._recall_neighbors(args.output_dir, state.global_step, model, measured)
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
        elif own_schedule(args) and every and (state.global_step % every == 0 or last):
            self._measure(args, state, control, _trained(**kwargs))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._stopped_before:
            _leave_no_trace(control)
        elif own_schedule(args) and not self.every_n_steps:
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
            # The dict goes on to all callbacks' on_evaluate: whatever their order, they see it.
            self._add_scores(args, state, control, logs, **kwargs)
        # The totals of the run are logged right before Trainer loads state.best_model_checkpoint;
        # asking for that no sooner leaves the arguments as they were if the run is broken off.
        if self._training and self.load_best_at_end and "train_runtime" in logs:
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
        if metrics is not None:  # of a Trainer whose own log copies them
            self._add_scores(args, state, control, metrics, **kwargs)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._saved_step = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False
        self._end(args.output_dir, state.global_step)
        if not self.history:
            warnings.warn(
                f"sepstop: the pool was not scored once in {state.global_step} steps: "
                "expected evaluations that reach the Trainer's callbacks; an `evaluate` of your "
                "own has to call super().evaluate(), or use eval_strategy='no' with every_n_steps",
                RuntimeWarning,
                stacklevel=3,
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
        if not own_schedule(args) and self._is_due(state.global_step, is_last):
            self._measure(args, state, control, _trained(**kwargs))
        # Where none was due the last score stands in, since Trainer wants its metric every time.
        if self.history and (self.every_n_steps or self.history[-1].step == state.global_step):
            metrics.setdefault(f"eval_{self._best_metric}", math.nan)  # where nothing was scored
            metrics.update(rows.scalars(self.history[-1]))

    def _measure(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any
    ) -> None:
        """Score the pool once for this global step and act on the decision."""
        scored = self._score(model, state.global_step, state.epoch, args.output_dir)
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
        if own_schedule(args) or args.metric_for_best_model is None:
            # Nobody else tells Trainer which checkpoint is best, to be protected and loaded.
            self._point_to_best(state)
            if self._loads_best(args) and args.save_strategy == "no":
                state.best_model_checkpoint = str(_checkpoint(args, state.global_step))
        if args.save_strategy != "no" or self._loads_best(args):
            control.should_save = True

    def _point_to_best(self, state: TrainerState) -> None:
        step = None if self.decision is None else self.decision.best_step
        for record in self.history:
            if record.step == step:
                by = record.information if self._best_metric != record.criterion else record.score
                state.best_metric, state.best_global_step = by, record.step

    def _publish(
        self, state: TrainerState, control: TrainerControl, record: Record, decision: Decision
    ) -> None:
        """To the log history, to the trackers if attached, and to the terminal.

        Not by ``trainer.log``: TRL's trainers put what they gathered since their last row into
        whatever is logged, and start anew.
        """
        epoch = {} if state.epoch is None else {"epoch": state.epoch}
        values = {**rows.scalars(record), **epoch}
        state.log_history.append({**values, "step": state.global_step})
        trainer = self._attached_to(state)
        if trainer is not None:
            wanted = control.should_log
            trainer.callback_handler.on_log(trainer.args, state, control, values)
            control.should_log = wanted  # logging cleared it, but the loss may still be due
        state.log_history[-1][rows.KEY] = self._row(record, decision)
        self._announce(record, decision)

    def _resume(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        """Restore a resumed run from the rows that came with its checkpoint, and note its begin.

        A checkpoint that was saved before its step's score lacks it; the history file has it.
        """
        whole = rows.from_log(state.log_history)
        if whole.records:
            whole = rows.continuation(Path(args.output_dir) / rows.HISTORY_FILE, whole)
        self._restore(whole.where(lambda record: record.step <= state.global_step))
        if self.decision is not None and not self.decision.stop:
            self._look_beyond(args, state, self._of_own_criterion(whole))
        # Each rank looked at its own disk: the first decides.
        self.history, self.decisions, self._afresh_after = Ranks.of_run().of_first(
            (self.history, self.decisions, self._afresh_after)
        )
        if self.history and own_schedule(args):
            self._point_to_best(state)
            best = _checkpoint(args, state.best_global_step)
            if best.is_dir():  # the folder may have been moved, or the best be a later one
                state.best_model_checkpoint = str(best)
        if self._stays_stopped():
            control.should_training_stop = True
        self._write_down(args.output_dir)

    def _look_beyond(
        self, args: TrainingArguments, state: TrainerState, whole: rows.RunHistory
    ) -> None:
        """Whether the run was stopped after its newest checkpoint on disk.

        It may have been: the checkpoint of the stop is deleted with ``save_total_limit=1`` where
        the best is another. Resuming from an older checkpoint than the newest is going back.
        """
        newest = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
        if newest is None or Path(newest).name != f"checkpoint-{state.global_step}":
            return
        decision = self._decide(list(whole.records))
        if not decision.stop or not _checkpoint(args, decision.best_step).is_dir():
            return
        if self.continue_after_stop:
            self._afresh_after = state.global_step
        else:
            self.history = list(whole.records)
            self.decisions = [*whole.decisions[:-1], decision]

    def _verify_best(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Warn where the model does not hold the weights of the best checkpoint."""
        decided = None if self.decision is None else self.decision.best_step
        keeps_ours = own_schedule(args) or best_metric(args) in ("", self._best_metric)
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
        elif not is_divided(model):  # whose weights are not whole here
            differ = weights_that_differ(model, loaded)
            if differ:
                first = ", ".join(differ[:3])
                why = f"{len(differ)} tensors differ from those in {loaded}, {first} among them"
        if why:
            best = f"step {decided}" if keeps_ours else str(loaded)
            warnings.warn(
                f"sepstop: the model at the end does not hold the best weights, those of {best}: "
                f"{why}; load them from the checkpoint's folder",
                RuntimeWarning,
                stacklevel=4,
            )

    def _attached_to(self, state: TrainerState) -> Any:
        """The Trainer of this run, if attached; an earlier one's trackers are not this run's."""
        return self._trainer if getattr(self._trainer, "state", None) is state else None

    def _loads_best(self, args: TrainingArguments) -> bool:
        return bool(self.load_best_at_end or args.load_best_model_at_end)

    def _check(self, args: TrainingArguments) -> None:
        check_arguments(args, self._criterion, self.load_best_at_end)
        if not self._has_own_policy:
            by_score = best_metric(args) == self._criterion.name and not own_schedule(args)
            default = Auto if self._is_default and not by_score else Plateau
            self.policy = default(mode=self._mode)
        has_it = isinstance(self.policy, Auto) or self._criterion.name == Information.name
        if names_information(args) and not has_it:
            raise ValueError(
                "metric_for_best_model='information' needs policy='auto', or "
                f"criterion='information' with any; got criterion {self._criterion.name!r} "
                f"and {self.policy}"
            )

    def _claim(self, state: TrainerState) -> None:
        """One instance a Trainer; the state is the only thing that two instances share."""
        if getattr(state, "_sepstop_callback", self) is not self:
            raise ValueError(_TWO)
        state._sepstop_callback = self


def _trained(model: Any, **others: Any) -> Any:
    """The model of an event; SetFit's trainer passes the one that it trains beside its own."""
    return others.get("st_model", model)


def _checkpoint(args: TrainingArguments, step: int | None) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"


def _leave_no_trace(control: TrainerControl) -> None:
    control.should_log = control.should_evaluate = control.should_save = False
