"""`sepstop select`: rank checkpoints and name the one to keep."""

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
            help="Which of the tied checkpoints to keep: earliest, best or latest. Default: the "
            "run's own pick if it is tied, else the earliest."
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
    top: Annotated[int | None, typer.Option(help="Show only this many checkpoints.", min=1)] = None,
    link: Annotated[
        Path | None, typer.Option(help="Make this path a link to the checkpoint to keep.")
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
    """Rank the checkpoints of runs on unlabeled texts and name the one to keep.

    Options that you leave out are taken from the run's own history, if sepstop watched it.
    Embeddings are cached, so the next call embeds only what is new. `accelerate launch -m sepstop
    select ...` divides the checkpoints over processes.

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
    selections, best, tied = chosen
    skipped = [item for found in selections.values() for item in found.skipped.items()]
    for path, why in skipped:
        name = path.name if len(selections) == 1 else path
        print_message(messages, f"skipped {name}: {why}", "yellow")
    if as_json:
        typer.echo(json.dumps(_as_json(selections, best, tied, top), indent=2, allow_nan=False))
    else:
        _print_tables(selections, best, tied, top)
    if strict and (skipped or any(found.differences for found in selections.values())):
        raise typer.Exit(3)


def _choose(
    arguments: Mapping[str, Any], show_progress: bool
) -> tuple[dict[str, Selection], str, list[str]] | None:
    """The selection of each run, the best run, and the runs tied with it.

    Returns:
        None on all but the first of several processes.
    """
    from sepstop.decide.selection import best_run, tied_runs
    from sepstop.runs.checkpoints import find_runs
    from sepstop.runs.select import select_checkpoint
    from sepstop.utils.distributed import Ranks

    own_device = _join_processes()
    loading = options.loading_of({**arguments, "device": arguments["device"] or own_device})
    runs = dict.fromkeys(run for path in arguments["paths"] for run in find_runs(path))
    selections = {
        run: select_checkpoint(
            run,
            arguments["pool"],
            ties=arguments["ties"],
            loading=loading,
            cache=arguments["cache_dir"] or arguments["cache"],
            distributed=True,
            progress=show_progress,
            **options.config_of(arguments),
        )
        for run in runs
    }
    best = best_run(selections)
    if Ranks.of_run().rank > 0:
        return None
    if arguments["link"] is not None:
        _link(arguments["link"], selections[best].best)
    return selections, best, tied_runs(selections, best)


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


def _link(link: Path, checkpoint: Path) -> None:
    """Replace a symbolic link; copy the checkpoint where the system has no links.

    Raises:
        ValueError: something else than a link is there.
    """
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise ValueError(f"{link} exists and is not a link; name another path or remove it")
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(checkpoint.resolve(), target_is_directory=True)
    except (OSError, NotImplementedError):
        shutil.copytree(checkpoint, link)


def _print_tables(
    selections: Mapping[str, Selection], best: str, tied: Sequence[str], top: int | None
) -> None:
    from sepstop.report.tables import runs_table

    out = Console()
    for run, found in selections.items():
        if len(selections) == 1:
            _print_ranking(out, found, top, f"keep {found.best}")
        elif len(found.records) > 1:  # a single model has its row in the table below
            out.print(run, style="bold", markup=False, soft_wrap=True)
            _print_ranking(out, found, top)
    if len(selections) > 1:
        out.print(runs_table(selections, best, tied))
        line = f"of all, keep {selections[best].best}"
        out.print(line, style="bold", markup=False, soft_wrap=True)


def _print_ranking(out: Console, found: Selection, top: int | None, verdict: str = "") -> None:
    from sepstop.report.tables import ranking_table

    out.print(ranking_table(found, top))
    if verdict:
        out.print(verdict, style="bold", markup=False, soft_wrap=True)
    out.print(found.decision.reason, markup=False, soft_wrap=True)
    online = found.online_best_step
    if online is not None and online in found.paths:
        same = "the same checkpoint" if online == found.best_step else f"step {online}"
        out.print(f"the run itself kept {same}", markup=False, soft_wrap=True)


def _as_json(
    selections: Mapping[str, Selection], best: str, tied: Sequence[str], top: int | None
) -> dict[str, Any]:
    """What `--json` prints: of one run its selection, of several those of all."""
    each = [_selection_as_json(found, top) for found in selections.values()]
    if len(each) == 1:
        return each[0]
    return {"best_checkpoint": str(selections[best].best), "ties": list(tied), "runs": each}


def _selection_as_json(found: Selection, top: int | None) -> dict[str, Any]:
    from sepstop.runs.records import record_to_dict

    return {
        "best_checkpoint": str(found.best),
        **asdict(found.decision),
        "decides": found.decides,
        "higher_is_better": dict(found.higher_is_better),
        "online_best_step": found.online_best_step,
        "ties": list(found.ties),
        "ranking": [
            {"checkpoint": str(found.paths[record.step]), **record_to_dict(record)}
            for record in found.ranking[:top]
        ],
        "best_steps": {name: found.series_of(name).best_step for name in found.higher_is_better},
        "skipped": {str(path): why for path, why in found.skipped.items()},
        "differences": {str(found.paths[step]): why for step, why in found.differences.items()},
    }
