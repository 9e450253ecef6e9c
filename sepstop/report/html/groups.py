"""Groups of texts, with few enough names to be told apart by colour and marker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sepstop.report.html.run import Run
from sepstop.report.html.text import plain

KINDS = 21  # 7 colours by 3 markers
OTHER = "other"
_NO_LABEL = "no label"


@dataclass(frozen=True)
class Grouping:
    """One way to colour the map.

    Attributes:
        title: what the groups are.
        names: of the groups; the last is `OTHER`, which stands for all that have no place.
        of: group of each text, ``F`` times ``m`` places in ``names`` for the F frames, or once
            for all.
        rest: what `OTHER` is, in a sentence, if there is any need to say it.
    """

    title: str
    names: Sequence[str]
    of: Sequence[Sequence[int]]
    rest: str = ""

    def at(self, frame: int) -> Sequence[int]:
        """The groups at a frame."""
        return self.of[min(frame, len(self.of) - 1)]


def grouping(title: str, names: Sequence[Sequence[str]], known: Sequence[str] = ()) -> Grouping:
    """The groups by their names, in the order of ``known`` or else the largest first.

    Beyond `KINDS` the smaller ones are `OTHER`.

    >>> grouping("colours", [["red", "blue", "red"]]).names
    ['red', 'blue', 'other']
    >>> grouping("colours", [["red", "blue", "red"]], known=["blue", "red"]).of
    [[1, 0, 1]]
    """
    counts = Counter(name for frame in names for name in frame if name != OTHER)
    if set(counts) <= set(known) and len(known) <= KINDS:
        kept = list(known)
    else:
        kept = [name for name, _ in counts.most_common(KINDS)]
    place = {name: number for number, name in enumerate(kept)}
    of = [[place.get(name, len(kept)) for name in frame] for frame in names]
    rest = f"The {len(kept)} largest of {len(counts)} groups have a colour and a marker each."
    return Grouping(title, [*kept, OTHER], of, rest if len(counts) > len(kept) else "")


def groupings(run: Run) -> list[Grouping]:
    """The ways to colour the map of a run, the first the one to begin with."""
    if not run.frames:
        return []
    steps = [frame.step for frame in run.frames]
    at = fixed_frame(run)
    found = []
    known: list[str] = []
    if run.classifies:
        named = _named_classes(run)
        frames = [[_named(int(group), named) for group in frame.groups] for frame in run.frames]
        known = [_named(number, named) for number in range(_classes(run))]
        found += [
            grouping(f"class predicted at step {steps[at]}", [frames[at]], known),
            grouping("class predicted at the step shown", frames, known),
        ]
    else:
        groups = run.frames[at].groups.tolist()
        largest = Counter(group for group in groups if group).most_common()
        rank = {group: place for place, (group, _) in enumerate(largest, start=1)}
        names = [f"component {rank[group]}" if group else OTHER for group in groups]
        way = grouping(f"component of the embedding at step {steps[at]}", [names])
        small = "Components of fewer than 3 texts are other."
        found.append(replace(way, rest=f"{way.rest} {small}".strip()))
    if run.labels is not None:
        labels = [plain(label, 40) or _NO_LABEL for label in run.labels]
        if not set(labels) <= set(known):
            labels = [_number_named(label, run, known) for label in labels]
        found.append(grouping("label that was given", [labels], known))
    return found


def fixed_frame(run: Run) -> int:
    """The frame of the pick, or the last if its checkpoint is gone."""
    steps = [frame.step for frame in run.frames]
    best = run.decision.best_step
    return steps.index(best) if best in steps else len(steps) - 1


def _named_classes(run: Run) -> dict[int, str]:
    """Short names that tell the classes apart."""
    names = {number: plain(name, 40) for number, name in run.class_names.items()}
    return names if len(set(names.values())) == len(names) else {}


def _named(number: int, names: dict[int, str]) -> str:
    return names.get(number, f"class {number}")


def _classes(run: Run) -> int:
    largest = max(int(frame.groups.max()) for frame in run.frames)
    return max(largest + 1, len(run.class_names))


def _number_named(label: str, run: Run, known: Sequence[str]) -> str:
    """A label that is a class's number, by the class's name."""
    if not run.labels or not all(given.isdigit() for given in run.labels if given):
        return label
    number = int(label) if label.isdigit() else len(known)
    return known[number] if number < len(known) else label
