"""Which texts of the pool lie next to each other, remembered over a run."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from sepstop.criteria.label_mi import label_agreement
from sepstop.criteria.neighbor_mi import mutual_information
from sepstop.types import Outputs
from sepstop.utils.files import load_arrays

NEIGHBORS = 3
"""Nearest neighbours of a text that are looked at."""

NEIGHBORS_FILE = "sepstop_neighbors.npz"  # of a run, in its output folder

_ROWS = 1024  # of the similarities that are held at once
_KEY, _UNTRAINED = "measured", "untrained"
_MOST_UNTRAINED = 1 / 4  # of log k that neighbours' classes before training may tell of each other


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
    with torch.autocast(points.device.type, enabled=False):  # a plain loop may be inside one
        for start in range(0, len(rows), _ROWS):
            similar = rows[start : start + _ROWS] @ rows.T
            similar.diagonal(offset=start).fill_(-torch.inf)
            found.append(similar.topk(min(count, len(rows) - 1), dim=-1).indices)
    return torch.cat(found)


class Neighborhoods:
    """The `nearest_neighbors` at each measurement of a run, by step.

    Those from before training, at step 0, are a reference only if the classes or labels that the
    untrained head predicts then do not agree with them anyway. Where neighbors tell more than a
    quarter of log k about each other's class, or of log 2 about each other's labels on average,
    each step has its own neighbors only.
    """

    def __init__(self) -> None:
        self._by_step: dict[int, Tensor] = {}
        self._untrained = 0.0  # information at step 0, as a part of the most there is

    @property
    def steps(self) -> list[int]:
        return sorted(self._by_step)

    @property
    def refers_back(self) -> bool:
        """Whether the neighbours of earlier steps have a say."""
        return self._untrained <= _MOST_UNTRAINED

    @property
    def since(self) -> int | None:
        """The first step that others refer back to; None where none does."""
        return self.steps[0] if self.refers_back and len(self.steps) > 1 else None

    def add(
        self,
        step: int,
        points: Tensor,
        logits: Tensor | None = None,
        outputs: Outputs | None = "classes",
    ) -> None:
        """Remember who is near whom in ``points``, ``(N, D)``.

        Args:
            logits: ``(N, k)`` of the same model; what those of step 0 tell is noted.
            outputs: what the logits are.
        """
        near = nearest_neighbors(points)
        self._by_step[step] = near.to("cpu", torch.int32)
        if step > 0 or logits is None:
            return
        if outputs == "labels":
            self._untrained = label_agreement(logits, near)
        elif outputs == "classes" and logits.shape[-1] > 1:
            classes = logits.argmax(dim=-1)[None]
            known = mutual_information(classes, classes[:, near], logits.shape[-1])
            self._untrained = float(known) / math.log(logits.shape[-1])

    def until(self, step: int) -> Tensor | None:
        """Each text's neighbours at the steps up to ``step``, the first first.

        Those at ``step`` alone if the start is no reference.

        Returns:
            ``(N, S, m)`` int64 on the CPU; None if ``step`` is not remembered.
        """
        if step not in self._by_step:
            return None
        steps = [known for known in self.steps if known <= step] if self.refers_back else [step]
        return torch.stack([self._by_step[known] for known in steps], dim=1).long()

    def save(self, path: str | os.PathLike[str], measured: str) -> None:
        """Write a file that is replaced as a whole or not at all; a full disk is a warning.

        Args:
            measured: how; `load` takes only what was measured alike.
        """
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        arrays: dict[str, Any] = {str(step): near.numpy() for step, near in self._by_step.items()}
        arrays |= {_KEY: np.array(measured), _UNTRAINED: np.array(self._untrained)}
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
            arrays = load_arrays(path)
            if str(arrays.pop(_KEY)) != measured:
                return found
            found._untrained = float(arrays.pop(_UNTRAINED, 0.0))
            for step, near in arrays.items():
                if near.dtype.kind != "i" or near.ndim != 2 or not _are_places(near):
                    return cls()
                if int(step) <= until:
                    found._by_step[int(step)] = torch.from_numpy(near)
        except (OSError, ValueError, KeyError, TypeError):
            return cls()
        return found


def _are_places(near: NDArray[np.integer]) -> bool:
    """Whether they can be neighbours of as many texts."""
    return near.size > 0 and int(near.min()) >= 0 and int(near.max()) < len(near)
