"""Tables of a judgement, for the terminal and the pages of evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sepstop.bench.judgement import Judgement
from sepstop.bench.verdicts import CHECKPOINTS, DEFAULT, HINDSIGHT, PLAIN, RULE, Key
from sepstop.config import AUTO

EVERY = "all runs"
"""Over all strata."""


class Table(NamedTuple):
    """Cells of a table.

    Attributes:
        title: a line above it.
        header: the first columns have names, the others numbers; ``(C,)``.
        rows: ``(C,)`` each.
        names: number of columns with names.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    names: int = 1


def question_tables(judgement: Judgement) -> list[Table]:
    """What to keep: one table for each stratum and one for all runs, with the same rows."""
    keys = judgement.question()
    return [
        Table(
            f"{name}, {count_of(part)}",
            [
                "what is kept",
                "regret",
                "median",
                "p90",
                "max",
                "saved",
                "Spearman",
                "labels",
                "default less this",
            ],
            [_question_row(row, part.label_regrets) for row in part.summaries(keys)],
        )
        for name, part in parts(judgement).items()
    ]


def strata_table(judgement: Judgement) -> Table:
    """What to keep: mean regret by stratum, a column for each."""
    keys = judgement.question()
    columns = parts(judgement)
    found = [part.summaries(keys) for part in columns.values()]
    return Table(
        "mean regret",
        ["what is kept", *(f"{name} ({len(part.runs)})" for name, part in columns.items())],
        [
            [name_of(rows[0]), *(interval(row, "regret") for row in rows)]
            for rows in zip(*found, strict=True)
        ],
    )


def candidates_table(judgement: Judgement) -> Table:
    """Mean regret in hindsight of each criterion on each set of candidates."""
    hindsight = [
        verdict
        for verdict in judgement.verdicts
        if verdict.policy == HINDSIGHT and verdict.label_free
    ]
    sets = dict.fromkeys(verdict.candidates for verdict in hindsight)
    by_name: dict[str, dict[str, float]] = {}
    for verdict in hindsight:
        regret = 100 * float(verdict.regrets.mean())
        by_name.setdefault(verdict.criterion, {})[verdict.candidates] = regret
    several = {name: found for name, found in by_name.items() if len(found) > 1}
    shown = [name for name in sets if any(name in found for found in several.values())]
    return Table(
        "mean regret by candidates",
        ["criterion", *shown],
        [
            [name, *(f"{found[one]:.1f}" if one in found else "" for one in shown)]
            for name, found in sorted(several.items(), key=lambda item: min(item[1].values()))
        ],
    )


def criteria_table(judgement: Judgement, keys: Sequence[Key] | None = None) -> Table:
    """Criteria and policies, best mean regret first.

    Args:
        keys: default: all verdicts on single checkpoints, and the default.
    """
    if keys is None:
        keys = [
            verdict.key
            for verdict in judgement.verdicts
            if verdict.candidates == CHECKPOINTS or verdict.criterion == DEFAULT
        ]
    rows = sorted(judgement.summaries(keys), key=lambda row: float(row["regret_mean"]))
    header = ["criterion", "policy", "regret", "p90", "max", "saved", "Spearman", "labels"]
    return Table(
        f"{count_of(judgement)}; regret in points of test accuracy, 95 % intervals",
        [*header, "against the best peer"],
        [
            [
                with_candidates(row),
                row["policy"],
                interval(row, "regret"),
                f"{100 * row['regret_p90']:.1f}",
                f"{100 * row['regret_max']:.1f}",
                f"{row['steps_saved_mean']:.0%}",
                spearman(row),
                labels(row, judgement.label_regrets),
                interval(row, "difference", signed=True),
            ]
            for row in rows
        ],
        names=2,
    )


def parts(judgement: Judgement) -> dict[str, Judgement]:
    """The judgement by stratum, then over all runs."""
    return {**judgement.by_stratum, EVERY: judgement}


def count_of(judgement: Judgement) -> str:
    """ "1 run", "2 runs"."""
    count = len(judgement.runs)
    return f"{count} run{'s' * (count != 1)}"


def name_of(row: Mapping[str, Any]) -> str:
    """What is kept, in words: "default, stopped", "infomax of averages"."""
    policy = {HINDSIGHT: "", AUTO: ", stopped"}.get(row["policy"], f", {row['policy']}")
    return with_candidates(row) + policy


def with_candidates(row: Mapping[str, Any]) -> str:
    """The criterion, with its candidates unless they are single checkpoints."""
    alone = row["candidates"] in (CHECKPOINTS, PLAIN, RULE) or row["criterion"] == DEFAULT
    return row["criterion"] if alone else f"{row['criterion']} of {row['candidates']}"


def interval(row: Mapping[str, Any], name: str, signed: bool = False) -> str:
    """Mean in points, with its interval if there is one; empty without a mean."""
    if f"{name}_mean" not in row:
        return ""
    mean, low, high = (100 * row[f"{name}_{part}"] for part in ("mean", "low", "high"))
    sign = "+" if signed else ""
    if not math.isfinite(low + high):
        return f"{mean:{sign}.1f}"  # of one run
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def spearman(row: Mapping[str, Any]) -> str:
    """Mean rank agreement; empty for a choice without scores."""
    mean = row["spearman_mean"]
    return f"{mean:.2f}" if math.isfinite(mean) else ""


def labels(row: Mapping[str, Any], label_regrets: Mapping[int, float]) -> str:
    """The label equivalent; empty for a choice that sees labels."""
    if not row["label_free"] or not label_regrets:
        return ""
    equivalent, most = row["label_equivalent"], max(label_regrets)
    return f">= {most}" if equivalent >= most else f"{equivalent:.0f}"


def _question_row(row: Mapping[str, Any], label_regrets: Mapping[int, float]) -> list[str]:
    return [
        name_of(row),
        interval(row, "regret"),
        *(f"{100 * row[f'regret_{name}']:.1f}" for name in ("median", "p90", "max")),
        f"{row['steps_saved_mean']:.0%}",
        spearman(row),
        labels(row, label_regrets),
        interval(row, "default_less", signed=True),
    ]
