"""Callback for a Lightning Trainer: its events to those of a `Session`.

Relies on these habits of Lightning (2.6): a ``ModelCheckpoint`` sees the values that are logged in
``on_validation_epoch_end`` of the same validation, and comes after other callbacks; the state of a
callback is loaded before ``on_train_start``; validation runs in inference mode.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

try:
    import lightning.pytorch as pl
except ImportError:  # its older name
    import pytorch_lightning as pl

from sepstop.callbacks.best_weights import best_record
from sepstop.callbacks.checks import MIN_SCORES, warn_of_few_scores
from sepstop.callbacks.session import Session
from sepstop.config import (
    AnswersSpec,
    CriterionSpec,
    PolicySpec,
    PoolingSpec,
    Precision,
    SepStopConfig,
)
from sepstop.measure.average import RunningAverages
from sepstop.measure.backbone import is_sharded
from sepstop.measure.monitor import Monitor
from sepstop.measure.tokens import load_own_tokenizer
from sepstop.measure.training_labels import label_names, training_labels
from sepstop.runs.average_files import (
    average_folder,
    finish_average,
    load_average,
    prune_averages,
    write_average,
)
from sepstop.runs.history import HISTORY_FILE, continuation, scalars
from sepstop.runs.records import RunHistory, from_state, to_state
from sepstop.types import Decision, Record
from sepstop.utils.distributed import Ranks

_PRECISIONS: dict[str, Precision] = {"bf16-mixed": "bf16", "16-mixed": "fp16"}
"""Precisions in which Lightning's own forward passes run under autocast."""


MODULE_FILE = "module.ckpt"
"""File in an average's folder with the whole LightningModule."""


class SepStopCallback(pl.Callback):
    """`sepstop.SepStopCallback` for a Lightning Trainer.

    Averages of all weights that the LightningModule trains are updated after each optimizer step.
    At each validation they are put into the module, the model in it scores the pool, and the
    weights are restored to the bit. Without validations, the pool is scored every
    ``every_n_steps`` steps, by default at the end of each epoch. The Trainer stops when the policy
    says so. Then load what was kept::

        callback = SepStopCallback(texts, tokenizer=tokenizer)
        Trainer(callbacks=[callback]).fit(module, loader, validation_loader)
        callback.load_best(module)

    The best average is saved in ``default_root_dir/average-STEP``, and the one before it is
    removed. The folder holds the scored model, as ``from_pretrained`` loads it. If the module
    trains other weights too, such as a head of its own, there is also "module.ckpt", which the
    module's ``load_from_checkpoint`` loads. Nothing is saved with ``enable_checkpointing=False``.

    The scores are logged by their names, such as "robust_mi". The checkpoints of a
    ``ModelCheckpoint`` hold the weights of their step, and the averages, so that a resumed run goes
    on with them. With ``average=False``, the checkpoints themselves are scored:
    ``ModelCheckpoint(monitor="robust_mi", mode="max")`` keeps the best one.

    Args:
        pool: unlabeled texts, see `sepstop.measure.pool.read_pool`.
        model: the model to score: a name in the LightningModule, such as "backbone.encoder", or a
            function of the LightningModule. Default: the only model of transformers in it.
        warmup_steps: of the learning rate, which Lightning does not tell. The averages begin after
            them; until then, the step's own weights are scored.
        policy, criterion, ...: the fields of `sepstop.config.SepStopConfig`, except
            ``load_best_model_at_end``. Without ``tokenizer``, the one saved with the model is used.

    Attributes:
        session: measures, decides and remembers.
        history: the records so far, those before a resume included.
        decision: the newest decision; None before the first record.

    Raises:
        FileNotFoundError, ValueError: on construction, or before the first step.
    """

    # The fields of SepStopConfig, spelled out for editors; a test keeps them alike.
    def __init__(
        self,
        pool: Any,
        *,
        model: str | Callable[[Any], nn.Module] | None = None,
        warmup_steps: int = 0,
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
        continue_after_stop: bool = False,
        on_error: Literal["skip", "raise"] = "skip",
        progress: bool = True,
        verbose: bool = True,
    ) -> None:
        self.config = SepStopConfig.of(locals())
        self.session = Session(pool, self.config)
        self.model, self.warmup_steps = model, warmup_steps
        self._saved: dict[str, Any] = {}
        self._step = 0  # optimizer steps that the averages have seen
        self._folder = Path()  # of the run
        self._known_step: int | None = None  # the best step that the newest checkpoint knows
        self._keepers: list[pl.callbacks.ModelCheckpoint] = []

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

    # Events, in the order in which the Trainer fires them

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model, session = self._model(pl_module), self.session
        self._folder = Path(trainer.default_root_dir)
        if self.config.average and is_sharded(pl_module):
            raise ValueError(
                "expected a module that is whole on each process, got one that Lightning's "
                "strategy divides, whose averages can't be saved; set average=False"
            )
        self.monitor.observer.distributed = True
        labels = training_labels(getattr(trainer, "train_dataloader", None), label_names(model))
        session.averaged_steps.make = functools.partial(_ModuleAverages, pl_module)
        session.prepare(model, labels=labels, precision=_PRECISIONS.get(str(trainer.precision)))
        warn_of_few_scores(*_planned_scores(trainer, self.config.every_n_steps))
        session.averaged_steps.begin_at(self.warmup_steps)
        session.announce_start(self._what_is_kept(trainer))
        saved = self._saved
        session.resume(self._saved_history(trainer))
        self._known_step = None if self.decision is None else self.decision.best_step
        session.averaged_steps.restore(lambda: _averages_in(saved), pl_module, trainer.global_step)
        session.write(trainer.default_root_dir)
        if session.settle_stop():
            trainer.should_stop = True
        else:
            session.set_reference(trainer.default_root_dir, trainer.global_step, model)
            # The step of the checkpoint is missing if it was saved before this callback's turn.
            self._step = 0 if session.averages is None else session.averages.last_step
            self._add_to_averages(trainer, pl_module)
        self._keep_again(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        self._add_to_averages(trainer, pl_module)
        every = 0 if trainer.enable_validation else self.config.every_n_steps
        last = trainer.global_step == trainer.max_steps
        if every and trainer.global_step and (trainer.global_step % every == 0 or last):
            self._measure(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.enable_validation and not self.config.every_n_steps:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        kinds = pl.callbacks.ModelCheckpoint
        self._keepers = [one for one in trainer.checkpoint_callbacks if isinstance(one, kinds)]
        best = best_record(self.history, self.decision)
        if best is not None and best.average is not None and _may_save(trainer):
            self._known_step = None
            self._prune(trainer, best.step)
            folder = average_folder(self._folder, best.step)
            self.session.say(f"sepstop: the best weights are the {best.average}: {folder}")
        self.session.end(
            trainer.default_root_dir,
            trainer.global_step,
            "expected a validation; set val_check_interval or check_val_every_n_epoch to have one, "
            "or leave validation out and set every_n_steps",
        )

    def state_dict(self) -> dict[str, Any]:
        if not self.session.decides:
            return {}  # before training
        state = to_state(self.session.recorded())
        averages = self.session.averaged_steps.to_save
        self._known_step = None if self.decision is None else self.decision.best_step
        if averages is not None and Ranks.of_run().rank == 0:
            state["averages"] = _on_cpu(averages.state_dict())
        return state

    def teardown(self, *_: Any, **__: Any) -> None:
        self._saved = {}  # if a checkpoint was loaded for a test

    # After training

    def load_best(self, pl_module: pl.LightningModule) -> Record:
        """Put the best weights of the run into the module, in place.

        These are the best average, or the weights of the best step if that was scored itself. The
        latter are loaded from the checkpoint of a ``ModelCheckpoint`` that monitors the score that
        decides. With several processes, call it on all of them.

        Args:
            pl_module: the module that was trained, or another one like it.

        Returns:
            The record of the best weights.

        Raises:
            ValueError: nothing was scored or saved, or the saved weights do not fit the module.
        """
        best = best_record(self.history, self.decision)
        if best is None:
            raise ValueError("expected a run with a score, but the pool was not scored")
        if best.average is not None:
            self._load_average(best.step, pl_module)
            return best
        monitors = [keep for keep in self._keepers if keep.monitor == self.session.decides]
        path = monitors[0].best_model_path if monitors else ""
        if not path:
            direction = "max" if self.monitor.higher_is_better[self.session.decides] else "min"
            raise ValueError(
                f"the best weights are those of step {best.step}, which no ModelCheckpoint kept; "
                f'add ModelCheckpoint(monitor="{self.session.decides}", mode="{direction}")'
            )
        _load_checkpoint(path, pl_module, best.step)
        return best

    # Averages

    def _add_to_averages(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the weights once after each optimizer step; accumulated batches take none."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.session.after_step(pl_module, self._step)

    def _what_is_kept(self, trainer: pl.Trainer) -> str:
        if self.session.averages is None:
            return "checkpoints are kept as ModelCheckpoint says"
        if not _may_save(trainer):
            return "no weights are kept: the Trainer saves no checkpoints"
        return f"the best average is kept in {Path(trainer.default_root_dir, 'average-STEP')}"

    def _keep(self, trainer: pl.Trainer, pl_module: pl.LightningModule, record: Record) -> None:
        """Save the average of the best record, and remove the one before it."""
        averages = self.session.averages
        if averages is None or record.average is None or not _may_save(trainer):
            return
        average, model = record.average, self._model(pl_module)
        folder, writes = average_folder(self._folder, record.step), trainer.is_global_zero
        ranks, tokenizer = Ranks.of_run(), self._tokenizer(model)
        try:
            with ranks.entered(averages.applied(model, average.name)):
                unfinished = ranks.together(
                    lambda: write_average(folder, model, tokenizer, average, writes)
                )
                if _trains_more(pl_module, model):
                    trainer.save_checkpoint(unfinished / MODULE_FILE, weights_only=True)
            ranks.together(lambda: finish_average(folder) if writes else None)
        except Exception as error:
            self.session.fail(f"could not save the {average}", error)
        else:
            self._prune(trainer, record.step)

    def _keep_again(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the best average of a resumed run if it is missing and of this very step.

        The process may have been killed between its score and its save.
        """
        best, averages = best_record(self.history, self.decision), self.session.averages
        if best is None or best.average is None or averages is None:
            return
        is_missing = not average_folder(self._folder, best.step).is_dir()
        if averages.described(best.average.name) == best.average and Ranks.of_run().of_first(
            is_missing
        ):
            self._keep(trainer, pl_module, best)

    def _prune(self, trainer: pl.Trainer, best_step: int) -> None:
        """Remove the averages that neither this run nor a resumed one needs."""
        if trainer.is_global_zero:
            try:
                prune_averages(self._folder, 1, best_step, known=self._known_step)
            except OSError as error:
                self.session.fail("could not remove older averages", error)

    def _tokenizer(self, model: nn.Module) -> Any:
        """The tokenizer to save with an average; None if none is known."""
        with suppress(ValueError):
            return self.monitor.observer.tokenizer or load_own_tokenizer(model)

    def _load_average(self, step: int, pl_module: pl.LightningModule) -> None:
        folder, model = average_folder(self._folder, step), self._model(pl_module)
        if not folder.is_dir():
            raise ValueError(f"expected the best average in {folder}, which is missing")
        if not _trains_more(pl_module, model):
            load_average(folder, model)
        elif (folder / MODULE_FILE).is_file():
            _load_checkpoint(folder / MODULE_FILE, pl_module, step)
        else:
            raise ValueError(f"expected the weights of the whole module in {folder / MODULE_FILE}")

    # Measure, decide, stop

    def _saved_history(self, trainer: pl.Trainer) -> RunHistory:
        """The history in the checkpoint of a resumed run; without records for a new run.

        A checkpoint that was saved before its step's score lacks it; the history file has it.
        """
        saved, self._saved = self._saved, {}
        if not saved:
            return RunHistory()
        path = Path(trainer.default_root_dir) / HISTORY_FILE
        whole = Ranks.of_run().of_first(continuation(path, from_state(saved)))
        return whole.where(lambda record: record.step <= trainer.global_step)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.session.stays_stopped:
            return
        last = trainer.global_step == trainer.max_steps
        scored = None
        if self.session.is_due(trainer.global_step, last):
            scored = self._scored(trainer, pl_module)
        if self.history:
            found = scalars(self.history[-1])
            values = {key.removeprefix("eval_"): value for key, value in found.items()}
            pl_module.log_dict(values, logger=False)  # for callbacks; loggers get them below
        if scored is None:
            return
        record, decision = scored
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if decision.stop:
            trainer.should_stop = True
        self.session.announce(record, decision)

    def _scored(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[Record, Decision] | None:
        # A tensor that a module caches in inference mode could not be used in training.
        with torch.inference_mode(False):
            scored = self.session.measure(
                self._model(pl_module),
                trainer.global_step,
                float(trainer.current_epoch),
                trainer.default_root_dir,
            )
            if scored is not None and scored[1].best_step == scored[0].step:
                with self.session.overhead.counted():
                    self._keep(trainer, pl_module, scored[0])
        return scored

    def _model(self, pl_module: pl.LightningModule) -> nn.Module:
        if callable(self.model):
            return self.model(pl_module)
        if self.model is not None:
            return pl_module.get_submodule(self.model)
        inside = [name for name, part in pl_module.named_modules() if _is_model(part)]
        outer = [name for name in inside if not any(_holds(other, name) for other in inside)]
        if len(outer) != 1:
            raise ValueError(
                f"expected one model of transformers in {type(pl_module).__name__}, found "
                f"{', '.join(outer) or 'none'}; name the one to score: model='...'"
            )
        return pl_module.get_submodule(outer[0])


class _ModuleAverages(RunningAverages):
    """Averages of a whole LightningModule, put into it while the model in it is scored."""

    def __init__(self, pl_module: pl.LightningModule, model: nn.Module, **options: Any) -> None:
        super().__init__(pl_module, **options)
        self._module = pl_module

    @contextmanager
    def applied(self, model: nn.Module, name: str) -> Iterator[None]:
        with super().applied(self._module, name):
            yield


def _averages_in(saved: dict[str, Any]) -> dict[str, Any]:
    """The state of the averages in a callback's saved state.

    Raises:
        ValueError: there is none.
    """
    if "averages" not in saved:
        raise ValueError("the checkpoint has none")
    averages: dict[str, Any] = saved["averages"]
    return averages


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    """Copies that later steps leave alone while a checkpoint is being written."""
    averages = {
        name: {key: tensor.to("cpu", copy=True) for key, tensor in tensors.items()}
        for name, tensors in state["averages"].items()
    }
    return state | {"averages": averages}


def _may_save(trainer: pl.Trainer) -> bool:
    """True if the Trainer saves checkpoints."""
    return bool(trainer.checkpoint_callbacks) and not trainer.fast_dev_run


def _trains_more(pl_module: pl.LightningModule, model: nn.Module) -> bool:
    """True if the module trains weights outside of the scored model."""
    inside = set(map(id, model.parameters()))
    return any(p.requires_grad and id(p) not in inside for p in pl_module.parameters())


def _load_checkpoint(path: str | Path, pl_module: pl.LightningModule, step: int) -> None:
    """Put the weights in a Lightning checkpoint of this run into the module, in place.

    Raises:
        ValueError: it is of another step.
    """
    saved = torch.load(path, map_location="cpu", weights_only=False)  # may hold any object
    if saved["global_step"] != step:
        raise ValueError(f"expected step {step} in {path}, got step {saved['global_step']}")
    pl_module.load_state_dict(saved["state_dict"], strict=pl_module.strict_loading)


def _planned_scores(trainer: pl.Trainer, every_n_steps: int | None) -> tuple[int, int, str]:
    """Number of scores, number of steps, and the setting to change for more scores."""
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or not math.isfinite(trainer.num_training_batches):
        return MIN_SCORES, 1, ""  # no end is known
    batches = int(steps) * trainer.accumulate_grad_batches
    if trainer.enable_validation and trainer.check_val_every_n_epoch is None:
        count = batches // int(trainer.val_check_batch)
        return count, int(steps), "Trainer(val_check_interval={})"
    if trainer.enable_validation:
        epochs = max(1, round(batches / trainer.num_training_batches))
        each = max(1, int(trainer.num_training_batches // trainer.val_check_batch))
        count = epochs // trainer.check_val_every_n_epoch * each
        return count, int(steps), "Trainer(val_check_interval={})"
    every = every_n_steps or trainer.num_training_batches / trainer.accumulate_grad_batches
    return math.ceil(steps / every), int(steps), "every_n_steps={}"


def _is_model(part: nn.Module) -> bool:
    """True for models of transformers, PEFT and sentence-transformers."""
    kinds = {kind.__name__ for kind in type(part).__mro__}
    return isinstance(part, PreTrainedModel) or bool(kinds & {"PeftModel", "SentenceTransformer"})


def _holds(outer: str, inner: str) -> bool:
    return inner.startswith(f"{outer}.")
