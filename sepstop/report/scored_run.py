"""Scored runs on disk."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

from sepstop.runs.checkpoints import find_checkpoints
from sepstop.runs.history import read_run
from sepstop.runs.leftovers import unmonitored
from sepstop.runs.records import RunHistory


def read_scored_run(run_dir: str | Path) -> RunHistory:
    """The history of a run that has at least one record.

    Args:
        run_dir: folder of the run.

    Raises:
        FileNotFoundError: no scores in the folder, or none yet.
        ValueError: a file is broken.

    Warns:
        UserWarning: the folder has checkpoints of a run that was not scored.
    """
    run = read_run(run_dir)
    if not run.records:
        raise FileNotFoundError(f"no scores in {run_dir} yet: the run has begun without one")
    if run.is_online:
        with suppress(FileNotFoundError):  # a run may have kept no checkpoint
            steps = [record.step for record in run.records]
            unscored = unmonitored(find_checkpoints(run_dir), steps)
            if unscored:
                warnings.warn(
                    f"sepstop: {', '.join(unscored)} in {run_dir} come from a run without sepstop; "
                    "the scores and the decision are those of another run in the same folder",
                    stacklevel=2,
                )
    return run
