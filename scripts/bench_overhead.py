r"""Wall time that sepstop adds to a fine-tuning run, and its parts.

    make demo                                     # writes the demo's data
    python scripts/bench_overhead.py --config=configs/demo.yaml --training.max_steps=60 \
        --model.name=FOLDER_OF_ALL_MINILM_L6_V2

Options are those of `sepstop finetune`. The run is made with the callback and without it in turn,
without stopping or saving, as often as --rounds says; with --alone only with it. Shares are of the
run with the callback. Then, if the model has a head, the pool is read by sepstop and by plain loops
over batches of sorted texts.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from processor import processor
from rich.console import Console
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence

from sepstop.finetune.run import set_up
from sepstop.measure.monitor import Monitor
from sepstop.measure.observer import Observer
from sepstop.measure.scorer import Scorer

SEPSTOP = "sepstop"
LOOPS = (4, 8, 16, 32, 64, 128, 256, 512)  # texts in a batch
NEVER = '--sepstop.policy={"name": "patience", "patience": null}'


class Clock:
    """Seconds spent in methods, by part. A method inside another of its part counts once."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._running: set[str] = set()

    def watch(self, part: str, owner: type, *methods: str) -> None:
        for name in methods:
            setattr(owner, name, self._timed(part, getattr(owner, name)))

    def _timed(self, part: str, method: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if part in self._running:
                return method(*args, **kwargs)
            self._running.add(part)
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.seconds[part] += time.perf_counter() - start
                self._running.remove(part)

        return timed


def watching_clock() -> Clock:
    """A clock of the parts of a measurement."""
    clock = Clock()
    clock.watch("callback", Monitor, "prepare", "measure", "set_reference")
    clock.watch("embedding", Observer, "observe_pool")
    clock.watch("scoring", Scorer, "best_of", "add_neighbors")
    return clock


def main(options: list[str]) -> None:
    clock = watching_clock()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], add_help=False)
    parser.add_argument("--rounds", type=int, default=3, help="runs with the callback")
    parser.add_argument("--alone", action="store_true", help="make no runs without it")
    given, options = parser.parse_known_args(options)
    runs = [
        measure(options, clock, with_callback)
        for _ in range(given.rounds)
        for with_callback in ((1,) if given.alone else (1, 0))
    ]
    total, embedding, scoring, callback = (
        statistics.median(run[key] for run in runs if run["scores"])
        for key in ("total", "embedding", "scoring", "callback")
    )
    without = [run["total"] for run in runs if not run["scores"]]
    out = Console()
    out.print(
        table_of(
            f"Median of {given.rounds} runs of {runs[0]['steps']} steps",
            ("", "seconds", "share of the run"),
            {
                name: (f"{seconds:.2f}", f"{seconds / total:.1%}")
                for name, seconds in {
                    "run with sepstop": total,
                    **({"the same without": statistics.median(without)} if without else {}),
                    f"in the callback, {runs[0]['scores']} scores and the start": callback,
                    "embedding the pool": embedding,
                    "neighbors and scores": scoring,
                    "tokenizing and the rest": callback - embedding - scoring,
                }.items()
            },
        )
    )
    if runs[0]["observer"].answers is None:
        speeds = read_pool(runs[0]["observer"], runs[0]["model"], given.rounds)
        best = max(speed for name, speed in speeds.items() if name != SEPSTOP)
        shown = {name: (f"{speed:.0f}", f"{speed / best:.2f}") for name, speed in speeds.items()}
        columns = ("", "texts a second", "of the fastest loop")
        out.print(table_of("One pass over the pool", columns, shown))
    out.print(
        f"scoring is {scoring / embedding:.1%} of embedding; pool of {runs[0]['pool']} texts; "
        f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        soft_wrap=True,
    )


def table_of(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def read_pool(observer: Observer, model: torch.nn.Module, rounds: int) -> dict[str, float]:
    """Texts a second of sepstop's forward pass, with logits, and of plain loops."""
    tokens, device = observer.tokens(model), next(model.parameters()).device
    ids = sorted(tokens.ids, key=len, reverse=True)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(observer.precision or "no")

    def plain(size: int) -> None:
        model.eval()
        with torch.inference_mode(), torch.autocast(device.type, half, enabled=half is not None):
            for start in range(0, len(ids), size):
                rows = ids[start : start + size]
                padded = pad_sequence(list(rows), True, tokens.pad_token_id).to(device)
                lengths = torch.tensor([len(row) for row in rows], device=device)
                mask = (torch.arange(padded.shape[1], device=device) < lengths[:, None]).long()
                model(input_ids=padded, attention_mask=mask).logits.cpu()

    works: dict[str, Callable[[], Any]] = {
        SEPSTOP: lambda: observer.observe(model, tokens, with_logits=True)
    } | {f"a loop, {size} texts": functools.partial(plain, size) for size in LOOPS}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):  # the first warms up
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: len(ids) / statistics.median(times[1:]) for name, times in seconds.items()}


def measure(options: list[str], clock: Clock, with_callback: int) -> dict[str, Any]:
    """One run: its seconds, and those of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        where = [f"--training.output_dir={folder}", "--training.save_strategy=no"]
        settings = [*options, *where, "--sepstop.load_best_model_at_end=false", NEVER]
        trainer, callback, *_ = set_up(settings)
        if not with_callback:
            trainer.remove_callback(callback)
        clock.seconds.clear()
        start = time.perf_counter()
        trainer.train()
        total = time.perf_counter() - start
    return {
        "total": total,
        "steps": trainer.state.global_step,
        "scores": len(callback.history),
        "pool": len(callback.monitor.pool),
        "observer": callback.monitor.observer,
        "model": trainer.model,
        **{part: clock.seconds[part] for part in ("embedding", "scoring", "callback")},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
