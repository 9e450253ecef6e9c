"""Regret of averages chosen without the answers, by what the model says first, on recorded runs.

    python scripts/record_suite.py configs/bench/answers_development.yaml DATA_DIR \
        --model MODEL_DIR --out RUNS_DIR
    python scripts/bench_first_tokens.py RUNS_DIR

The runs are of language models that answer in words. In the first row of each table the answers are
known; in the others, groups of first tokens stand for them, this many and one for all others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from sepstop.bench.outcomes import Outcome
from sepstop.bench.recorded_run import RecordedRun, find_recorded_runs, load_run
from sepstop.bench.scores import score_run
from sepstop.bench.verdicts import bootstrap_interval
from sepstop.criteria import CRITERIA
from sepstop.measure.first_tokens import frequent, grouped
from sepstop.types import CHECKPOINT

NAMES = ("robust_mi", "neighbor_mi", "consistency", "infomax", "entropy", "self_consistency")
GROUPS = (5, 10, 20, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs_dir", type=Path)
    parser.add_argument("--groups", type=int, nargs="+", default=GROUPS)
    options = parser.parse_args()
    runs = [load_run(path) for path in find_recorded_runs(options.runs_dir)]
    table = Table(title=f"regret in points of test accuracy, {len(runs)} runs, averages")
    for column in ("answers", *NAMES):
        table.add_column(column, justify="left" if column == "answers" else "right")
    for count in (None, *options.groups):
        seen = [run if count is None else by_first_tokens(run, count) for run in runs]
        regrets = np.array([list(regrets_of(run)) for run in tqdm(seen, leave=False)])
        name = "known" if count is None else f"{count} first tokens"
        table.add_row(name, *map(cell, 100 * regrets.T))
    out = Console(width=160)
    out.print(table)
    last = 100 * np.array([run.best_accuracy - run.test_accuracy[-1] for run in runs])
    out.print(f"last checkpoint: {cell(last)}")
    pairs = [(run.test_accuracy[1:], run.arrays["te_gen"][1:]) for run in runs]
    likely, generated = (np.concatenate(values) for values in zip(*pairs, strict=True))
    out.print(
        "generated answers against the most likely ones, checkpoints: accuracy differs by "
        f"{100 * np.abs(likely - generated).mean():.0f} points on average, correlation "
        f"{np.corrcoef(likely, generated)[0, 1]:.2f}"
    )


def cell(regrets: np.ndarray) -> str:
    """The mean with its interval."""
    low, high = bootstrap_interval(regrets)
    return f"{regrets.mean():.1f} [{low:.1f}, {high:.1f}]"


def regrets_of(run: RecordedRun) -> Iterator[float]:
    """The regret of each criterion's choice among the averages."""
    for name, scored in score_run(run, [CRITERIA[one]() for one in NAMES], run.averages).items():
        assert name in NAMES
        yield Outcome.of(run, scored, scored.series.best_step).regret


def by_first_tokens(run: RecordedRun, count: int) -> RecordedRun:
    """The run with groups of first tokens as logits, chosen anew at each evaluation."""
    arrays = dict(run.arrays)
    for candidate in run.candidates:
        prefix = "" if candidate == CHECKPOINT else f"{candidate}_"
        clean, corrupted = [], []
        for first, other in zip(
            torch.from_numpy(arrays[f"{prefix}pool_f"]),
            torch.from_numpy(arrays[f"{prefix}pool_g"]),
            strict=True,
        ):
            tokens = frequent(first, count)
            clean.append(grouped(first, tokens).numpy())
            corrupted.append(grouped(other, tokens).numpy())
        arrays |= {f"{prefix}pool_l": np.stack(clean), f"{prefix}pool_d": np.stack(corrupted)}
    return RecordedRun(run.name, arrays, run.settings)


if __name__ == "__main__":
    main()
