"""Callback for a Lightning Trainer: its events to those of a `Session`.

Relies on these habits of Lightning (2.6): a ``ModelCheckpoint`` sees the values that are logged in
``on_validation_epoch_end`` of the same validation; the state of a callback is loaded before
``on_train_start``; validation runs in inference mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

try:
    import lightning.pytorch as pl
except ImportError:  # its older name
    import pytorch_lightning as pl

from sepstop.callbacks.checks import MIN_SCORES, warn_of_few_scores
from sepstop.callbacks.session import Session
from sepstop.config import CriterionSpec, PolicySpec, PoolingSpec, Precision, SepStopConfig
from sepstop.measure.monitor import Monitor
from sepstop.measure.training_labels import label_names, training_labels
from sepstop.runs.history import HISTORY_FILE, continuation, scalars
from sepstop.runs.records import RunHistory, from_state, to_state
from sepstop.types import Decision, Record
from sepstop.utils.distributed import Ranks

_PRECISIONS: dict[str, Precision] = {"bf16-mixed": "bf16", "16-mixed": "fp16"}
"""Precisions in which Lightning's own forward passes run under autocast."""


class SepStopCallback(pl.Callback):
    """`sepstop.SepStopCallback` for a Lightning Trainer.

    The pool is scored at each validation, and the scores are logged by their names: name the one
    that decides in ``ModelCheckpoint(monitor="neighbor_mi", mode="max")`` to keep its best
    checkpoint. Without validations, the pool is scored every ``every_n_steps`` steps, by default at
    the end of each epoch. The Trainer stops when the policy says so::

        Trainer(callbacks=[SepStopCallback(texts, tokenizer=tokenizer),
                           ModelCheckpoint(monitor="neighbor_mi", mode="max")])

    Args:
        pool: unlabeled texts, see `sepstop.measure.pool.read_pool`.
        model: the model to score: a name in the LightningModule, such as "backbone.encoder", or a
            function of the LightningModule. Default: the only model of transformers in it.
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
        continue_after_stop: bool = False,
        on_error: Literal["skip", "raise"] = "skip",
        progress: bool = True,
        verbose: bool = True,
    ) -> None:
        self.config = SepStopConfig.of(locals())
        self.session = Session(pool, self.config)
        self.model = model
        self._saved: dict[str, Any] = {}

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
        model = self._model(pl_module)
        session = self.session
        self.monitor.observer.distributed = True
        labels = training_labels(getattr(trainer, "train_dataloader", None), label_names(model))
        session.prepare(model, labels=labels, precision=_PRECISIONS.get(str(trainer.precision)))
        warn_of_few_scores(*_planned_scores(trainer, self.config.every_n_steps))
        session.announce_start("checkpoints are kept as ModelCheckpoint says")
        session.resume(self._saved_history(trainer))
        session.write(trainer.default_root_dir)
        if session.settle_stop():
            trainer.should_stop = True
        else:
            session.set_reference(trainer.default_root_dir, trainer.global_step, model)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
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
        self.session.end(
            trainer.default_root_dir,
            trainer.global_step,
            "expected a validation; set val_check_interval or check_val_every_n_epoch to have one, "
            "or leave validation out and set every_n_steps",
        )

    def state_dict(self) -> dict[str, Any]:
        # Before training, it is not known which score decides.
        return to_state(self.session.recorded()) if self.session.decides else {}

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
            return self.session.measure(
                self._model(pl_module),
                trainer.global_step,
                float(trainer.current_epoch),
                trainer.default_root_dir,
            )

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


def _planned_scores(trainer: pl.Trainer, every_n_steps: int | None) -> tuple[int, int, str]:
    """Number of scores, number of steps, and the setting to change for more scores."""
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or not math.isfinite(trainer.num_training_batches):
        return MIN_SCORES, 1, ""  # no end is known
    batches = int(steps) * trainer.accumulate_grad_batches
    if trainer.enable_validation:
        epochs = max(1, round(batches / trainer.num_training_batches))
        each = max(1, int(trainer.num_training_batches // trainer.val_check_batch))
        count = epochs // (trainer.check_val_every_n_epoch or 1) * each
        return count, int(steps), "Trainer(val_check_interval={})"
    every = every_n_steps or trainer.num_training_batches / trainer.accumulate_grad_batches
    return math.ceil(steps / every), int(steps), "every_n_steps={}"


def _is_model(part: nn.Module) -> bool:
    """True for models of transformers, PEFT and sentence-transformers."""
    kinds = {kind.__name__ for kind in type(part).__mro__}
    return isinstance(part, PreTrainedModel) or bool(kinds & {"PeftModel", "SentenceTransformer"})


def _holds(outer: str, inner: str) -> bool:
    return inner.startswith(f"{outer}.")
