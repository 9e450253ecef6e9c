r"""What sepstop adds to the wall time of a fine-tuning run, and what it spends it on.

    make demo                                     # writes the demo's data
    python scripts/bench_overhead.py --config=configs/demo.yaml --training.max_steps=60 \
        --sepstop.criterion=separability --model.name=FOLDER_OF_ALL_MINILM_L6_V2

Options are those of finetune.py. The run is made with the callback and without, in turns, without
stopping or saving; the shares are of the run with it.
"""

from __future__ import annotations

import platform
import shutil
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from finetune import set_up
from rich.console import Console
from rich.table import Table

ROUNDS = 3
NEVER = '--sepstop.policy={"name": "patience", "patience": null}'


def main(options: list[str]) -> None:
    runs = [measure(options, with_callback) for _ in range(ROUNDS) for with_callback in (1, 0)]
    total, embedding, scoring, callback = (
        statistics.median(run[key] for run in runs if run["callback"] > 0)
        for key in ("total", "embedding", "scoring", "callback")
    )
    without = statistics.median(run["total"] for run in runs if run["callback"] == 0)
    table = Table(title=f"Median of {ROUNDS} runs of {runs[0]['steps']} steps")
    for column in ("", "seconds", "share of the run"):
        table.add_column(column, justify="right")
    for name, seconds in {
        "run with sepstop": total,
        "the same without": without,
        f"in the callback, {runs[0]['scores']} scores and the start": callback,
        "embedding the pool": embedding,
        "neighbours and scores": scoring,
        "tokenising and the rest": callback - embedding - scoring,
    }.items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / total:.1%}")
    out = Console()
    out.print(table)
    out.print(
        f"scoring is {scoring / embedding:.1%} of embedding; pool of {runs[0]['pool']} texts; "
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        soft_wrap=True,
    )


def measure(options: list[str], with_callback: int) -> dict[str, Any]:
    """One run; seconds in all and in parts of it."""
    folder = tempfile.mkdtemp()
    where = [f"--training.output_dir={folder}", "--training.save_strategy=no"]
    trainer, callback, _ = set_up([*options, *where, "--sepstop.load_best_at_end=false", NEVER])
    spent = {"embedding": 0.0, "scoring": 0.0, "callback": 0.0}
    if with_callback:
        monitor = callback.monitor
        clocked(monitor, "_observe", spent, "embedding")
        for method in ("note", "_on_resamples"):
            clocked(monitor, method, spent, "scoring")
        for event in ("prepare", "measure", "remember"):
            clocked(monitor, event, spent, "callback")
    else:
        trainer.remove_callback(callback)
    start = time.perf_counter()
    trainer.train()
    total = time.perf_counter() - start
    shutil.rmtree(folder)
    return {
        "total": total,
        "steps": trainer.state.global_step,
        "scores": len(callback.history),
        "pool": len(callback.monitor.pool),
        **spent,
    }


def clocked(owner: Any, name: str, spent: dict[str, float], what: str) -> None:
    method = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent[what] += time.perf_counter() - start

    setattr(owner, name, timed)


if __name__ == "__main__":
    main(sys.argv[1:])
