"""Recorded runs: the inputs of every criterion at each evaluation, and the accuracy to judge by."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sepstop.measure.embedding import Observation
from sepstop.types import CHECKPOINT, Outputs
from sepstop.utils.files import load_arrays, pack_arrays, write_atomically

_DIMENSIONS = {"steps": 1, "y": 1, "train_y": 1}
_DIMENSIONS |= dict.fromkeys(("pool_e", "pool_l", "pool_d", "pool_c", "train_e", "train_l"), 3)
_DIMENSIONS |= dict.fromkeys(("te_acc", "pool_acc", "va_acc", "va_loss", "tr_loss"), 1)
_REQUIRED = ("steps", "pool_e", "y", "te_acc")
_POOL = ("pool_e", "pool_l", "pool_d", "pool_c")
_SCALARS = ("te_acc", "pool_acc", "va_acc", "va_loss", "tr_loss")
_PER_STEP = (*_POOL, *_SCALARS, "train_e", "train_l")
_RENAMED = {"embedder": "pooling"}  # settings in files of development versions
_OF_AVERAGES = ("pool_e", "pool_l", "pool_d", "te_acc", "pool_acc")
_ACCURACY = "_te_acc"
_PLAIN = "plain"


@dataclass(frozen=True)
class RecordedRun:
    """T evaluations of one fine-tuning run.

    Attributes:
        name: file name without its ending.
        arrays: by name: ``steps (T,)``, ``pool_e (T, N, D)`` embeddings of the unlabeled pool,
            ``y (N,)`` the pool's labels, used for judging only, ``te_acc (T,)`` test accuracy; if
            recorded ``pool_l (T, N, k)`` logits, ``pool_c (T, N, D)`` CLS embeddings,
            ``pool_d (T, N, k)`` logits of the pool's texts without 30 % of their tokens,
            ``pool_acc``, ``va_acc``, ``va_loss``, ``tr_loss`` ``(T,)``, and of the labeled rows,
            noise included, ``train_e (T, M, D)``, ``train_l (T, M, k)``, ``train_y (M,)``. An
            average of the weights called NAME has ``NAME_pool_e``, ``NAME_te_acc`` and so on, of
            the same shapes; its evaluations before the first averaged step are the model's own.
            A language model that answers in words has ``pool_f`` and ``pool_g``, what it says first
            to the pool's texts and without 30 % of their tokens, ``(T, N, 2 m)`` as
            `sepstop.measure.first_tokens.first_tokens` gives it, and ``te_gen (T,)``, the share of
            generated answers that are right. ``plain_te_acc (P,)`` is the test accuracy of averages
            that need no pool, with their names in ``settings["plain"]``.
        settings: how the run was recorded; empty if the file does not say.
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
    def averages(self) -> tuple[str, ...]:
        """Names of the averages that were recorded, in the order of the arrays."""
        return _averages_in(self.arrays)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of all that could be kept at an evaluation: "checkpoint", then the averages."""
        return (CHECKPOINT, *self.averages)

    @property
    def test_accuracy(self) -> NDArray[np.float64]:
        """Of the checkpoints, ``(T,)``."""
        return self.test_accuracy_of(CHECKPOINT)

    def test_accuracy_of(self, candidate: str) -> NDArray[np.float64]:
        """``(T,)``

        Raises:
            ValueError: no such candidate.
        """
        return self.arrays[self._key("te_acc", candidate)].astype(np.float64)

    @property
    def best_accuracy(self) -> float:
        """Highest test accuracy of a single checkpoint; step 0 has none."""
        return float(self.test_accuracy[self.arrays["steps"] > 0].max())

    @property
    def plain_accuracy(self) -> dict[str, float]:
        """Test accuracy of the averages that need no pool, by name."""
        values = self.arrays.get(_PLAIN + _ACCURACY, np.empty(0))
        names = self.settings.get(_PLAIN, ())
        return dict(zip(names, map(float, values), strict=True))

    @property
    def first_average(self) -> int:
        """Number of the first evaluation of an average; the run's length if there is none."""

        def is_own(t: int, average: str) -> bool:
            return all(
                np.array_equal(self.arrays[key][t], self.arrays[f"{average}_{key}"][t], True)
                for key in _OF_AVERAGES
                if f"{average}_{key}" in self.arrays
            )

        for t in range(len(self)):
            if not all(is_own(t, average) for average in self.averages):
                return t
        return len(self)

    @property
    def pool_size(self) -> int:
        return len(self.arrays["y"])

    @property
    def has_logits(self) -> bool:
        return "pool_l" in self.arrays

    @property
    def outputs(self) -> Outputs:
        """ "classes" if logits were recorded, else "none"."""
        return "classes" if self.has_logits else "none"

    def observation(self, t: int, candidate: str = CHECKPOINT) -> Observation:
        """The pool seen by a candidate at evaluation ``t``, in float32 on the CPU.

        Raises:
            ValueError: no such candidate.
        """

        def tensor(key: str) -> Tensor | None:
            array = self.arrays.get(self._key(key, candidate))
            return None if array is None else torch.from_numpy(array[t]).float()

        points = tensor("pool_e")
        assert points is not None  # load_run checks
        return Observation(points, tensor("pool_l"), tensor("pool_d"))

    def _key(self, key: str, candidate: str) -> str:
        if candidate not in self.candidates:
            known = ", ".join(self.candidates)
            raise ValueError(f"{self.name} has no candidate {candidate!r}, only {known}")
        return key if candidate == CHECKPOINT else f"{candidate}_{key}"


def _averages_in(arrays: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    names = [key.removesuffix(_ACCURACY) for key in arrays if key.endswith(_ACCURACY)]
    return tuple(name for name in names if name != _PLAIN)


def load_run(path: str | Path) -> RecordedRun:
    """Read a recorded run.

    Raises:
        OSError: no such file, or an unreadable one.
        ValueError: not a recorded run; the message says what is missing or does not fit.
    """
    path = Path(path)
    arrays = load_arrays(path)
    try:
        settings = dict(json.loads(str(arrays.pop("settings", "{}"))))
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the settings as a JSON object: {error}") from error
    arrays = {re.sub("^avg_", "cumulative_", key): array for key, array in arrays.items()}
    _check_arrays(path, arrays)
    _check_averages(path, arrays)
    settings = {_RENAMED.get(key, key): value for key, value in settings.items()}
    plain, names = arrays.get(_PLAIN + _ACCURACY), settings.get(_PLAIN, [])
    if plain is not None and plain.shape != (len(names),):
        raise ValueError(
            f"{path}: expected plain_te_acc of shape ({len(names)},), one for each name in the "
            f"settings' {_PLAIN!r}, got {plain.shape}"
        )
    return RecordedRun(path.stem, arrays, settings)


def _check_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
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
        raise ValueError(f"{path}: expected ascending steps, got {arrays['steps'].tolist()!s:.80}")


def _check_averages(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    averages = _averages_in(arrays)
    for key in arrays:
        name = key.removesuffix("_pool_e")
        if name != key and name not in averages:
            raise ValueError(f"{path} has {key} but no {name}{_ACCURACY}")
    for name in averages:
        for key in _OF_AVERAGES:
            own, found = arrays.get(key), arrays.get(f"{name}_{key}")
            if found is None and (own is None or key in ("pool_d", "pool_acc")):
                continue
            if found is None or own is None or found.shape != own.shape:
                expected, got = (
                    "no such array" if array is None else str(array.shape) for array in (own, found)
                )
                raise ValueError(
                    f"{path}: expected {name}_{key} of the shape of {key}, {expected}, got {got}"
                )


def save_run(folder: str | Path, run: RecordedRun) -> Path:
    """Write ``folder/<name>.npz``, all or nothing, and return its path.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    path = Path(folder) / f"{run.name}.npz"
    settings = np.array(json.dumps(run.settings))
    write_atomically(path, pack_arrays({"settings": settings, **run.arrays}, compress=True))
    return path


def fingerprint(run: RecordedRun) -> str:
    """SHA-256 of the arrays. It does not depend on the file's compression."""
    digest = hashlib.sha256()
    for key in sorted(run.arrays):
        array = np.ascontiguousarray(run.arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def find_recorded_runs(folder: str | Path) -> list[Path]:
    """The .npz files in a folder, sorted by name.

    Raises:
        FileNotFoundError: no .npz file there.
    """
    paths = sorted(Path(folder).glob("*.npz"))
    if not paths:
        raise FileNotFoundError(f"no recorded runs (.npz files) in {folder}")
    return paths
