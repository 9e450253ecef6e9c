"""`sepstop select --link`: a link to the weights to keep."""

from __future__ import annotations

import shutil
from pathlib import Path


def check_link(link: Path, output: Path | None) -> None:
    """
    Raises:
        ValueError: something else than a link is there, or will be.
    """
    if output is not None and output.absolute() == link.absolute():
        raise ValueError(f"--output and --link are both {link}; name different paths")
    if link.exists() and not link.is_symlink():
        raise ValueError(f"{link} exists and is not a link; name another path or remove it")


def link_to(folder: Path, link: Path) -> None:
    """Replace a symbolic link; copy the folder where the system has no links."""
    target = folder.resolve()  # before the link goes, which may lead there
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(target, target_is_directory=True)
    except (OSError, NotImplementedError):
        shutil.copytree(target, link)
