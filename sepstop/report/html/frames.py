"""What a page shows of each checkpoint, kept as they pass by; the embeddings are let go."""

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
from sepstop.report.html.labels import accuracy, label_classes, separability_of
from sepstop.report.html.maps import MAPS, Places, aligned, shown_variance

MOST_TEXTS = 1000  # in a map or a barcode


@dataclass(frozen=True)
class Frame:
    """One checkpoint.

    Attributes:
        step: optimizer steps taken.
        places: ``(m, 2)``, the mapped texts.
        shown: share of the variance that the map has, if it is linear.
        deaths: ``(n - 1,)``, ascending: of the texts of the barcode.
        groups: ``(m,)`` predicted class of the mapped texts or, for a model whose outputs are not
            one class out of k, their H0 component, 0 for those in small ones.
        supervised: what given labels say, by name.
    """

    step: int
    places: Places
    shown: float | None
    deaths: NDArray[np.floating]
    groups: NDArray[np.integer]
    supervised: Mapping[str, float]


@dataclass
class Camera:
    """Called with a step and what was observed there, in order of steps, it takes a `Frame`.

    Attributes:
        mapped: ``(m,)`` int64, the texts in the map.
        barred: ``(n,)`` int64, the texts in the barcode.
        map_name: of `MAPS`.
        neighborhoods: of the run so far; the components refer to them.
        labels: of each text of the pool, "" for none; None if no labels were given.
        names: the model's class -> its name, to match labels with.
        frames: those taken.
        classifies: whether groups are predicted classes; None before the first frame.
        unmatched: labels are not the model's classes.
        blurred: steps whose embeddings are not finite.
    """

    mapped: Tensor
    barred: Tensor
    map_name: str = "pca"
    neighborhoods: Neighborhoods = field(default_factory=Neighborhoods)
    labels: Sequence[str] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    classifies: bool | None = None
    unmatched: bool = False
    blurred: list[int] = field(default_factory=list)

    def __call__(self, step: int, seen: Observation) -> None:
        points = seen.points.float().cpu()  # (N, D)
        if not torch.isfinite(points).all():
            self.blurred.append(step)
            return
        points = normalize(points, dim=-1)
        classes = seen.classes
        self.classifies = classes is not None
        rows = points[self.mapped].numpy()
        before = self.frames[-1].places if self.frames else None
        raw = MAPS[self.map_name](rows, before)
        places = raw - raw.mean(axis=0) if before is None else aligned(raw, before)
        self.frames.append(
            Frame(
                step=step,
                places=places,
                shown=shown_variance(rows, places) if self.map_name == "pca" else None,
                deaths=h0_deaths(points[self.barred]).numpy(),
                groups=self._groups(step, points, classes)[self.mapped].numpy(),
                supervised=self._supervised(rows, seen),
            )
        )

    def _groups(self, step: int, points: Tensor, classes: Tensor | None) -> Tensor:
        if classes is not None:
            return classes.cpu()
        if step not in self.neighborhoods.steps:
            self.neighborhoods.add(step, points)
        near = self.neighborhoods.until(step)
        assert near is not None
        return best_components(points, near)

    def _supervised(self, rows: NDArray[np.floating], seen: Observation) -> dict[str, float]:
        if self.labels is None:
            return {}
        found = {}
        predicted = seen.classes
        if predicted is not None and seen.logits is not None:
            classes = label_classes(self.labels, self.names, seen.logits.shape[-1])
            self.unmatched = classes is None
            if classes is not None:
                found["the model's own predictions"] = accuracy(predicted.cpu().numpy(), classes)
        return found | separability_of(rows, [self.labels[i] for i in self.mapped.tolist()])


def sample(size: int, most: int = MOST_TEXTS, seed: int = 0) -> Tensor:
    """``(min(size, most),)`` int64 of a pool of ``size`` texts, ascending, always the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[:most].sort().values
