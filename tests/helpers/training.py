"""Short Trainer runs on the CPU."""

import math
from pathlib import Path

import pytest
import torch
from conftest import make_encoder
from transformers import Trainer, TrainerCallback, TrainingArguments

from sepstop.measure.average import AVERAGES

QUIET = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}

BEST = {
    "metric_for_best_model": "separability",
    "greater_is_better": True,
    "load_best_model_at_end": True,
}
"""Trainer keeps the checkpoint with the best separability and loads it at the end."""


EVERY_SECOND_STEP = {
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
}
"""A short run that is evaluated and saved twice."""


TRAINS_AGAIN = pytest.mark.filterwarnings(
    "ignore:sepstop. .* holds checkpoints of an earlier run:UserWarning"
)
"""For tests that train twice in one folder."""


def train(output_dir, tokenizer, rows, callback, model, **options):
    """A Trainer after its run: 40 steps, a checkpoint every 4; ``options`` change the arguments."""
    defaults = {
        "max_steps": 40,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "eval_strategy": "no",
        "save_steps": 4,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(output_dir), **(defaults | QUIET | options)),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[callback] if callback else None,
    )
    trainer.train()
    return trainer


def trainer_of(tokenizer, rows, folder, callback, model=None, **options):
    """A Trainer of 12 steps, evaluated and saved every second one; ``options`` change that."""
    defaults = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 2,
    }
    args = TrainingArguments(**(defaults | QUIET | options))
    return Trainer(
        model=model or make_encoder(),
        args=args,
        train_dataset=rows,
        eval_dataset=None if args.eval_strategy == "no" else rows.select(range(8)),
        processing_class=tokenizer,
        callbacks=[callback] if callback else None,
    )


def steps(callback):
    """The steps of a callback's records."""
    return [record.step for record in callback.history]


def checkpoints(trainer):
    """The steps of the checkpoints on disk."""
    folder = Path(trainer.args.output_dir)
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def weights_of(trainer, step):
    """The encoder in a checkpoint."""
    return make_encoder().from_pretrained(Path(trainer.args.output_dir) / f"checkpoint-{step}")


class Recorder(TrainerCallback):
    """Keeps the trainable weights after each step, in float64."""

    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, model=None, st_model=None, **_):
        self.weights[state.global_step] = {
            name: weight.detach().double().clone()
            for name, weight in (st_model or model).named_parameters()
            if weight.requires_grad
        }

    def average(self, average, every=1):
        """The weights of an `Average`, computed from those of its steps."""
        steps = [
            step
            for step in sorted(self.weights)
            if average.first_step <= step <= average.last_step and step % every == 0
        ]
        assert (len(steps), steps[-1]) == (average.count, average.last_step)
        decay = AVERAGES[average.name]
        shares = torch.tensor([math.prod(range(n, n + decay)) for n in range(1, len(steps) + 1)])
        shares = shares.double() / shares.sum()
        return {
            name: sum(
                share * self.weights[step][name] for share, step in zip(shares, steps, strict=True)
            )
            for name in self.weights[steps[0]]
        }
