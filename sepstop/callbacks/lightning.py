"""Lightning's events to measure, decide, stop; all else is `sepstop.callbacks.session.Watch`.

Relies on these habits of Lightning (2.6): values logged in ``on_validation_epoch_end`` are there
for a ``ModelCheckpoint`` at the same validation; the state of a callback comes back before
``on_train_start``; validation runs in inference mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

try:
    import lightning.pytorch as pl
except ImportError:  # its older name
    import pytorch_lightning as pl

from sepstop.callbacks.checks import FEWEST, warn_of_few_scores
from sepstop.callbacks.session import Watch
from sepstop.measure.embedding import Precision
from sepstop.measure.heads import label_names, training_labels
from sepstop.runs import history as rows
from sepstop.types import Decision, Record
from sepstop.utils.distributed import Ranks

_PRECISIONS: dict[str, Precision] = {"bf16-mixed": "bf16", "16-mixed": "fp16"}
"""Those in which Lightning's own forward passes run under autocast."""


class SepStopCallback(Watch, pl.Callback):
    """`sepstop.SepStopCallback` for a Lightning Trainer.

    The pool is scored at each validation, and ``separability`` and ``information`` are logged: name
    one in ``ModelCheckpoint(monitor="information", mode="max")`` to keep its best. Without
    validations the pool is scored on a schedule of its own. When the policy says so, the Trainer is
    told to stop.

    >>> # Trainer(callbacks=[SepStopCallback(texts, tokenizer=tokenizer),
    >>> #                    ModelCheckpoint(monitor="information", mode="max")])

    Args:
        pool, criterion, policy, embedder, continue_after_stop, on_error, verbose,
            **monitor_options: as of `sepstop.SepStopCallback`. Where the model does not tell its
            folder or hub name, give the ``tokenizer``.
        every_n_steps: score at those validations that come so many steps after the last score, by
            default at all; without validation a schedule of its own, by default each epoch.
        model: the model to score, a name as "backbone.encoder" in the LightningModule, or a
            function of the LightningModule; by default the only model of transformers in it.

    Raises:
        FileNotFoundError, ValueError: on construction, or before the first step.
    """

    def __init__(
        self,
        pool: Any,
        criterion: Any = None,
        policy: Any = None,
        embedder: Any = None,
        *,
        model: str | Callable[[Any], nn.Module] | None = None,
        every_n_steps: int | None = None,
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
        self.model = model
        self._saved: dict[str, Any] = {}

    # Events, in the order in which the Trainer fires them

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = self._model(pl_module)
        self.monitor.distributed = True
        labels = training_labels(getattr(trainer, "train_dataloader", None), label_names(model))
        precision = _PRECISIONS.get(str(trainer.precision))
        self.monitor.prepare(model, labels=labels, precision=precision)
        warn_of_few_scores(*_planned_scores(trainer, self.every_n_steps))
        self._restore(self._saved_history(trainer))
        self._write_down(trainer.default_root_dir)
        if self._stays_stopped():
            trainer.should_stop = True
        else:
            self._recall_neighbors(trainer.default_root_dir, trainer.global_step, model)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        every = 0 if trainer.enable_validation else self.every_n_steps
        last = trainer.global_step == trainer.max_steps
        if every and trainer.global_step and (trainer.global_step % every == 0 or last):
            self._measure(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.enable_validation and not self.every_n_steps:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end(trainer.default_root_dir, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return rows.to_state(self._recorded())

    # Measure, decide, stop

    def _saved_history(self, trainer: pl.Trainer) -> rows.RunHistory:
        """What the checkpoint of a resumed run recorded; nothing for a new run.

        A checkpoint that was saved before its step's score lacks it; the history file has it.
        """
        saved, self._saved = self._saved, {}
        if not saved:
            return rows.RunHistory()
        path = Path(trainer.default_root_dir) / rows.HISTORY_FILE
        whole = Ranks.of_run().of_first(rows.continuation(path, rows.from_state(saved)))
        return whole.where(lambda record: record.step <= trainer.global_step)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._stopped_before:
            return
        last = trainer.global_step == trainer.max_steps
        scored = None
        if self._is_due(trainer.global_step, last):
            scored = self._scored(trainer, pl_module)
        if self.history:
            found = rows.scalars(self.history[-1])
            values = {key.removeprefix("eval_"): value for key, value in found.items()}
            pl_module.log_dict(values, logger=False)  # for other callbacks; loggers get them below
        if scored is None:
            return
        record, decision = scored
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if decision.stop:
            trainer.should_stop = True
        self._announce(record, decision)

    def _scored(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[Record, Decision] | None:
        # What a module caches in inference mode could not be trained on afterwards.
        with torch.inference_mode(False):
            return self._score(
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
    """How often the pool will be scored in how many steps, and what to set for more."""
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or not math.isfinite(trainer.num_training_batches):
        return FEWEST, 1, ""  # no end is known
    batches = int(steps) * trainer.accumulate_grad_batches
    if trainer.enable_validation:
        epochs = max(1, round(batches / trainer.num_training_batches))
        each = max(1, int(trainer.num_training_batches // trainer.val_check_batch))
        count = epochs // (trainer.check_val_every_n_epoch or 1) * each
        return count, int(steps), "Trainer(val_check_interval={})"
    every = every_n_steps or trainer.num_training_batches / trainer.accumulate_grad_batches
    return math.ceil(steps / every), int(steps), "every_n_steps={}"


def _is_model(part: nn.Module) -> bool:
    """Also a PEFT model and a SentenceTransformer, which hold one of transformers."""
    kinds = {kind.__name__ for kind in type(part).__mro__}
    return isinstance(part, PreTrainedModel) or bool(kinds & {"PeftModel", "SentenceTransformer"})


def _holds(outer: str, inner: str) -> bool:
    return inner.startswith(f"{outer}.")
