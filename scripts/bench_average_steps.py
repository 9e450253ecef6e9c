"""Which steps an average should hold: regret by the first step averaged and by how often.

    python scripts/bench_average_steps.py record SUITE DATA_DIR --out RUNS_DIR
    python scripts/bench_average_steps.py judge RUNS_DIR

Each run is trained once, with the averages of all schedules beside each other, and recorded as
`scripts/record_suite.py` records it. Those of the default schedule have the usual names, so that
`sepstop bench judge` reads the files too. With several cores, start one process per core:
--worker 0/2 and --worker 1/2.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record_suite import runs_of
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from sepstop.bench.learner import Learner, Split
from sepstop.bench.record import evaluate, learner_and_split, train
from sepstop.bench.recorded_run import RecordedRun, find_recorded_runs, load_run, save_run
from sepstop.bench.run_settings import RunSettings
from sepstop.bench.scores import score_run
from sepstop.bench.strata import STRATA, stratum_of
from sepstop.bench.verdicts import bootstrap_interval
from sepstop.criteria import CRITERIA
from sepstop.measure.average import AVERAGES, RunningAverages
from sepstop.types import CHECKPOINT

WARMUP = 20
OF_AVERAGES = ("pool_e", "pool_l", "pool_d", "te_acc", "pool_acc")


@dataclass(frozen=True)
class Schedule:
    """When weights enter an average.

    Attributes:
        first: first step averaged, or a share of the run's steps.
        every: steps between updates; 0: at each evaluation.
        prefix: of the names of its averages.
    """

    first: float = WARMUP
    every: int = 1
    prefix: str = ""

    def __str__(self) -> str:
        first = f"{self.first:.0%} of the steps" if 0 < self.first < 1 else f"step {self.first:g}"
        return f"from {first}, {f'every {self.every}' if self.every else 'each evaluation'}"

    def holds(self, step: int, settings: RunSettings) -> bool:
        """True if the weights after ``step`` enter the average."""
        first = self.first if self.first >= 1 else self.first * settings.steps
        return step >= first and step % (self.every or settings.evaluate_every) == 0


SCHEDULES = (
    Schedule(),
    Schedule(first=1, prefix="from_1_"),
    Schedule(first=0.25, prefix="from_quarter_"),
    Schedule(first=0.5, prefix="from_half_"),
    Schedule(every=5, prefix="every_5_"),
    Schedule(every=0, prefix="at_evaluations_"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    recorder = commands.add_parser("record", help="record the runs of a suite")
    recorder.add_argument("suite", type=Path, help="a file of configs/bench")
    recorder.add_argument("data_dir", type=Path)
    recorder.add_argument("--out", type=Path, required=True)
    recorder.add_argument("--seeds", type=int, nargs="+", help="of the runs; default: all")
    recorder.add_argument("--worker", default="0/1", help="i/n: record every n-th run from run i")
    recorder.add_argument("--model", help="default: all-MiniLM-L6-v2 from its package")
    recorder.set_defaults(command=record_all)
    judge = commands.add_parser("judge", help="show the regret of each schedule")
    judge.add_argument("runs_dir", type=Path)
    judge.set_defaults(command=judge_all)
    options = parser.parse_args()
    options.command(options)


def record_all(options: argparse.Namespace) -> None:
    runs = runs_of(
        options.suite, options.data_dir, options.model, options.worker, options.seeds or ()
    )
    for settings, texts, labels in runs:
        if not (options.out / f"{settings.name}.npz").exists():
            print(save_run(options.out, record(texts, labels, settings)), flush=True)


def record(texts: list[str], labels: list[Any], settings: RunSettings) -> RecordedRun:
    """Train as ``settings`` say; record the model and the averages of all schedules."""
    model, split = learner_and_split(texts, labels, settings)
    averages = {schedule: RunningAverages(model) for schedule in SCHEDULES}
    training = train(model, split, settings)
    recorded: dict[str, list[Any]] = {}
    precision = torch.autocast(model.device.type, torch.bfloat16, settings.bf16)
    for step in tqdm(range(settings.steps + 1), desc=settings.name):
        if step > 0:
            next(training)
            for schedule, one in averages.items():
                if schedule.holds(step, settings):
                    one.update(model, step)
        if step % settings.evaluate_every == 0 or step == settings.steps:
            with precision:
                values = evaluate(model, split)
                for schedule, one in averages.items():
                    values |= of_averages(model, split, schedule, one, values)
            for key, value in (values | {"steps": step}).items():
                recorded.setdefault(key, []).append(value)
    arrays: dict[str, NDArray[Any]] = {key: np.stack(each) for key, each in recorded.items()}
    arrays["y"] = split.labels["pool"]
    return RecordedRun(settings.name, arrays, settings.described())


def of_averages(
    model: Learner,
    split: Split,
    schedule: Schedule,
    averages: RunningAverages,
    own: dict[str, Any],
) -> dict[str, Any]:
    """The arrays of one evaluation; the model's own stand for an average without a step."""
    found: dict[str, Any] = {}
    for name in AVERAGES:
        values = own
        if averages.count:
            with averages.applied(model, name):
                values = evaluate(model, split, ("pool", "corrupted", "test"))
        found |= {f"{schedule.prefix}{name}_{key}": values[key] for key in OF_AVERAGES}
    return found


def judge_all(options: argparse.Namespace) -> None:
    """The regret of what each schedule keeps, by `robust_mi` and by a perfect choice.

    Below the table, that of a choice without predictions, by `component_mi`.
    """
    runs = [load_run(path) for path in find_recorded_runs(options.runs_dir)]
    strata = [stratum_of(run.settings) for run in runs]
    regrets = {
        schedule: np.array([list(regrets_of(run, schedule)) for run in tqdm(runs, leave=False)])
        for schedule in SCHEDULES
    }
    shown = [name for name in STRATA if name in strata]
    table = Table(title=f"regret in points of test accuracy, {len(runs)} runs")
    table.add_column("averages")
    for name in (*shown, "all", "less the default", "perfect choice", "last cumulative"):
        table.add_column(name, justify="right")
    for schedule, found in regrets.items():
        chosen, perfect, last = 100 * found.T
        cells = [chosen[[one == name for one in strata]].mean() for name in shown]
        paired = chosen - 100 * regrets[SCHEDULES[0]][:, 0]
        low, high = bootstrap_interval(paired)
        table.add_row(
            str(schedule),
            *(f"{cell:.1f}" for cell in (*cells, chosen.mean())),
            f"{paired.mean():+.1f} [{low:+.1f}, {high:+.1f}]" if paired.any() else "",
            f"{perfect.mean():.1f}",
            f"{last.mean():.1f}",
        )
    out = Console(width=160)
    out.print(table)
    for kind, candidates in {"averages": tuple(AVERAGES), "checkpoints": (CHECKPOINT,)}.items():
        mean = np.mean([regret_of_choice(run, "component_mi", candidates) for run in runs])
        out.print(f"component_mi among {kind}: {100 * mean:.1f}")
    last = np.mean([run.best_accuracy - run.test_accuracy[-1] for run in runs])
    out.print(f"last checkpoint: {100 * last:.1f}")


def regret_of_choice(run: RecordedRun, criterion: str, candidates: Sequence[str]) -> float:
    """Regret of the candidate with the best score of the run."""
    scored = score_run(run, [CRITERIA[criterion]()], candidates)[criterion]
    step = scored.series.best_step
    assert step is not None
    kept = run.test_accuracy_of(scored.best_at(step))[run.steps.index(step)]
    return float(run.best_accuracy - kept)


def regrets_of(run: RecordedRun, schedule: Schedule) -> Iterator[float]:
    """Regret of the choice by `robust_mi`, of a perfect choice, and of the last cumulative."""
    names = tuple(schedule.prefix + name for name in AVERAGES)
    accuracies = {name: run.test_accuracy_of(name)[1:] for name in names}
    yield regret_of_choice(run, "robust_mi", names)
    yield run.best_accuracy - max(values.max() for values in accuracies.values())
    yield run.best_accuracy - accuracies[names[0]][-1]


if __name__ == "__main__":
    main()
