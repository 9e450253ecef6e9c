"""The `sepstop` command."""

from __future__ import annotations

import atexit
import json
import os
import shutil
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from sepstop._version import __version__
from sepstop.cli.bench import app as bench
from sepstop.cli.errors import sentences

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
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


# Options of several commands

BaseModel = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub name of the model that the run started from: the base of adapters, "
        "if it was moved, and the reference, if the run left no trace of it."
    ),
]
ModelClass = Annotated[
    str | None,
    typer.Option(help="Class of the checkpoints, as module:Class, if it is your own."),
]
Adapter = Annotated[
    str | None, typer.Option(help="Name of the adapter, if checkpoints have several.")
]
Outputs = Annotated[
    str | None,
    typer.Option(
        help="What the models' outputs are: classes (one out of k), labels (yes or no for each) or "
        "none. Default: what the run recorded, or else found out."
    ),
]


@app.command()
def select(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Folders of checkpoints or of runs, models, names on the hub, or a text file "
            "that lists models.",
        ),
    ],
    pool: Annotated[
        Path,
        typer.Option(help="Unlabeled texts: .txt (one a line), .jsonl, .json, .csv or .parquet."),
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
    ties: Annotated[
        str | None,
        typer.Option(
            help="Of the best and those that are as good keep the earliest, best or latest; by "
            "default what the run kept, if it is one of them, or else the earliest."
        ),
    ] = None,
    base_model: BaseModel = None,
    model_class: ModelClass = None,
    adapter: Adapter = None,
    resamples: Annotated[int | None, typer.Option(help="Number of resamples.")] = None,
    resample_size: Annotated[int | None, typer.Option(help="Texts in a resample.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the resamples.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a text is cut at.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Texts in a forward pass, halved until they fit in memory.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name, if the checkpoints have none.")
    ] = None,
    outputs: Outputs = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by default as saved.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint brings.")
    ] = False,
    cache: Annotated[
        bool, typer.Option(help="Keep embeddings in sepstop_cache of the run's folder.")
    ] = True,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Keep embeddings in this folder instead.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Show the best so many only.", min=1)] = None,
    link: Annotated[
        Path | None, typer.Option(help="Make this a link to the checkpoint to keep.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with 3 if a checkpoint was skipped or its score is not that of the log.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")
    ] = False,
) -> None:
    """Rank the checkpoints of runs on unlabeled texts and name the one to keep.

    What is not given is taken from a run's own log, if it was monitored. What was embedded is kept,
    so another call does only what is new. `accelerate launch -m sepstop select ...` divides the
    checkpoints over processes. Exit status: 0; 2 when there is nothing to rank or an argument is
    wrong; 3 with --strict when a checkpoint was skipped or its score differs from the run's own
    log; 130 when interrupted.
    """
    from sepstop.decide.selection import best_run, tied_runs
    from sepstop.measure.monitor import CriterionError
    from sepstop.runs.checkpoints import find_runs
    from sepstop.runs.select import select_checkpoint
    from sepstop.utils.distributed import Ranks

    given = {
        "criterion": criterion,
        "embedder": embedder,
        "resamples": resamples,
        "resample_size": resample_size,
        "seed": seed,
        "max_length": max_length,
        "batch_size": batch_size,
        "tokenizer": tokenizer,
        "outputs": outputs,
    }
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if layer is not None:
        options["embedder"] = {"layer": layer} | ({"name": embedder} if embedder else {})
    messages = Console(stderr=True)
    others = _names(criteria) or []
    own_device = _join_processes()

    def selected(run: str, **more: Any) -> Any:
        return select_checkpoint(
            run,
            pool,
            policy=policy if not more else None,
            ties="best" if more else ties,  # type: ignore[arg-type]  # which says what it knows
            base_model=base_model,
            model_class=model_class,
            adapter=adapter,
            device=device or own_device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            text_column=text_column,
            pool_size=pool_size,
            progress=messages.is_terminal,
            write_history=not more,
            distributed=True,
            **{"cache": scratch or cache_dir or cache} | options | more,
        )

    try:
        with sentences(messages), TemporaryDirectory() as folder:
            # Several criteria are computed from one forward pass, kept for as long as it takes.
            scratch = Ranks.of_run().of_first(folder) if others and not cache else ""
            runs = list(dict.fromkeys(run for path in paths for run in find_runs(path)))
            selections = {run: selected(run) for run in runs}
            more: dict[str, dict[str, Any]] = {run: {} for run in runs}
            for name in others:
                try:
                    found = {run: selected(run, criterion=name) for run in runs}
                except CriterionError as error:
                    messages.print(f"sepstop: {error}", style="yellow", markup=False)
                    continue
                for run, selection in found.items():
                    more[run][name] = selection
            best = best_run(selections)
            tied = tied_runs(selections, best)
            if link is not None and Ranks.of_run().rank == 0:
                _link(link, selections[best].best)
    except KeyboardInterrupt as error:
        kept = "" if not cache else "; what was embedded is kept, and the same command goes on"
        messages.print(f"sepstop: interrupted{kept}", style="red", markup=False)
        raise typer.Exit(130) from error
    if Ranks.of_run().rank > 0:
        return
    skipped = [item for found in selections.values() for item in found.skipped.items()]
    for path, why in skipped:
        name = path.name if len(runs) == 1 else path
        messages.print(f"sepstop: skipped {name}: {why}", style="yellow", markup=False)

    if as_json:
        each = [_as_json(found, more[run], top) for run, found in selections.items()]
        whole = {"best_checkpoint": str(selections[best].best), "ties": tied, "runs": each}
        typer.echo(json.dumps(each[0] if len(runs) == 1 else whole, indent=2, allow_nan=False))
    else:
        _print_tables(selections, more, best, tied, top)
    if strict and (skipped or any(found.differences for found in selections.values())):
        raise typer.Exit(3)


def _print_tables(
    selections: dict[str, Any], more: dict[str, Any], best: str, tied: list[str], top: int | None
) -> None:
    from sepstop.report.figures import ranking_table, runs_table

    out = Console()

    def say(line: Any, style: str = "") -> None:
        out.print(line, style=style, markup=False, soft_wrap=True)

    for run, found in selections.items():
        if len(selections) > 1 and len(found.records) == 1:
            continue  # a model by itself has its row below
        if len(selections) > 1:
            say(run, "bold")
        out.print(ranking_table(found, more[run], top))
        if len(selections) == 1:
            say(f"keep {found.best}", "bold")
        say(found.decision.reason)
        if found.online_best_step is not None and found.online_best_step in found.paths:
            kept = found.online_best_step
            say(f"the run itself kept {'the same' if kept == found.best_step else f'step {kept}'}")
    if len(selections) > 1:
        out.print(runs_table(selections, best, tied, more))
        say(f"of all, keep {selections[best].best}", "bold")


def _join_processes() -> str | None:
    """Meet the other processes that a launcher started; the device that is this one's."""
    import torch
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not dist.is_available():
        return None
    if not dist.is_initialized():
        # They exchange a few words, and wait for the slowest as long as it takes.
        dist.init_process_group("gloo", timeout=timedelta(days=7))
        atexit.register(dist.destroy_process_group)
    if not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


@app.command()
def plot(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run that was scored.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture: .png, .svg or .pdf.")
    ] = Path("sepstop.png"),
) -> None:
    """Draw the scores of a run over its steps, with the stop and the pick."""
    from sepstop.report.figures import draw_scores, history_of

    with sentences(Console(stderr=True)):
        draw_scores(history_of(run_dir), output, run_dir.resolve().name)
    typer.echo(output)


@app.command()
def watch(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run that is being trained.")],
    once: Annotated[bool, typer.Option("--once", help="Show what is there and end.")] = False,
) -> None:
    """Follow a run's scores in the terminal until its training ends; Ctrl-C leaves it alone."""
    from sepstop.report.live import follow

    try:
        with sentences(Console(stderr=True)):
            follow(run_dir, Console(), once)
    except KeyboardInterrupt as error:
        raise typer.Exit(0) from error


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
            help="Unlabeled texts: .txt (one a line), .jsonl, .json, .csv or .parquet; by default "
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
    base_model: BaseModel = None,
    model_class: ModelClass = None,
    adapter: Adapter = None,
    batch_size: Annotated[int, typer.Option(help="Texts in a forward pass.")] = 64,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name, if the checkpoints have none.")
    ] = None,
    outputs: Outputs = None,
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
    from sepstop.report.html import write_page

    messages = Console(stderr=True)
    with sentences(messages), TemporaryDirectory() as folder:
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
            base_model=base_model,
            model_class=model_class,
            adapter=adapter,
            batch_size=batch_size,
            device=device,
            trust_remote_code=trust_remote_code,
            # Several criteria are computed from one forward pass, kept for as long as it takes.
            cache=cache or folder,
            **({"tokenizer": tokenizer} if tokenizer else {}),
            **({"outputs": outputs} if outputs else {}),
        )
    for note in notes:
        messages.print(f"sepstop: {note}", style="yellow", markup=False)
    typer.echo(f"{output}, {output.stat().st_size / 1e6:.1f} MB")


@app.command()
def card(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run that was scored.")],
    figure: Annotated[
        Path | None, typer.Option(help="Draw the scores into this picture, to be shown in it.")
    ] = None,
) -> None:
    """Print a section for the model card: how the checkpoint was chosen."""
    from sepstop.report.model_card import card as section

    with sentences(Console(stderr=True)):
        typer.echo(section(run_dir, figure), nl=False)


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
    from sepstop.runs.history import to_dict

    return {
        "best_checkpoint": str(selection.best),
        **asdict(selection.decision),
        "criterion": selection.records[0].criterion,
        "by_information": selection.by_information,
        "higher_is_better": selection.higher_is_better,
        "online_best_step": selection.online_best_step,
        "ties": list(selection.ties),
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
        "differences": {
            str(selection.paths[step]): what for step, what in selection.differences.items()
        },
    }
