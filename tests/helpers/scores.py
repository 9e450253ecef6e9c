"""What tests read from records, and criteria and policies whose answers are written down."""

import torch

from sepstop import Decision, Patience

NEVER = Patience(patience=None)
"""A policy that never stops."""


def deciding(record):
    """The score that decides, which a run records first."""
    return next(iter(record.scores.values()))


def values(records, name=None):
    """The values of a score, by default the one that decides."""
    return [(deciding(one) if name is None else one.scores[name]).value for one in records]


class StopAt:
    """A policy that stops at a step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, series):
        stops = [step for step in series.steps if step >= self.step]
        return Decision(bool(stops), series.best_step, "as told", stops[0] if stops else None)


class Scripted:
    """A criterion that gives one score after the other, whatever the points."""

    name, higher_is_better = "separability", True

    def __init__(self, scores):
        self.scores = list(scores)

    def __call__(self, points):
        return torch.full((len(points),), float(self.scores.pop(0)))
