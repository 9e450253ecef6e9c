"""Atomic writes and safe reads of NumPy archives."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all; missing parent folders are made.

    The content goes to a hidden file in the same folder, named after the process, which then
    replaces ``path``. An earlier file at ``path`` stays as it was if writing fails.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_or_warn(path: str | os.PathLike[str], content: bytes, stacklevel: int = 1) -> None:
    """`write_atomically`, with a warning instead of the error.

    Args:
        stacklevel: the caller that the warning points to, as in `warnings.warn`: 1 is the caller
            of this function.

    Warns:
        RuntimeWarning: the disk is full or the folder is not writable.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        warnings.warn(
            f"sepstop: could not write {path}: {error}", RuntimeWarning, stacklevel=stacklevel + 1
        )


def pack_arrays(arrays: Mapping[str, ArrayLike], compress: bool = False) -> bytes:
    """The content of an .npz file with these arrays, which `load_arrays` reads back."""
    file = io.BytesIO()
    save: Any = np.savez_compressed if compress else np.savez
    save(file, **arrays)
    return file.getvalue()


def load_arrays(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name. Pickled objects are refused.

    Raises:
        OSError: there is no such file, or it can't be read.
        ValueError: not an .npz file, or a damaged one.
    """
    try:
        # Opened here, because np.load leaves a damaged archive open.
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # a damaged archive fails anywhere in zipfile, zlib and NumPy
        raise ValueError(
            f"expected an .npz file at {path}: {type(error).__name__}: {error}"
        ) from error
