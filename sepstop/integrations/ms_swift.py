"""The callback in ms-swift, as `--callbacks sepstop`, once `--external_plugins` imports this."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from swift.callbacks import TrainerCallback, callbacks_map

from sepstop.callbacks.trainer import SepStopCallback
from sepstop.integrations.settings import callback_of, read_section

VARIABLE = "SEPSTOP_CONFIG"


class _Attach(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Gives the Trainer the callback when it is made: ms-swift makes its callbacks before."""

    def on_init_end(self, *_: Any, **__: Any) -> None:
        _callback().attach(self.trainer)


def _callback() -> SepStopCallback:
    """
    Raises:
        OSError, ValueError: as of `sepstop.integrations.settings`, or no file is named.
    """
    if not os.environ.get(VARIABLE):
        raise ValueError(
            f"expected the name of a YAML file with a section `sepstop:` in the environment "
            f"variable {VARIABLE}, which a file of ms-swift can set under `ENV:`"
        )
    return callback_of(read_section(Path(os.environ[VARIABLE])))


_callback()  # an error now is better than one after the model is loaded
callbacks_map["sepstop"] = _Attach
