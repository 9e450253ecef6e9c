"""Errors and warnings on the command line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

_SHOWN_WARNINGS = (UserWarning, RuntimeWarning)


@contextmanager
def user_errors(messages: Console) -> Iterator[None]:
    """Print errors and warnings that concern the user as one line each.

    OSError, ValueError and ImportError end the command with status 2. Any other exception is a bug:
    its traceback gets through. Warnings are printed once each when the block ends, by the first of
    several processes. Errors are printed by the process that has them.

    Args:
        messages: where to print.
    """
    # torch takes seconds to import, and --help does not need it.
    from sepstop.utils.distributed import RankError, Ranks

    with warnings.catch_warnings(record=True) as caught:
        for category in _SHOWN_WARNINGS:
            warnings.simplefilter("always", category)
        try:
            yield
        except (OSError, ValueError, ImportError) as error:
            print_message(messages, str(error), "red")
            raise typer.Exit(2) from error
        except RankError as error:  # printed by the process that failed
            raise typer.Exit(2) from error
        finally:
            if Ranks.of_run().rank == 0:
                shown = [str(w.message) for w in caught if issubclass(w.category, _SHOWN_WARNINGS)]
                for message in dict.fromkeys(shown):
                    print_message(messages, message, "yellow")


def print_message(messages: Console, message: str, style: str) -> None:
    """Print a message with sepstop's name before it."""
    text = f"sepstop: {message.removeprefix('sepstop: ')}"
    messages.print(text, style=style, markup=False, soft_wrap=True)
