"""Nearest neighbors of the pool's texts at each measurement of a run."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from sepstop.criteria.label_mi import label_agreement
from sepstop.criteria.neighbor_mi import mutual_information
from sepstop.types import Outputs
from sepstop.utils.files import load_arrays, pack_arrays, write_or_warn

NEIGHBORS = 3
"""Number of nearest neighbors of a text."""

NEIGHBORS_FILE = "sepstop_neighbors.npz"
"""Name of the file in the run's output folder."""

MAX_START_AGREEMENT = 1 / 4
"""Largest `Neighborhoods.start_agreement` at which the start is a reference for predictions."""

_ROWS = 1024  # rows of the similarity matrix held at once
_KEY, _RUN_KEY = "embedding_key", "run_key"  # arrays beside those of the steps
_START_AGREEMENT = "start_agreement"


def nearest_neighbors(points: Tensor, count: int = NEIGHBORS) -> Tensor:
    """The nearest other points by cosine similarity, nearest first.

    Args:
        points: ``(N, D)``, any float dtype, any device; N >= 2.
        count: number of neighbors; at most N - 1 are returned.

    Returns:
        ``(N, min(count, N - 1))`` int64 indices, on the same device.
    """
    rows = normalize(points.float(), dim=-1)
    found = []
    with torch.autocast(points.device.type, enabled=False):  # the caller may be inside one
        for start in range(0, len(rows), _ROWS):
            similar = rows[start : start + _ROWS] @ rows.T
            similar.diagonal(offset=start).fill_(-torch.inf)
            found.append(similar.topk(min(count, len(rows) - 1), dim=-1).indices)
    return torch.cat(found)


class Neighborhoods:
    """The `nearest_neighbors` of each text at each measurement of a run.

    `until` gives a criterion the neighbors that it refers to. A criterion of embeddings alone
    always refers to all measurements so far. A criterion that reads predictions does so unless the
    untrained head already predicts the same classes or labels for neighboring texts: then the start
    is not a reference, and each measurement is compared with its own neighbors only. The limit is
    `MAX_START_AGREEMENT`.

    Attributes:
        start_agreement: mutual information at step 0 between the predictions for a text and for
            its neighbors, divided by its maximum: log k for one class out of k, log 2 on average
            for labels. 0 if step 0 was measured without logits, or not at all.
    """

    def __init__(self) -> None:
        self._by_step: dict[int, Tensor] = {}
        self.start_agreement = 0.0

    @property
    def steps(self) -> list[int]:
        """The steps measured so far, ascending."""
        return sorted(self._by_step)

    @property
    def refers_back(self) -> bool:
        """True if criteria that read predictions refer to earlier measurements."""
        return self.start_agreement <= MAX_START_AGREEMENT

    def first_reference(self, *, of_predictions: bool) -> int | None:
        """The earliest step that later measurements refer to; None if there is none.

        Args:
            of_predictions: as in `until`.
        """
        refers_back = self.refers_back or not of_predictions
        return self.steps[0] if refers_back and len(self._by_step) > 1 else None

    def add(
        self,
        step: int,
        points: Tensor,
        logits: Tensor | None = None,
        outputs: Outputs | None = "classes",
    ) -> None:
        """Add the measurement of a step.

        Args:
            step: optimizer steps taken; 0 is before training.
            points: ``(N, D)`` finite embeddings of the pool, any float dtype, any device.
            logits: ``(N, k)`` of the same model, on the same device. At step 0 they decide whether
                the start is a reference for criteria that read predictions.
            outputs: what the logits are.
        """
        near = nearest_neighbors(points)
        self._by_step[step] = near.to("cpu", torch.int32)
        if step > 0 or logits is None:
            return
        if outputs == "labels":
            self.start_agreement = label_agreement(logits, near)
        elif outputs == "classes" and logits.shape[-1] > 1:
            classes = logits.argmax(dim=-1)[None]
            information = mutual_information(classes, classes[:, near], logits.shape[-1])
            self.start_agreement = float(information) / math.log(logits.shape[-1])

    def until(self, step: int, *, of_predictions: bool) -> Tensor | None:
        """The neighbors that a criterion refers to at a step.

        Args:
            step: a step that was measured.
            of_predictions: True for a criterion that reads predictions (its ``needs`` include
                logits), False for a criterion of embeddings alone.

        Returns:
            ``(N, S, m)`` int64 indices on the CPU: each text's m nearest neighbors at the S
            measurements up to ``step``, in order of step, or at ``step`` alone if
            ``of_predictions`` and the start is not a reference. None if ``step`` was not measured.
        """
        if step not in self._by_step:
            return None
        refers_back = self.refers_back or not of_predictions
        steps = [known for known in self.steps if known <= step] if refers_back else [step]
        return torch.stack([self._by_step[known] for known in steps], dim=1).long()

    def save(self, path: str | os.PathLike[str], embedding_key: str, run_key: str = "") -> None:
        """Write a file for `load`, whole or not at all.

        Args:
            path: an .npz file; its folder is made.
            embedding_key: what the neighbors depend on besides the model.
            run_key: of the run.

        Warns:
            RuntimeWarning: the file can't be written.
        """
        arrays: dict[str, Any] = {str(step): near.numpy() for step, near in self._by_step.items()}
        arrays |= {
            _KEY: np.array(embedding_key),
            _START_AGREEMENT: np.array(self.start_agreement),
            _RUN_KEY: np.array(run_key),
        }
        write_or_warn(path, pack_arrays(arrays, compress=True), stacklevel=3)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        embedding_key: str,
        until: float = math.inf,
        run_key: str = "",
    ) -> Neighborhoods:
        """Read what `save` wrote, up to a step.

        Args:
            path: the file.
            embedding_key: a file that was written with another key is not used.
            until: the last step that is read. Default: all.
            run_key: a file of a run with another key is not used. Empty takes any.

        Returns:
            The measurements; empty if the file is missing, damaged, or has another key.
        """
        found = cls()
        try:
            arrays = load_arrays(path)
            if str(arrays.pop(_KEY)) != embedding_key:
                return found
            of_run = str(arrays.pop(_RUN_KEY, ""))
            if run_key and of_run not in ("", run_key):
                return found
            found.start_agreement = float(arrays.pop(_START_AGREEMENT, 0.0))
            for step, near in arrays.items():
                if near.dtype.kind != "i" or near.ndim != 2 or not _are_indices(near):
                    return cls()
                if int(step) <= until:
                    found._by_step[int(step)] = torch.from_numpy(near)
        except (OSError, ValueError, KeyError, TypeError):
            return cls()
        return found


def _are_indices(near: NDArray[np.integer]) -> bool:
    """True if all entries index one of as many texts as there are rows."""
    return near.size > 0 and int(near.min()) >= 0 and int(near.max()) < len(near)
