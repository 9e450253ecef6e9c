"""Resuming a run from its folder."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from sepstop.runs.checkpoints import find_checkpoints
from sepstop.utils.labels import CLASSES_FILE
from sepstop.utils.text import listed


def last_checkpoint(output_dir: str, resume: bool) -> str | None:
    """The checkpoint to resume from; None for a new run.

    A run that was killed while saving leaves a checkpoint without a state; it is skipped.

    Raises:
        ValueError: without ``resume``, the folder holds checkpoints of an earlier run.
    """
    try:
        found = find_checkpoints(output_dir)
    except FileNotFoundError:
        return None
    if not resume:
        raise ValueError(
            f"{output_dir} holds checkpoints of an earlier run: resume it with --resume true, or "
            "choose another --training.output_dir"
        )
    for _, path in sorted(found.items(), reverse=True):
        try:
            TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
        except (OSError, ValueError, TypeError) as error:
            print(f"{path} is incomplete ({error}); resuming from the checkpoint before it")
        else:
            return str(path)
    return None


def check_classes(output_dir: str, names: list[str]) -> None:
    """
    Raises:
        ValueError: the classes are not those of the resumed run, whose head has an output for each.
    """
    file = Path(output_dir) / CLASSES_FILE
    if not file.is_file():
        return
    before = json.loads(file.read_text())
    if before != names:
        raise ValueError(
            f"the run to resume has the classes {listed(before)}, but the data has "
            f"{listed(names)}: use the same data, or choose another --training.output_dir"
        )
