"""A recorded run: all that a criterion may see at each evaluation, and the accuracy to judge by."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sepstop.utils.files import load_arrays

_DIMENSIONS = {"steps": 1, "y": 1, "train_y": 1}
_DIMENSIONS |= dict.fromkeys(("pool_e", "pool_l", "pool_d", "pool_c", "train_e", "train_l"), 3)
_DIMENSIONS |= dict.fromkeys(("te_acc", "pool_acc", "va_acc", "va_loss", "tr_loss"), 1)
_REQUIRED = ("steps", "pool_e", "y", "te_acc")
_POOL = ("pool_e", "pool_l", "pool_d", "pool_c")
_SCALARS = ("te_acc", "pool_acc", "va_acc", "va_loss", "tr_loss")
_PER_STEP = (*_POOL, *_SCALARS, "train_e", "train_l")


@dataclass(frozen=True)
class Run:
    """T evaluations of one fine-tuning run.

    Attributes:
        name: file name without its ending.
        arrays: by name: ``steps (T,)``, ``pool_e (T, N, D)`` embeddings of the unlabeled pool,
            ``pool_l (T, N, k)`` logits, ``y (N,)`` the pool's labels, for judging alone,
            ``te_acc (T,)`` test accuracy; if recorded ``pool_c (T, N, D)`` CLS embeddings,
            ``pool_d (T, N, k)`` logits of the pool's texts without 30 % of their tokens,
            ``pool_acc``, ``va_acc``, ``va_loss``, ``tr_loss`` ``(T,)``, and of the labelled
            rows, noise included, ``train_e (T, M, D)``, ``train_l (T, M, k)``, ``train_y (M,)``.
        settings: how it was recorded, if the file says.
    """

    name: str
    arrays: dict[str, NDArray[Any]]
    settings: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.arrays["steps"])

    @property
    def steps(self) -> list[int]:
        return [int(step) for step in self.arrays["steps"]]

    @property
    def test_accuracy(self) -> NDArray[np.float64]:
        return self.arrays["te_acc"].astype(np.float64)


def load_run(path: str | Path) -> Run:
    """
    Raises:
        ValueError: not a recorded run; the message says what is missing or does not fit.
    """
    path = Path(path)
    arrays = load_arrays(path)
    try:
        settings = dict(json.loads(str(arrays.pop("settings", "{}"))))
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the settings as a JSON object: {error}") from error
    missing = [key for key in _REQUIRED if key not in arrays]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; it has {', '.join(sorted(arrays))}")
    for key, array in arrays.items():
        dimensions = _DIMENSIONS.get(key, array.ndim)
        if array.ndim != dimensions or array.dtype.kind not in "biuf":
            raise ValueError(
                f"{path}: expected numbers of {dimensions} dimensions in {key}, got "
                f"{array.dtype} of {array.ndim}"
            )
    length, pool_size = len(arrays["steps"]), len(arrays["y"])
    for key in _PER_STEP:
        if key in arrays and len(arrays[key]) != length:
            raise ValueError(f"{path}: {key} has {len(arrays[key])} evaluations, steps {length}")
    for key in _POOL:
        if key in arrays and arrays[key].shape[1:2] != (pool_size,):
            raise ValueError(
                f"{path}: expected {key} of shape (T, {pool_size}, ...), got {arrays[key].shape}"
            )
    if np.any(np.diff(arrays["steps"]) <= 0):
        raise ValueError(f"{path}: steps do not ascend")
    return Run(path.stem, arrays, settings)


def save_run(folder: str | Path, run: Run) -> Path:
    """``folder/<name>.npz``, whole or not at all."""
    path = Path(folder) / f"{run.name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    contents: dict[str, Any] = {"settings": json.dumps(run.settings), **run.arrays}
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **contents)
    unfinished.replace(path)
    return path


def fingerprint(run: Run) -> str:
    """SHA-256 of the arrays, whatever the compression of the file."""
    digest = hashlib.sha256()
    for key in sorted(run.arrays):
        array = np.ascontiguousarray(run.arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def find_runs(folder: str | Path) -> list[Path]:
    """
    Raises:
        FileNotFoundError: no .npz file there.
    """
    paths = sorted(Path(folder).glob("*.npz"))
    if not paths:
        raise FileNotFoundError(f"no recorded runs (.npz files) in {folder}")
    return paths
