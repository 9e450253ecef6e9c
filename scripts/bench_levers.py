r"""Scores and cost of a measurement with a smaller pool, shorter texts or an earlier layer.

    # A run that is not stopped, with 20 checkpoints:
    python scripts/demo.py --sepstop.criterion=auto --sepstop.policy=auto
    python scripts/bench_levers.py runs/demo/run runs/demo/run/pool.jsonl \
        FOLDER_OF_ALL_MINILM_L6_V2

Every checkpoint of a run is measured with each setting. The table compares the scores over the run
with those of the first setting.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from sepstop.config import SepStopConfig
from sepstop.measure.monitor import Monitor
from sepstop.runs.checkpoints import find_checkpoints
from sepstop.runs.loading import load_model
from sepstop.types import Record, Series

SETTINGS: dict[str, dict[str, Any]] = {
    "1000 texts, 48 tokens": {"pool_size": 1000, "max_length": 48},
    "500 texts": {"pool_size": 500},
    "250 texts": {"pool_size": 250},
    "100 texts": {"pool_size": 100},
    "24 tokens": {"max_length": 24},
    "12 tokens": {"max_length": 12},
    "the middle layer": {"pooling": {"name": "mean", "layer": 3}},
}
"""Each adds to the first."""

SHOWN = ("separability", "robust_mi")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="folder with the checkpoints of a classifier")
    parser.add_argument("pool", help="file of unlabeled texts")
    parser.add_argument("base_model", help="folder or hub name of the model before training")
    options = parser.parse_args()
    usual = next(iter(SETTINGS.values())) | {"tokenizer": options.base_model}
    monitors = {
        name: Monitor(options.pool, SepStopConfig(**(usual | settings)))
        for name, settings in SETTINGS.items()
    }
    checkpoints = sorted(find_checkpoints(options.run_dir).items())
    classifier, base = load_model(checkpoints[0][1]), load_model(options.base_model)
    for monitor in monitors.values():
        monitor.prepare(classifier)  # the base model has no head, which decides on the criteria
        monitor.set_reference(base)
    records: dict[str, list[Record]] = {name: [] for name in monitors}
    for step, path in tqdm(checkpoints):
        model = load_model(path)
        for name, monitor in monitors.items():
            records[name].append(monitor.measure(model, step))
    Console(width=140).print(table(records))


def table(records: Mapping[str, Sequence[Record]]) -> Table:
    found = Table(title="Measurements of one run's checkpoints")
    found.add_column("")
    columns = ["time", *(f"{name}, Spearman" for name in SHOWN)]
    for column in (*columns, *(f"pick by {name}" for name in SHOWN)):
        found.add_column(column, justify="right")
    reference = next(iter(records.values()))
    for setting, measured in records.items():
        spent, usual = (sum(record.seconds for record in one) for one in (measured, reference))
        agreement = [
            spearmanr(values_of(measured, name), values_of(reference, name))[0] for name in SHOWN
        ]
        picks = [Series.of(measured, name).best_step for name in SHOWN]
        found.add_row(
            setting,
            f"{spent / usual:.0%}",
            *(f"{value:.2f}" for value in agreement),
            *("" if pick is None else str(pick) for pick in picks),
        )
    return found


def values_of(records: Sequence[Record], name: str) -> list[float]:
    return [score.value for _, score in Series.of(records, name)]


if __name__ == "__main__":
    main()
