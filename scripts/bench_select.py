r"""Time of `sepstop select` per checkpoint, and the minimum that it could take.

    make demo  # leaves checkpoints of all-MiniLM-L6-v2
    python scripts/bench_select.py runs/demo/run runs/demo/run/pool.jsonl

The minimum is loading each checkpoint with transformers and a forward pass over the pool in the
same batches. Both are timed in turn, in one process; then `select` once more, with a full cache.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification

from sepstop.config import SepStopConfig
from sepstop.measure.pool import read_pool
from sepstop.measure.tokens import load_tokenizer
from sepstop.runs.checkpoints import find_checkpoints
from sepstop.runs.loading import Loading
from sepstop.runs.select import select_checkpoint

ROUNDS = 3
BATCH_SIZE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="folder with checkpoints of a classifier")
    parser.add_argument("pool", type=Path)
    parser.add_argument("--max-length", type=int, default=48)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    checkpoints = find_checkpoints(given.run_dir)
    bare, select, uncached, again = [], [], [], []
    for _ in range(ROUNDS):
        bare.append(timed(lambda: pass_over(checkpoints, given)))
        with tempfile.TemporaryDirectory() as cache:
            select.append(timed(lambda cache=cache: selected(given, cache)))
            again.append(timed(lambda cache=cache: selected(given, cache)))
        uncached.append(timed(lambda: selected(given, False)))
    table = Table(
        title=f"Seconds per checkpoint, median of {ROUNDS} rounds, {len(checkpoints)} each"
    )
    for column in ("", "seconds", "of the bare cost, median", "least", "most"):
        table.add_column(column, justify="right")
    for name, times in {
        "loading and a forward pass": bare,
        "sepstop select": select,
        "sepstop select --no-cache": uncached,
        "sepstop select once more": again,
    }.items():
        ratios = [time / least for time, least in zip(times, bare, strict=True)]
        numbers = (statistics.median(ratios), min(ratios), max(ratios))
        seconds = statistics.median(times) / len(checkpoints)
        table.add_row(name, f"{seconds:.3f}", *(f"{number:.2f}" for number in numbers))
    out = Console(width=100)
    out.print(table)
    out.print(
        f"{given.device}, {platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def selected(given: argparse.Namespace, cache: str | bool) -> None:
    select_checkpoint(
        given.run_dir,
        given.pool,
        max_length=given.max_length,
        batch_size=BATCH_SIZE,
        loading=Loading(device=given.device),
        cache=cache,
        progress=False,
        write_history=False,
    )


def pass_over(checkpoints: dict[int, Path], given: argparse.Namespace) -> None:
    """The minimum: tokenize once, load each checkpoint, run it on batches of similar lengths."""
    tokenizer = load_tokenizer(next(iter(checkpoints.values())))
    texts = list(read_pool(given.pool, limit=SepStopConfig().pool_size).rows)
    ids = tokenizer(texts, truncation=True, max_length=given.max_length)["input_ids"]
    ids.sort(key=len, reverse=True)
    batches = [ids[start : start + BATCH_SIZE] for start in range(0, len(ids), BATCH_SIZE)]
    for path in checkpoints.values():
        model = AutoModelForSequenceClassification.from_pretrained(path).to(given.device).eval()
        with torch.no_grad():
            for batch in batches:
                padded = tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(given.device)
                model(**padded).logits.cpu()


if __name__ == "__main__":
    main()
