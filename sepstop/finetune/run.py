"""A run of `sepstop finetune`, from its settings to what it kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

from sepstop.callbacks.progress import LiveView
from sepstop.callbacks.trainer import SepStopCallback
from sepstop.finetune.answers import answers_trainer
from sepstop.finetune.classifier import classifier_trainer
from sepstop.finetune.data import columns_of, load_data
from sepstop.finetune.outcome import MODEL_FOLDER, what_was_kept
from sepstop.finetune.resume import check_classes, last_checkpoint
from sepstop.finetune.settings import ModelSettings, read_settings
from sepstop.utils.labels import CLASSES_FILE

POOL_FILE = "pool.jsonl"
"""The pool, in the folder of a run, for `sepstop select` and `sepstop report`."""


def main(arguments: Sequence[str] | None = None) -> tuple[Trainer, SepStopCallback]:
    """Fine-tune a model and say what was kept.

    Args:
        arguments: options, see `sepstop finetune --help`. Default: those of this process.

    Returns:
        The Trainer and the callback after training.

    Raises:
        SystemExit, OSError, ValueError, ImportError: as `set_up`.
    """
    trainer, callback, checkpoint, names = set_up(arguments)
    train(trainer, callback, checkpoint, names)
    return trainer, callback


def set_up(
    arguments: Sequence[str] | None = None,
) -> tuple[Trainer, SepStopCallback, str | None, list[str]]:
    """Trainer and callback, ready to train, the checkpoint to resume from, and the classes.

    Raises:
        SystemExit: a wrong option, with status 2.
        OSError, ValueError, ImportError: an unusable model, unusable data, or a missing package.
    """
    settings = read_settings(arguments)
    args: TrainingArguments = settings.training
    set_seed(args.seed)
    checkpoint = last_checkpoint(args.output_dir, settings.resume)
    data = load_data(settings.data)
    if checkpoint is not None:
        check_classes(args.output_dir, data.names)
    tokenizer = _load_tokenizer(settings.model)
    make = classifier_trainer if settings.data.prompt is None else answers_trainer
    trainer, callback = make(settings, data, tokenizer)
    callback.attach(trainer)
    LiveView(callback).attach(trainer)
    if trainer.is_world_process_zero():
        sizes = len(data.train), len(data.names), len(callback.monitor.pool)
        print("{} labeled rows, {} classes, pool of {} texts".format(*sizes))
    return trainer, callback, checkpoint, data.names


def train(
    trainer: Trainer, callback: SepStopCallback, checkpoint: str | None, names: list[str]
) -> None:
    """Train, save the model, and say what was kept.

    Args:
        trainer, callback, checkpoint, names: of `set_up`.
    """
    output, is_first = Path(trainer.args.output_dir), trainer.is_world_process_zero()
    if is_first:
        datasets.Dataset.from_dict(columns_of(callback.monitor.pool)).to_json(output / POOL_FILE)
        (output / CLASSES_FILE).write_text(json.dumps(names))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(output / MODEL_FOLDER))  # all processes take part if weights are divided
    if is_first:
        print(what_was_kept(trainer, callback))


def _load_tokenizer(settings: ModelSettings) -> Any:
    try:
        return AutoTokenizer.from_pretrained(
            settings.name, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            "expected the folder or the hub name of a model with a tokenizer as model.name, got "
            f"{settings.name}: {error}"
        ) from error
