"""Texts a second of a forward pass, by the number of tokens in a batch.

    python scripts/bench_batches.py FOLDER_OF_A_MODEL [--lengths 16 48 128] [--rounds 9]

All texts have one length and random tokens. The numbers of tokens are tried in turn in each round.
Speeds are relative to the fastest of the same length, by the median over rounds; in parentheses
the quartiles. The default is `sepstop.measure.embedding.TOKENS_IN_A_BATCH`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from processor import processor
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModel

from sepstop.measure.embedding import Batching, observe
from sepstop.measure.pooling import MeanPooling

BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
TOKENS = 2**14  # in a pass


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 48, 128])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModel.from_pretrained(given.model).to(device).eval()
    columns = {length: speeds(model, length, given.rounds) for length in given.lengths}
    table = Table(title=f"Speed of a pass over {TOKENS} tokens, of the fastest")
    for name in ("tokens in a batch", *(f"texts of {length} tokens" for length in columns)):
        table.add_column(name, justify="right")
    for i, budget in enumerate(BUDGETS):
        table.add_row(str(budget), *(column[i] for column in columns.values()))
    out = Console()
    out.print(table)
    threads = torch.get_num_threads()
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{processor()}, {threads} threads"
    )
    out.print(f"{given.model.name}; {name}, torch {torch.__version__}", soft_wrap=True)


def speeds(model: torch.nn.Module, length: int, rounds: int) -> list[str]:
    """Relative speed of each of `BUDGETS`, with quartiles over the rounds."""
    random = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = list(torch.randint(10, vocabulary, (TOKENS // length, length), generator=random))
    seconds = np.zeros((rounds + 1, len(BUDGETS)))
    for row in track(range(rounds + 1), description=f"{length} tokens", transient=True):
        for column, budget in enumerate(BUDGETS):
            start = time.perf_counter()
            observe(model, ids, MeanPooling(), Batching(tokens=budget)).points.cpu()
            seconds[row, column] = time.perf_counter() - start
    seconds = seconds[1:]  # the first round warms up
    fastest = np.median(seconds, axis=0).min()
    quartiles = np.percentile(fastest / seconds, (50, 25, 75), axis=0)
    return [f"{middle:.2f} ({low:.2f}, {high:.2f})" for middle, low, high in quartiles.T]


if __name__ == "__main__":
    main()
