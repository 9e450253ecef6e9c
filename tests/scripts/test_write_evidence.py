"""The pages of evidence, from tiny recorded runs."""

import json
import sys

import numpy as np
import write_evidence
from helpers.recorded import toy_run, with_average

from sepstop.bench.judgement import Judgement
from sepstop.bench.outcomes import Outcome
from sepstop.bench.record import SOURCES
from sepstop.bench.recorded_run import RecordedRun, save_run
from sepstop.bench.verdicts import DEFAULT, HINDSIGHT, Verdict
from sepstop.types import CHECKPOINT


def record(folder, name, noise):
    run = with_average(toy_run(name), "cumulative", (0.1, 0.6, 0.95, 0.8), scores=(0, 1, 5, 2))
    settings = {"learning_rate": 1e-4, "noise": noise, "plain": ["average of all"]}
    settings[SOURCES] = {"data": "a hash", "model": "a name"}
    arrays = run.arrays | {"plain_te_acc": np.array([0.8])}
    save_run(folder, RecordedRun(name, arrays, settings))


def write(monkeypatch, runs, out):
    command = [runs, "--criterion", "neighbor_mi", "infomax", "--out", out, "--num-resamples", 2]
    monkeypatch.setattr(sys, "argv", ["write_evidence.py", *map(str, command)])
    write_evidence.main()


def test_pages_and_pictures(tmp_path, monkeypatch):
    out = tmp_path / "docs"
    out.mkdir()
    (out / "evidence_runs.json").write_text(json.dumps({"earlier": {"run": {"noise": 0.2}}}))
    for name, noise in (("one-a", 0.0), ("two-b", 0.4)):
        record(tmp_path / "runs/averages_development", name, noise)
    write(monkeypatch, tmp_path / "runs", out)
    short = (out / "evidence.md").read_text()
    assert "The development suite has 2 runs" in short
    assert "<!--" not in short
    assert "| what is kept | clean (1) | harsh (1) | all runs (2) | default less this |" in short
    pages = (out / "evidence_suites.md").read_text()
    assert "<!--" not in pages
    assert "## averages_development" in pages
    assert "| two | harsh | 0.900 at 20 |" in pages
    images = {path.name for path in (out / "images").iterdir()}
    assert images == {"evidence-regret.png", "evidence-frontier-averages_development.png"}
    manifest = json.loads((out / "evidence_runs.json").read_text())
    assert list(manifest) == ["earlier", "averages_development"]
    assert list(manifest["averages_development"]["one-a"]) == ["sha256", "learning_rate", "noise"]
    # Once it is judged, the confirmation answers the question.
    record(tmp_path / "runs/averages_confirmation", "three-c", 0.0)
    write(monkeypatch, tmp_path / "runs", out)
    assert "The confirmation has 1 run." in (out / "evidence.md").read_text()
    assert "## averages_development" in (out / "evidence_suites.md").read_text()


def verdict(name, regrets):
    outcomes = tuple(Outcome(10, CHECKPOINT, regret) for regret in regrets)
    return Verdict(name, HINDSIGHT, outcomes)


def test_the_default_has_to_be_better_than_each_pick():
    """The pick with the best mean may be told from the default while another one is not."""
    default = verdict(DEFAULT, [0.0] * 8)
    steady = verdict("entropy", [0.01, 0.02] * 4)
    uncertain = verdict("churn", [-0.1, 0.3] * 4)  # worse on average
    last = verdict("last checkpoint", [-0.5] * 8)  # has a target of its own
    judgement = Judgement("abcdefgh", [steady, uncertain, last, default], [{}] * 8)
    rivals = list(write_evidence.checkpoint_picks(judgement))
    assert [rival.criterion for rival in rivals] == ["entropy", "churn"]
    assert write_evidence.closest_of([steady], default) == ("-1.5 [-1.9, -1.1]", True)
    found, is_better = write_evidence.closest_of(rivals, default)
    assert not is_better
    assert found.startswith("-10.0 [")
    assert found.endswith("], churn")


def test_step_0_is_no_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "runs/averages_development"
    record(folder, "one-a", 0.0)
    (path,) = folder.iterdir()
    run = write_evidence.load_run(path)
    run.arrays["te_acc"][0] = 0.97
    save_run(folder, run)
    (tmp_path / "docs").mkdir()
    write(monkeypatch, tmp_path / "runs", tmp_path / "docs")
    pages = (tmp_path / "docs/evidence_suites.md").read_text()
    assert "| one | clean | 0.900 at 20 |" in pages
