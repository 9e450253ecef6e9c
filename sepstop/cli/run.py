"""`sepstop run`: the callback in the Trainer of another command."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from sepstop.cli import options
from sepstop.cli.errors import print_message, user_errors

_NOT_FOUND = 127  # as of a shell


def run(
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="As you would type it by itself.")
    ],
    pool: Annotated[
        Path | None, typer.Option(help=f"{options.POOL_HELP} Prompts, if the model has no head.")
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(
            help="File with the answers to the prompts, one a row, or a guess at their number."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with a section `sepstop:`: the pool and other settings."),
    ] = None,
) -> None:
    """Run a training command with sepstop in its Trainer.

    The command may be any that ends in a Trainer of transformers, such as trl, torchrun or python.
    Its first Trainer gets a SepStopCallback; the rest of the command is left alone, and its exit
    status is returned.

    sepstop run --pool prompts.jsonl --answers answers.txt -- trl sft --config sft.yaml
    """
    console = Console(stderr=True)
    with user_errors(console):
        # transformers takes seconds to import, and --help does not need it.
        from sepstop.integrations.launch import environment
        from sepstop.integrations.settings import callback_of, read_section, with_absolute_files

        section = read_section(config) if config else {}
        section |= {"pool": str(pool)} if pool else {}
        section |= {"answers": int(answers) if answers.isdigit() else answers} if answers else {}
        section = with_absolute_files(section, Path.cwd())
        callback_of(section)  # an error now is better than one after the model is loaded
    if shutil.which(command[0]) is None:
        print_message(console, f"there is no command {command[0]!r}", "red")
        raise typer.Exit(_NOT_FOUND)
    with tempfile.TemporaryDirectory(prefix="sepstop_") as folder:
        mark = Path(folder) / "made"
        status = _status_of(command, environment(section, mark))
        if not mark.exists() and status == 0:
            message = (
                "nothing was scored: the command made no Trainer of transformers in a Python that "
                "has sepstop"
            )
            print_message(console, message, "yellow")
    raise typer.Exit(status)


def _status_of(command: list[str], env: dict[str, str]) -> int:
    """Exit status of the command; 128 + the signal that ended it, as of a shell."""
    process = subprocess.Popen(command, env=env)

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    # Ctrl-C reaches the command by itself, and is left to it.
    before = signal.signal(signal.SIGTERM, pass_on), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        status = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    return status if status >= 0 else 128 - status
