"""What a few labels add to the label-free score, on recorded runs.

    python scripts/bench_labels.py RUNS_DIR [RUNS_DIR ...] [--turned] [--caution 1.5]

At each evaluation the candidate is the better average by `robust_mi`, or of runs recorded without
averages the checkpoint by `neighbor_mi`. The m labels are drawn `DRAWS` times from the pool: at
random; or "asked" for, from the texts on which candidates disagree, as `sepstop select --ask` draws
them; or the "disputed" ones, on which they disagree most.
Regret is to the run's best checkpoint, in points of test accuracy: the mean over runs, and the
largest mean over the draws of a run.

The score's pick counts as it stands, or labels choose by themselves: the candidate that is right
most often, the earliest of equals, where texts are asked for if any candidates disagree.

--turned gives the better half of each run's candidates each other's scores, the best the worst of
them and so on: it shows what labels do where the score is wrong. --caution is that of
`sepstop.decide.few_labels.choose_by_labels`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench_pool_size import BY_NEIGHBOR_MI, BY_ROBUST_MI
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from sepstop.bench.recorded_run import RecordedRun, find_recorded_runs, load_run
from sepstop.bench.scores import can_score, score_run
from sepstop.bench.strata import STRATA, stratum_of
from sepstop.decide.few_labels import (
    CAUTION,
    choose_by_labels,
    contenders,
    draw_texts,
    telling_texts,
)
from sepstop.types import CHECKPOINT

SIZES = (10, 25, 50)
DRAWS = 200


class Candidates(NamedTuple):
    """The candidates of a run.

    Attributes:
        predictions: ``(C, N)`` classes of the pool's texts.
        labels: ``(N,)`` right classes.
        scores: ``(C,)``, higher is better.
        regrets: ``(C,)`` in points of test accuracy.
    """

    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    regrets: NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs_dirs", type=Path, nargs="+", metavar="RUNS_DIR")
    parser.add_argument("--turned", action="store_true", help="give the better half wrong scores")
    parser.add_argument("--caution", type=float, default=CAUTION)
    options = parser.parse_args()
    paths = [path for folder in options.runs_dirs for path in find_recorded_runs(folder)]
    found: dict[str, list[dict[tuple[str, int], float]]] = {}
    for path in tqdm(paths, desc="runs", leave=False):
        run = load_run(path)
        candidates = candidates_of(run)
        if options.turned:
            candidates = candidates._replace(scores=turned(candidates.scores))
        found.setdefault(stratum(run), []).append(regrets_of(candidates, options.caution))
    strata = [name for name in STRATA if name in found]
    groups = {"all": [one for name in strata for one in found[name]]}
    groups |= {name: found[name] for name in strata}
    Console(width=140).print(table_of(groups))


def stratum(run: RecordedRun) -> str:
    """The run's stratum; files without settings have rate and share of wrong labels in the name."""
    rate, noise = (re.search(rf"-{key}([\d.e-]+)-", run.name) for key in ("lr", "noise"))
    if run.settings or rate is None or noise is None:
        return stratum_of(run.settings)
    return stratum_of({"learning_rate": rate[1], "noise": noise[1]})


def candidates_of(run: RecordedRun) -> Candidates:
    """The better candidate of each evaluation after step 0."""
    has_averages = can_score(run, BY_ROBUST_MI.criterion, BY_ROBUST_MI.candidates)
    way = BY_ROBUST_MI if has_averages else BY_NEIGHBOR_MI
    scored = score_run(run, [way.criterion], way.candidates)[way.criterion.name]
    rows = []
    for t, (step, name) in enumerate(zip(scored.steps, scored.best, strict=True)):
        if step > 0:
            key = "pool_l" if name == CHECKPOINT else f"{name}_pool_l"
            regret = run.best_accuracy - run.test_accuracy_of(name)[t]
            classes = run.arrays[key][t].argmax(axis=-1)
            rows.append((classes, scored.scores[t][name].value, 100 * regret))
    predictions, scores, regrets = zip(*rows, strict=True)
    labels = run.arrays["y"].astype(np.int64)
    return Candidates(np.array(predictions), labels, np.array(scores), np.array(regrets))


def turned(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores whose better half is in the opposite order."""
    better = np.argsort(-scores, kind="stable")[: (len(scores) + 1) // 2]
    wrong = scores.copy()
    wrong[better] = scores[better][::-1]
    return wrong


def disputed(run: Candidates, proposed: int, count: int, seed: int) -> NDArray[np.int64]:
    """The texts on which the contenders disagree most, by the Gini impurity of their votes."""
    votes = run.predictions[contenders(run.scores, proposed)]  # (c, N)
    agreeing = (votes[:, None] == votes[None]).mean(axis=(0, 1))  # share of pairs, (N,)
    order = np.random.default_rng(seed).permutation(len(agreeing))  # of equals, any
    return order[np.argsort(agreeing[order], kind="stable")][:count]


def regrets_of(run: Candidates, caution: float = CAUTION) -> dict[tuple[str, int], float]:
    """Mean regret over the draws by what is done and the number of labels."""
    proposed = int(np.nanargmax(run.scores))
    telling = telling_texts(run.predictions, run.scores, proposed)
    differ = np.flatnonzero((run.predictions != run.predictions[0]).any(axis=0))
    everything = np.arange(len(run.labels))
    right = run.predictions == run.labels
    found = {
        ("the score alone", 0): run.regrets[proposed],
        ("the best candidate", 0): run.regrets.min(),
        ("the best contender", 0): run.regrets[contenders(run.scores, proposed)].min(),
    }
    for m in SIZES:
        kept: dict[str, list[int]] = {}
        for seed in range(DRAWS):
            ways = {
                "random": draw_texts(everything, m, seed),
                "asked": draw_texts(telling, m, seed),
                "disputed": disputed(run, proposed, m, seed),
            }
            for name, drawn in ways.items():
                choice = choose_by_labels(
                    run.predictions[:, drawn], run.labels[drawn], run.scores, proposed, caution
                )
                kept.setdefault(f"the score and {m} {name}", []).append(choice.kept)
            for name, texts in (("random", everything), ("asked", differ)):
                drawn = draw_texts(texts, m, seed)
                most = int(right[:, drawn].sum(axis=1).argmax())
                kept.setdefault(f"{m} {name} alone", []).append(most)
        found |= {(name, m): run.regrets[picks].mean() for name, picks in kept.items()}
    return {key: float(regret) for key, regret in found.items()}


def table_of(groups: dict[str, Sequence[dict[tuple[str, int], float]]]) -> Table:
    """Mean and largest regret by what is done; one column for each group of runs."""
    table = Table(title="regret in points of test accuracy: mean / largest of a run")
    for column in ("", *(f"{name} ({len(runs)})" for name, runs in groups.items())):
        table.add_column(column, justify="right")
    for key in groups["all"][0]:
        values = [[run[key] for run in runs] for runs in groups.values()]
        table.add_row(key[0], *(f"{np.mean(v):.1f} / {max(v):.1f}" for v in values))
    return table


if __name__ == "__main__":
    main()
