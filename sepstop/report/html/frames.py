"""Frames: what the page shows of the pool at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from sepstop.criteria.component_mi import best_components
from sepstop.homology import h0_deaths
from sepstop.measure.embedding import Observation
from sepstop.measure.neighbors import Neighborhoods
from sepstop.report.html.labels import accuracy, label_classes, label_separability
from sepstop.report.html.maps import MAPS, Positions, align, explained_variance

MAX_TEXTS = 1000
"""Maximum number of texts in a map or a barcode."""


@dataclass(frozen=True)
class Frame:
    """The pool as one step's best candidate sees it: the checkpoint or an average of checkpoints.

    Attributes:
        step: optimizer steps taken.
        positions: ``(m, 2)`` float64, of the mapped texts.
        explained: share of the variance that the map shows; None for a map that is not linear.
        deaths: ``(n - 1,)`` H0 deaths of the texts in the barcode, ascending.
        groups: ``(m,)`` predicted class of each mapped text; without classes, its H0 component, 0
            for small components.
        supervised: agreement of the same weights with labels that were given, by name.
    """

    step: int
    positions: Positions
    explained: float | None
    deaths: NDArray[np.floating]
    groups: NDArray[np.integer]
    supervised: Mapping[str, float]


@dataclass
class FrameRecorder:
    """Takes a `Frame` of each observation that it is called with, in order of steps.

    Embeddings are not kept.

    Attributes:
        map_indices: ``(m,)`` int64, texts of the map.
        barcode_indices: ``(n,)`` int64, texts of the barcode.
        map_name: key of `MAPS`.
        neighborhoods: of the run so far; components refer to them.
        labels: label of each text of the pool, "" for none; None if no labels were given.
        class_names: name of each class of the model, to match labels with.
        frames: those taken.
        has_classes: True if groups are predicted classes; None before the first frame.
        has_unmatched_labels: True if labels are not classes of the model.
        nonfinite_steps: steps without a frame, since their embeddings are not finite.
    """

    map_indices: Tensor
    barcode_indices: Tensor
    map_name: str = "pca"
    neighborhoods: Neighborhoods = field(default_factory=Neighborhoods)
    labels: Sequence[str] | None = None
    class_names: Mapping[int, str] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    has_classes: bool | None = None
    has_unmatched_labels: bool = False
    nonfinite_steps: list[int] = field(default_factory=list)

    def __call__(self, step: int, seen: Observation) -> None:
        points = seen.points.float().cpu()  # (N, D)
        if not torch.isfinite(points).all():
            self.nonfinite_steps.append(step)
            return
        points = normalize(points, dim=-1)
        classes = seen.classes
        self.has_classes = classes is not None
        mapped = points[self.map_indices].numpy()  # (m, D)
        before = self.frames[-1].positions if self.frames else None
        raw = MAPS[self.map_name](mapped, before)  # (m, 2)
        positions = raw - raw.mean(axis=0) if before is None else align(raw, before)
        self.frames.append(
            Frame(
                step=step,
                positions=positions,
                explained=explained_variance(mapped, positions) if self.map_name == "pca" else None,
                deaths=h0_deaths(points[self.barcode_indices]).numpy(),
                groups=self._groups(step, points, classes)[self.map_indices].numpy(),
                supervised=self._supervised(mapped, seen),
            )
        )

    def _groups(self, step: int, points: Tensor, classes: Tensor | None) -> Tensor:
        """``(N,)`` group of each text."""
        if classes is not None:
            return classes.cpu()
        if step not in self.neighborhoods.steps:
            self.neighborhoods.add(step, points)
        neighbors = self.neighborhoods.until(step, of_predictions=False)
        assert neighbors is not None  # just added
        return best_components(points, neighbors)

    def _supervised(self, mapped: NDArray[np.floating], seen: Observation) -> dict[str, float]:
        if self.labels is None:
            return {}
        found = {}
        predicted = seen.classes
        if predicted is not None and seen.logits is not None:
            classes = label_classes(self.labels, self.class_names, seen.logits.shape[-1])
            self.has_unmatched_labels = classes is None
            if classes is not None:
                found["accuracy of the model"] = accuracy(predicted.cpu().numpy(), classes)
        return found | label_separability(
            mapped, [self.labels[i] for i in self.map_indices.tolist()]
        )


def sample(size: int, limit: int = MAX_TEXTS, seed: int = 0) -> Tensor:
    """Indices of a random sample of a pool, the same at each call.

    Returns:
        ``(min(size, limit),)`` int64, ascending, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[:limit].sort().values
