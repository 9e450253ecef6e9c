"""The `sepstop` command."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sepstop import __version__
from sepstop.bench.cli import app as bench

app = typer.Typer(
    help="When to stop a fine-tuning run and which checkpoint to keep, without labels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sepstop {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    pass


@app.command()
def select(
    run_dir: Annotated[Path, typer.Argument(help="Folder with checkpoint-<step> folders.")],
    pool: Annotated[
        Path, typer.Option(help="Unlabeled texts: .txt (one a line), .jsonl, .csv or .parquet.")
    ],
    text_column: Annotated[str, typer.Option(help="The pool's column with the texts.")] = "text",
    pool_size: Annotated[
        int | None, typer.Option(help="Sample the pool down to this many texts.")
    ] = None,
    embedder: Annotated[
        str | None, typer.Option(help="mean, cls, last or module:attribute.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Hidden layer of the embedder; -1 is the last.")
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(help="separability, infomax, ..., module:attribute.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Replay auto, past_peak, patience, plateau, first_optimum or module:attr."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="The model before training, if the run left no trace of it."),
    ] = None,
    resamples: Annotated[int | None, typer.Option(help="Number of resamples.")] = None,
    resample_size: Annotated[int | None, typer.Option(help="Texts in a resample.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the resamples.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a text is cut at.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts in a forward pass.")] = 64,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name, if the checkpoints have none.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint brings.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")
    ] = False,
) -> None:
    """Rank the checkpoints of a run on unlabeled texts and name the one to keep.

    What is not given is taken from the run's own log, if it was monitored. Exit status: 0,
    or 2 when there is nothing to rank.
    """
    from sepstop.offline import select_checkpoint

    given = {
        "criterion": criterion,
        "embedder": embedder,
        "resamples": resamples,
        "resample_size": resample_size,
        "seed": seed,
        "max_length": max_length,
        "tokenizer": tokenizer,
    }
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if layer is not None:
        options["embedder"] = {"layer": layer} | ({"name": embedder} if embedder else {})
    messages = Console(stderr=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            selection = select_checkpoint(
                run_dir,
                pool,
                policy=policy,
                start=start,
                device=device,
                trust_remote_code=trust_remote_code,
                text_column=text_column,
                pool_size=pool_size,
                batch_size=batch_size,
                progress=messages.is_terminal,
                **options,
            )
    except (OSError, ValueError) as error:
        messages.print(f"sepstop: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    for warning in caught:
        if issubclass(warning.category, (UserWarning, RuntimeWarning)):
            messages.print(f"sepstop: {warning.message}", style="yellow", markup=False)
    for path, why in selection.skipped.items():
        messages.print(f"sepstop: skipped {path.name}: {why}", style="yellow", markup=False)

    if as_json:
        typer.echo(json.dumps(_as_json(selection), indent=2, allow_nan=False))
        return
    from sepstop.report import ranking_table

    out = Console()
    out.print(ranking_table(selection))
    out.print(f"keep {selection.best}", style="bold", markup=False, soft_wrap=True)
    out.print(selection.decision.reason, markup=False, soft_wrap=True)
    online = selection.online_best_step
    if online is not None:
        said = "the same" if online == selection.best_step else f"step {online}"
        out.print(f"the run itself kept {said}")


def _as_json(selection: Any) -> dict[str, Any]:
    from sepstop.history import to_dict

    return {
        "best_checkpoint": str(selection.best),
        **asdict(selection.decision),
        "criterion": selection.records[0].criterion,
        "by_information": selection.by_information,
        "higher_is_better": selection.higher_is_better,
        "online_best_step": selection.online_best_step,
        "ranking": [
            {
                "checkpoint": str(selection.paths[record.step]),
                **to_dict(record),
            }
            for record in selection.ranking
        ],
        "skipped": {str(path): why for path, why in selection.skipped.items()},
    }
