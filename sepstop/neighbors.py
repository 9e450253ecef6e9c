"""Which texts of the pool lie next to each other, remembered over a run."""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

NEIGHBORS = 3
"""Nearest neighbours of a text that are looked at."""

NEIGHBORS_FILE = "sepstop_neighbors.npz"  # of a run, in its output folder

_ROWS = 1024  # of the similarities that are held at once
_KEY = "measured"


def nearest_neighbors(points: Tensor, count: int = NEIGHBORS) -> Tensor:
    """The nearest other points by cosine, nearest first.

    Args:
        points: ``(N, D)`` embeddings, any float dtype; N >= 2.
        count: how many; at most N - 1 are found.

    Returns:
        ``(N, min(count, N - 1))`` int64, on the device of ``points``.
    """
    rows = normalize(points.float(), dim=-1)
    found = []
    for start in range(0, len(rows), _ROWS):
        similar = rows[start : start + _ROWS] @ rows.T
        similar.diagonal(offset=start).fill_(-torch.inf)
        found.append(similar.topk(min(count, len(rows) - 1), dim=-1).indices)
    return torch.cat(found)


class Neighborhoods:
    """The `nearest_neighbors` at each measurement of a run, by step."""

    def __init__(self) -> None:
        self._by_step: dict[int, Tensor] = {}

    @property
    def steps(self) -> list[int]:
        return sorted(self._by_step)

    def add(self, step: int, points: Tensor) -> None:
        """Remember who is near whom in ``points``, ``(N, D)``."""
        self._by_step[step] = nearest_neighbors(points).to("cpu", torch.int32)

    def classes(self, logits: Tensor, step: int) -> Tensor | None:
        """Predicted classes of each text's neighbours, as they were at the steps up to ``step``.

        Args:
            logits: ``(N, k)`` at ``step``.

        Returns:
            ``(N, S, m)`` int64, the first step first; None if ``step`` is not remembered.
        """
        if step not in self._by_step:
            return None
        steps = [known for known in self.steps if known <= step]
        near = torch.stack([self._by_step[known] for known in steps], dim=1)  # (N, S, m)
        return logits.argmax(dim=-1)[near.to(logits.device, torch.int64)]

    def save(self, path: str | os.PathLike[str], measured: str) -> None:
        """Write a file that is replaced as a whole or not at all; a full disk is a warning.

        Args:
            measured: how; `load` takes only what was measured alike.
        """
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        arrays: dict[str, Any] = {str(step): near.numpy() for step, near in self._by_step.items()}
        arrays[_KEY] = np.array(measured)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                np.savez_compressed(file, **arrays)
            unfinished.replace(path)
        except OSError as error:
            warnings.warn(f"sepstop: could not write {path}: {error}", RuntimeWarning, stacklevel=3)

    @classmethod
    def load(cls, path: str | os.PathLike[str], measured: str, until: int) -> Neighborhoods:
        """What `save` wrote for steps up to ``until``; empty where there is no such file."""
        found = cls()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if str(arrays[_KEY]) != measured:
                    return found
                for step in set(arrays.files) - {_KEY}:
                    if int(step) <= until:
                        found._by_step[int(step)] = torch.from_numpy(arrays[step])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return cls()
        return found
