"""scripts/bench_overhead.py with a tiny model."""

import bench_overhead
import pytest

from sepstop.measure.monitor import Monitor
from sepstop.measure.observer import Observer
from sepstop.measure.scorer import Scorer

UNNAMED_HEAD = pytest.mark.filterwarnings("ignore:sepstop. .* classes without names")


@UNNAMED_HEAD
def test_the_cost_of_a_run_is_measured_beside_plain_loops(settings, monkeypatch, capsys):
    for owner, names in {
        Monitor: ("prepare", "measure", "set_reference"),
        Observer: ("observe_pool",),
        Scorer: ("best_of", "add_neighbors"),
    }.items():
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))  # undone at the end
    monkeypatch.setattr(bench_overhead, "LOOPS", (8, 64))
    bench_overhead.main([f"--config={settings}", "--training.max_steps=10", "--rounds=1"])
    rows = [row.split("│")[1:-1] for row in capsys.readouterr().out.splitlines() if row[:1] == "│"]
    found = {name.strip(): (value.strip(), share.strip()) for name, value, share in rows}
    assert found["run with sepstop"][1] == "100.0%"
    assert "in the callback, 2 scores and the start" in found
    assert {"sepstop", "a loop, 8 texts", "a loop, 64 texts"} <= found.keys()
    ratios = [float(found[f"a loop, {size} texts"][1]) for size in (8, 64)]
    assert max(ratios) == 1
