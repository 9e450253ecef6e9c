"""The file in a run's folder that says what was kept when its checkpoints were deleted."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sepstop.utils.files import write_atomically

PRUNED_FILE = "sepstop_pruned.json"


class Kept(NamedTuple):
    """The weights that were kept.

    Attributes:
        step: of the record that was the best.
        folder: of the weights.
        left: names of the checkpoints that stayed in the run's folder.
    """

    step: int
    folder: Path
    left: frozenset[str]


def write_kept(run_dir: Path, kept: Kept) -> None:
    """
    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    folder, home = kept.folder.resolve(), run_dir.resolve()
    name = folder.relative_to(home) if folder.is_relative_to(home) else folder
    values = {"step": kept.step, "folder": str(name), "left": sorted(kept.left)}
    write_atomically(run_dir / PRUNED_FILE, (json.dumps(values) + "\n").encode())


def read_kept(run_dir: Path) -> Kept | None:
    """What was kept of a run; None if nothing was deleted or the file can't be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads((run_dir / PRUNED_FILE).read_text())
        folder = run_dir / str(values["folder"])
        return Kept(int(values["step"]), folder, frozenset(map(str, values["left"])))
    return None
