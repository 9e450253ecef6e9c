"""Deletion of the checkpoints of a run that are not kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sepstop.decide.selection import Selection
from sepstop.runs.averaging import without_misfits
from sepstop.runs.checkpoints import CheckpointRun
from sepstop.runs.history import read_online
from sepstop.runs.loading import Loading, load_model
from sepstop.runs.pruned import Kept, write_kept
from sepstop.runs.saved_weights import base_of_adapter

_REMOVED = ".{}.removed.unfinished"  # a folder that is being deleted


@dataclass(frozen=True)
class Pruning:
    """Which checkpoints of a run are deleted.

    Attributes:
        home: the run's folder.
        step: whose weights are kept.
        sizes: bytes in each folder to delete, by folder.
        left: why other checkpoints stay, by folder.
    """

    home: Path
    step: int
    sizes: Mapping[Path, int]
    left: Mapping[Path, str]

    @property
    def total(self) -> int:
        """Bytes in all folders to delete."""
        return sum(self.sizes.values())


def check_prunable(run: CheckpointRun, in_use: Iterable[str | Path | None] = ()) -> None:
    """
    Args:
        run: on disk.
        in_use: other files and folders that are read or written; None for those that are not.

    Raises:
        ValueError: checkpoints of this run must not be deleted.
    """
    why = ""
    folder = run.home.resolve()
    if run.store is not None or _is_snapshot(folder):
        why = "is a copy in the cache of the hub; `hf cache` deletes those"
    elif not run.is_trained:
        why = "is a single model, not a folder with the checkpoints of a run"
    elif not run.is_one_run:
        why = "may hold models of several runs; move those of others elsewhere"
    for path in in_use:
        if path and any(Path(path).resolve().is_relative_to(one) for one in _resolved(run)):
            why = f"has {path} inside a checkpoint; name a path outside its checkpoints"
    if why:
        raise ValueError(f"expected a run whose checkpoints can be deleted: {run.name} {why}")


def plan_pruning(home: Path, selection: Selection) -> Pruning:
    """The checkpoints to delete: all that were scored, without what is kept.

    The newest checkpoint stays if the run is not finished, since it resumes from there. Links,
    what was skipped, has no score or another configuration, and whatever else is in the folder stay
    as well. What an interrupted deletion left is deleted.

    Args:
        home: the run's folder, see `check_prunable`.
        selection: of this run.
    """
    finite = {record.step for record in selection.records if _is_ranked(selection, record.step)}
    best, newest = selection.best_step, max(finite)
    base = base_of_adapter(selection.paths[best])
    _, misfits = without_misfits([path for _, path in sorted(selection.paths.items())])
    left: dict[Path, str] = {}
    deleted = []
    for step, path in sorted(selection.paths.items()):
        if path in selection.skipped:
            left[path] = "it was skipped"
        elif step not in finite:
            left[path] = "it has no score"
        elif step == best and selection.best_record.average is None:
            left[path] = "it is kept"
        elif path.is_symlink() or path.resolve().parent != home.resolve():
            left[path] = "it is a link"
        elif base is not None and Path(base.source).resolve().is_relative_to(path.resolve()):
            left[path] = "it is the base of what is kept"
        elif path in misfits:
            left[path] = f"it may be of another run: {misfits[path]}"
        elif step == newest and not _is_finished(home, selection.paths):
            left[path] = "the run is not finished and resumes from it"
        else:
            deleted.append(path)
    deleted += _interrupted(home)
    return Pruning(home, best, {path: _size(path) for path in deleted}, left)


def prune(pruning: Pruning, kept: Path, loading: Loading) -> None:
    """Delete checkpoints, after a look at what is kept.

    Each folder is renamed first, so that none that is deleted halfway is taken for a checkpoint. If
    renaming fails, all get their names back. Links are not followed.

    Args:
        pruning: see `plan_pruning`.
        kept: folder of the weights to keep.
        loading: loads them.

    Raises:
        ValueError: the weights to keep can't be loaded; nothing was deleted.
        OSError: a folder can't be renamed or deleted.
    """
    try:
        load_model(kept, loading)
    except Exception as error:  # whatever a broken folder holds
        raise ValueError(
            f"what is to be kept, {kept}, can't be loaded, so nothing was deleted: "
            f"{type(error).__name__}: {error}"
        ) from error
    if hasattr(os, "sync"):
        os.sync()  # a crash of the machine must not take both
    renamed: dict[Path, Path] = {}
    interrupted = _interrupted(pruning.home)
    for gone in interrupted:
        shutil.rmtree(gone)
    try:
        for path in pruning.sizes:
            if path not in interrupted:
                gone = path.with_name(_REMOVED.format(path.name))
                renamed[path] = path.rename(gone)
        left = frozenset(path.name for path in pruning.home.glob("checkpoint-*"))
        write_kept(pruning.home, Kept(pruning.step, kept, left))
    except BaseException:
        for path, gone in renamed.items():
            gone.rename(path)
        raise
    for gone in renamed.values():
        shutil.rmtree(gone)


def dangling_links(pruning: Pruning) -> list[Path]:
    """Links in the run's folder that will lead nowhere."""
    gone = {path.resolve() for path in pruning.sizes}
    links = (path for path in sorted(pruning.home.iterdir()) if path.is_symlink())
    return [path for path in links if path.resolve() in gone]


def _is_snapshot(folder: Path) -> bool:
    """True for a folder in the cache of the hub's library: models--ORG--NAME/snapshots/..."""
    above = folder.parts
    return any(
        first.startswith("models--") and then == "snapshots" for first, then in pairwise(above)
    )


def _resolved(run: CheckpointRun) -> list[Path]:
    return [path.resolve() for path in run.checkpoints.values()]


def _is_ranked(selection: Selection, step: int) -> bool:
    return selection.series.score_at(step).is_finite


def _interrupted(home: Path) -> list[Path]:
    """Folders of checkpoints that an interrupted call left behind."""
    return sorted(home.glob(_REMOVED.format("checkpoint-*")))


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _is_finished(home: Path, checkpoints: Mapping[int, Path]) -> bool:
    """True if the run took all of its steps, was stopped by its policy, or can't be resumed.

    A run that another callback stopped, such as before a time limit, may go on.
    """
    newest = checkpoints[max(checkpoints)]
    with suppress(OSError, ValueError):
        online = read_online(home)
        if online is not None and online.decision is not None and online.decision.stop:
            return True
    with suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads((newest / "trainer_state.json").read_text())
        return bool(state["global_step"] >= state["max_steps"])
    return not any(newest.glob("optimizer*"))
