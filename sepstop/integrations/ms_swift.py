"""The callback in ms-swift: `register` in a file of `--external_plugins`, then `--callbacks`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sepstop.callbacks.trainer import SepStopCallback
from sepstop.integrations.settings import callback_of, read_section

VARIABLE = "SEPSTOP_CONFIG"


def register() -> None:
    """Make `--callbacks sepstop` known to ms-swift, which reads plugins before it loads a model.

    Raises:
        OSError, ValueError: as of `sepstop.integrations.settings`, or no file is named.
    """
    _callback()
    from swift.callbacks import callbacks_map

    callbacks_map["sepstop"] = _Attach


class _Attach(TrainerCallback):
    """Gives the Trainer the callback when it is made: ms-swift makes its callbacks before."""

    def __init__(self, args: Any, trainer: Any) -> None:
        self.trainer = trainer

    def on_init_end(self, *_: Any, **__: Any) -> None:
        _callback().attach(self.trainer)


def _callback() -> SepStopCallback:
    if not os.environ.get(VARIABLE):
        raise ValueError(
            f"expected the name of a YAML file with a section `sepstop:` in the environment "
            f"variable {VARIABLE}, which a file of ms-swift can set under `ENV:`"
        )
    return callback_of(read_section(Path(os.environ[VARIABLE])))
