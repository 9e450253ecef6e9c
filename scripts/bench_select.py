r"""Time of `sepstop select` beside reading the files and the bare forward passes.

    python scripts/bench_select.py  # checkpoints of a million parameters, made up
    python scripts/bench_select.py --parameters 1e9 --dtype bfloat16
    python scripts/bench_select.py FOLDER_OF_CHECKPOINTS pool.jsonl

The minimum is loading each checkpoint once with transformers, and for each candidate a forward pass
over the pool and one over its corrupted copies, in the same batches. It is timed beside `select` in
each round, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from processor import processor
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from sepstop.config import SepStopConfig
from sepstop.measure.pool import read_pool
from sepstop.measure.tokens import DROP_RATE, drop_tokens, load_tokenizer
from sepstop.runs.averaging import CHECKPOINT_AVERAGES, averages_of
from sepstop.runs.checkpoints import find_checkpoints
from sepstop.runs.loading import DTYPES, Loading
from sepstop.runs.select import select_checkpoint

ROUNDS = 3
BATCH_SIZE = 64
WORDS = [f"word{number}" for number in range(1000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path, nargs="?", help="folder with checkpoints")
    parser.add_argument("pool", type=Path, nargs="?")
    parser.add_argument("--parameters", type=float, default=1e6, help="of the made-up model")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of its weights")
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--max-length", type=int, default=48)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="sepstop")
    with tempfile.TemporaryDirectory() as scratch:
        if given.run_dir is None:
            given.run_dir, given.pool = made_up(Path(scratch), given)
        report(given)


# A run


def made_up(folder: Path, given: argparse.Namespace) -> tuple[Path, Any]:
    """Checkpoints whose weights take random steps, and texts of random words."""
    torch.manual_seed(0)
    layers = 4 if given.parameters < 1e8 else 16
    size = 64 * max(1, round((given.parameters / (12 * layers)) ** 0.5 / 64))
    config = BertConfig(
        vocab_size=len(WORDS) + 1,
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=size // 64,
        intermediate_size=4 * size,
        max_position_embeddings=given.max_length,
        num_labels=4,
    )
    model = BertForSequenceClassification(config).to(DTYPES[given.dtype])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token="[PAD]", unk_token="[PAD]"
    )
    for step in range(1, given.checkpoints + 1):
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.01 * torch.randn_like(weight)
        model.save_pretrained(folder / f"checkpoint-{step}")
        tokenizer.save_pretrained(folder / f"checkpoint-{step}")
    lengths = torch.randint(4, given.max_length, (given.texts,)).tolist()
    texts = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,))) for n in lengths]
    return folder, texts


def candidates_of(paths: Sequence[Path]) -> int:
    """Models that `select` observes at the last of these checkpoints: averages, or it itself."""
    averages = len(averages_of(paths))
    return averages + (averages < len(CHECKPOINT_AVERAGES))


def word_tokenizer() -> Tokenizer:
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", *WORDS])}, "[PAD]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


# What is timed


def report(given: argparse.Namespace) -> None:
    paths = [path for _, path in sorted(find_checkpoints(given.run_dir).items())]
    candidates = sum(candidates_of(paths[:count]) for count in range(1, len(paths) + 1))
    batches = batches_of(paths[0], given)
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            for name, work in {
                "reading the files": lambda: read(paths),
                "loading, a pass each": lambda: bare(paths, batches, len(paths), given.device),
                "select --no-average": lambda: selected(given, False, average=False),
                "loading, a pass per candidate": lambda: bare(
                    paths, batches, candidates, given.device
                ),
                "select --no-cache": lambda: selected(given, False),
                "select": lambda cache=cache: selected(given, cache),
                "select once more": lambda cache=cache: selected(given, cache),
            }.items():
                times.setdefault(name, []).append(timed(work))
    of_checkpoints, of_averages = "loading, a pass each", "loading, a pass per candidate"
    title = f"{len(paths)} checkpoints, {candidates} candidates, median of {ROUNDS} rounds"
    table = Table(title=title)
    for column in ("", "seconds", "of the minimum, median", "least", "most"):
        table.add_column(column, justify="right")
    for name, seconds in times.items():
        least = times[of_checkpoints if name == "select --no-average" else of_averages]
        ratios = [mine / minimum for mine, minimum in zip(seconds, least, strict=True)]
        numbers = (statistics.median(ratios), min(ratios), max(ratios))
        shown = [] if name == of_checkpoints else [f"{number:.2f}" for number in numbers]
        table.add_row(name, f"{statistics.median(seconds):.3f}", *shown)
    out = Console(width=100)
    out.print(table)
    size = sum(file.stat().st_size for file in paths[0].glob("*.safetensors"))
    out.print(
        f"{size / 1e6:.1f} MB each, {given.device}, {processor()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def selected(given: argparse.Namespace, cache: str | bool, **config: Any) -> None:
    select_checkpoint(
        given.run_dir,
        given.pool,
        max_length=given.max_length,
        batch_size=BATCH_SIZE,
        loading=Loading(device=given.device),
        cache=cache,
        progress=False,
        write_history=False,
        **config,
    )


def read(paths: list[Path]) -> None:
    """Each tensor in each file once."""
    for path in paths:
        for name in path.glob("*.safetensors"):
            with safe_open(name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    file.get_tensor(key).clone()


def batches_of(checkpoint: Path, given: argparse.Namespace) -> list[Any]:
    """The pool, then its corrupted copies, in batches of similar lengths, as `select` has them."""
    tokenizer = load_tokenizer(checkpoint)
    texts = list(read_pool(given.pool, limit=SepStopConfig().pool_size).rows)
    ids = tokenizer(texts, truncation=True, max_length=given.max_length)["input_ids"]
    copies = drop_tokens([torch.tensor(row) for row in ids], DROP_RATE, SepStopConfig().seed)
    return [
        tokenizer.pad({"input_ids": rows[start : start + BATCH_SIZE]}, return_tensors="pt")
        for part in (ids, [row.tolist() for row in copies])
        for rows in [sorted(part, key=len, reverse=True)]
        for start in range(0, len(rows), BATCH_SIZE)
    ]


def bare(paths: list[Path], batches: list[Any], passes: int, device: str) -> None:
    """Load each checkpoint; as many forward passes over the pool as ``passes``, dealt out."""
    for number, path in enumerate(paths):
        model = AutoModelForSequenceClassification.from_pretrained(path).to(device).eval()
        for _ in range(passes * (number + 1) // len(paths) - passes * number // len(paths)):
            run(model, batches, device)


@torch.no_grad()
def run(model: nn.Module, batches: list[Any], device: str) -> None:
    for batch in batches:
        model(**batch.to(device)).logits.cpu()


if __name__ == "__main__":
    main()
