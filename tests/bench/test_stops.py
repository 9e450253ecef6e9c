"""What stopping costs on recorded runs."""

import pytest

from sepstop.bench.outcomes import Outcome
from sepstop.bench.recorded_run import find_recorded_runs, load_run
from sepstop.bench.scores import score_run
from sepstop.criteria import NeighborMI
from sepstop.decide.policies import default_policy, replay

pytestmark = pytest.mark.slow


def test_no_stop_costs_five_points(shared):
    """Against what the whole run would have kept; the runs have no averages or corrupted texts."""
    for path in find_recorded_runs(shared / "runs"):
        run = load_run(path)
        scored = score_run(run, [NeighborMI()])["neighbor_mi"]
        decision = replay(default_policy("neighbor_mi"), scored.series)
        stopped = Outcome.of(run, scored, decision.best_step)
        whole = Outcome.of(run, scored, scored.series.best_step)
        assert stopped.regret - whole.regret <= 0.05, run.name
