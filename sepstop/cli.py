"""The `sepstop` command."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from sepstop import __version__
from sepstop.bench.cli import app as bench

_WARNINGS = (UserWarning, RuntimeWarning)

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
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders with checkpoint-<step>.")
    ],
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
    criteria: Annotated[
        str | None, typer.Option(help="More to show beside what decides: infomax,stable_rank.")
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
    cache: Annotated[
        bool, typer.Option(help="Keep embeddings in sepstop_cache of the run's folder.")
    ] = True,
    top: Annotated[int | None, typer.Option(help="Show the best so many only.", min=1)] = None,
    link: Annotated[
        Path | None, typer.Option(help="Make this a link to the checkpoint to keep.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")
    ] = False,
) -> None:
    """Rank the checkpoints of runs on unlabeled texts and name the one to keep.

    What is not given is taken from a run's own log, if it was monitored. What was embedded is kept,
    so another call does only what is new. Exit status: 0, or 2 when there is nothing to rank.
    """
    from sepstop.offline import best_run, select_checkpoint

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
    others = _names(criteria) or []

    def selected(run_dir: Path, **more: Any) -> Any:
        return select_checkpoint(
            run_dir,
            pool,
            policy=policy if not more else None,
            start=start,
            device=device,
            trust_remote_code=trust_remote_code,
            text_column=text_column,
            pool_size=pool_size,
            batch_size=batch_size,
            progress=messages.is_terminal,
            write_history=not more,
            **{"cache": scratch or cache} | options | more,
        )

    try:
        with warnings.catch_warnings(record=True) as caught, TemporaryDirectory() as folder:
            # Several criteria are computed from one forward pass, kept for as long as it takes.
            scratch = folder if others and not cache else ""
            warnings.simplefilter("always", UserWarning)
            selections = {path: selected(path) for path in run_dirs}
            more = {
                path: {name: selected(path, criterion=name) for name in others} for path in run_dirs
            }
            best = best_run(selections)
            if link is not None:
                _link(link, selections[best].best)
    except (OSError, ValueError) as error:
        messages.print(f"sepstop: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    said = {str(w.message): None for w in caught if issubclass(w.category, _WARNINGS)}
    for message in said:
        messages.print(f"sepstop: {message}", style="yellow", markup=False)
    for path, why in (item for found in selections.values() for item in found.skipped.items()):
        name = path.name if len(run_dirs) == 1 else path
        messages.print(f"sepstop: skipped {name}: {why}", style="yellow", markup=False)

    if as_json:
        runs = [_as_json(found, more[path], top) for path, found in selections.items()]
        whole = {"best_checkpoint": str(selections[best].best), "runs": runs}
        typer.echo(json.dumps(runs[0] if len(runs) == 1 else whole, indent=2, allow_nan=False))
        return
    from sepstop.report import ranking_table

    out = Console()
    for path, found in selections.items():
        if len(selections) > 1:
            out.print(path, style="bold", markup=False, soft_wrap=True)
        out.print(ranking_table(found, more[path], top))
        if len(selections) == 1:
            out.print(f"keep {found.best}", style="bold", markup=False, soft_wrap=True)
        out.print(found.decision.reason, markup=False, soft_wrap=True)
        online = found.online_best_step
        if online is not None:
            kept = "the same" if online == found.best_step else f"step {online}"
            out.print(f"the run itself kept {kept}")
    if len(selections) > 1:
        out.print(
            f"of all, keep {selections[best].best}", style="bold", markup=False, soft_wrap=True
        )


@app.command()
def plot(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run that was scored.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture: .png, .svg or .pdf.")
    ] = Path("sepstop.png"),
) -> None:
    """Draw the scores of a run over its steps, with the stop and the pick."""
    from sepstop.report import draw_curve, history_of

    try:
        history, decision = history_of(run_dir)
        draw_curve(
            history,
            output,
            best_step=decision.best_step,
            stop_step=decision.step if decision.stop else None,
            title=run_dir.resolve().name,
        )
    except (OSError, ValueError, ImportError) as error:
        Console(stderr=True).print(f"sepstop: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    typer.echo(output)


@app.command()
def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs that were scored.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, a .html file.")] = Path(
        "report.html"
    ),
    pool: Annotated[
        Path | None,
        typer.Option(
            help="Unlabeled texts: .txt (one a line), .jsonl, .csv or .parquet; by default "
            "RUN_DIR/pool.jsonl, if it is there. For the map, the barcode and other criteria."
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(help="The pool's column with the texts.")] = "text",
    criteria: Annotated[
        str | None,
        typer.Option(help="To compare: infomax,stable_rank. A few cheap ones by default."),
    ] = None,
    map_name: Annotated[
        str, typer.Option("--map", help="How texts come into the plane: pca, umap or pacmap.")
    ] = "pca",
    labels: Annotated[
        str | None,
        typer.Option(help="The pool's column with labels, to show what they say beside the score."),
    ] = None,
    texts: Annotated[bool, typer.Option("--texts", help="Write the map's texts into it.")] = False,
    start: Annotated[
        str | None,
        typer.Option(help="The model before training, if the run left no trace of it."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts in a forward pass.")] = 64,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name, if the checkpoints have none.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint brings.")
    ] = False,
    cache: Annotated[
        bool, typer.Option(help="Keep embeddings in sepstop_cache of the run's folder.")
    ] = True,
) -> None:
    """Write the scores, the decision and the moving embedding of runs as one HTML page.

    It needs no network to be looked at, and holds no text of the pool unless --texts is given.
    """
    from sepstop.page import write_page

    messages = Console(stderr=True)
    try:
        with TemporaryDirectory() as folder:
            notes = write_page(
                run_dirs,
                output,
                pool=pool,
                text_column=text_column,
                criteria=_names(criteria),
                map_name=map_name,
                labels=labels,
                texts=texts,
                progress=messages.is_terminal,
                start=start,
                batch_size=batch_size,
                device=device,
                trust_remote_code=trust_remote_code,
                # Several criteria are computed from one forward pass, kept for as long as it takes.
                cache=cache or folder,
                **({"tokenizer": tokenizer} if tokenizer else {}),
            )
    except (OSError, ValueError, ImportError) as error:
        messages.print(f"sepstop: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    for note in notes:
        messages.print(f"sepstop: {note}", style="yellow", markup=False)
    typer.echo(f"{output}, {output.stat().st_size / 1e6:.1f} MB")


@app.command()
def card(
    run_dir: Annotated[Path, typer.Argument(help="Folder with checkpoint-<step> folders.")],
) -> None:
    """Print a section for the model card: how a monitored run's checkpoint was chosen."""
    from sepstop.card import card as section

    try:
        typer.echo(section(run_dir), nl=False)
    except (OSError, ValueError) as error:
        Console(stderr=True).print(f"sepstop: {error}", style="red", markup=False)
        raise typer.Exit(2) from error


def _names(listed: str | None) -> list[str] | None:
    """What an option lists with commas; None without the option."""
    if listed is None:
        return None
    return [name.strip() for name in listed.split(",") if name.strip()]


def _link(link: Path, checkpoint: Path) -> None:
    """A symbolic link in the place of an older one; a copy where the system has no links."""
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise ValueError(f"{link} is there already and no link; name another or remove it")
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(checkpoint.resolve(), target_is_directory=True)
    except (OSError, NotImplementedError):
        shutil.copytree(checkpoint, link)


def _as_json(selection: Any, more: dict[str, Any], top: int | None) -> dict[str, Any]:
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
            for record in selection.ranking[:top]
        ],
        "also": {
            name: {
                "best_step": other.best_step,
                "higher_is_better": other.higher_is_better,
                "scores": {r.step: r.score if r.is_finite else None for r in other.records},
            }
            for name, other in more.items()
        },
        "skipped": {str(path): why for path, why in selection.skipped.items()},
    }
