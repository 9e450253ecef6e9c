"""Read by every Python process that `sepstop run` starts, directly or not."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def _run_the_one_behind() -> None:
    """Run the sitecustomize that Python would have run without this one."""
    sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        sys.modules["sitecustomize"] = module = module_from_spec(spec)
        spec.loader.exec_module(module)


_run_the_one_behind()

from sepstop.integrations.launch import install  # noqa: E402

install()
