"""`sepstop select --prune`: the question, and what is deleted after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.filesize import decimal

from sepstop.cli import options
from sepstop.cli.errors import print_message
from sepstop.cli.outcome import Outcome, described

_PATHS = ("pool", "output", "link", "cache_dir", "base_model", "tokenizer", "answers", "labels")
"""Options that may name files and folders."""


def check_prune(runs: Sequence[str], arguments: Mapping[str, Any]) -> None:
    """
    Args:
        runs: that the user named.
        arguments: of the command.

    Raises:
        ValueError: nothing must be deleted here, or nobody can be asked.
    """
    from sepstop.runs.checkpoints import find_run
    from sepstop.runs.pruning import check_prunable

    if arguments["ask"]:
        raise ValueError(
            "--ask writes texts whose labels would tell the checkpoints apart, and --prune deletes "
            "these; give --ask first, and --labels with --prune then"
        )
    if len(runs) > 1:
        raise ValueError(f"--prune deletes the checkpoints of one run; name one, not {len(runs)}")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not arguments["yes"] and (several or not sys.stdin.isatty()):
        where = "with several processes" if several else "without a terminal"
        raise ValueError(f"--prune can't ask {where}; --yes deletes without the question")
    check_prunable(find_run(runs[0]), [arguments[name] for name in _PATHS])


def prune_if_confirmed(
    messages: Console, outcome: Outcome, arguments: Mapping[str, Any]
) -> tuple[Outcome, dict[str, Any] | None]:
    """Ask, write an average that is in no folder yet, and delete the other checkpoints.

    Returns:
        The outcome, with the folder of the average; and what `--json` says, None if nothing was
        deleted.
    """
    from sepstop.runs.best_folder import linked_folder, write_best
    from sepstop.runs.pruning import dangling_links, plan_pruning, prune

    kept = outcome.kept
    plan = plan_pruning(Path(outcome.best), kept)
    for path, size in plan.sizes.items():
        messages.print(f"delete {path}, {decimal(size)}", markup=False, soft_wrap=True)
    for path, why in plan.left.items():
        messages.print(f"leave {path}, as {why}", markup=False, soft_wrap=True)
    if not plan.sizes:
        print_message(messages, "nothing to prune", "yellow")
        return outcome, None
    for path in dangling_links(plan):
        messages.print(f"{path} will lead nowhere", markup=False, soft_wrap=True)
    loading = options.loading_of(arguments)
    to_write = linked_folder(kept) if kept.best_folder is None else None
    if to_write is not None:
        messages.print(f"write {to_write} first", markup=False, soft_wrap=True)
    what = f"{len(plan.sizes)} folders, {decimal(plan.total)}"
    if not arguments["yes"] and not typer.confirm(f"Delete {what}?", err=True):
        print_message(messages, "nothing was deleted", "yellow")
        return outcome, None
    if to_write is not None:
        kept = write_best(kept, to_write, loading)
    prune(plan, kept.best, loading)
    print_message(messages, f"deleted {what}; kept {described(kept)}", "green")
    deleted = {"deleted": [str(path) for path in plan.sizes], "bytes": plan.total}
    return outcome.with_kept(kept), {"kept": str(kept.best), **deleted}
