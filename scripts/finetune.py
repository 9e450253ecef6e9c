"""Fine-tune a classifier on few labels; sepstop watches the rest of the data and stops the run.

    python scripts/finetune.py --config configs/encoder.yaml
    python scripts/finetune.py --config configs/encoder.yaml --training.learning_rate 3e-5

Every setting of the YAML file can be overridden by an option of the same name; --help lists
them. A run that was interrupted goes on with --resume true.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from jsonargparse import ArgumentParser
from sklearn.metrics import accuracy_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME

from sepstop import SepStopCallback
from sepstop.integrations.terminal import LiveView
from sepstop.sources import find_checkpoints

POOL_FILE = "pool.jsonl"
NO_LABEL = -1
_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass
class ModelSettings:
    """The model to fine-tune.

    Args:
        name: hub name or folder.
        trust_remote_code: allow the model to bring code of its own.
        lora: settings of peft.LoraConfig; none trains all weights.
    """

    name: str
    trust_remote_code: bool = False
    lora: dict[str, Any] | None = None


@dataclass
class DataSettings:
    """The labelled data and the pool.

    Args:
        train: hub name of a data set, or a .jsonl, .json, .csv or .parquet file.
        subset: name of the hub data set's configuration.
        split: split of the hub data set to train on.
        validation: labelled file, or split of the hub data set, for Trainer's own evaluations;
            sepstop needs none.
        text_column: the texts.
        label_column: the labels, strings or integers; a row may have none.
        labeled_rows: train on this many random rows; all that have a label by default.
        pool: file of unlabeled texts; by default the rest of the training split, labels dropped.
        max_length: texts are cut at this many tokens, in training and in the pool.
        seed: of the choice of the labelled rows.
    """

    train: str
    subset: str | None = None
    split: str = "train"
    validation: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    labeled_rows: int | None = None
    pool: str | None = None
    max_length: int = 128
    seed: int = 0


@dataclass
class LabelledData:
    """What the run is made of: rows of ``text`` and an integer ``label``, and a pool."""

    train: datasets.Dataset
    validation: datasets.Dataset | None
    pool: datasets.Dataset | str
    names: list[str]


def main(arguments: list[str] | None = None) -> tuple[Trainer, SepStopCallback]:
    """Run the script; returns what a caller may want to look at afterwards."""
    trainer, callback, checkpoint = set_up(arguments)
    output, pool = Path(trainer.args.output_dir), callback.monitor.pool
    if trainer.is_world_process_zero():
        datasets.Dataset.from_dict({"text": pool.rows}).to_json(output / POOL_FILE)
    trainer.train(resume_from_checkpoint=checkpoint)

    if trainer.is_world_process_zero():
        trainer.save_model(str(output / "model"))
        if callback.decision is not None:
            print(f"best step {callback.decision.best_step}: {callback.decision.reason}")
    return trainer, callback


def set_up(arguments: list[str] | None = None) -> tuple[Trainer, SepStopCallback, str | None]:
    """Trainer and callback, ready to train, and the checkpoint to go on from."""
    parser = build_parser()
    try:
        config = parser.parse_args(arguments)
    except UnicodeDecodeError as error:
        parser.error(f"expected UTF-8 text in the configuration: {error}")
    config = parser.instantiate(config)
    args: TrainingArguments = config.training
    checkpoint = last_checkpoint(args.output_dir, config.resume)

    set_seed(args.seed)
    data = load_data(config.data)
    tokenizer = AutoTokenizer.from_pretrained(
        config.model.name, trust_remote_code=config.model.trust_remote_code
    )
    model = load_model(config.model, data.names, tokenizer)
    callback = SepStopCallback(
        data.pool,
        **{
            "text_column": config.data.text_column if config.data.pool else "text",
            "max_length": config.data.max_length,
            **config.sepstop,
        },
    )

    def tokenize(split: datasets.Dataset | None) -> datasets.Dataset | None:
        return split and split.map(
            lambda rows: tokenizer(
                rows["text"], truncation=True, max_length=config.data.max_length
            ),
            batched=True,
            remove_columns=["text"],
        )

    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=tokenize(data.train),
        eval_dataset=tokenize(data.validation),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=[callback],
    )
    callback.attach(trainer)
    LiveView(callback).attach(trainer)
    pool = callback.monitor.pool
    print(f"{len(data.train)} labelled rows, {len(data.names)} classes, pool of {len(pool)} texts")
    return trainer, callback, checkpoint


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file with the settings.")
    parser.add_argument("--model", type=ModelSettings)
    parser.add_argument("--data", type=DataSettings)
    parser.add_argument(
        "--sepstop", type=dict[str, Any], default={}, help="Arguments of SepStopCallback."
    )
    parser.add_argument(
        "--resume", type=bool, default=False, help="Go on from the last checkpoint."
    )
    parser.add_class_arguments(TrainingArguments, "training", fail_untyped=False)
    return parser


def load_data(settings: DataSettings) -> LabelledData:
    """Labelled rows and pool, disjoint; the classes are those of the whole training split."""
    if settings.labeled_rows is not None and settings.labeled_rows < 1:
        raise SystemExit(f"expected data.labeled_rows >= 1, got {settings.labeled_rows}")
    rows = read_rows(settings, settings.train, settings.split)
    names = class_names(rows, settings.train)
    rows = number_labels(rows, names, settings.train).shuffle(seed=settings.seed)
    labelled = np.flatnonzero(np.array(rows["label"]) != NO_LABEL)[: settings.labeled_rows]
    rest = np.setdiff1d(np.arange(len(rows)), labelled)
    if not len(rest) and settings.pool is None:
        raise SystemExit(
            f"all {len(rows)} rows are labelled ones, which leaves no pool: "
            "give data.labeled_rows or data.pool"
        )
    validation = None
    if settings.validation:
        validation = read_rows(settings, settings.validation, settings.validation)
        validation = number_labels(validation, names, settings.validation)
        if NO_LABEL in validation["label"]:
            raise SystemExit(f"{settings.validation} has rows without a label")
    return LabelledData(
        train=rows.select(labelled),
        validation=validation,
        pool=settings.pool or rows.select(rest).select_columns(["text"]),
        names=names,
    )


def read_rows(settings: DataSettings, file: str, split: str) -> datasets.Dataset:
    """``text`` and ``label`` of a file, or else of a split of the hub data set."""
    path = Path(file)
    if path.suffix in _BUILDERS:
        if not path.is_file():
            raise SystemExit(f"no data file at {path}")
        rows = datasets.load_dataset(_BUILDERS[path.suffix], data_files=file, split="train")
    else:
        rows = datasets.load_dataset(settings.train, settings.subset, split=split)
    columns = {settings.text_column: "text", settings.label_column: "label"}
    for column in columns:
        if column not in rows.column_names:
            raise SystemExit(
                f"no column {column!r} in {file}; it has {', '.join(rows.column_names)}"
            )
    if len(columns) < 2:
        raise SystemExit(f"{settings.text_column!r} can't be both texts and labels")
    return rows.select_columns(list(columns)).rename_columns(columns)


def class_names(rows: datasets.Dataset, file: str) -> list[str]:
    """Classes in the data set's own order; else integers by size and strings by the alphabet."""
    label = rows.features["label"]
    if isinstance(label, datasets.ClassLabel):
        return list(label.names)
    values = [value for value in rows.unique("label") if value is not None]
    if not all(isinstance(value, (str, int)) for value in values):
        raise SystemExit(f"expected strings or integers as labels in {file}, got {values[0]!r}")
    if len(values) < 2:
        raise SystemExit(f"expected at least 2 classes in {file}, got {values}")
    return [str(value) for value in sorted(values)]


def number_labels(rows: datasets.Dataset, names: list[str], file: str) -> datasets.Dataset:
    """Labels as places in ``names``; NO_LABEL where a row has none."""
    label = rows.features["label"]
    numbers = {name: number for number, name in enumerate(names)}

    def number(value: Any) -> int:
        if value is None or (isinstance(label, datasets.ClassLabel) and value == NO_LABEL):
            return NO_LABEL
        name = label.int2str(value) if isinstance(label, datasets.ClassLabel) else str(value)
        if name not in numbers:
            raise SystemExit(f"{file} has a label {name!r} that the training split has not")
        return numbers[name]

    labels = [number(value) for value in rows["label"]]
    return rows.remove_columns("label").add_column("label", labels)


def load_model(settings: ModelSettings, names: list[str], tokenizer: Any) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(
        settings.name,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        trust_remote_code=settings.trust_remote_code,
    )
    if tokenizer.pad_token is None:  # most decoders have none
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if settings.lora is None:
        return model
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise SystemExit("model.lora needs peft: pip install 'sepstop[peft]'") from error
    return get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, **settings.lora))


def last_checkpoint(output_dir: str, resume: bool) -> str | None:
    """Where to go on from; refuses to mix two runs in one folder.

    A run that was killed while it saved leaves a checkpoint without its state, which comes last.
    """
    try:
        found = find_checkpoints(output_dir)
    except FileNotFoundError:
        return None
    if not resume:
        raise SystemExit(
            f"{output_dir} holds checkpoints of an earlier run: go on with --resume true, "
            "or choose another --training.output_dir"
        )
    for _, path in sorted(found.items(), reverse=True):
        try:
            TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
        except (OSError, ValueError, TypeError) as error:
            print(f"{path} was not saved whole ({error}); going on from the one before")
        else:
            return str(path)
    return None


def accuracy(prediction: Any) -> dict[str, float]:
    chosen = np.argmax(prediction.predictions, axis=-1)
    return {"accuracy": float(accuracy_score(prediction.label_ids, chosen))}


if __name__ == "__main__":
    main()
