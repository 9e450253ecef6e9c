"""Fine-tuning of a language model to answer with the name of a class, for finetune.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import datasets
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from sepstop import SepStopCallback

TEXT, LABEL = "{text}", "{label}"


def check_templates(prompt: str, answer: str) -> None:
    """Exit if a template does not name what it is for."""
    for setting, template, field in (
        ("data.prompt", prompt, TEXT),
        ("data.answer", answer, LABEL),
    ):
        if field not in template:
            raise SystemExit(f"expected {field} in {setting}, got {template!r}")


def prompts_of(texts: Sequence[str], template: str, chat: bool) -> list[Any]:
    """A prompt for each text: a string, or the messages of a chat."""
    prompts = [template.replace(TEXT, text) for text in texts]
    if chat:
        return [[{"role": "user", "content": prompt}] for prompt in prompts]
    return prompts


def answers_of(names: Sequence[str], template: str) -> list[str]:
    """The answer for each class."""
    return [template.replace(LABEL, name) for name in names]


def rows_of(
    labeled: datasets.Dataset, answers: Sequence[str], prompt: str, chat: bool
) -> datasets.Dataset:
    """Rows with ``prompt`` and ``completion``, as TRL takes them."""
    completions: list[Any] = [answers[label] for label in labeled["label"]]
    if chat:
        completions = [[{"role": "assistant", "content": answer}] for answer in completions]
    prompts = prompts_of(labeled["text"], prompt, chat)
    return datasets.Dataset.from_dict({"prompt": prompts, "completion": completions})


def load_language_model(name: str, trust_remote_code: bool, lora: dict[str, Any] | None) -> Any:
    """The model, with adapters if asked for."""
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=trust_remote_code)
    if lora is None:
        return model
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise SystemExit("model.lora needs peft: pip install 'sepstop[peft]'") from error
    return get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, **lora))


def sft_trainer(
    model: Any,
    args: TrainingArguments,
    max_length: int,
    train: datasets.Dataset,
    validation: datasets.Dataset | None,
    tokenizer: Any,
    callback: SepStopCallback,
) -> Trainer:
    """TRL's trainer, with the arguments of transformers' one."""
    try:
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise SystemExit("data.prompt needs trl: pip install trl") from error
    known = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(TrainingArguments)
        if field.init
    }
    return SFTTrainer(
        model,
        SFTConfig(**known, max_length=max_length),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[callback],
    )
