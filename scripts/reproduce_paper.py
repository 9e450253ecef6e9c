"""Tests of the claims of arXiv 2305.15016 on our reading of its score: docs/reproduction.md.

    python scripts/reproduce_paper.py --data DATA_DIR --runs RUNS_DIR

DATA_DIR has JSON Lines of trec6, sst2, banking77 and clinc150 (BBC News comes from its package),
RUNS_DIR has recorded runs (see `sepstop bench`). Without them, the page says what is left out.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from record_suite import bbc_news, minilm
from scipy import stats
from sklearn.datasets import make_circles, make_moons, make_swiss_roll
from sklearn.exceptions import ConvergenceWarning
from tqdm.auto import tqdm

from sepstop import h0_separability
from sepstop.bench.recorded_run import find_recorded_runs, load_run
from sepstop.bench.rows import read_rows
from sepstop.bench.verdicts import bootstrap_interval
from sepstop.criteria.supervised import all_measures

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
POINTS = 300
MEASURES = ("FDR", "LR accuracy", "ROC-AUC", "Thornton", "Calinski-Harabasz")
DATA = {
    "trec": ["trec6.train.jsonl"],
    "sst2": ["sst2.train.jsonl"],
    "banking77": ["banking77.train.jsonl"],
    "clinc150": ["clinc150.train.jsonl"],
}
Cloud = tuple[np.ndarray, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/reproduction.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    (options.out.parent / "images").mkdir(parents=True, exist_ok=True)
    parts = [
        INTRODUCTION,
        synthetic(options.out.parent / "images"),
        breakdown(options.out.parent / "images"),
        text(options.data),
        training(options.runs, options.out.parent / "images"),
        layer_norm(),
    ]
    options.out.write_text("\n\n".join(parts) + "\n")
    print(options.out)


INTRODUCTION = """# The paper's claims, with our reading of its score

    python scripts/reproduce_paper.py --data DATA_DIR --runs RUNS_DIR

arXiv 2305.15016 publishes no code and leaves its formula open. This page tests the paper's claims
with **our reading** of the formula, `separability = 1 - mean(p / max p)`. ρ is Spearman's rank
correlation between the score and a measure that knows the labels. Means have a 95 % bootstrap
interval. "Normalized" divides each point by its L2 norm first. The paper found this best, and it is
sepstop's default.

Findings, with figures below:

- **Gaussian classes: it holds.** The score ranks separations as FDR does, in 2 to 768 dimensions
  and for 2 to 20 classes, balanced or not; in 2 dimensions only when normalized. (The other
  measures saturate in many dimensions, where they call every separation perfect.)
- **Moons, circles, swiss rolls: it does not hold in general.** Their classes are not tight
  clusters, and normalization can destroy the shape.
- **Text without fine-tuning: it holds weakly.** Over random subsets of classes, the agreement with
  FDR is moderate on average and close to zero on some data sets.
- **Fine-tuning: the score follows FDR; it follows accuracy only on average.** Some runs show no
  agreement with test accuracy.
- **LayerNorm: not reproduced** in the toy model with normalized embeddings."""


def score(points: np.ndarray, normalize: bool) -> float:
    return float(h0_separability(torch.from_numpy(points).double(), normalize))


def rho(a: list[float], b: list[float]) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return float(stats.spearmanr(a, b)[0])


def mean_interval(values: list[float]) -> str:
    known = np.array([value for value in values if np.isfinite(value)])
    if len(known) < 2:
        return "".join(f"{value:.2f}" for value in known)
    low, high = bootstrap_interval(known)
    return f"{known.mean():.2f} [{low:.2f}, {high:.2f}]"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# 1. Synthetic data


def sizes(classes: int, balanced: bool) -> np.ndarray:
    """Points of each class; the largest imbalanced one has ten times those of the smallest."""
    shares = np.ones(classes) if balanced else 10 ** -np.linspace(0, 1, classes)
    return np.maximum(4, np.round(POINTS * shares / shares.sum()).astype(int))


def gaussian(
    classes: int, dimension: int, balanced: bool, separation: float, rng: np.random.Generator
) -> Cloud:
    """Unit spread a class; centers at random directions, ``separation`` standard deviations out."""
    centers = rng.normal(size=(classes, dimension))
    centers *= separation / np.linalg.norm(centers, axis=1, keepdims=True)
    y = np.repeat(np.arange(classes), sizes(classes, balanced))
    return centers[y] + rng.normal(size=(len(y), dimension)) / np.sqrt(dimension), y


def curved(shape: str, separation: float, rng: np.random.Generator) -> Cloud:
    """Two classes on moons, circles or swiss rolls, less and less noise or more and more apart."""
    seed = int(rng.integers(2**31))
    noise = 0.5 / (1 + 2 * separation)
    if shape == "moons":
        return make_moons(POINTS, noise=noise, random_state=seed)
    if shape == "circles":
        return make_circles(POINTS, noise=noise, factor=0.4, random_state=seed)
    roll, _ = make_swiss_roll(POINTS, noise=0.5, random_state=seed)
    y = np.arange(POINTS) % 2
    return roll + separation * 8 * y[:, None] * np.array([0, 1.0, 0]), y


def clouds() -> Iterator[tuple[str, Callable[[float, np.random.Generator], Cloud]]]:
    for classes, dimension, balanced in product((2, 5, 20), (2, 16, 128, 768), (True, False)):

        def make(s: float, rng: np.random.Generator, c=classes, d=dimension, b=balanced) -> Cloud:
            return gaussian(c, d, b, s, rng)

        shape = "balanced" if balanced else "imbalanced"
        yield f"Gaussian, {shape}, {dimension} dimensions", make
    for shape, _ in product(("moons", "circles", "swiss rolls"), range(5)):
        yield shape, lambda s, rng, shape=shape: curved(shape, s, rng)


SEPARATIONS = np.array([0.25, 0.5, 1, 1.5, 2, 3, 4, 6])


def synthetic(images: Path) -> str:
    found: dict[str, dict[str, list[float]]] = {}
    curves: dict[str, list[float]] = {}
    for number, (name, make) in enumerate(tqdm(list(clouds()), desc="synthetic")):
        rng = np.random.default_rng(number)
        rows = [make(separation, rng) for separation in SEPARATIONS]
        measured = [all_measures(*row) for row in rows]
        for normalize in (True, False):
            scores = [score(points, normalize) for points, _ in rows]
            key = f"{name}{', normalized' if normalize else ''}"
            if not normalize and name not in curves:
                curves[name] = scores
            for measure in MEASURES:
                of = found.setdefault(key, {}).setdefault(measure, [])
                of.append(rho(scores, [values[measure] for values in measured]))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, balanced in zip(axes, ("balanced", "imbalanced"), strict=True):
        for name, scores in curves.items():
            if f", {balanced}," in name:
                label = name.split(", ")[-1]
                axis.plot(SEPARATIONS, scores, marker="o", label=label)
        axis.set(title=f"two {balanced} Gaussian classes", xlabel="separation of the centers")
        axis.legend()
    axes[0].set_ylabel("separability, not normalized")
    figure.tight_layout()
    figure.savefig(images / "reproduction-synthetic.png", dpi=110)
    plt.close(figure)
    table = markdown(
        ["data", *MEASURES],
        [
            [name, *(mean_interval(of[measure]) for measure in MEASURES)]
            for name, of in found.items()
        ],
    )
    return f"""## 1. Synthetic data: does the score follow the separation of classes?

Each cloud has {POINTS} points. The separation takes {len(SEPARATIONS)} values, and ρ is over these.
Gaussian classes have centers in random directions; the mean is over 2, 5 and 20 classes. For the
curved classes it is over 5 seeds: moons and circles get less noise, two swiss rolls move apart.
Imbalanced means that the largest class has ten times the points of the smallest.

{table}

![Separability of two Gaussian classes](images/reproduction-synthetic.png)"""


def breakdown(images: Path) -> str:
    """Where the statistic fails: an outlier sets the maximum; noise fills many dimensions."""
    rng = np.random.default_rng(0)
    outliers, dimensions = (0, 1, 2, 5, 10, 20), (2, 8, 32, 128, 768)
    base, _ = gaussian(5, 16, True, 6.0, rng)
    rows = []
    for count in outliers:
        points = base.copy()
        directions = rng.normal(size=(count, 16))
        points[:count] = 30 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        rows.append([f"5 tight classes, {count} outliers", *both(points)])
    blob = rng.normal(size=(POINTS, 16)) * 0.02 + 1
    for count in (0, 1, 5):
        points = blob.copy()
        points[:count] = rng.normal(size=(count, 16)) * 3
        rows.append([f"one blob without classes, {count} outliers", *both(points)])
    for dimension in dimensions:
        points = rng.normal(size=(POINTS, dimension))
        rows.append([f"isotropic noise, {dimension} dimensions", *both(points)])
    for dimension in dimensions:
        points = gaussian(5, 16, True, 6.0, np.random.default_rng(1))[0]
        noise = rng.normal(size=(POINTS, dimension)) * 0.5
        rows.append(
            [
                f"5 tight classes and {dimension} dimensions of noise",
                *both(np.concatenate([points, noise], axis=1)),
            ]
        )
    return f"""## Where it breaks down

{markdown(["data", "normalized", "not normalized"], rows)}

A single outlier gives a blob without classes a high score: the outlier sets the maximum, and the
blob's own merges are small compared to it. A partial collapse of a model looks like this. Many
dimensions of noise hide tight classes, because all distances become similar. And noise without
classes scores high in 2 dimensions. So compare values within a run, not between models."""


def both(points: np.ndarray) -> list[str]:
    return [f"{score(points, normalize):.2f}" for normalize in (True, False)]


# 2. Text


def text(data: Path | None) -> str:
    """Random subsets of classes: does the score rank them as the supervised measures do?"""
    from transformers import AutoModel, AutoTokenizer

    from sepstop.measure.embedding import embed
    from sepstop.measure.pooling import MeanPooling

    model = AutoModel.from_pretrained(minilm())
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    sources = {"bbc": bbc_news()}
    if data is not None:
        sources |= {
            name: read_rows([data / file for file in files]) for name, files in DATA.items()
        }
    rows = []
    for name, (texts, labels) in sources.items():
        rng = np.random.default_rng(0)
        chosen = rng.permutation(len(texts))[:4000]
        ids = tokenizer([texts[i] for i in chosen], truncation=True, max_length=40)["input_ids"]
        points = embed(model, [torch.tensor(row) for row in ids], MeanPooling()).numpy()
        y = np.unique([labels[i] for i in chosen], return_inverse=True)[1]
        for kind in ("binary", "multi-class", "multi-class, imbalanced"):
            scores, measured = subsets(points, y, kind, rng)
            if scores:
                rows.append(
                    [
                        f"{name}, {kind} ({len(scores)} subsets)",
                        *(rho(scores, [m[key] for m in measured]) for key in MEASURES),
                    ]
                )
    table = markdown(
        ["data", *MEASURES],
        [[row[0], *(f"{value:.2f}" for value in row[1:])] for row in rows]
        + [["mean", *(mean_interval([row[i] for row in rows]) for i in range(1, 6))]],
    )
    left_out = "" if data is not None else "\n\nOnly BBC News: no --data was given."
    return f"""## 2. Text embeddings: does it rank data sets as the supervised measures do?

The embeddings are those of all-MiniLM-L6-v2 without fine-tuning, normalized. Each subset has random
classes of a data set and about {POINTS} texts: 2 classes, or 3 to 10, balanced or with the largest
class ten times the smallest. ρ is over the subsets. SST-2 has only two classes, so it has no
subsets.{left_out}

{table}"""


def subsets(
    points: np.ndarray, y: np.ndarray, kind: str, rng: np.random.Generator, count: int = 30
) -> tuple[list[float], list[dict[str, float]]]:
    classes = np.unique(y)
    scores, measured = [], []
    if (kind == "binary" and len(classes) == 2) or (kind != "binary" and len(classes) < 4):
        return [], []
    for _ in range(count):
        k = 2 if kind == "binary" else int(rng.integers(3, min(10, len(classes) - 1) + 1))
        several = rng.choice(classes, k, replace=False)
        wanted = sizes(k, "imbalanced" not in kind)
        rows = [
            rng.permutation(np.flatnonzero(y == c))[:size]
            for c, size in zip(several, wanted, strict=True)
        ]
        if min(map(len, rows)) < 4:
            continue
        chosen = np.concatenate(rows)
        scores.append(score(points[chosen], True))
        measured.append(all_measures(points[chosen], y[chosen]))
    return scores, measured


# 3. Fine-tuning


def training(runs: Path | None, images: Path) -> str:
    if runs is None:
        return "## 3. Fine-tuning\n\nLeft out: no --runs were given."
    columns = ("test accuracy", *MEASURES)
    found: dict[bool, dict[str, list[float]]] = {
        normalize: {column: [] for column in columns} for normalize in (True, False)
    }
    paths = find_recorded_runs(runs)
    figure, axes = plt.subplots(2, 2, figsize=(10, 7))
    for path, axis in tqdm(
        list(zip(paths, [*axes.flat, *[None] * len(paths)], strict=False)), desc="runs"
    ):
        run = load_run(path)
        clouds = [cloud[: 2 * POINTS].astype(np.float64) for cloud in run.arrays["pool_e"][1:]]
        y = run.arrays["y"][: 2 * POINTS]
        keep = np.bincount(y)[y] >= 3
        measured = [all_measures(cloud[keep], y[keep]) for cloud in clouds]
        accuracy = run.test_accuracy[1:].tolist()
        for normalize in (True, False):
            scores = [score(cloud, normalize) for cloud in clouds]
            found[normalize]["test accuracy"].append(rho(scores, accuracy))
            for measure in MEASURES:
                of = found[normalize][measure]
                of.append(rho(scores, [values[measure] for values in measured]))
            if normalize and axis is not None:
                axis.plot(run.steps[1:], scores, "o-", label="separability")
                axis.plot(run.steps[1:], accuracy, "s--", label="test accuracy")
                axis.plot(run.steps[1:], [m["Thornton"] for m in measured], ":", label="Thornton")
                axis.set(title=run.name[:44], xlabel="step")
                axis.title.set_fontsize(9)
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(images / "reproduction-training.png", dpi=110)
    plt.close(figure)
    table = markdown(
        ["embeddings", *columns],
        [
            ["normalized" if normalize else "as they are", *(mean_interval(of[c]) for c in columns)]
            for normalize, of in found.items()
        ],
    )
    return f"""## 3. Fine-tuning: does it follow the supervised measures over training?

{len(paths)} recorded runs with {2 * POINTS} pool texts, without step 0. The measures use the
classes with three texts or more. ρ is over the evaluations of a run; the table has its mean over
the runs.

{table}

![Four runs](images/reproduction-training.png)"""


def layer_norm(seeds: int = 10) -> str:
    """A toy network with and without LayerNorm before its head."""
    rows = []
    for normalized in (True, False):
        scores = {True: [], False: []}
        for seed in range(seeds):
            points = toy_embeddings(seed, normalized)
            for normalize in (True, False):
                scores[normalize].append(score(points, normalize))
        name = "LayerNorm" if normalized else "none"
        rows.append([name, *(mean_interval(scores[normalize]) for normalize in (True, False))])
    return f"""## LayerNorm in a toy model

A network with two hidden layers of 64 units learns 5 Gaussian classes in 16 dimensions. The table
has the separability of its last hidden layer on new points after 300 steps, averaged over {seeds}
seeds. The paper finds simpler embeddings with LayerNorm.

{markdown(["before the head", "normalized", "not normalized"], rows)}"""


def toy_embeddings(seed: int, normalized: bool) -> np.ndarray:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    points, y = gaussian(5, 16, True, 1.5, rng)
    order = rng.permutation(len(y))
    x, labels = torch.from_numpy(points[order]).float(), torch.from_numpy(y[order])
    layers = [torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU()]
    body = torch.nn.Sequential(*layers, *([torch.nn.LayerNorm(64)] if normalized else []))
    head = torch.nn.Linear(64, 5)
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=3e-3)
    half = len(y) // 2
    for _ in range(300):
        loss = torch.nn.functional.cross_entropy(head(body(x[:half])), labels[:half])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return body(x[half:]).numpy()


if __name__ == "__main__":
    main()
