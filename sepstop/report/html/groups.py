"""Groups of texts: the ways to color the map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sepstop.report.html.report_data import ReportData
from sepstop.report.html.sanitize import plain

MAX_GROUPS = 21
"""Maximum number of groups with a color and a marker of their own: 7 colors by 3 markers."""

OTHER = "other"
_NO_LABEL = "no label"


@dataclass(frozen=True)
class Grouping:
    """One way to color the map.

    Attributes:
        title: what the groups are.
        names: names of the groups; the last is `OTHER`, for texts of all groups without a color.
        indices: ``(F, m)`` index into ``names`` of each text at each of the F frames; ``(1, m)`` if
            it is the same at all frames.
        note: what `OTHER` stands for, as a sentence; empty if there is no need to say it.
    """

    title: str
    names: Sequence[str]
    indices: Sequence[Sequence[int]]
    note: str = ""

    def at(self, frame: int) -> Sequence[int]:
        """``(m,)`` indices at a frame."""
        return self.indices[min(frame, len(self.indices) - 1)]


def grouping(title: str, names: Sequence[Sequence[str]], known: Sequence[str] = ()) -> Grouping:
    """A grouping by name.

    Groups are in the order of ``known`` if it has them all, else the largest first. Beyond
    `MAX_GROUPS`, the smaller ones are `OTHER`.

    Args:
        title: what the groups are.
        names: ``(F, m)`` group of each text at each frame, or ``(1, m)``.
        known: names of all groups in their order.

    >>> grouping("color", [["red", "blue", "red"]]).names
    ['red', 'blue', 'other']
    >>> grouping("color", [["red", "blue", "red"]], known=["blue", "red"]).indices
    [[1, 0, 1]]
    """
    counts = Counter(name for frame in names for name in frame if name != OTHER)
    if set(counts) <= set(known) and len(known) <= MAX_GROUPS:
        kept = list(known)
    else:
        kept = [name for name, _ in counts.most_common(MAX_GROUPS)]
    place = {name: number for number, name in enumerate(kept)}
    indices = [[place.get(name, len(kept)) for name in frame] for frame in names]
    note = f"The {len(kept)} largest of {len(counts)} groups have their own color and marker."
    return Grouping(title, [*kept, OTHER], indices, note if len(counts) > len(kept) else "")


def groupings(run: ReportData) -> list[Grouping]:
    """The ways to color the map of a run, the first one selected when the page opens."""
    if not run.frames:
        return []
    known = _class_names(run) if run.has_classes else []
    found = _by_class(run, known) if run.has_classes else [_by_component(run)]
    if run.labels is not None:
        labels = [plain(label, 40) or _NO_LABEL for label in run.labels]
        if not set(labels) <= set(known):
            labels = [_name_of_number(label, run, known) for label in labels]
        found.append(grouping("given label", [labels], known))
    return found


def reference_frame(run: ReportData) -> int:
    """Index of the frame of the pick, or of the last frame if the pick has none."""
    steps = [frame.step for frame in run.frames]
    best = run.decision.best_step
    return steps.index(best) if best in steps else len(steps) - 1


def _by_class(run: ReportData, known: Sequence[str]) -> list[Grouping]:
    """By the class predicted at one step, and at each."""
    frames = [[known[group] for group in frame.groups.tolist()] for frame in run.frames]
    reference = reference_frame(run)
    step = run.frames[reference].step
    return [
        grouping(f"class predicted at step {step}", [frames[reference]], known),
        grouping("class predicted at the step shown", frames, known),
    ]


def _by_component(run: ReportData) -> Grouping:
    """By H0 component at one step, the largest component first."""
    frame = run.frames[reference_frame(run)]
    groups = frame.groups.tolist()
    largest = Counter(group for group in groups if group).most_common()
    rank = {group: place for place, (group, _) in enumerate(largest, start=1)}
    names = [f"component {rank[group]}" if group else OTHER for group in groups]
    found = grouping(f"component of the embeddings at step {frame.step}", [names])
    small = "Components of fewer than 3 texts are other."
    return replace(found, note=f"{found.note} {small}".strip())


def _class_names(run: ReportData) -> list[str]:
    """The name of each class; "class 0", ... if the model's names do not tell classes apart."""
    names = {number: plain(name, 40) for number, name in run.class_names.items()}
    if len(set(names.values())) < len(names):
        names = {}
    largest = max(int(frame.groups.max()) for frame in run.frames)
    count = max(largest + 1, len(run.class_names))
    return [names.get(number, f"class {number}") for number in range(count)]


def _name_of_number(label: str, run: ReportData, known: Sequence[str]) -> str:
    """The class's name for a label that is a class's number."""
    if not run.labels or not all(given.isdigit() for given in run.labels if given):
        return label
    number = int(label) if label.isdigit() else len(known)
    return known[number] if number < len(known) else label
