"""Time of scoring answers, first tokens and losses, beside the forward pass over the prompts.

    python scripts/bench_answers.py MODEL_DIR DATA.jsonl

The answers are the labels of the data, written as words. "Each answer by itself" is what evaluation
harnesses do: a forward pass over the prompt and the answer, for each answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from processor import processor
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from sepstop.measure.answers import Answers, tokenize_answers
from sepstop.measure.embedding import Batching, observe
from sepstop.measure.first_tokens import first_tokens
from sepstop.measure.pooling import LastTokenPooling
from sepstop.measure.tokens import Tokens, prompt_ids

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder or hub name of a causal language model")
    parser.add_argument("data", type=Path, help="rows with text and label")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--answers", type=int, nargs="+", default=[10, 77])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.data.read_text().splitlines()]
    names = sorted({" " + row["label"].replace("_", " ") for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model).to(given.device).eval()
    texts = [f"Message: {row['text']}\nIntent:" for row in rows[: given.texts]]
    prompts = [prompt_ids(text, text, tokenizer) for text in texts]
    tokens = Tokens([torch.tensor(ids) for ids in prompts], are_prompts=True)
    table = Table(title=f"{len(texts)} prompts, median of {ROUNDS} rounds")
    for column in ("answers", "", "seconds", "of the forward pass"):
        table.add_column(column, justify="right")
    for count in given.answers:
        end = tokenizer.eos_token or ""
        answers = tokenize_answers(names[:count], end, texts, tokenizer)
        times: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, work in works(model, tokens, prompts, answers, given.batch_size).items():
                start = time.perf_counter()
                work()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times.setdefault(name, []).append(time.perf_counter() - start)
        least = times["the forward pass"]
        for name, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, least, strict=True))
            shown = f"{len(answers.tokens)}, {len(answers.shared)} shared beginnings"
            table.add_row(shown, name, f"{statistics.median(seconds):.2f}", f"{ratio:.2f}")
    out = Console(width=100)
    out.print(table)
    out.print(f"{given.device}, {processor()}, {torch.get_num_threads()} threads")


def works(
    model: Any, tokens: Tokens, prompts: list[list[int]], answers: Answers, batch_size: int
) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    pooling, batching = LastTokenPooling(), Batching(batch_size)
    whole = {
        ids: Tokens([torch.tensor([*prompt, *ids]) for prompt in prompts], are_prompts=True)
        for ids in answers.tokens
    }
    return {
        "the forward pass": lambda: observe(model, tokens, pooling, batching),
        "with answers": lambda: observe(
            model, tokens, pooling, batching, with_logits=True, head=answers
        ),
        "with first tokens": lambda: observe(
            model, tokens, pooling, batching, with_logits=True, head=first_tokens
        ),
        "with losses": lambda: observe(model, tokens, pooling, batching, with_losses=True),
        "each answer by itself": lambda: [
            observe(model, read, pooling, batching) for read in whole.values()
        ],
    }


if __name__ == "__main__":
    main()
