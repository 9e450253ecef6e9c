"""`sepstop select`: rank a run's weights and name those to keep."""

from __future__ import annotations

import atexit
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sepstop.cli import options
from sepstop.cli.errors import print_message, user_errors

if TYPE_CHECKING:
    from sepstop.decide.selection import Selection


# An option is an argument for typer. The body passes them on by name and stays short.
def select(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Folders of runs or checkpoints, models, hub names, or a text file that lists "
            "models.",
        ),
    ],
    pool: Annotated[Path, typer.Option(help=options.POOL_HELP)],
    text_column: options.TextColumn = "text",
    pool_size: options.PoolSize = None,
    criterion: options.Criterion = None,
    extra_criteria: options.ExtraCriteria = None,
    policy: options.Policy = None,
    ties: Annotated[
        str | None,
        typer.Option(
            help="Which of the tied steps to keep: earliest, best or latest. Default: the run's "
            "own pick if it is tied, else the earliest; the best of averages."
        ),
    ] = None,
    pooling: options.Pooling = None,
    layer: options.Layer = None,
    num_resamples: options.NumResamples = None,
    resample_size: options.ResampleSize = None,
    seed: options.Seed = None,
    max_length: options.MaxLength = None,
    batch_size: options.BatchSize = None,
    tokenizer: options.Tokenizer = None,
    outputs: options.Outputs = None,
    answers: options.Answers = None,
    answer_end: options.AnswerEnd = None,
    average: options.Average = None,
    score_checkpoints: options.ScoreCheckpoints = None,
    average_device: options.AverageDevice = None,
    base_model: options.BaseModel = None,
    model_class: options.ModelClass = None,
    adapter: options.Adapter = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    cache: options.Cache = True,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Keep embeddings in this folder instead.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Show only this many steps.", min=1)] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the weights to keep to this folder, as a complete model."),
    ] = None,
    link: Annotated[
        Path | None,
        typer.Option(
            help="Make this path a link to the weights to keep. An average that --output does not "
            "write is written to a folder sepstop_average-NAME-FIRST-LAST of the run."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A few labeled texts, in the pool or not. The step that the score alone would "
            "keep is replaced if they clearly contradict it."
        ),
    ] = None,
    label_column: Annotated[
        str, typer.Option(help="Column of --labels with the classes, by name or number.")
    ] = "label",
    ask: Annotated[
        int,
        typer.Option(
            help="Write this many texts whose labels would tell the candidates apart, to fill in "
            "for --labels.",
            min=0,
        ),
    ] = 0,
    ask_output: Annotated[
        Path | None,
        typer.Option(help="File for --ask. Default: sepstop_ask.jsonl in the run's folder."),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with 3 if a checkpoint was skipped or its score differs from the run's log.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")
    ] = False,
) -> None:
    """Rank averages of a run's checkpoints on unlabeled texts and name the weights to keep.

    At each checkpoint the candidates are averages of the checkpoints so far. With --no-average they
    are the checkpoints themselves.

    Options that you leave out are taken from the run's own history, if sepstop watched it.
    Embeddings are cached, so the next call embeds only what is new. `accelerate launch -m sepstop
    select ...` divides the work over processes.

    Exit status: 0; 2 if there is nothing to rank or an option is wrong; 3 with --strict if a
    checkpoint was skipped or its score differs from the run's log; 130 if interrupted.
    """
    arguments = locals()
    messages = Console(stderr=True)
    try:
        with user_errors(messages):
            chosen = _choose(arguments, messages.is_terminal)
    except KeyboardInterrupt as error:
        kept = "; embeddings are cached, so the same command continues from here"
        print_message(messages, f"interrupted{kept if cache else ''}", "red")
        raise typer.Exit(130) from error
    if chosen is None:
        return
    selections, best, tied, unscored = chosen
    skipped = [item for found in selections.values() for item in found.skipped.items()]
    skipped += [(Path(run), why) for run, why in unscored.items()]
    for path, why in skipped:
        name = path.name if len(selections) + len(unscored) == 1 else path
        print_message(messages, f"skipped {name}: {why}", "yellow")
    with_skipped = [found for found in selections.values() if found.skipped]
    if any(record.has_average_candidates for found in with_skipped for record in found.records):
        print_message(messages, "averages are made without what was skipped", "yellow")
    if as_json:
        found = _as_json(selections, best, tied, unscored, top)
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        _print_tables(selections, best, tied, top, is_one=not unscored and len(selections) == 1)
    if strict and (skipped or any(found.differences for found in selections.values())):
        raise typer.Exit(3)


def _choose(
    arguments: Mapping[str, Any], show_progress: bool
) -> tuple[dict[str, Selection], str, list[str], dict[str, str]] | None:
    """The selection of each run, the best run, the runs tied with it, and why others have none.

    Returns:
        None on all but the first of several processes.
    """
    from sepstop.decide.selection import best_run, tied_runs
    from sepstop.runs.best_folder import check_free, linked_folder, write_best
    from sepstop.runs.checkpoints import find_runs
    from sepstop.runs.select import NothingScoredError, select_checkpoint
    from sepstop.utils.distributed import Ranks

    output, link = arguments["output"], arguments["link"]
    if output is not None:
        check_free(output)
    if link is not None:
        _check_link(link, output)
    own_device = _join_processes()
    loading = options.loading_of({**arguments, "device": arguments["device"] or own_device})
    runs = dict.fromkeys(run for path in arguments["paths"] for run in find_runs(path))
    if len(runs) > 1 and (arguments["labels"] or arguments["ask"]):
        raise ValueError(f"--labels and --ask are for one run, got {len(runs)} runs; name one")
    selections: dict[str, Selection] = {}
    unscored: dict[str, str] = {}
    for run in runs:
        try:
            selections[run] = select_checkpoint(
                run,
                arguments["pool"],
                ties=arguments["ties"],
                loading=loading,
                cache=arguments["cache_dir"] or arguments["cache"],
                distributed=True,
                labels=arguments["labels"],
                label_column=arguments["label_column"],
                ask=arguments["ask"],
                ask_output=arguments["ask_output"],
                progress=show_progress,
                **options.config_of(arguments),
            )
        except NothingScoredError as error:  # the others still rank
            unscored[run] = str(error)
            if len(unscored) == len(runs):
                raise
    best = best_run(selections)
    if Ranks.of_run().rank > 0:
        return None
    if output is None and link is not None and selections[best].best_folder is None:
        output = linked_folder(selections[best])
    if output is not None:
        selections[best] = write_best(selections[best], output, loading)
    if link is not None:
        _link(link, selections[best].best)
    return selections, best, tied_runs(selections, best), unscored


def _join_processes() -> str | None:
    """Join the processes that a launcher started; returns this one's GPU, if it has one."""
    import torch
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not dist.is_available():
        return None
    if not dist.is_initialized():
        # They exchange short messages, and wait for the slowest as long as it takes.
        dist.init_process_group("gloo", timeout=timedelta(days=7))
        atexit.register(dist.destroy_process_group)
    if not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def _check_link(link: Path, output: Path | None) -> None:
    """
    Raises:
        ValueError: something else than a link is there, or will be.
    """
    if output is not None and output.absolute() == link.absolute():
        raise ValueError(f"--output and --link are both {link}; name different paths")
    if link.exists() and not link.is_symlink():
        raise ValueError(f"{link} exists and is not a link; name another path or remove it")


def _link(link: Path, folder: Path) -> None:
    """Replace a symbolic link; copy the folder where the system has no links."""
    target = folder.resolve()  # before the link goes, which may lead there
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(target, target_is_directory=True)
    except (OSError, NotImplementedError):
        shutil.copytree(target, link)


def _print_tables(
    selections: Mapping[str, Selection],
    best: str,
    tied: Sequence[str],
    top: int | None,
    is_one: bool,
) -> None:
    """
    Args:
        is_one: the user named one run.
    """
    from sepstop.report.tables import runs_table

    out = Console()
    for run, found in selections.items():
        if is_one:
            _print_ranking(out, found, top, f"keep {_kept(found)}")
        elif len(found.records) > 1:  # a single model has its row in the table below
            out.print(run, style="bold", markup=False, soft_wrap=True)
            _print_ranking(out, found, top)
    if not is_one:
        out.print(runs_table(selections, best, tied))
        line = f"of all, keep {_kept(selections[best])}"
        out.print(line, style="bold", markup=False, soft_wrap=True)


def _print_ranking(out: Console, found: Selection, top: int | None, verdict: str = "") -> None:
    from sepstop.report.tables import ranking_table

    out.print(ranking_table(found, top))
    if verdict:
        out.print(verdict, style="bold", markup=False, soft_wrap=True)
    out.print(found.decision.reason, markup=False, soft_wrap=True)
    if found.asked is not None:
        asked = f"texts to label are in {found.asked}; fill them in and pass the file as --labels"
        out.print(asked, markup=False, soft_wrap=True)
    online = _kept_online(found)
    if online:
        out.print(f"the run itself kept {online}", markup=False, soft_wrap=True)


def _kept(found: Selection) -> str:
    """What to keep, and where it is."""
    average, checkpoint = found.best_record.average, found.paths[found.best_step]
    if average is None:
        return f"{checkpoint}, copied to {found.output}" if found.output else str(checkpoint)
    where = f"in {found.output}" if found.output else "which --output FOLDER writes"
    return f"the {average} of {checkpoint.parent}, {where}"


def _kept_online(found: Selection) -> str:
    """What the run itself kept; empty if it was not monitored or the checkpoint is gone."""
    from sepstop.runs.average_files import average_folder

    step, online, here = found.online_best_step, found.online_average, found.best_record.average
    if step is None or (online is None and step not in found.paths):
        return ""
    if online is None:
        is_same = step == found.best_step and here is None
        return "the same checkpoint" if is_same else f"the checkpoint of step {step}"
    folder = average_folder(next(iter(found.paths.values())).parent, step)
    kept = f"the {online}, {f'in {folder.name}' if folder.is_dir() else 'which is not on disk'}"
    is_same = step == found.best_step and here is not None and here.name == online.name
    return f"{kept}: the same kind at the same step, but of all steps" if is_same else kept


def _as_json(
    selections: Mapping[str, Selection],
    best: str,
    tied: Sequence[str],
    unscored: Mapping[str, str],
    top: int | None,
) -> dict[str, Any]:
    """What `--json` prints: of one run its selection, of several those of all."""
    each = [_selection_as_json(found, top) for found in selections.values()]
    if len(each) == 1 and not unscored:
        return each[0]
    of_all = {"ties": list(tied), "runs": each, "skipped": dict(unscored)}
    return {**_pick_as_json(selections[best]), **of_all}


def _pick_as_json(found: Selection) -> dict[str, Any]:
    """The weights to keep: a checkpoint, or an average and its sources; and where they are."""
    average, sources = found.best_record.average, found.sources[found.best_step]
    return {
        "best_checkpoint": str(found.paths[found.best_step]) if average is None else None,
        "best_average": None if average is None else asdict(average),
        "best_sources": [str(path) for path in sources],
        "output": None if found.output is None else str(found.output),
    }


def _selection_as_json(found: Selection, top: int | None) -> dict[str, Any]:
    from sepstop.runs.records import record_to_dict

    online = found.online_average
    return {
        **_pick_as_json(found),
        **asdict(found.decision),
        "decides": found.decides,
        "higher_is_better": dict(found.higher_is_better),
        "online_best_step": found.online_best_step,
        "online_average": None if online is None else asdict(online),
        "ties": list(found.ties),
        "label_choice": None if found.label_choice is None else asdict(found.label_choice),
        "asked": None if found.asked is None else str(found.asked),
        "ranking": [
            {
                "checkpoint": None if record.average else str(found.paths[record.step]),
                "sources": [str(path) for path in found.sources[record.step]],
                **record_to_dict(record),
            }
            for record in found.ranking[:top]
        ],
        "best_steps": {name: found.series_of(name).best_step for name in found.higher_is_better},
        "skipped": {str(path): why for path, why in found.skipped.items()},
        "differences": {str(found.paths[step]): why for step, why in found.differences.items()},
    }
