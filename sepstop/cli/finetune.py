"""`sepstop finetune`: the command line of `sepstop.finetune`."""

from __future__ import annotations

import typer

UNPARSED = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings with which all arguments reach the command; it has a parser of its own."""


def finetune(context: typer.Context) -> None:
    """Fine-tune a model on labeled texts, with a YAML file of settings."""
    # transformers takes seconds to import, and `sepstop --help` does not need it.
    from sepstop.finetune.run import run_as_command

    run_as_command(context.args)
