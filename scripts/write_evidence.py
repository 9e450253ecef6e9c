"""Judgement of recorded runs as docs/evidence.md and docs/evidence_suites.md, with pictures.

    python scripts/write_evidence.py RUNS_DIR

RUNS_DIR has a folder of runs for each suite, named as its file in configs/bench. docs/templates has
the text around the tables; the command adds tables and pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from sepstop.bench.judge import CONTENDERS, KNOWN, judge
from sepstop.bench.judgement import Judgement
from sepstop.bench.record import SOURCES
from sepstop.bench.recorded_run import RecordedRun, find_recorded_runs, fingerprint, load_run
from sepstop.bench.scores import NUM_RESAMPLES, ScoreCache
from sepstop.bench.strata import STRATA
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
from matplotlib.axes import Axes

ROOT = Path(__file__).parent.parent
FAMILIES = {
    "averages_confirmation": "all-MiniLM-L6-v2",
    "averages_confirmation_smollm2": "SmolLM2-135M with LoRA",
    "averages_development": "all-MiniLM-L6-v2",
    "averages_development_smollm2": "SmolLM2-135M with LoRA",
    "averages_development_minilm_lora": "all-MiniLM-L6-v2 with LoRA",
}
"""Model family of each suite, by the suite's name; the confirmation comes first."""
STOPS = 16  # rows of the tables of stops
BOTH = "both"
SHOWN = (DEFAULT, "average of all", "EMA 0.999", "last checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs_dir", type=Path, help="a folder of runs for each suite")
    parser.add_argument("--num-resamples", type=int, default=NUM_RESAMPLES, help="of the pool")
    parser.add_argument(
        "--criterion", nargs="*", default=CONTENDERS, help="judge only these criteria"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder for the pages")
    options = parser.parse_args()
    (options.out / "images").mkdir(parents=True, exist_ok=True)
    names = [name for name in FAMILIES if (options.runs_dir / name).is_dir()]
    if not names:
        parser.error(f"{options.runs_dir} has no folder of a suite, such as {next(iter(FAMILIES))}")
    suites = {name: suite(options.runs_dir / name) for name in names}
    cache = ScoreCache(options.runs_dir / "scores", options.num_resamples)
    criteria = [KNOWN[name]() for name in options.criterion]

    def judged(runs: Sequence[RecordedRun]) -> Judgement:
        return judge(runs, criteria, scores=cache, progress=True)

    judgements = {name: judged(runs) for name, runs in suites.items()}
    confirmed = [name for name in names if is_confirmation(name)]
    shown = confirmed or names
    answers = {FAMILIES[name]: judgements[name] for name in shown}
    whole = judged([run for name in shown for run in suites[name]])
    page = filled(
        "evidence.md",
        {
            "scope": scope(whole, bool(confirmed)),
            "targets": targets(answers | ({BOTH: whole} if len(answers) > 1 else {})),
            "families": "\n\n".join(family(name, answer) for name, answer in answers.items()),
        },
    )
    (options.out / "evidence.md").write_text(page)
    picture(answers, options.out / "images/evidence-regret.png")
    sections = []
    for name, runs in suites.items():
        judgement = judgements[name]
        frontier(judgement, options.out / f"images/evidence-frontier-{name}.png")
        sections.append(section(name, judgement, runs))
    page = filled("evidence_suites.md", {"suites": "\n\n".join(sections)})
    (options.out / "evidence_suites.md").write_text(page)
    print(f"{options.out}: {write_manifest(suites, options.out)}")


def is_confirmation(name: str) -> bool:
    return "confirmation" in name


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
            | {key: value for key, value in run.settings.items() if key not in ("plain", SOURCES)}
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
            f"The confirmation has {count}. No choice was made on their data sets, and their "
            "settings and seeds were\nwritten down before the first of them was recorded."
        )
    return (
        f"The development suite has {count} so far. Choices were made on them; the confirmation is "
        "not\njudged yet."
    )


def targets(answers: Mapping[str, Judgement]) -> str:
    """What was aimed at before the confirmation, and what came out."""
    goals = [goal for goal, _, _ in goals_of(next(iter(answers.values())))]
    columns = [goals_of(answer) for answer in answers.values()]
    rows = [
        [goal, *(f"{found}{'' if met else ' ✗'}" for _, found, met in reached)]
        for goal, *reached in zip(goals, *columns, strict=True)
    ]
    return markdown(Table("", ["aimed at", *answers], rows))


def goals_of(judgement: Judgement) -> list[tuple[str, str, bool]]:
    """Each target, the figure, and whether it is met. Regrets are in points."""
    default, stopped = judgement.find(DEFAULT), judgement.find(DEFAULT, AUTO)
    regrets = 100 * default.regrets
    strata_of = np.array(judgement.strata)
    noisy = ~np.isin(strata_of, ("clean", "unknown"))

    def part(chosen: NDArray[np.bool_]) -> float:
        return float(regrets[chosen].mean()) if chosen.any() else math.nan

    numbers = [
        ("mean regret at most -1.0", regrets.mean(), -1.0),
        ("in the clean stratum at most 0.0", part(strata_of == "clean"), 0.0),
        ("in the other strata at most -2.0", part(noisy), -2.0),
        ("90th percentile at most 1.0", np.quantile(regrets, 0.9), 1.0),
        ("maximum at most 4.0", regrets.max(), 4.0),
    ]
    goals = [(goal, f"{value:.1f}", bool(value <= most)) for goal, value, most in numbers]
    for goal, rivals in {
        "better than the last checkpoint": [judgement.find("last checkpoint")],
        "better than the average of all checkpoints": [judgement.find("average of all")],
        "better than each label-free pick of a checkpoint; the closest": list(
            checkpoint_picks(judgement)
        ),
    }.items():
        goals.append((goal, *closest_of(rivals, default)))
    behind = {
        name: 100 * float((one.find(DEFAULT).regrets - one.find("average of all").regrets).mean())
        for name, one in judgement.by_stratum.items()
    }
    worst = max(behind, key=lambda name: behind[name])
    goal = "never behind the average of all by more than 0.3 in a stratum; the worst"
    goals.append((goal, f"{behind[worst]:+.1f}, {worst}", behind[worst] <= 0.3))
    saved, kept = float(stopped.saved.mean()), 100 * float(stopped.regrets.mean())
    goal = "stopping saves half of the steps at a mean regret of at most 0"
    goals.append((goal, f"{saved:.0%} at {kept:.1f}", saved >= 0.5 and kept <= 0))
    return goals


def checkpoint_picks(judgement: Judgement) -> Iterator[Verdict]:
    """The label-free choices of a single checkpoint, best mean regret first."""
    left_out = [DEFAULT, "last checkpoint"]
    while (pick := judgement.best_checkpoint_pick(leave_out=left_out)) is not None:
        left_out.append(pick.criterion)
        yield pick


def closest_of(rivals: Sequence[Verdict], default: Verdict) -> tuple[str, bool]:
    """The default's regret less that of the closest rival, and whether it is better than each.

    It is better than a rival if the interval of the paired difference is below 0. The closest is
    the one whose interval reaches up the furthest. One of several is named.
    """
    differences = {rival.criterion: default.regrets - rival.regrets for rival in rivals}
    intervals = {name: bootstrap_interval(less) for name, less in differences.items()}
    closest = max(intervals, key=lambda name: intervals[name][1])
    low, high = intervals[closest]
    found = f"{100 * differences[closest].mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return found + (f", {closest}" if len(rivals) > 1 else ""), high < 0


def family(name: str, judgement: Judgement) -> str:
    """Tables of one model family."""
    return f"### {name}\n\n{strata(judgement)}\n\n{default_figures(judgement)}"


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


def picture(answers: Mapping[str, Judgement], path: Path) -> None:
    """Regret of each run, by model family, stratum and choice."""
    names = [name for name in STRATA if any(name in one.by_stratum for one in answers.values())]
    figure, grid = plt.subplots(
        len(names),
        len(answers),
        figsize=(2 + 5 * len(answers), 0.9 + 1.6 * len(names)),
        sharex="col",
        squeeze=False,
        layout="constrained",
    )
    for column, (title, judgement) in zip(grid.T, answers.items(), strict=True):
        for axes, name in zip(column, names, strict=True):
            part = judgement.by_stratum.get(name)
            if part is None:
                axes.set_axis_off()
                continue
            draw_stratum(axes, part, shown(judgement))
            axes.set_title(f"{title}: {name}, {count_of(part)}", loc="left", fontsize=10)
        column[-1].set_xlabel("regret, points of accuracy; left is better")
        column[-1].set_axis_on()
    for axes in grid[:, 1:].flat:
        axes.tick_params(labelleft=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_stratum(axes: Axes, part: Judgement, chosen: Mapping[str, tuple[str, str]]) -> None:
    rng = np.random.default_rng(0)
    colors = plt.get_cmap("tab10").colors
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
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


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
        best = int(np.where(run.arrays["steps"] > 0, run.test_accuracy, -np.inf).argmax())
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
