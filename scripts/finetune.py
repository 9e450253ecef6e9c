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
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from sepstop import SepStopCallback
from sepstop.history import FILE_NAME, write_history

POOL_FILE = "pool.jsonl"
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
        label_column: the labels, strings or integers.
        labeled_rows: train on this many random rows; all by default, which needs a `pool`.
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
    """What the run is made of: rows of ``text_column`` and an integer ``label``."""

    train: datasets.Dataset
    validation: datasets.Dataset | None
    pool: datasets.Dataset | str
    names: list[str]


def main(arguments: list[str] | None = None) -> tuple[Trainer, SepStopCallback]:
    """Run the script; returns what a caller may want to look at afterwards."""
    parser = build_parser()
    config = parser.parse_args(arguments)
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
        text_column=config.data.text_column,
        max_length=config.data.max_length,
        **config.sepstop,
    )

    def tokenize(split: datasets.Dataset | None) -> datasets.Dataset | None:
        return split and split.map(
            lambda rows: tokenizer(
                rows[config.data.text_column], truncation=True, max_length=config.data.max_length
            ),
            batched=True,
            remove_columns=[config.data.text_column],
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
    pool = callback.monitor.pool
    print(f"{len(data.train)} labelled rows, {len(data.names)} classes, pool of {len(pool)} texts")
    output = Path(args.output_dir)
    if trainer.is_world_process_zero():
        datasets.Dataset.from_dict({"text": pool.rows}).to_json(output / POOL_FILE)
    trainer.train(resume_from_checkpoint=checkpoint)

    if trainer.is_world_process_zero():
        trainer.save_model(str(output / "model"))
        write_history(output / FILE_NAME, callback.history)
        if callback.decision is not None:
            print(f"best step {callback.decision.best_step}: {callback.decision.reason}")
    return trainer, callback


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
    rows = read_rows(settings, settings.train, settings.split)
    label = rows.features["label"]
    rows = rows.shuffle(seed=settings.seed)
    labelled = settings.labeled_rows or len(rows)
    if labelled >= len(rows) and settings.pool is None:
        raise SystemExit(
            f"all {len(rows)} rows are labelled ones, which leaves no pool: "
            "give data.labeled_rows or data.pool"
        )
    validation = None
    if settings.validation:
        numbers = {name: number for number, name in enumerate(label.names)}
        validation = read_rows(settings, settings.validation, settings.validation)
        validation = validation.align_labels_with_mapping(numbers, "label")
    rest = range(min(labelled, len(rows)), len(rows))
    return LabelledData(
        train=rows.select(range(min(labelled, len(rows)))),
        validation=validation,
        pool=settings.pool or rows.select(rest).select_columns([settings.text_column]),
        names=label.names,
    )


def read_rows(settings: DataSettings, file: str, split: str) -> datasets.Dataset:
    """Text column and class ``label`` of a file, or else of a split of the hub data set."""
    path = Path(file)
    if path.suffix in _BUILDERS:
        if not path.is_file():
            raise SystemExit(f"no data file at {path}")
        rows = datasets.load_dataset(_BUILDERS[path.suffix], data_files=file, split="train")
    else:
        rows = datasets.load_dataset(settings.train, settings.subset, split=split)
    for column in (settings.text_column, settings.label_column):
        if column not in rows.column_names:
            raise SystemExit(
                f"no column {column!r} in {file}; it has {', '.join(rows.column_names)}"
            )
    rows = rows.select_columns([settings.text_column, settings.label_column])
    if settings.label_column != "label":
        rows = rows.rename_column(settings.label_column, "label")
    if not isinstance(rows.features["label"], datasets.ClassLabel):
        rows = rows.class_encode_column("label")
    return rows


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
    """Where to go on from; refuses to mix two runs in one folder."""
    found = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    if found and not resume:
        raise SystemExit(
            f"{output_dir} holds checkpoints of an earlier run: go on with --resume true, "
            "or choose another --training.output_dir"
        )
    return found


def accuracy(prediction: Any) -> dict[str, float]:
    chosen = np.argmax(prediction.predictions, axis=-1)
    return {"accuracy": float(accuracy_score(prediction.label_ids, chosen))}


if __name__ == "__main__":
    main()
