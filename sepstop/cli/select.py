"""`sepstop select`: rank a run's weights and name those to keep."""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sepstop.cli import options
from sepstop.cli.errors import print_message, user_errors
from sepstop.cli.fail_on import CONDITIONS, failures, parse_conditions
from sepstop.cli.link import check_link, link_to
from sepstop.cli.outcome import Outcome, as_json, print_tables
from sepstop.cli.prune import check_prune, prune_if_confirmed


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
        typer.Option(
            help="File for --ask. Default: sepstop_ask.jsonl in the run's folder; of a repository "
            "on the hub, in this one."
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Delete the run's other checkpoints, after a question. An average to keep is "
            "written as by --link first. The newest stays if the run is not finished.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Prune without the question.")] = False,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit with 3 if one of these comma-separated conditions holds: "
            f"{', '.join(CONDITIONS)}, or a score of the weights to keep is below or above a "
            "number, such as 'robust_mi<0.2'."
        ),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")
    ] = False,
) -> None:
    """Rank averages of a run's checkpoints on unlabeled texts and name the weights to keep.

    At each checkpoint the candidates are averages of the checkpoints so far. With --no-average they
    are the checkpoints themselves.

    Options that you leave out are taken from the run's own history, if sepstop watched it.
    Embeddings are cached, so the next call embeds only what is new. `accelerate launch -m sepstop
    select ...` divides the work over processes.

    Exit status: 0; 2 if there is nothing to rank or an option is wrong; 3 if a condition of
    --fail-on holds, and then nothing is pruned; 130 if interrupted.
    """
    arguments = locals()
    messages = Console(stderr=True)
    try:
        with user_errors(messages):
            conditions = parse_conditions(fail_on or [], criterion, extra_criteria)
            outcome = _choose(arguments, messages.is_terminal)
            if outcome is None:
                return
            failed = failures(conditions, outcome)
        _print_skipped(messages, outcome)
        if not json_:
            print_tables(outcome, top)
        for condition, why in failed.items():
            print_message(messages, f"{condition}: {why}", "red")
        pruned = None
        if prune and failed:
            print_message(messages, "nothing is pruned, as a condition holds", "yellow")
        elif prune:
            with user_errors(messages):
                outcome, pruned = prune_if_confirmed(messages, outcome, arguments)
    except KeyboardInterrupt as error:
        kept = "; embeddings are cached, so the same command continues from here"
        print_message(messages, f"interrupted{kept if cache else ''}", "red")
        raise typer.Exit(130) from error
    if json_:
        found = as_json(outcome, top) | {"failed": failed, "pruned": pruned}
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
    if failed:
        raise typer.Exit(3)


def _print_skipped(messages: Console, outcome: Outcome) -> None:
    for path, why in outcome.skipped:
        print_message(messages, f"skipped {path.name if outcome.is_one else path}: {why}", "yellow")
    if outcome.skips_in_averages:
        print_message(messages, "averages are made without what was skipped", "yellow")


def _choose(arguments: Mapping[str, Any], show_progress: bool) -> Outcome | None:
    """The selection of each run.

    Returns:
        None on all but the first of several processes.
    """
    from sepstop.decide.selection import Selection, best_run, tied_runs
    from sepstop.runs.best_folder import check_free, linked_folder, write_best
    from sepstop.runs.checkpoints import find_runs
    from sepstop.runs.select import NothingScoredError, select_checkpoint
    from sepstop.utils.distributed import Ranks

    output, link = arguments["output"], arguments["link"]
    if output is not None:
        check_free(output)
    if link is not None:
        check_link(link, output)
    own_device = _join_processes()
    loading = options.loading_of({**arguments, "device": arguments["device"] or own_device})
    runs = dict.fromkeys(run for path in arguments["paths"] for run in find_runs(path))
    if len(runs) > 1 and (arguments["labels"] or arguments["ask"]):
        raise ValueError(f"--labels and --ask are for one run, got {len(runs)} runs; name one")
    if arguments["prune"]:
        check_prune(list(runs), arguments)
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
        link_to(selections[best].best, link)
    return Outcome(selections, best, tied_runs(selections, best), unscored)


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
