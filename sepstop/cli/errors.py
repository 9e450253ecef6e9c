"""What a command says of errors and warnings: a sentence each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

_WARNINGS = (UserWarning, RuntimeWarning)


@contextmanager
def sentences(messages: Console) -> Iterator[None]:
    """Says a user's error, which ends the command with 2, and at the end each warning once.

    Any other exception is a fault of sepstop's, whose traceback we want to be sent. Of several
    processes the first one speaks, and besides the one with an error.
    """
    from sepstop.utils.distributed import (  # torch takes seconds, which --help has not
        RankError,
        Ranks,
    )

    with warnings.catch_warnings(record=True) as caught:
        for category in _WARNINGS:
            warnings.simplefilter("always", category)
        try:
            yield
        except (OSError, ValueError, ImportError) as error:
            _say(messages, str(error), "red")
            raise typer.Exit(2) from error
        except RankError as error:  # its own process says what
            raise typer.Exit(2) from error
        finally:
            if Ranks.of_run().rank == 0:
                said = [str(w.message) for w in caught if issubclass(w.category, _WARNINGS)]
                for sentence in dict.fromkeys(said):
                    _say(messages, sentence, "yellow")


def _say(messages: Console, sentence: str, style: str) -> None:
    messages.print(f"sepstop: {sentence.removeprefix('sepstop: ')}", style=style, markup=False)
