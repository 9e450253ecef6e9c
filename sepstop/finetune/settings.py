"""The settings of a run: those of a YAML file, overridden by options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from transformers import TrainingArguments

from sepstop.config import SepStopConfig

_DESCRIPTION = (
    "Fine-tune a model on labeled texts; sepstop scores unlabeled ones, stops the run and keeps "
    "the best weights. The model gets a head for the classes. With data.prompt it answers with "
    "the name of the class. Each setting below can stand in the YAML file, data.train for example "
    "as `train:` in the section `data:`; options override the file. To write such a file, put "
    "--print_config=skip_default behind the options that you need."
)


@dataclass
class ModelSettings:
    """The model to fine-tune.

    Args:
        name: hub name or folder.
        trust_remote_code: allow the model to bring code of its own.
        lora: settings of peft.LoraConfig. Default: train all weights.
    """

    name: str
    trust_remote_code: bool = False
    lora: dict[str, Any] | None = None


@dataclass
class DataSettings:
    """The labeled data and the unlabeled pool.

    Args:
        train: hub name of a dataset, or a .jsonl, .json, .csv or .parquet file. See
            sepstop.utils.labels for what is a text and what is a label.
        subset: name of the hub dataset's configuration.
        split: split of the hub dataset to train on.
        validation: labeled file, or split of the hub dataset, for Trainer's own evaluations.
            sepstop needs none.
        text_column: column with the texts.
        label_column: column with the labels: class names, integers or booleans. A row without a
            label belongs to the pool.
        labeled_rows: train on this many random rows. Default: all rows with a label.
        pool: file with unlabeled texts. Default: the rest of the training split, without labels.
        max_length: truncate texts to this many tokens, in training and, unless sepstop.max_length
            is set, in the pool.
        seed: seed of the choice of labeled rows.
        prompt: prompt for a language model that is to answer with the name of the class, with
            {text} in it. Default: train a head.
        answer: answer to a prompt, with {label} in it.
        chat: prompt and answer are messages for the tokenizer's chat template. Set answer to
            "{label}" then.
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
    prompt: str | None = None
    answer: str = " {label}"
    chat: bool = False


def read_settings(arguments: Sequence[str] | None = None) -> Namespace:
    """The settings of the YAML file and the options, each section as an object.

    Args:
        arguments: of the command. Default: those of this process.

    Raises:
        SystemExit: an unknown, ill-typed or missing setting, with status 2; or ``--help``.
    """
    parser = build_parser()
    try:
        data = parser.parse_args(arguments).data
        # Texts of the pool are read and truncated like those of the data, unless said otherwise.
        parser.set_defaults({"sepstop.max_length": data.max_length})
        if data.pool:
            parser.set_defaults({"sepstop.text_column": data.text_column})
        return parser.instantiate(parser.parse_args(arguments))
    except UnicodeDecodeError as error:
        parser.error(f"expected UTF-8 text in the configuration: {error}")
    except ValueError as error:
        parser.error(str(error))


def build_parser() -> ArgumentParser:
    """The parser of all settings: the sections model, data, sepstop and training, and resume."""
    parser = ArgumentParser(
        prog="sepstop finetune",
        usage="%(prog)s [--config FILE] [--SECTION.SETTING VALUE]...",
        description=_DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with the settings.")
    parser.add_argument("--model", type=ModelSettings)
    parser.add_argument("--data", type=DataSettings)
    parser.add_argument("--sepstop", type=SepStopConfig)
    parser.add_argument(
        "--resume", type=bool, default=False, help="Resume from the last checkpoint."
    )
    parser.add_class_arguments(TrainingArguments, "training", fail_untyped=False)
    return parser
