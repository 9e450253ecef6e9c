"""A language model that learns to answer with the name of the class, in TRL's trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import datasets
from jsonargparse import Namespace
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from sepstop.callbacks.trainer import SepStopCallback
from sepstop.config import SepStopConfig
from sepstop.finetune.data import TrainingData
from sepstop.finetune.lora import with_lora
from sepstop.finetune.settings import DataSettings, ModelSettings
from sepstop.measure.pool import read_pool

TEXT, LABEL = "{text}", "{label}"


def answers_trainer(
    settings: Namespace, data: TrainingData, tokenizer: Any
) -> tuple[Trainer, SepStopCallback]:
    """The trainer of a language model with ``settings.data.prompt``, and its callback.

    Raises:
        ImportError: TRL is not installed, or peft for LoRA.
        ValueError: a template without its field, and as of `sepstop.SepStopCallback`.
    """
    templates: DataSettings = settings.data
    _check_templates(templates)
    answers = [templates.answer.replace(LABEL, name) for name in data.names]
    callback = _callback(settings.sepstop, data, templates, answers, tokenizer)
    train = _rows(data.train, answers, templates)
    validation = data.validation and _rows(data.validation, answers, templates)
    try:
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise ImportError("data.prompt needs trl: pip install trl") from error
    trainer = SFTTrainer(
        _load_model(settings.model),
        SFTConfig(**_arguments(settings.training), max_length=templates.max_length),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    return trainer, callback


def _check_templates(templates: DataSettings) -> None:
    for setting, template, field in (
        ("data.prompt", str(templates.prompt), TEXT),
        ("data.answer", templates.answer, LABEL),
    ):
        if field not in template:
            raise ValueError(f"expected {field} in {setting}, got {template!r}")


def _callback(
    config: SepStopConfig,
    data: TrainingData,
    templates: DataSettings,
    answers: list[str],
    tokenizer: Any,
) -> SepStopCallback:
    texts = read_pool(data.pool, config.text_column, config.pool_size, config.seed)
    known: dict[str, Any] = {}
    if config.answers is None:  # else the settings name others, or only how many there are
        known = {"answers": answers, "answer_end": tokenizer.eos_token or ""}
    prompts = _prompts(list(map(str, texts.rows)), templates)
    return SepStopCallback(prompts, **(vars(config) | known))


def _prompts(texts: Sequence[str], templates: DataSettings) -> list[Any]:
    """A prompt for each text: a string, or the messages of a chat."""
    prompts = [str(templates.prompt).replace(TEXT, text) for text in texts]
    if templates.chat:
        return [[{"role": "user", "content": prompt}] for prompt in prompts]
    return prompts


def _rows(
    labeled: datasets.Dataset, answers: Sequence[str], templates: DataSettings
) -> datasets.Dataset:
    """Rows with ``prompt`` and ``completion``, as TRL takes them."""
    completions: list[Any] = [answers[label] for label in labeled["label"]]
    if templates.chat:
        completions = [[{"role": "assistant", "content": answer}] for answer in completions]
    prompts = _prompts(labeled["text"], templates)
    return datasets.Dataset.from_dict({"prompt": prompts, "completion": completions})


def _load_model(settings: ModelSettings) -> Any:
    """The language model, with adapters if asked for."""
    model = AutoModelForCausalLM.from_pretrained(
        settings.name, trust_remote_code=settings.trust_remote_code
    )
    if settings.lora is None:
        return model
    return with_lora(model, {"task_type": "CAUSAL_LM"} | settings.lora)


def _arguments(args: TrainingArguments) -> dict[str, Any]:
    """The arguments of transformers' Trainer, for TRL's configuration."""
    fields = dataclasses.fields(TrainingArguments)
    return {field.name: getattr(args, field.name) for field in fields if field.init}
