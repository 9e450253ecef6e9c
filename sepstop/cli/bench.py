"""The command `sepstop bench`: recording of runs, judgement of criteria and policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

from sepstop.cli.errors import user_errors

if TYPE_CHECKING:
    from sepstop.bench.tables import Table

app = typer.Typer(help="Record fine-tuning runs and judge criteria and policies on them.")

_WIDTH = 140


@app.command()
def judge(
    runs_dir: Annotated[Path, typer.Argument(help="Folder of recorded runs (.npz).")],
    criterion: Annotated[
        list[str] | None,
        typer.Option(
            help="Judge only this criterion. Repeatable. Default: those that take seconds."
        ),
    ] = None,
    every_criterion: Annotated[
        bool,
        typer.Option("--every-criterion", help="Judge all criteria but label_mi. Takes minutes."),
    ] = False,
    num_resamples: Annotated[int, typer.Option(min=1, help="Resamples of the pool.")] = 20,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the scores. Default: RUNS_DIR/scores.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")
    ] = False,
) -> None:
    """Show what to keep of a run: the test accuracy of each choice, by stratum and over all runs.

    Regret is the test accuracy of the best single checkpoint less that of what is kept; averages
    can have less than 0. Scores are kept in files, so judging again takes seconds. Exit status: 0,
    or 2 if there is nothing to judge.
    """
    from sepstop.bench.judge import CONTENDERS, JUDGED, KNOWN
    from sepstop.bench.judge import judge as judge_runs
    from sepstop.bench.recorded_run import find_recorded_runs, load_run
    from sepstop.bench.scores import ScoreCache
    from sepstop.bench.tables import candidates_table, criteria_table, question_tables
    from sepstop.utils.registry import build

    messages = Console(stderr=True)
    with user_errors(messages):
        names = dict.fromkeys(criterion or (JUDGED if every_criterion else CONTENDERS))
        criteria = [build("criterion", name, KNOWN) for name in names]
        runs = [load_run(path) for path in find_recorded_runs(runs_dir)]
        scores = ScoreCache(cache or runs_dir / "scores", num_resamples)
        judgement = judge_runs(runs, criteria, scores=scores, progress=messages.is_terminal)
    if as_json:
        typer.echo(json.dumps(judgement.as_json(), indent=2, allow_nan=False))
        return
    out = Console()
    if not out.is_terminal:
        out = Console(width=_WIDTH)  # a file takes whole lines
    for table in question_tables(judgement):
        out.print(_shown(table))
    for table in (candidates_table(judgement), criteria_table(judgement)):
        if table.rows:
            out.print(_shown(table))
    curve = ", ".join(f"{m}: {100 * regret:.1f}" for m, regret in judgement.label_regrets.items())
    out.print(f"regret of picking by validation accuracy on m labels: {curve}", soft_wrap=True)


def _shown(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left", box=None)
    for i, column in enumerate(table.header):
        shown.add_column(column, justify="left" if i < table.names else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    return shown


@app.command()
def record(  # an option for each setting of a run, so more than eight arguments
    data: Annotated[
        list[Path],
        typer.Option(help=".jsonl, .json, .csv or .parquet file of labeled texts. Repeatable."),
    ],
    labeled_rows: Annotated[int, typer.Option(min=1, help="Rows to train on.")],
    out: Annotated[Path, typer.Option(help="Folder for the recorded run.")],
    model: Annotated[str, typer.Option(help="Folder or hub name of the model.")],
    text_column: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the labels.")] = "label",
    name: Annotated[
        str | None, typer.Option(help="Name of the data. Default: the first file's.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = 1e-4,
    schedule: Annotated[
        str,
        typer.Option(help="Learning rate after the warm-up: constant, or linear or cosine to 0."),
    ] = "constant",
    noise: Annotated[float, typer.Option(help="Share of training labels to make wrong.")] = 0.0,
    noise_kind: Annotated[
        str, typer.Option(help="Wrong labels: uniform (any other class) or class (the next one).")
    ] = "uniform",
    imbalance: Annotated[
        float, typer.Option(help="Ratio of the most frequent class to the rarest.")
    ] = 1,
    start: Annotated[
        str,
        typer.Option(
            help="Start: base (pretrained), reset (top layers re-initialized), head (backbone "
            "frozen) or lora."
        ),
    ] = "base",
    pooling: Annotated[str, typer.Option(help="Pooling: mean, cls or last.")] = "mean",
    prompt: Annotated[
        str,
        typer.Option(
            help="Train a causal language model to answer this prompt, with {text} in it, by the "
            "name of the class. Default: train a head."
        ),
    ] = "",
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 300,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 25,
    pool_rows: Annotated[int, typer.Option(help="Texts of the unlabeled pool.")] = 1000,
    validation_rows: Annotated[int, typer.Option(help="Validation texts, at most.")] = 400,
    test_rows: Annotated[int, typer.Option(help="Test texts, at most.")] = 2000,
    max_length: Annotated[int, typer.Option(help="Truncate texts to this many tokens.")] = 40,
    seed: Annotated[
        int, typer.Option(help="Seed of the split, the noise, the initialization and the batches.")
    ] = 0,
) -> None:
    """Fine-tune on some rows and record the inputs of all criteria, for `judge`.

    A run that is already recorded is kept. Exit status: 0, or 2 for unusable data and for a file of
    the run's name that was recorded with other data or another model.
    """
    import torch

    from sepstop.bench.record import is_recorded, record_run
    from sepstop.bench.recorded_run import save_run
    from sepstop.bench.rows import read_rows
    from sepstop.bench.run_settings import RunSettings

    messages = Console(stderr=True)
    with user_errors(messages):
        settings = RunSettings(
            data=name or data[0].name.split(".")[0],
            labeled_rows=labeled_rows,
            learning_rate=learning_rate,
            schedule=schedule,  # type: ignore[arg-type]  # checked there
            noise=noise,
            noise_kind=noise_kind,  # type: ignore[arg-type]
            imbalance=imbalance,
            start=start,  # type: ignore[arg-type]
            seed=seed,
            model=model,
            pooling=pooling,
            prompt=prompt,
            steps=steps,
            evaluate_every=evaluate_every,
            max_length=max_length,
            pool_rows=pool_rows,
            validation_rows=validation_rows,
            test_rows=test_rows,
        )
        texts, labels = read_rows(data, text_column, label_column)
        path = out / f"{settings.name}.npz"
        if is_recorded(path, texts, labels, settings):
            messages.print(f"{path} is already recorded", markup=False, soft_wrap=True)
            return
        device = "cuda" if torch.cuda.is_available() else "cpu"
        print(save_run(out, record_run(texts, labels, settings, device)))
