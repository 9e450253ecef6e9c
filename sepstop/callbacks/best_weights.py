"""The best weights of a Trainer's run: kept on disk, loaded at the end, and verified."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from sepstop.callbacks.checks import best_metric, has_own_schedule
from sepstop.callbacks.session import Session
from sepstop.measure.backbone import is_sharded
from sepstop.runs.average_files import average_folder, load_average, prune_averages, save_average
from sepstop.runs.saved_weights import weights_that_differ
from sepstop.types import Decision, Record
from sepstop.utils.distributed import Ranks


def best_record(records: list[Record], decision: Decision | None) -> Record | None:
    """The record whose weights are kept; None without one."""
    step = None if decision is None else decision.best_step
    return next((record for record in records if record.step == step), None)


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Where the Trainer saves the checkpoint of a step."""
    return run_dir / f"checkpoint-{step}"


def folder_of(run_dir: Path, record: Record) -> Path:
    """Where the weights of a record are kept: the folder of its average or its checkpoint."""
    if record.average is not None:
        return average_folder(run_dir, record.step)
    return checkpoint_folder(run_dir, record.step)


class BestWeights:
    """Keeps the weights of the best record, which are a checkpoint or an average.

    A checkpoint is saved by the Trainer. An average is saved here, when its step is scored, and
    loaded here, right before the Trainer would load the best checkpoint: not every Trainer could
    load it from its folder.

    Args:
        session: of the run.

    Attributes:
        run_dir: the run's folder, in which the Trainer saves checkpoints.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.run_dir = session, Path()
        self._asked_to_load: bool | None = None  # args.load_best_model_at_end as the user set it
        self._failure = ""  # why the average could not be loaded
        self._known_step: int | None = None  # the best step that the newest checkpoint knows

    @property
    def record(self) -> Record | None:
        """The best record so far."""
        return best_record(self.session.records, self.session.decision)

    def described(self, args: TrainingArguments) -> str:
        """What happens to the best weights, as a clause."""
        metric, averages = best_metric(args), self.session.config.average
        may_save = self._may_save(args)
        if not self._is_ours(args):
            kept = f"checkpoints are kept by metric_for_best_model={metric!r}"
            return f"{kept}, the best average in average-STEP" if averages and may_save else kept
        best = "the best" if averages else "the best checkpoint"
        if self._loads(args):
            return f"{best} is loaded at the end"
        if not may_save:
            return f"no {'weights are' if averages else 'checkpoint is'} kept (save_strategy='no')"
        return f"{best} is kept on disk"

    def is_kept(self) -> bool:
        """True if the best weights so far are on disk; the same on all ranks."""
        record = self.record
        found = record is not None and folder_of(self.run_dir, record).is_dir()
        return Ranks.of_run().of_first(found)

    # During training

    def keep(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any,
        tokenizer: Any,
    ) -> None:
        """Keep the weights of the newest record, the best so far.

        They are saved now, so that score and weights on disk belong together.
        """
        record = self.session.records[-1]
        may_save = self._may_save(args)
        if may_save and record.average is None:
            control.should_save = True
        elif may_save and not self._save_average(args, record, model, tokenizer):
            return
        if self._points(args):
            self._point(state, record)
            self._point_to_folder(state, record, is_there=may_save)

    def resume(
        self, args: TrainingArguments, state: TrainerState, model: Any, tokenizer: Any
    ) -> None:
        """Point to the best weights of a resumed run.

        An average of the very step that the checkpoint is of is saved if it is missing: the process
        may have been killed between its score and its save.
        """
        record, self._known_step = self.record, None
        if record is None:
            return
        self._known_step = record.step
        folder, averages = folder_of(self.run_dir, record), self.session.averages
        if (
            record.average is not None
            and averages is not None
            and averages.last_step == record.average.last_step
            and averages.count == record.average.count
            and not self.is_kept()
            and self._may_save(args)
        ):
            self._save_average(args, record, model, tokenizer)
        if self._points(args):
            self._point(state, record)
            # It is not there if the run was moved, or the best checkpoint is a later one.
            self._point_to_folder(state, record, folder.is_dir())

    def saved(self, args: TrainingArguments) -> None:
        """Remove older averages, after a checkpoint was saved."""
        record = self.record
        self._known_step = None if record is None else record.step
        self._prune(args)

    # At the end

    def load(
        self, args: TrainingArguments, state: TrainerState, model: Any, last_saved: int
    ) -> None:
        """Load the best average, or leave it to the Trainer to load the best checkpoint.

        To be called right before the Trainer loads ``state.best_model_checkpoint``. Until then the
        arguments stay as they were, in case the run is interrupted. `finish` restores them.

        Args:
            last_saved: step of the newest checkpoint. With ``save_total_limit=1``, the Trainer
                deletes the others now.
        """
        record, self._failure = self.record, ""
        self._asked_to_load = args.load_best_model_at_end
        if record is None or record.average is None or not self._is_ours(args):
            args.load_best_model_at_end = self._loads(args)
            return
        if self._loads(args):
            try:
                folder = folder_of(self.run_dir, record)
                Ranks.of_run().together(lambda: load_average(folder, model))
            except Exception as error:
                self._failure = f"{type(error).__name__}: {error}"
        args.load_best_model_at_end = False
        newest = checkpoint_folder(self.run_dir, last_saved)
        state.best_model_checkpoint = str(newest) if newest.is_dir() else None

    def finish(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Say where the best weights are; verify them if they were loaded.

        Warns:
            RuntimeWarning: the model does not hold the best weights.
        """
        if self._asked_to_load is not None:
            args.load_best_model_at_end = self._asked_to_load
            self._asked_to_load = None
        record, ours = self.record, self._is_ours(args)
        folder = None if record is None else folder_of(self.run_dir, record)
        if record is not None and record.average is not None and ours:
            assert folder is not None
            self._point(state, record)
            state.best_global_step = record.step
            state.best_model_checkpoint = str(folder) if folder.is_dir() else None
        why = ""
        if self._loads(args) and Ranks.of_run().rank == 0:
            why = self._verify(args, state, model)
        if self.session.config.average and folder is not None and folder.is_dir() and not why:
            assert record is not None
            what = f"the {record.average}" if record.average else f"those of step {record.step}"
            holds = "the model holds the best weights," if ours and self._loads(args) else ""
            self.session.say(f"sepstop: {holds or 'the best weights are'} {what}: {folder}")

    # Details

    def _is_ours(self, args: TrainingArguments) -> bool:
        """False if the Trainer keeps checkpoints by another metric."""
        return has_own_schedule(args) or best_metric(args) in ("", self.session.decides)

    def _points(self, args: TrainingArguments) -> bool:
        """True if the Trainer must be told which weights are best, to protect and to load them."""
        return has_own_schedule(args) or args.metric_for_best_model is None

    def _loads(self, args: TrainingArguments) -> bool:
        """True if the best weights are loaded at the end."""
        asked = self._asked_to_load
        theirs = args.load_best_model_at_end if asked is None else asked
        return bool(self.session.config.load_best_model_at_end or theirs)

    def _may_save(self, args: TrainingArguments) -> bool:
        return bool(args.save_strategy != "no" or self._loads(args))

    def _point(self, state: TrainerState, record: Record) -> None:
        """Set the best metric and the step of the best checkpoint.

        The Trainer takes the checkpoint of that step for the best, so an average has none.
        """
        state.best_metric = record.scores[self.session.decides].value
        state.best_global_step = record.step if record.average is None else None

    def _point_to_folder(self, state: TrainerState, record: Record, is_there: bool) -> None:
        """Set the folder that the Trainer protects from its limit: that of a checkpoint.

        If it were that of an average, the Trainer would keep a checkpoint more than asked for.
        """
        if record.average is not None:
            state.best_model_checkpoint = None
        elif is_there:
            state.best_model_checkpoint = str(folder_of(self.run_dir, record))

    def _save_average(
        self, args: TrainingArguments, record: Record, model: Any, tokenizer: Any
    ) -> bool:
        """Write the average of a record; False, with a warning, if that fails."""
        averages, average = self.session.averages, record.average
        assert averages is not None
        assert average is not None
        folder = folder_of(self.run_dir, record)

        ranks = Ranks.of_run()
        try:
            with ranks.entered(averages.applied(model, average.name)):
                ranks.together(
                    lambda: save_average(folder, model, tokenizer, average, args.should_save)
                )
        except Exception as error:
            self.session.fail(f"could not save the {average}", error)
            return False
        self._prune(args)
        return True

    def _prune(self, args: TrainingArguments) -> None:
        """Remove older averages; not collective."""
        record, limit = self.record, args.save_total_limit
        if args.should_save and record is not None:
            try:
                prune_averages(self.run_dir, limit, record.step, known=self._known_step)
            except OSError as error:
                self.session.fail("could not remove older averages", error)

    def _verify(self, args: TrainingArguments, state: TrainerState, model: Any) -> str:
        """Why the model does not hold the best weights, with a warning; empty if it does."""
        record, ours = self.record, self._is_ours(args)
        if record is None and ours:
            return ""
        loaded, why = state.best_model_checkpoint, self._failure
        folder = None if record is None else folder_of(self.run_dir, record)
        best = str(loaded)
        if record is not None and ours:
            best = f"the {record.average}" if record.average else f"step {record.step}"
        if why:
            pass
        elif loaded is None:
            why = "Trainer loaded no checkpoint"
        elif ours and folder is not None and Path(loaded).name != folder.name:
            why = f"Trainer loaded {loaded}"
        elif not Path(loaded).is_dir():
            why = f"there is no folder {loaded}"
        elif not is_sharded(model):  # a shard cannot be compared
            differ = weights_that_differ(model, loaded)
            if differ:
                first = ", ".join(differ[:3])
                why = f"{len(differ)} tensors differ from those in {loaded}, such as {first}"
        if why:
            is_there = not ours or (folder is not None and folder.is_dir())
            remedy = "; load them from their folder" if is_there else ""
            warnings.warn(
                f"sepstop: the trained model does not hold the best weights, those of {best}: "
                f"{why}{remedy}",
                RuntimeWarning,
                stacklevel=5,
            )
        return why
