"""Judgement of recorded runs as docs/evidence.md and docs/evidence_suites.md, with pictures.

    python scripts/write_evidence.py RUNS_DIR

RUNS_DIR has a folder of runs for each suite, named as its file in configs/bench. docs/templates has
the text around the tables; the command adds tables and pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from sepstop.bench.judge import JUDGED, KNOWN, judge
from sepstop.bench.judgement import Judgement
from sepstop.bench.recorded_run import RecordedRun, find_recorded_runs, fingerprint, load_run
from sepstop.bench.scores import ScoreCache
from sepstop.bench.tables import (
    Table,
    candidates_table,
    count_of,
    criteria_table,
    interval,
    parts,
    question_tables,
    strata_table,
)
from sepstop.bench.verdicts import DEFAULT, HINDSIGHT, Verdict, bootstrap_interval
from sepstop.config import AUTO

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
DEVELOPMENT = "averages_development"
CONFIRMATION = ("averages_confirmation", "averages_confirmation_smollm2")
STOPS = 16  # rows of the tables of stops
SHOWN = (DEFAULT, "average of all", "EMA 0.999", "last checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs_dir", type=Path, help="a folder of runs for each suite")
    parser.add_argument("--num-resamples", type=int, default=5, help="resamples of the pool")
    parser.add_argument("--criterion", nargs="*", default=JUDGED, help="judge only these criteria")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder for the pages")
    options = parser.parse_args()
    (options.out / "images").mkdir(parents=True, exist_ok=True)
    names = [n for n in (*CONFIRMATION, DEVELOPMENT) if (options.runs_dir / n).is_dir()]
    if not names:
        parser.error(f"{options.runs_dir} has no folder of a suite, such as {DEVELOPMENT}")
    suites = {name: suite(options.runs_dir / name) for name in names}
    cache = ScoreCache(options.runs_dir / "scores", options.num_resamples)
    criteria = [KNOWN[name]() for name in options.criterion]

    def judged(runs: Sequence[RecordedRun]) -> Judgement:
        return judge(runs, criteria, scores=cache, progress=True)

    confirmed = [run for name in CONFIRMATION for run in suites.get(name, [])]
    answer = judged(confirmed or suites[DEVELOPMENT])
    page = filled(
        "evidence.md",
        {
            "scope": scope(answer, bool(confirmed)),
            "strata": strata(answer),
            "default": default_figures(answer),
        },
    )
    (options.out / "evidence.md").write_text(page)
    picture(answer, options.out / "images/evidence-regret.png")
    sections = []
    for name, runs in suites.items():
        judgement = judged(runs)
        frontier(judgement, options.out / f"images/evidence-frontier-{name}.png")
        sections.append(section(name, judgement, runs))
    page = filled("evidence_suites.md", {"suites": "\n\n".join(sections)})
    (options.out / "evidence_suites.md").write_text(page)
    print(f"{options.out}: {write_manifest(suites, options.out)}")


def suite(folder: Path) -> list[RecordedRun]:
    return [load_run(path) for path in find_recorded_runs(folder)]


def filled(template: str, values: dict[str, str]) -> str:
    """A page of docs/templates with ``<!-- name -->`` replaced."""
    text = (ROOT / "docs/templates" / template).read_text()
    for name, value in values.items():
        mark = f"<!-- {name} -->"
        if mark not in text:
            raise SystemExit(f"docs/templates/{template} has no {mark}")
        text = text.replace(mark, value)
    return text


def write_manifest(suites: dict[str, list[RecordedRun]], out: Path) -> str:
    """Write settings and hashes of all runs, beside those of earlier suites, and say so."""
    path = out / "evidence_runs.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    for name, runs in suites.items():
        manifest[name] = {
            run.name: {"sha256": fingerprint(run)}
            | {key: value for key, value in run.settings.items() if key != "plain"}
            for run in runs
        }
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return f"{sum(map(len, suites.values()))} runs, manifest {digest[:12]}"


def markdown(table: Table) -> str:
    rule = ["---"] * table.names + ["---:"] * (len(table.header) - table.names)
    return "\n".join(f"| {' | '.join(line)} |" for line in [table.header, rule, *table.rows])


# The short page


def scope(judgement: Judgement, is_confirmation: bool) -> str:
    count = count_of(judgement)
    if is_confirmation:
        return (
            f"The confirmation has {count}. Their data sets were not used to choose anything. "
            "Their settings and seeds were written down before the first of them was recorded, "
            "and they were judged once."
        )
    return (
        f"The development suite has {count} so far. Choices were made on them; the confirmation is "
        "not judged yet."
    )


def strata(judgement: Judgement) -> str:
    """Mean regret by stratum, with the default's paired difference over all runs."""
    table = strata_table(judgement)
    rows = judgement.summaries(judgement.question())
    return markdown(
        Table(
            table.title,
            [*table.header, "default less this"],
            [
                [*cells, interval(row, "default_less", signed=True)]
                for cells, row in zip(table.rows, rows, strict=True)
            ],
        )
    )


def default_figures(judgement: Judgement) -> str:
    """Median, 90th percentile and maximum of the default, by stratum."""
    lines = ["| the default's regret | " + " | ".join(parts(judgement)) + " |"]
    lines.append("| --- |" + " ---: |" * len(parts(judgement)))
    found = [part.find(DEFAULT).summary() for part in parts(judgement).values()]
    stopped = [part.find(DEFAULT, AUTO).summary() for part in parts(judgement).values()]
    for title, key in (("median", "median"), ("90th percentile", "p90"), ("maximum", "max")):
        cells = [f"{100 * row[f'regret_{key}']:.1f}" for row in found]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    saved = [f"{row['steps_saved_mean']:.0%}" for row in stopped]
    lines.append(f"| steps saved by its stop | {' | '.join(saved)} |")
    return "\n".join(lines)


def picture(judgement: Judgement, path: Path) -> None:
    """Regret of each run, by stratum and choice."""
    chosen = shown(judgement)
    strata_parts = judgement.by_stratum
    figure, grid = plt.subplots(
        len(strata_parts),
        1,
        figsize=(8, 0.7 + 1.6 * len(strata_parts)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    rng = np.random.default_rng(0)
    colors = plt.get_cmap("tab10").colors
    for axes, (name, part) in zip(grid[:, 0], strata_parts.items(), strict=True):
        for row, key in enumerate(chosen.values()):
            regrets = 100 * part.find(*key).regrets
            spread = row + rng.uniform(-0.22, 0.22, len(regrets))
            axes.scatter(regrets, spread, s=14, color=colors[row], alpha=0.5, linewidths=0)
            low, high = bootstrap_interval(regrets)
            if np.isfinite(low):
                axes.plot([low, high], [row, row], color=colors[row], lw=2.5)
            axes.scatter(regrets.mean(), row, marker="D", s=45, color=colors[row], ec="black")
            axes.set_ylim(len(chosen) - 0.5, -0.5)
        axes.axvline(0, color="black", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(chosen)), chosen)
        axes.set_title(f"{name}, {count_of(part)}", loc="left", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xlabel("regret against the best checkpoint, points of accuracy; left is better")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def shown(judgement: Judgement) -> dict[str, tuple[str, str]]:
    """Criterion and policy of the picture's rows, by label."""
    judged = {(verdict.criterion, verdict.policy) for verdict in judgement.verdicts}
    rows = {name: (name, HINDSIGHT) for name in SHOWN if (name, HINDSIGHT) in judged}
    if judgement.decides and (judgement.decides, HINDSIGHT) in judged:
        rows[f"checkpoint by\n{judgement.decides}"] = judgement.decides, HINDSIGHT
    return rows


# The page of suites


def section(name: str, judgement: Judgement, runs: Sequence[RecordedRun]) -> str:
    curve = ", ".join(f"{m}: {100 * regret:.1f}" for m, regret in judgement.label_regrets.items())
    tables = "\n\n".join(
        f"**{table.title[0].upper()}{table.title[1:]}:**\n\n{markdown(table)}"
        for table in [*question_tables(judgement), candidates_table(judgement)]
    )
    return f"""## {name}

{count_of(judgement)} of `configs/bench/{name}.yaml`.

### {name}: what to keep

{tables}

Mean regret of picking a checkpoint by validation accuracy on m labels: {curve}.

### {name}: run by run

{markdown(runs_table(judgement, runs))}

### {name}: when to stop

The best {STOPS} pairs of criterion and policy that choose among the default's candidates or among
single checkpoints:

{markdown(stops_table(judgement))}

![Regret against steps saved](images/evidence-frontier-{name}.png)"""


def runs_table(judgement: Judgement, runs: Sequence[RecordedRun]) -> Table:
    default = judgement.find(DEFAULT)
    columns: list[Verdict] = [default, judgement.find(DEFAULT, AUTO)]
    columns += [judgement.find(*key) for key in shown(judgement).values() if key[0] != DEFAULT]
    names = [v.criterion + (", stopped" if v.policy == AUTO else "") for v in columns]
    rows = []
    for i, run in enumerate(runs):
        kept = default.outcomes[i]
        best = int(run.test_accuracy.argmax())
        rows.append(
            [
                run.name.rsplit("-", 1)[0],
                judgement.strata[i],
                f"{run.test_accuracy[best]:.3f} at {run.steps[best]}",
                f"{kept.candidate} at {kept.step}",
                *(f"{100 * verdict.regrets[i]:.1f}" for verdict in columns),
            ]
        )
    header = ["run", "stratum", "best checkpoint", "the default keeps", *names]
    return Table("run by run", header, rows, names=2)


def stops_table(judgement: Judgement) -> Table:
    stops = [verdict for verdict in judgement.verdicts if verdict.policy != HINDSIGHT]
    own = judgement.find(DEFAULT, AUTO)
    stops = [v for v in stops if v.candidates in (own.candidates, "checkpoints")]
    stops.sort(key=lambda verdict: float(verdict.regrets.mean()))
    keys = [verdict.key for verdict in stops[:STOPS]]
    return criteria_table(judgement, list(dict.fromkeys([*keys, own.key])))


def frontier(judgement: Judgement, path: Path) -> None:
    """Regret against steps saved of the criteria that choose among the default's candidates."""
    own = judgement.find(DEFAULT, AUTO)
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    here = [v for v in judgement.verdicts if v.candidates == own.candidates]
    names = list(dict.fromkeys(v.criterion for v in here if v.criterion in KNOWN))
    colors = plt.get_cmap("tab20")(np.linspace(0, 1, max(len(names), 2)))
    for number, name in enumerate(names):
        found = [v for v in here if v.criterion == name]
        saved = [100 * v.saved.mean() for v in found]
        regrets = [100 * v.regrets.mean() for v in found]
        marker = "os^vDPX*"[number % 8]
        axes.scatter(saved, regrets, color=colors[number], marker=marker, label=name, s=45)
    for name, color in (("last checkpoint", "grey"), ("average of all", "tab:brown")):
        if any(v.criterion == name for v in judgement.verdicts):
            level = 100 * judgement.find(name).regrets.mean()
            axes.axhline(level, color=color, linestyle="--", label=name)
    place = 100 * own.saved.mean(), 100 * own.regrets.mean()
    axes.scatter(*place, color="black", marker="*", s=180, label="default, stopped", zorder=3)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="steps saved, %", ylabel="mean regret, points of test accuracy")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
