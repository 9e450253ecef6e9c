"""The `sepstop` command."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sepstop._version import __version__
from sepstop.cli import options
from sepstop.cli.bench import app as bench
from sepstop.cli.errors import print_message, user_errors
from sepstop.cli.finetune import UNPARSED, finetune
from sepstop.cli.run import run
from sepstop.cli.select import select

app = typer.Typer(
    help="Decide when to stop a fine-tuning run and which checkpoint to keep, without labels.",
    pretty_exceptions_enable=False,
)
app.command(context_settings=UNPARSED, add_help_option=False)(finetune)
app.command(context_settings={"allow_interspersed_args": False})(run)
app.command()(select)
app.add_typer(bench, name="bench")

_START = """\
sepstop tells a fine-tuning run when to stop and which weights to keep, without validation labels.

Fine-tune a model, with settings from a YAML file:
    sepstop finetune --config settings.yaml

Add sepstop to another training command:
    sepstop run --pool pool.jsonl -- python train.py

Pick the best weights from a folder of checkpoints:
    sepstop select RUN_DIR --pool pool.jsonl

Add it to a Trainer in Python:
    from sepstop import SepStopCallback
    trainer = Trainer(..., callbacks=[SepStopCallback(pool)])  # pool: unlabeled texts

All commands: sepstop --help. Options of one: sepstop COMMAND --help."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sepstop {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(_START)


RunDir = Annotated[Path, typer.Argument(help="Folder of a scored run.")]


@app.command()
def plot(
    run_dir: RunDir,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The figure: .png, .svg or .pdf.")
    ] = Path("sepstop.png"),
) -> None:
    """Draw the scores of a run over its steps, with the pick and the stop."""
    from sepstop.report.figures import draw_scores
    from sepstop.report.scored_run import read_scored_run

    with user_errors(Console(stderr=True)):
        draw_scores(read_scored_run(run_dir), output, run_dir.resolve().name)
    typer.echo(output)


@app.command()
def watch(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run that is training.")],
    once: Annotated[bool, typer.Option("--once", help="Show the scores so far and exit.")] = False,
) -> None:
    """Show a run's scores in the terminal as they come, until its training ends.

    Ctrl-C ends the view; the run continues.
    """
    from sepstop.report.live import follow

    try:
        with user_errors(Console(stderr=True)):
            follow(run_dir, Console(), once)
    except KeyboardInterrupt as error:
        raise typer.Exit(0) from error


# An option is an argument for typer. The body passes them on by name.
@app.command()
def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of scored runs.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, an .html file.")] = Path(
        "report.html"
    ),
    pool: Annotated[
        Path | None,
        typer.Option(
            help=f"{options.POOL_HELP} Needed for the map, the barcode and further scores. "
            "Default: RUN_DIR/pool.jsonl if it exists."
        ),
    ] = None,
    text_column: options.TextColumn = "text",
    extra_criteria: options.ExtraCriteria = None,
    map_name: Annotated[
        str, typer.Option("--map", help="Projection to the plane: pca, umap or pacmap.")
    ] = "pca",
    labels: Annotated[
        str | None,
        typer.Option(help="Column of the pool with labels, to compare with the scores."),
    ] = None,
    texts: Annotated[
        bool, typer.Option("--texts", help="Include the texts of the map in the page.")
    ] = False,
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
) -> None:
    """Write the scores, the decision and the embeddings of runs as one HTML page.

    The page works offline. It contains texts of the pool only with --texts.
    """
    arguments = locals()
    from sepstop.report.html import write_page

    messages = Console(stderr=True)
    with user_errors(messages):
        notes = write_page(
            run_dirs,
            output,
            map_name=map_name,
            pool=pool,
            labels=labels,
            texts=texts,
            loading=options.loading_of(arguments),
            cache=cache,
            progress=messages.is_terminal,
            **options.config_of(arguments),
        )
    for note in notes:
        print_message(messages, note, "yellow")
    typer.echo(f"{output}, {output.stat().st_size / 1e6:.1f} MB")


@app.command()
def card(
    run_dir: RunDir,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the scores into this file and show it in the section.")
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="Jinja template of the section. Default: sepstop's own.")
    ] = None,
) -> None:
    """Print a section for the model card that says how the weights were chosen."""
    from sepstop.report.model_card import model_card_section

    with user_errors(Console(stderr=True)):
        typer.echo(model_card_section(run_dir, figure, template), nl=False)


@app.command()
def skill() -> None:
    """Print the skill file, SKILL.md, that tells a coding assistant how to use sepstop."""
    typer.echo((files("sepstop") / "skills" / "sepstop" / "SKILL.md").read_text("utf-8"), nl=False)
