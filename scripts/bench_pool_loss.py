"""Loss on held-out text of the weights that `pool_loss` keeps, in continued pre-training.

    python scripts/bench_pool_loss.py MODEL_DIR TEXTS.jsonl

A causal language model with LoRA adapters goes on learning on some of the texts, until it has
memorized them. The pool and the test set are other texts of the same kind. Each evaluation measures
the model and the running averages of its weights on both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

from sepstop.config import SepStopConfig
from sepstop.criteria.pool_loss import pool_loss
from sepstop.decide.policies import default_policy, replay
from sepstop.measure.average import RunningAverages
from sepstop.measure.monitor import Monitor
from sepstop.types import CHECKPOINT, Record, Series, candidate_name

WARMUP = 20


@dataclass(frozen=True)
class Evaluation:
    """Losses of the candidates of a step on the test set, and what the pool says of them."""

    record: Record
    test: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder or hub name of a causal language model")
    parser.add_argument("data", type=Path, help="rows with text")
    parser.add_argument("--train-texts", type=int, default=300)
    parser.add_argument("--pool-texts", type=int, default=250)
    parser.add_argument("--test-texts", type=int, default=500)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--evaluate-every", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    show(list(evaluations(options)), options)


def evaluations(options: argparse.Namespace) -> Iterator[Evaluation]:
    """Train; measure every few steps, from the first on."""
    lines = options.data.read_text().splitlines()
    texts = sorted({json.loads(line)["text"] for line in lines})
    order = np.random.default_rng(options.seed).permutation(len(texts))
    sizes = (options.train_texts, options.pool_texts, options.test_texts)
    train, pool, test = (
        [texts[i] for i in part] for part in np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    torch.manual_seed(options.seed)
    model = AutoModelForCausalLM.from_pretrained(options.model)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")
    model = get_peft_model(model, lora)
    config = SepStopConfig(
        criterion="pool_loss",
        extra_criteria=(),
        tokenizer=tokenizer,
        max_length=options.max_length,
        precision="bf16",
        progress=False,
    )
    watched, judge = Monitor(pool, config), Monitor(test, config)
    averages = RunningAverages(model)
    for step in steps(model, train, tokenizer, options):
        if step >= WARMUP:
            averages.update(model, step)
        if step % options.evaluate_every == 0:
            seen, lost, known = {}, {}, {}
            for name in averages.decays if averages.count else ():
                with averages.applied(model, name):
                    seen[name], lost[name] = watched.observe(model), test_loss(judge, model)
                known[name] = averages.described(name)
            seen[CHECKPOINT], lost[CHECKPOINT] = watched.observe(model), test_loss(judge, model)
            yield Evaluation(watched.score(seen, step, averages=known), lost)


def steps(
    model: Any, texts: list[str], tokenizer: Any, options: argparse.Namespace
) -> Iterator[int]:
    """The numbers of the optimizer steps taken, from 0, before training, on."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, options.steps)
    generator = torch.Generator().manual_seed(options.seed)
    rows = tokenizer(texts, truncation=True, max_length=options.max_length)["input_ids"]
    batches: list[torch.Tensor] = []
    for step in tqdm(range(options.steps + 1)):
        yield step
        batches = batches or list(
            torch.randperm(len(rows), generator=generator).split(options.batch_size)
        )
        batch = [torch.tensor(rows[int(i)]) for i in batches.pop()]
        input_ids = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=0)
        lengths = torch.tensor([len(ids) for ids in batch])
        mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(
                input_ids=input_ids,
                attention_mask=mask.long(),
                labels=input_ids.masked_fill(~mask, -100),
            ).loss
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def test_loss(judge: Monitor, model: nn.Module) -> float:
    """Loss in nats per token on the test set."""
    losses = judge.observe(model).token_losses
    assert losses is not None
    return float(pool_loss(losses[None]))


def show(found: list[Evaluation], options: argparse.Namespace) -> None:
    """A row for each candidate of each evaluation, and what was kept."""
    table = Table(title=f"loss in nats per token, {options.data.name}")
    for column in ("step", "weights", "on the pool", "on the test set"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    for one in found:
        for name, scores in one.record.candidates.items():
            pool = f"{scores['pool_loss'].value:.4f}"
            table.add_row(str(one.record.step), name, pool, f"{one.test[name]:.4f}")
    out = Console(width=120)
    out.print(table)
    trained = [one for one in found if one.record.step > 0]
    by_step = {one.record.step: one for one in trained}

    def kept(records: list[Record]) -> tuple[int, str]:
        best = min(records, key=lambda record: record.scores["pool_loss"].value)
        return best.step, candidate_name(best.average)

    only = [one.record for one in trained]
    step, name = kept(only)
    out.print(f"kept by pool_loss: {name} of step {step}, {by_step[step].test[name]:.4f}")
    checkpoint = min(only, key=lambda one: one.candidates[CHECKPOINT]["pool_loss"].value).step
    out.print(
        f"checkpoint by pool_loss: step {checkpoint}, {by_step[checkpoint].test[CHECKPOINT]:.4f}"
    )
    best = min(one.test[CHECKPOINT] for one in trained)
    out.print(f"best checkpoint in hindsight: {best:.4f}")
    out.print(f"last checkpoint: {trained[-1].test[CHECKPOINT]:.4f}")
    out.print(f"before training: {found[0].test[CHECKPOINT]:.4f}")
    series = Series.of(only, "pool_loss", higher_is_better=False)
    decision = replay(default_policy("pool_loss"), series)
    out.print(f"its default policy: {'stop' if decision.stop else 'go on'} at step {decision.step}")


if __name__ == "__main__":
    main()
