"""The callback in a command that makes a Trainer of its own, for `sepstop run`.

The command gets the folder `startup` as the first of PYTHONPATH, so every Python process of it
reads `startup/sitecustomize.py`, which calls `install`. Launchers such as accelerate and torchrun
hand the environment on to the processes that they start.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

VARIABLE = "SEPSTOP_RUN"
STARTUP = Path(__file__).parent / "startup"


def environment(section: Mapping[str, Any], mark: Path) -> dict[str, str]:
    """The environment in which a command's first Trainer gets the callback.

    Args:
        section: as of `sepstop.integrations.settings.callback_of`, without objects.
        mark: a file that is made when a Trainer has the callback.
    """
    path = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))
    content = json.dumps({"section": section, "mark": str(mark)})
    return os.environ | {"PYTHONPATH": path, VARIABLE: content}


def install() -> None:
    """Wait for this process's first Trainer, if `sepstop run` started it."""
    if VARIABLE in os.environ:
        given = json.loads(os.environ[VARIABLE])
        first = _FirstTrainer(given["section"], Path(given["mark"]))
        wrapt.register_post_import_hook(first.watch, "transformers.trainer")


class _FirstTrainer:
    """Gives the callback to the first Trainer of a process."""

    def __init__(self, section: Mapping[str, Any], mark: Path) -> None:
        self.section, self.mark = section, mark
        self._is_made = False

    def watch(self, module: ModuleType) -> None:
        wrapt.wrap_function_wrapper(module, "Trainer.__init__", self._add)

    def _add(self, init: Callable[..., None], trainer: Any, args: Any, kwargs: Any) -> None:
        if self._is_made:
            init(*args, **kwargs)
            return
        self._is_made = True
        from sepstop.integrations.settings import callback_of

        callback = callback_of(self.section)
        given = inspect.signature(init).bind_partial(*args, **kwargs)
        given.arguments["callbacks"] = [*(given.arguments.get("callbacks") or []), callback]
        init(*given.args, **given.kwargs)
        callback.attach(trainer)
        self.mark.touch()
