"""Judgement of recorded runs as docs/evidence.md with its pictures.

    python scripts/write_evidence.py RUNS_DIR

RUNS_DIR has a folder of runs for each suite in configs/bench. docs/evidence_text.md has the text
around the tables; the command adds tables and pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from sepstop.bench.judge import JUDGED, KNOWN, judge
from sepstop.bench.label_curve import label_curve
from sepstop.bench.recorded_run import RecordedRun, find_recorded_runs, fingerprint, load_run
from sepstop.bench.scores import ScoreCache
from sepstop.bench.verdicts import DEFAULT, HINDSIGHT, Judgement, bootstrap_interval
from sepstop.measure.scorer import needs_of

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
PARTS = ("development", "held_out_first", "held_out", "smollm2", "final", "confirmation")
ROWS = 16
LEAST_SAVED = 0.3  # of the steps, for a stop to count as one
WHO = ("chosen", "default")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*", "<", ">", "h", "p", "8", "d")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs_dir", type=Path, help="a folder of runs for each suite")
    parser.add_argument("--num-resamples", type=int, default=5, help="resamples of the pool")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/evidence.md")
    options = parser.parse_args()
    images = options.out.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "docs/evidence_text.md").read_text()
    manifest = {}
    seen: list[tuple[Judgement, list[RecordedRun]]] = []
    shown: list[tuple[float, RecordedRun, ScoreCache]] = []
    for part in PARTS:
        folder = options.runs_dir / part
        runs = [load_run(path) for path in find_recorded_runs(folder)]
        cache = ScoreCache(folder / "scores", options.num_resamples)
        criteria = [KNOWN[name]() for name in JUDGED]
        judgement = judge(runs, criteria, scores=cache, progress=True)
        seen.append((judgement, runs))
        frontier(judgement, images / f"evidence-frontier-{part}.png")
        for mark, table in {
            f"<!-- headline {part} -->": headline(judgement),
            f"<!-- criteria {part} -->": criteria_table(judgement),
            f"<!-- runs {part} -->": runs_table(judgement, runs),
        }.items():
            if mark not in text:
                raise SystemExit(f"docs/evidence_text.md has no {mark}")
            text = text.replace(mark, table)
        if part == "development":
            text = text.replace("<!-- left out -->", left_out_table(judgement, runs))
        manifest[part] = {run.name: {"sha256": fingerprint(run), **run.settings} for run in runs}
        if part in ("final", "confirmation"):
            regrets = judgement.find(DEFAULT).regrets
            shown += zip(regrets, runs, [cache] * len(runs), strict=True)
    curves(sorted(shown, key=lambda one: one[0]), images / "evidence-curves.png")
    text = text.replace("<!-- noise -->", noise_table(seen))
    text = text.replace("<!-- embeddings -->", embeddings_table(seen))
    options.out.write_text(text)
    (options.out.parent / "evidence_runs.json").write_text(json.dumps(manifest, indent=1) + "\n")
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:12]
    print(f"{options.out}: {sum(map(len, manifest.values()))} runs, manifest {digest}")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def points(row: dict[str, Any], name: str) -> str:
    mean, low, high = (100 * row[f"{name}_{part}"] for part in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def headline(judgement: Judgement) -> str:
    """The default beside the references and the best of each kind."""
    rows = {(row["criterion"], row["policy"]): row for row in judgement.summaries()}
    chosen = [(DEFAULT, HINDSIGHT), (DEFAULT, "auto")]
    named = ("last checkpoint", "training loss", "infomax", "consistency", "separability")
    named += ("component_mi",)
    chosen += [(name, HINDSIGHT) for name in named]
    free = [row for row in rows.values() if row["label_free"] and row["criterion"] in KNOWN]
    best = min((row for row in free if row["policy"] == HINDSIGHT), key=_regret)
    stopped = [row for row in free if row["policy"] != HINDSIGHT]
    saving = [row for row in stopped if row["steps_saved_mean"] >= LEAST_SAVED]
    for row in (best, min(stopped, key=_regret), min(saving, key=_regret, default=best)):
        chosen.append((row["criterion"], row["policy"]))
    return _table([rows[key] for key in dict.fromkeys(chosen)])


def criteria_table(judgement: Judgement) -> str:
    rows = sorted(judgement.summaries(), key=_regret)
    hindsight = [row for row in rows if row["policy"] == HINDSIGHT]
    stopping = [row for row in rows if row["policy"] != HINDSIGHT]
    curve = ", ".join(f"{m}: {100 * regret:.1f}" for m, regret in judgement.label_regrets.items())
    return f"""**The pick in hindsight**, all evaluations seen:

{_table(hindsight)}

**Stopping online**, the best {ROWS} of {len(stopping)} pairs of criterion and policy:

{_table(stopping[:ROWS])}

Mean regret of picking by validation accuracy on m labels: {curve}."""


def _regret(row: dict[str, Any]) -> float:
    return float(row["regret_mean"])


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["criterion", "policy", "regret", "p90", "max", "steps saved", "Spearman", "labels"]
    return markdown(
        [*header, "against the best peer"],
        [
            [
                row["criterion"],
                row["policy"],
                points(row, "regret"),
                f"{100 * row['regret_p90']:.1f}",
                f"{100 * row['regret_max']:.1f}",
                f"{row['steps_saved_mean']:.0%}",
                f"{row['spearman_mean']:.2f}",
                f"{row['label_equivalent']:.0f}" if row["label_free"] else "",
                points(row, "difference") if "difference_mean" in row else "",
            ]
            for row in rows
        ],
    )


def left_out_table(judgement: Judgement, runs: list[RecordedRun]) -> str:
    """Regret on each data set of the criterion chosen on all the others."""
    data = np.array([run.name.split("-")[0] for run in runs])
    free = [verdict for verdict in judgement.verdicts if verdict.label_free]
    ways = {
        "pick": [verdict for verdict in free if verdict.policy == HINDSIGHT],
        "stop": [verdict for verdict in free if verdict.policy != HINDSIGHT],
    }
    lost: dict[str, list[float]] = {f"{way}, {who}": [] for way in ways for who in WHO}
    rows = []
    for name in dict.fromkeys(data):
        out = data == name
        row = [f"{name} ({out.sum()} runs)"]
        for way, verdicts in ways.items():
            saving = [v for v in verdicts if v.saved[~out].mean() >= LEAST_SAVED * (way == "stop")]
            chosen = min(saving, key=lambda verdict: verdict.regrets[~out].mean())
            ours = judgement.find(DEFAULT, "auto" if way == "stop" else HINDSIGHT)
            row.append(chosen.criterion + (f", {chosen.policy}" if way == "stop" else ""))
            for who, verdict in zip(WHO, (chosen, ours), strict=True):
                lost[f"{way}, {who}"] += (100 * verdict.regrets[out]).tolist()
                row.append(f"{100 * verdict.regrets[out].mean():.1f}")
        rows.append(row)
    means = [f"{np.mean(values):.1f}" for values in lost.values()]
    rows.append(["mean over runs", "", *means[:2], "", *means[2:]])
    header = ["left out", "best pick elsewhere", "it loses", "default loses"]
    return markdown([*header, "best stop elsewhere", *header[2:]], rows)


def noise_table(seen: list[tuple[Judgement, list[RecordedRun]]]) -> str:
    """All runs, by the share of wrong training labels."""
    columns = {
        "default": (DEFAULT, HINDSIGHT),
        "default, stopped": (DEFAULT, "auto"),
        "last checkpoint": ("last checkpoint", HINDSIGHT),
        "training loss": ("training loss", HINDSIGHT),
        "infomax": ("infomax", HINDSIGHT),
        "consistency": ("consistency", HINDSIGHT),
        "churn": ("churn", HINDSIGHT),
        "component_mi": ("component_mi", HINDSIGHT),
        "separability": ("separability", HINDSIGHT),
    }
    by_noise: dict[str, list[list[float]]] = {}
    by_part: list[list[list[float]]] = []
    for judgement, runs in seen:
        by_part.append([])
        for i, run in enumerate(runs):
            noise = f"{float(run.settings['noise']):.0%}"
            kind = ", always as the next class" if run.settings["noise_kind"] == "class" else ""
            regrets = [judgement.find(*column).regrets[i] for column in columns.values()]
            values = [100 * value for value in (*regrets, label_curve(run)[100])]
            by_noise.setdefault(noise + kind, []).append(values)
            by_part[-1].append(values)
    fresh = np.concatenate(by_part[1:])
    means = [(share, np.array(by_noise[share])) for share in sorted(by_noise)]
    means += [("all", np.concatenate(by_part)), ("all but development", fresh)]
    rows = [
        [share, f"{len(values)}", *(f"{value:.1f}" for value in values.mean(axis=0))]
        for share, values in means
    ]
    middle = np.median(fresh, axis=0)
    rows.append(["all but development, median", f"{len(fresh)}", *(f"{v:.1f}" for v in middle)])
    return markdown(["wrong labels", "runs", *columns, "100 labels"], rows)


def embeddings_table(seen: list[tuple[Judgement, list[RecordedRun]]]) -> str:
    """All runs, judged as if their models made no predictions."""
    alone = [name for name in JUDGED if {"points", "neighbors"}.issuperset(needs_of(KNOWN[name]()))]

    def regrets(name: str, policy: str) -> list[np.ndarray]:
        return [100 * judgement.find(name, policy).regrets for judgement, _ in seen]

    rows = []
    for name in [*alone, "last checkpoint"]:
        picked = regrets(name, HINDSIGHT)
        fresh = np.concatenate(picked[1:])
        values = [picked[0].mean(), fresh.mean(), np.median(fresh), fresh.max()]
        row = [name, *(f"{value:.1f}" for value in values)]
        if name in KNOWN:
            saved = [judgement.find(name, "plateau").saved for judgement, _ in seen]
            stopped = np.concatenate(regrets(name, "plateau")[1:])
            row += [f"{stopped.mean():.1f}", f"{np.concatenate(saved[1:]).mean():.0%}"]
            more = np.concatenate(picked) - np.concatenate(regrets("last checkpoint", HINDSIGHT))
            low, high = bootstrap_interval(more)
            row.append(f"{more.mean():.1f} [{low:.1f}, {high:.1f}]")
        rows.append((np.concatenate(picked).mean(), row))
    header = ["criterion", "development", "all others", "median", "max"]
    return markdown(
        [*header, "others, plateau", "steps saved", "all, against the last checkpoint"],
        [row + [""] * (8 - len(row)) for _, row in sorted(rows, key=lambda pair: pair[0])],
    )


def runs_table(judgement: Judgement, runs: list[RecordedRun]) -> str:
    columns = [
        ("last checkpoint", HINDSIGHT),
        (DEFAULT, HINDSIGHT),
        (DEFAULT, "auto"),
        ("separability", HINDSIGHT),
        ("infomax", HINDSIGHT),
        ("consistency", HINDSIGHT),
    ]
    rows = []
    for i, run in enumerate(runs):
        accuracy = run.test_accuracy
        fall = accuracy.max() - accuracy[-3:].mean()
        rows.append(
            [
                run.name.rsplit("-", 1)[0],
                f"{accuracy.max():.3f} at {run.steps[int(accuracy.argmax())]}",
                f"{100 * fall:.1f}",
                *(f"{100 * judgement.find(*column).regrets[i]:.1f}" for column in columns),
            ]
        )
    names = [f"{criterion}, {policy}".replace(", hindsight", "") for criterion, policy in columns]
    return markdown(["run", "best accuracy", "fall after it", *names], rows)


def frontier(judgement: Judgement, path: Path) -> None:
    """Regret against steps saved, one color per criterion."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    names = list(dict.fromkeys(v.criterion for v in judgement.verdicts if v.criterion in KNOWN))
    colors = plt.get_cmap("tab20")(np.linspace(0, 1, len(names)))
    for number, name in enumerate(names):
        verdicts = [v for v in judgement.verdicts if v.criterion == name]
        axes.scatter(
            [100 * v.saved.mean() for v in verdicts],
            [100 * v.regrets.mean() for v in verdicts],
            color=colors[number],
            marker=MARKERS[number % len(MARKERS)],
            label=name,
            s=45,
        )
    last = 100 * judgement.find("last checkpoint").regrets.mean()
    axes.axhline(last, color="grey", linestyle="--", label="last checkpoint")
    default = judgement.find(DEFAULT, "auto")
    place = 100 * default.saved.mean(), 100 * default.regrets.mean()
    axes.scatter(*place, color="black", marker="*", s=160, label="default", zorder=3)
    axes.set_yscale("log")
    for axis_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_formatter("{x:g}")
    axes.set(xlabel="steps saved, %", ylabel="mean regret, points of test accuracy")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curves(shown: list[tuple[float, RecordedRun, ScoreCache]], path: Path) -> None:
    """The three runs with the best pick of the default, and the three with the worst."""
    figure, grid = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axes, (regret, run, cache) in zip(grid.flat, [*shown[:3], *shown[-3:]], strict=True):
        axes.plot(run.steps, run.test_accuracy, "s--", color="black", label="test accuracy")
        styles = {"separability": "o-", "neighbor_mi": "^-", "consistency": "v-"}
        for name, series in cache(run, [KNOWN[name]() for name in styles]).items():
            scale = 1 if name == "separability" else np.log(run.arrays["pool_l"].shape[-1])
            values = np.array([score.value for score in series.scores])
            label = name if name == "separability" else f"{name} / log k"
            axes.plot(run.steps, values / scale, styles[name], label=label)
        title = f"{run.name.rsplit('-', 1)[0]}\nregret of the pick {100 * regret:.1f}"
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step")
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
