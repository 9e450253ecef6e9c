"""NumPy archives from disk, where anything may lie."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


def load_arrays(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, by name; nothing pickled is read.

    Raises:
        OSError: no such file, or one that can't be read.
        ValueError: no archive of arrays, or a broken one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # a damaged archive fails anywhere in zipfile, zlib and NumPy
        raise ValueError(f"{path} is no .npz file: {type(error).__name__}: {error}") from error
