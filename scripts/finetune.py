"""Fine-tune a model on few labels; sepstop scores the rest of the data and stops the run.

The model gets a head for the classes. With data.prompt it answers with the name of the class.

    python scripts/finetune.py --config configs/encoder.yaml
    python scripts/finetune.py --config configs/encoder.yaml --training.learning_rate 3e-5

Every setting of the YAML file can be overridden by an option of the same name; --help lists them.
To resume an interrupted run, add --resume true.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import sft
import torch
from jsonargparse import ArgumentParser, Namespace
from sklearn.metrics import accuracy_score
from transformers import (
    AutoConfig,
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
from sepstop.callbacks.best_weights import best_record, folder_of
from sepstop.callbacks.progress import LiveView
from sepstop.config import SepStopConfig
from sepstop.measure.pool import Pool, read_pool
from sepstop.measure.prompts import Chat
from sepstop.runs.checkpoints import find_checkpoints
from sepstop.utils.labels import NO_LABEL, LabeledTexts, Labels, read_labeled
from sepstop.utils.tables import SUFFIXES, is_file

POOL_FILE = "pool.jsonl"
CLASSES_FILE = "classes.json"
_CLASSIFIES = "single_label_classification"
_FRACTION = re.compile(r"[-+]?\d*\.\d+(e[-+]?\d+)?", re.IGNORECASE)


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


@dataclass
class TrainingData:
    """Training and validation rows, with ``text`` and an integer ``label``, and the pool."""

    train: datasets.Dataset
    validation: datasets.Dataset | None
    pool: datasets.Dataset | str
    names: list[str]


def main(arguments: list[str] | None = None) -> tuple[Trainer, SepStopCallback]:
    """Run the script; returns the Trainer and the callback after training."""
    trainer, callback, checkpoint, names = set_up(arguments)
    output, pool = Path(trainer.args.output_dir), callback.monitor.pool
    if trainer.is_world_process_zero():
        datasets.Dataset.from_dict(columns_of(pool)).to_json(output / POOL_FILE)
        (output / CLASSES_FILE).write_text(json.dumps(names))
    trainer.train(resume_from_checkpoint=checkpoint)

    if trainer.is_world_process_zero():
        trainer.save_model(str(output / "model"))
        print(what_was_kept(trainer, callback))
    return trainer, callback


def columns_of(pool: Pool) -> dict[str, Any]:
    """The pool as columns that `sepstop.measure.pool.read_pool` reads."""
    if pool.is_tokenized:
        types = {} if pool.token_type_ids is None else {"token_type_ids": pool.token_type_ids}
        return {"input_ids": pool.rows, **types}
    if isinstance(pool.rows[0], Chat):
        chats: Any = pool.rows
        return {
            "messages": [
                [{"role": role, "content": content} for role, content in chat.messages]
                for chat in chats
            ]
        }
    return {"text": pool.rows}


def what_was_kept(trainer: Trainer, callback: SepStopCallback) -> str:
    """The best weights, where they are, and whether OUTPUT_DIR/model holds them."""
    best, decision = best_record(callback.history, callback.decision), callback.decision
    if best is None or decision is None:
        return "no step has a score, so the last weights are kept"
    folder, model = folder_of(callback.run_dir, best), Path(trainer.args.output_dir) / "model"
    asks = trainer.args.load_best_model_at_end or callback.config.load_best_model_at_end
    if asks and trainer.state.best_global_step == best.step:
        holds = "the best weights"
    elif asks:
        holds = f"the best by {trainer.args.metric_for_best_model}"
    else:
        holds = "the last weights; to have the best there, set sepstop.load_best_model_at_end"
    return (
        f"best step {best.step}: {decision.reason}\n"
        f"best weights: {best.average or f'those of step {best.step}'}, "
        f"{f'in {folder}' if folder.is_dir() else 'not on disk'}\n"
        f"{model} holds {holds}"
    )


def set_up(
    arguments: list[str] | None = None,
) -> tuple[Trainer, SepStopCallback, str | None, list[str]]:
    """Trainer and callback, ready to train, the checkpoint to resume from, and the classes."""
    config = read_settings(arguments)
    args: TrainingArguments = config.training
    checkpoint = last_checkpoint(args.output_dir, config.resume)

    set_seed(args.seed)
    data = load_data(config.data)
    if checkpoint is not None:
        check_classes(Path(args.output_dir) / CLASSES_FILE, data.names)
    tokenizer = AutoTokenizer.from_pretrained(
        config.model.name, trust_remote_code=config.model.trust_remote_code
    )
    if config.data.prompt is not None:
        trainer, callback = of_answers(config, args, data, tokenizer)
    else:
        trainer, callback = of_classifier(config, args, data, tokenizer)
    callback.attach(trainer)
    LiveView(callback).attach(trainer)
    pool = callback.monitor.pool
    print(f"{len(data.train)} labeled rows, {len(data.names)} classes, pool of {len(pool)} texts")
    return trainer, callback, checkpoint, data.names


def of_answers(
    config: Namespace, args: TrainingArguments, data: TrainingData, tokenizer: Any
) -> tuple[Trainer, SepStopCallback]:
    """Of a language model that answers with the name of the class."""
    settings: DataSettings = config.data
    assert settings.prompt is not None
    prompt, chat = settings.prompt, settings.chat
    sft.check_templates(prompt, settings.answer)
    answers = sft.answers_of(data.names, settings.answer)
    measured: SepStopConfig = config.sepstop
    with exit_on_bad_data():
        texts = read_pool(data.pool, measured.text_column, measured.pool_size, measured.seed)
        own: dict[str, Any] = {"answers": answers, "answer_end": tokenizer.eos_token or ""}
        if measured.answers is not None:  # to do as if they were unknown, for instance
            own = {}
        prompts = sft.prompts_of(list(map(str, texts.rows)), prompt, chat)
        callback = SepStopCallback(prompts, **(vars(measured) | own))
    model = sft.load_language_model(
        config.model.name, config.model.trust_remote_code, config.model.lora
    )
    train = sft.rows_of(data.train, answers, prompt, chat)
    validation = data.validation and sft.rows_of(data.validation, answers, prompt, chat)
    length = settings.max_length
    return sft.sft_trainer(model, args, length, train, validation, tokenizer, callback), callback


def of_classifier(
    config: Namespace, args: TrainingArguments, data: TrainingData, tokenizer: Any
) -> tuple[Trainer, SepStopCallback]:
    """Of a model with a head for the classes."""
    model = load_model(config.model, data.names, tokenizer)
    with exit_on_bad_data():
        callback = SepStopCallback(data.pool, **vars(config.sepstop))

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
        preprocess_logits_for_metrics=only_logits,
        callbacks=[callback],
    )
    return trainer, callback


def read_settings(arguments: list[str] | None = None) -> Namespace:
    """The settings of the YAML file and the options, each part as an object."""
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
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with the settings.")
    parser.add_argument("--model", type=ModelSettings)
    parser.add_argument("--data", type=DataSettings)
    parser.add_argument("--sepstop", type=SepStopConfig)
    parser.add_argument(
        "--resume", type=bool, default=False, help="Resume from the last checkpoint."
    )
    parser.add_class_arguments(TrainingArguments, "training", fail_untyped=False)
    return parser


@contextmanager
def exit_on_bad_data() -> Iterator[None]:
    """Exit with the message of an error in the user's data."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error


@exit_on_bad_data()
def load_data(settings: DataSettings) -> TrainingData:
    """Labeled rows and pool, disjoint; the classes are those of the whole training split."""
    if settings.labeled_rows is not None and settings.labeled_rows < 1:
        raise SystemExit(f"expected data.labeled_rows >= 1, got {settings.labeled_rows}")
    found = read_rows(settings, settings.train, settings.split)
    names = class_names(found.labels)
    rows = numbered(found, names).shuffle(seed=settings.seed)
    labeled = np.flatnonzero(np.array(rows["label"]) != NO_LABEL)[: settings.labeled_rows]
    rest = np.setdiff1d(np.arange(len(rows)), labeled)
    unseen = sorted(set(range(len(names))) - set(np.array(rows["label"])[labeled]))
    if unseen:
        warnings.warn(
            f"sepstop: none of the {len(labeled)} labeled rows is of the class "
            f"{listed([names[number] for number in unseen], ordered=False)}: the model can't "
            "learn it; raise data.labeled_rows or change data.seed",
            stacklevel=3,
        )
    if not len(rest) and settings.pool is None:
        raise SystemExit(
            f"all {len(rows)} rows are labeled, which leaves no pool: set data.labeled_rows or "
            "data.pool"
        )
    validation = None
    if settings.validation:
        found = read_rows(settings, settings.validation, settings.validation)
        validation = numbered(found, names)
        if NO_LABEL in validation["label"]:
            raise SystemExit(f"{found.labels.table} has rows without a label")
    return TrainingData(
        train=rows.select(labeled),
        validation=validation,
        pool=settings.pool or rows.select(rest).select_columns(["text"]),
        names=names,
    )


def read_rows(settings: DataSettings, file: str, split: str) -> LabeledTexts:
    """Texts and labels of a file or of a split of the hub dataset."""
    columns = settings.text_column, settings.label_column
    suffix = Path(file).suffix.lower()
    if suffix in SUFFIXES or (suffix and is_file(Path(file))):
        return read_labeled(file, *columns)
    if is_file(Path(settings.train)):
        raise ValueError(
            f"data.train is a file, which has no splits: expected a file ending in "
            f"{', '.join(SUFFIXES)} as data.validation, got {file}"
        )
    rows = datasets.load_dataset(settings.train, settings.subset, split=split)
    return read_labeled(rows, *columns, kind=f"data {settings.train}, split {split}")


def class_names(labels: Labels) -> list[str]:
    """Names of the classes; at least two."""
    if len(labels.names) < 2:
        raise SystemExit(f"expected at least 2 classes in {labels.table}, got {labels.names}")
    fractions = [name for name in labels.names if _FRACTION.fullmatch(name)]
    if len(fractions) == len(labels.names):
        warnings.warn(
            f"sepstop: the labels of {labels.table} are numbers such as {fractions[0]}; each of "
            f"the {len(fractions)} becomes a class of its own",
            stacklevel=2,
        )
    return list(labels.names)


def numbered(rows: LabeledTexts, names: list[str]) -> datasets.Dataset:
    """Rows with ``text`` and ``label``: an index into ``names``, or NO_LABEL."""
    return rows.texts.add_column("label", rows.labels.numbered(names).tolist())


def load_model(settings: ModelSettings, names: list[str], tokenizer: Any) -> Any:
    """The model with an output for each of ``names``; gives the tokenizer a padding token."""
    trust = {"trust_remote_code": settings.trust_remote_code}
    before = AutoConfig.from_pretrained(settings.name, **trust)
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        settings.name,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        problem_type=_CLASSIFIES,
        ignore_mismatched_sizes=True,  # for the output layer; check_weights refuses others
        output_loading_info=True,
        **trust,
    )
    check_weights(settings, model, before, loaded)
    if tokenizer.pad_token is None:  # most decoders have none
        if tokenizer.eos_token is None:
            raise SystemExit(
                f"the tokenizer of {settings.name} has no token to pad with: set its pad_token "
                "and save it with the model"
            )
        tokenizer.pad_token = tokenizer.eos_token
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    if settings.lora is None:
        return model
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise SystemExit("model.lora needs peft: pip install 'sepstop[peft]'") from error
    own = {"modules_to_save": head_modules(model) or None}  # peft knows few heads
    return get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, **(own | settings.lora)))


def head_modules(model: Any) -> list[str]:
    """Names of the modules beside the base model; empty if the model does not name its base."""
    names = {name.partition(".")[0] for name, _ in model.named_parameters()}
    base = {model.base_model_prefix}
    return sorted(names - base) if base <= names else []


def check_weights(settings: ModelSettings, model: Any, before: Any, loaded: dict[str, Any]) -> None:
    """Warn of weights that did not come from the checkpoint, except the head of a base model.

    An output layer that was trained for other labels is initialized again.

    Args:
        before: the checkpoint's own configuration.
        loaded: the loading info of from_pretrained.
    """
    name, output = settings.name, output_layer(model, settings.trust_remote_code)
    wrong = {key: (tuple(had), tuple(has)) for key, had, has in loaded["mismatched_keys"]}
    if odd := sorted(wrong.keys() - output):
        shapes = "; ".join("{} is {}, not {}".format(key, *wrong[key]) for key in odd[:5])
        raise SystemExit(f"the weights of {name} do not fit its configuration: {shapes}")
    missing = set(loaded["missing_keys"])
    heads = head_modules(model)
    if new := [key for key in missing - output if key.partition(".")[0] not in heads]:
        warnings.warn(
            f"sepstop: {name} has no weights for {listed(new)}; they are new", stacklevel=3
        )
    if not (trained := output - missing):
        return
    of = other_labels(model, before)
    classes = listed(model.config.id2label.values(), ordered=False)
    if wrong or of:
        if wrong:
            (count, *_), _ = next(iter(wrong.values()))
            of = of or f"for {count} label{'s' * (count != 1)}"
        else:
            renew(model, trained)
        warnings.warn(
            f"sepstop: {name} was fine-tuned {of}; its head is new for {classes} "
            f"({listed(trained)})",
            stacklevel=3,
        )
    elif is_unnamed(before):
        warnings.warn(
            f"sepstop: {name} has a head for {len(model.config.id2label)} classes without names; "
            f"it is kept for {classes}",
            stacklevel=3,
        )


def output_layer(model: Any, trust_remote_code: bool) -> set[str]:
    """Names of the weights whose shape depends on the number of labels."""
    config = copy.deepcopy(model.config)
    config.num_labels = model.config.num_labels + 1
    with torch.device("meta"):
        wider = AutoModelForSequenceClassification.from_config(
            config, trust_remote_code=trust_remote_code
        )
    shapes = {key: weight.shape for key, weight in wider.named_parameters()}
    return {key for key, weight in model.named_parameters() if weight.shape != shapes.get(key)}


def other_labels(model: Any, before: Any) -> str | None:
    """What the head was trained for; None if for the same classes, or for unnamed ones."""
    kinds = before.architectures or [type(model).__name__]
    if type(model).__name__ not in kinds:
        return f"as {kinds[0]}"
    if before.problem_type not in (None, _CLASSIFIES):
        return f"for {before.problem_type}"
    if not is_unnamed(before) and dict(before.id2label) != dict(model.config.id2label):
        return f"for {listed(before.id2label.values(), ordered=False)}"
    return None


def is_unnamed(config: Any) -> bool:
    """True if the classes have transformers' default names, LABEL_0, LABEL_1 and so on."""
    return all(name == f"LABEL_{number}" for number, name in config.id2label.items())


def renew(model: Any, weights: Collection[str]) -> None:
    """Initialize the weights as transformers does if a checkpoint lacks them."""
    modules = {key.rpartition(".")[0] for key in weights}
    for module in map(model.get_submodule, sorted(modules)):
        for weight in module.parameters(recurse=False):
            weight._is_hf_initialized = False
        model._init_weights(module)


def listed(names: Collection[str], ordered: bool = True) -> str:
    """The first five names, and how many more there are."""
    shown = list(map(str, sorted(names) if ordered else names))
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def last_checkpoint(output_dir: str, resume: bool) -> str | None:
    """The checkpoint to resume from; None for a new run.

    A run that was killed while saving leaves a checkpoint without a state; it is skipped.

    Raises:
        SystemExit: without ``resume``, the folder holds checkpoints of an earlier run.
    """
    try:
        found = find_checkpoints(output_dir)
    except FileNotFoundError:
        return None
    if not resume:
        raise SystemExit(
            f"{output_dir} holds checkpoints of an earlier run: resume it with --resume true, or "
            "choose another --training.output_dir"
        )
    for _, path in sorted(found.items(), reverse=True):
        try:
            TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
        except (OSError, ValueError, TypeError) as error:
            print(f"{path} is incomplete ({error}); resuming from the checkpoint before it")
        else:
            return str(path)
    return None


def check_classes(file: Path, names: list[str]) -> None:
    """Exit if the classes are not those of the resumed run, whose head has an output for each."""
    if not file.is_file():
        return
    before = json.loads(file.read_text())
    if before != names:
        raise SystemExit(
            f"the run to resume has the classes {listed(before, ordered=False)}, but the data has "
            f"{listed(names, ordered=False)}: use the same data, or choose another "
            "--training.output_dir"
        )


def only_logits(outputs: Any, labels: Any) -> Any:
    """The logits alone: encoder-decoder models also return hidden states."""
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


def accuracy(prediction: Any) -> dict[str, float]:
    chosen = np.argmax(prediction.predictions, axis=-1)
    return {"accuracy": float(accuracy_score(prediction.label_ids, chosen))}


if __name__ == "__main__":
    main()
