"""`sepstop bench`: record runs on one's own data, and judge criteria and policies on runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sepstop.cli.errors import sentences

app = typer.Typer(help="Record fine-tuning runs and judge criteria and policies on them.")

_WIDTH = 140

POLICIES: dict[str, dict[str, Any]] = {
    "plateau": {"name": "plateau"},
    "patience 1": {"name": "patience", "patience": 1},
    "patience 3": {"name": "patience", "patience": 3},
    "patience 5": {"name": "patience", "patience": 5},
    "first optimum": {"name": "first_optimum"},
}


@app.command()
def judge(
    runs_dir: Annotated[Path, typer.Argument(help="Folder of recorded runs (.npz).")],
    criterion: Annotated[
        list[str] | None, typer.Option(help="Judge this one only; may be repeated.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Resamples of the pool.")] = 20,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the scores; RUNS_DIR/scores by default.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")
    ] = False,
) -> None:
    """Regret, steps saved, rank agreement and label equivalent of each criterion and policy.

    Scores are kept in files, so that judging again takes seconds. Exit status: 0, or 2 when there
    is nothing to judge.
    """
    from tqdm.auto import tqdm

    from sepstop.bench.judge import JUDGED, ScoreCache
    from sepstop.bench.judge import judge as judge_runs
    from sepstop.bench.recorded_run import find_runs, load_run
    from sepstop.criteria import CRITERIA
    from sepstop.utils.registry import build

    messages = Console(stderr=True)
    with sentences(messages):
        names = dict.fromkeys(criterion or JUDGED)
        criteria = {name: build("criterion", name, CRITERIA) for name in names}
        runs = [load_run(path) for path in find_runs(runs_dir)]
        score = ScoreCache(cache or runs_dir / "scores", resamples)
        total, quiet = len(runs) * (len(criteria) + 2), not messages.is_terminal
        with tqdm(total=total, desc="scores", leave=False, disable=quiet) as bar:

            def scored(run: Any, one: Any) -> Any:
                bar.set_postfix_str(f"{one.name} of {run.name}")
                history = score(run, one)
                bar.update()
                return history

            judgement = judge_runs(runs, criteria, POLICIES, scored)
    if as_json:
        typer.echo(json.dumps(judgement.as_json(), indent=2, allow_nan=False))
        return
    out = Console()
    if not out.is_terminal:
        out = Console(width=_WIDTH)  # a file takes whole lines
    out.print(table(judgement.summaries(), len(runs)))
    curve = ", ".join(f"{m}: {100 * regret:.1f}" for m, regret in judgement.label_regrets.items())
    out.print(f"regret of picking by validation accuracy on m labels: {curve}", soft_wrap=True)


def table(rows: list[dict[str, Any]], runs: int) -> Table:
    """Rows of `Judgement.summaries`, best mean regret first."""
    shown = Table(title=f"{runs} runs; regret in points of test accuracy, 95 % intervals", box=None)
    for column in ("criterion", "policy"):
        shown.add_column(column, no_wrap=True)
    for column in ("regret", "p90", "max", "saved", "Spearman", "labels", "against the best peer"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: row["regret_mean"]):
        difference = ""
        if "difference_mean" in row:
            difference = _points(row, "difference", signed=True)
        shown.add_row(
            row["criterion"],
            row["policy"],
            _points(row, "regret"),
            f"{100 * row['regret_p90']:.1f}",
            f"{100 * row['regret_max']:.1f}",
            f"{row['steps_saved_mean']:.0%}",
            f"{row['spearman_mean']:.2f}",
            f"{row['label_equivalent']:.0f}" if row["label_free"] else "",
            difference,
        )
    return shown


def _points(row: dict[str, Any], name: str, signed: bool = False) -> str:
    mean, low, high = (100 * row[f"{name}_{part}"] for part in ("mean", "low", "high"))
    sign = "+" if signed else ""
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


@app.command()
def record(
    data: Annotated[
        list[Path],
        typer.Option(help=".jsonl, .json, .csv or .parquet of labelled texts; repeatable."),
    ],
    labeled_rows: Annotated[int, typer.Option(min=1, help="Rows to train on.")],
    out: Annotated[Path, typer.Option(help="Folder for the recorded run.")],
    model: Annotated[str, typer.Option(help="Folder or hub name of the model.")],
    text_column: Annotated[str, typer.Option(help="The column with the texts.")] = "text",
    label_column: Annotated[str, typer.Option(help="The column with the labels.")] = "label",
    name: Annotated[str | None, typer.Option(help="What to call the data.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-4,
    noise: Annotated[float, typer.Option(help="Share of training labels made wrong.")] = 0.0,
    noise_kind: Annotated[str, typer.Option(help="uniform, or class: the next one.")] = "uniform",
    imbalance: Annotated[
        float, typer.Option(help="Most frequent class for one of the rarest.")
    ] = 1,
    start: Annotated[str, typer.Option(help="base, reset, head or lora.")] = "base",
    embedder: Annotated[str, typer.Option(help="mean, cls or last.")] = "mean",
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 300,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 25,
    pool_rows: Annotated[int, typer.Option(help="Texts of the unlabeled pool.")] = 1000,
    validation_rows: Annotated[int, typer.Option(help="For the references, at most.")] = 400,
    test_rows: Annotated[int, typer.Option(help="Test texts, at most.")] = 2000,
    max_length: Annotated[int, typer.Option(help="Tokens a text is cut at.")] = 40,
    seed: Annotated[int, typer.Option(help="Of split, noise, start and batches.")] = 0,
) -> None:
    """Fine-tune on some rows and record what a criterion could have seen, for `judge`.

    A run that is recorded already is left as it is. Exit status: 0, or 2 for unusable data.
    """
    import torch

    from sepstop.bench.record import RunSettings, read_rows, record_run
    from sepstop.bench.recorded_run import save_run

    messages = Console(stderr=True)
    with sentences(messages):
        settings = RunSettings(
            data=name or data[0].name.split(".")[0],
            labeled_rows=labeled_rows,
            learning_rate=learning_rate,
            noise=noise,
            noise_kind=noise_kind,  # type: ignore[arg-type]  # checked there
            imbalance=imbalance,
            start=start,  # type: ignore[arg-type]
            seed=seed,
            model=model,
            embedder=embedder,
            steps=steps,
            evaluate_every=evaluate_every,
            max_length=max_length,
            pool_rows=pool_rows,
            validation_rows=validation_rows,
            test_rows=test_rows,
        )
        path = out / f"{settings.name}.npz"
        if path.exists():
            messages.print(f"{path} is recorded already", markup=False)
            return
        texts, labels = read_rows(data, text_column, label_column)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        print(save_run(out, record_run(texts, labels, settings, device)))
