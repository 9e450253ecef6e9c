"""`sepstop finetune`: the command line of `sepstop.finetune`."""

from __future__ import annotations

import typer
from rich.console import Console

from sepstop.cli.errors import user_errors

UNPARSED = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings with which all arguments reach the command; it has a parser of its own."""


def finetune(context: typer.Context) -> None:
    """Fine-tune a model on labeled texts, with a YAML file of settings."""
    # transformers takes seconds to import, and `sepstop --help` does not need it.
    from accelerate import PartialState

    from sepstop.finetune.run import set_up, train

    with user_errors(Console(stderr=True)):
        ready = set_up(context.args)
    train(*ready)
    # Without it, gloo's threads sometimes abort one of several processes on exit.
    PartialState().destroy_process_group()
