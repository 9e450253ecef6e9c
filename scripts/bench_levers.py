r"""What the levers on the cost of a measurement do to its scores.

    python scripts/demo.py --sepstop.policy=auto  # a run that is not stopped, with 20 checkpoints
    python scripts/bench_levers.py runs/demo/run runs/demo/run/pool.jsonl \
        FOLDER_OF_ALL_MINILM_L6_V2

Every checkpoint of a run is measured with the default settings and with a smaller pool, shorter
texts and an earlier layer; each setting's scores are compared to those of the first over the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from sepstop import Monitor, Record
from sepstop.decide.policies import Auto, best_record
from sepstop.runs.checkpoints import find_checkpoints
from sepstop.runs.loading import load_model

SETTINGS: dict[str, dict[str, Any]] = {
    "1000 texts, 48 tokens": {"pool_size": 1000, "max_length": 48},
    "500 texts": {"pool_size": 500},
    "250 texts": {"pool_size": 250},
    "100 texts": {"pool_size": 100},
    "24 tokens": {"max_length": 24},
    "12 tokens": {"max_length": 12},
    "the middle layer": {"embedder": {"name": "mean", "layer": 3}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="folder with the checkpoints")
    parser.add_argument("pool", help="file of unlabeled texts")
    parser.add_argument("start", help="folder or hub name of the model before training")
    options = parser.parse_args()
    usual = next(iter(SETTINGS.values())) | {"tokenizer": options.start}
    monitors = {
        name: Monitor(options.pool, **(usual | settings)) for name, settings in SETTINGS.items()
    }
    base = load_model(options.start)
    histories: dict[str, list[Record]] = {name: [] for name in monitors}
    for monitor in monitors.values():
        monitor.remember(base)
    for step, path in tqdm(sorted(find_checkpoints(options.run_dir).items())):
        model = load_model(path)
        for name, monitor in monitors.items():
            histories[name].append(monitor.measure(model, step))
    Console().print(table(histories), soft_wrap=True)


def table(histories: dict[str, list[Record]]) -> Table:
    found = Table(title="Measurements of one run's checkpoints")
    columns = ("time", "separability, Spearman", "information, Spearman")
    found.add_column("")
    for column in (*columns, "pick by separability", "pick by information"):
        found.add_column(column, justify="right")
    reference = next(iter(histories.values()))
    for name, history in histories.items():
        spent, usual = (sum(record.seconds for record in one) for one in (history, reference))
        agreement = [
            spearmanr([getattr(r, key) for r in history], [getattr(r, key) for r in reference])[0]
            for key in ("score", "information")
        ]
        picks = [best_record(history), Auto().pick(history)]
        found.add_row(
            name,
            f"{spent / usual:.0%}",
            *(f"{value:.2f}" for value in agreement),
            *("" if pick is None else str(pick.step) for pick in picks),
        )
    return found


if __name__ == "__main__":
    main()
