"""A run whose steps have several candidates."""

from sepstop import Decision, Record, Score
from sepstop.runs.records import RunHistory
from sepstop.types import CHECKPOINT, Average

NAMES = ("cumulative", "recent")


def averaged_run(names=NAMES, ended=50):
    """A run of 5 steps: a checkpoint in the warm-up, then one of two averages is the best.

    The second average is the best at steps 20 and 30 and the first one after them; the checkpoint
    is never. The pick is step 40.

    Args:
        names: of the averages.
    """
    first, second = names
    values = (  # of the checkpoint, the first average and the second one
        (10, 0.2, None, None),
        (20, 0.3, 0.25, 0.4),
        (30, 0.25, 0.45, 0.5),
        (40, 0.35, 0.7, 0.6),
        (50, 0.15, 0.65, 0.55),
    )
    records = []
    for step, *scores in values:
        found = {
            name: {
                "neighbor_mi": Score(value, value - 0.05, value + 0.05),
                "entropy": Score(-value),
            }
            for name, value in zip((CHECKPOINT, first, second), scores, strict=True)
            if value is not None
        }
        best = max(found, key=lambda name, found=found: found[name]["neighbor_mi"].value)
        average = None if best == CHECKPOINT else Average(best, 11, step, step - 10)
        own = found.pop(best)
        records.append(Record(step, step / 10, own, 1.0, 10, 40, average, found))
    decisions = [Decision(False, record.step, "improving", record.step) for record in records[:-1]]
    return RunHistory(
        tuple(records),
        (*decisions, Decision(True, 40, "fell from its peak", 50)),
        policy={"name": "past_peak"},
        decides="neighbor_mi",
        higher_is_better={"neighbor_mi": True, "entropy": True},
        ended=ended,
    )
