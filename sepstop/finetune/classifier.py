"""A model with a head for the classes, in a Trainer."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
from jsonargparse import Namespace
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
)

from sepstop.callbacks.trainer import SepStopCallback
from sepstop.finetune.data import TrainingData
from sepstop.finetune.head import CLASSIFIES, check_weights, head_modules
from sepstop.finetune.lora import with_lora
from sepstop.finetune.settings import ModelSettings


def classifier_trainer(
    settings: Namespace, data: TrainingData, tokenizer: Any
) -> tuple[Trainer, SepStopCallback]:
    """The Trainer of a model with a head, and its callback.

    Raises:
        ValueError: as of `load_classifier` and `sepstop.SepStopCallback`.
    """
    model = load_classifier(settings.model, data.names, tokenizer)
    callback = SepStopCallback(data.pool, **vars(settings.sepstop))

    def tokenize(split: datasets.Dataset | None) -> datasets.Dataset | None:
        return split and split.map(
            lambda rows: tokenizer(
                rows["text"], truncation=True, max_length=settings.data.max_length
            ),
            batched=True,
            remove_columns=["text"],
        )

    trainer = Trainer(
        model=model,
        args=settings.training,
        train_dataset=tokenize(data.train),
        eval_dataset=tokenize(data.validation),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=_accuracy,
        preprocess_logits_for_metrics=_only_logits,
        callbacks=[callback],
    )
    return trainer, callback


def load_classifier(settings: ModelSettings, names: list[str], tokenizer: Any) -> Any:
    """The model with an output for each of ``names``; gives the tokenizer a padding token.

    Raises:
        ImportError: LoRA without peft.
        ValueError: no token to pad with, or weights that do not fit the configuration.

    Warns:
        UserWarning: as of `sepstop.finetune.head.check_weights`.
    """
    trust = {"trust_remote_code": settings.trust_remote_code}
    before = AutoConfig.from_pretrained(settings.name, **trust)
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        settings.name,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        problem_type=CLASSIFIES,
        ignore_mismatched_sizes=True,  # for the output layer; check_weights refuses others
        output_loading_info=True,
        **trust,
    )
    check_weights(settings, model, before, loaded)
    if tokenizer.pad_token is None:  # most decoders have none
        if tokenizer.eos_token is None:
            raise ValueError(
                f"the tokenizer of {settings.name} has no token to pad with: set its pad_token "
                "and save it with the model"
            )
        tokenizer.pad_token = tokenizer.eos_token
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    if settings.lora is None:
        return model
    own = {"task_type": "SEQ_CLS", "modules_to_save": head_modules(model) or None}
    return with_lora(model, own | settings.lora)  # peft knows few heads by itself


def _only_logits(outputs: Any, labels: Any) -> Any:
    """The logits alone: encoder-decoder models also return hidden states."""
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


def _accuracy(prediction: Any) -> dict[str, float]:
    chosen = np.argmax(prediction.predictions, axis=-1)
    return {"accuracy": float(np.mean(chosen == prediction.label_ids))}
