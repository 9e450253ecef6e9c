"""scripts/gpu_check.py: a rehearsal of all that a GPU is lent for, at tiny sizes on the CPU."""

import json
import math
import time

import gpu_check
import pytest
import torch
from gpu_check import Figure, OutOfTime, Part, Worst, alarm, exit_status, line

from sepstop.bench.criteria import COMPARED
from sepstop.criteria import CRITERIA


def figures_of(report, name):
    """By their names; also how the part ended."""
    part = next(part for part in report["parts"] if part["name"] == name)
    assert part["status"] == "done", part["reason"]
    return {figure["name"].strip(): figure for figure in part["figures"]}


def check(path, *options):
    status = gpu_check.main(["--small", "--out", str(path), *options])
    return status, json.loads(path.read_text())


def test_every_part_runs_and_its_figures_are_kept(tmp_path, capsys):
    status, report = check(tmp_path / "out" / "gpu.json")
    assert status == 0
    assert report["machine"]["versions"]["torch"]
    parity = figures_of(report, "parity")
    left_out = {name for name, figure in parity.items() if figure["value"] is None}
    assert left_out == set()
    deciding = [figure for figure in parity.values() if figure["decides"]]
    assert len(deciding) == 16 + len(CRITERIA | COMPARED)
    assert all(figure["value"] <= 1e-6 and figure["met"] for figure in deciding)
    speed = figures_of(report, "speed")
    assert speed["h0_deaths of 2,000 x 32"]["value"] > 0
    assert speed["h0_deaths of 20 resamples of 100 x 32"]["value"] > 0
    assert figures_of(report, "scoring")["separability"]["value"] > 0
    training = figures_of(report, "training")
    assert training["weights bit-identical to those without"]["value"] is True
    inside = [training[name]["value"] for name in ("embedding the pool", "neighbors and scores")]
    assert 0 < sum(inside) < training["share in the callback"]["value"] < 1
    offline = figures_of(report, "offline")
    assert offline["checkpoints that were scored"]["value"] == 2
    assert offline["select_checkpoint, a checkpoint"]["value"] > 0
    shown = capsys.readouterr().out
    assert "deaths, filtered, float32" in shown.split("parity (")[1]
    assert "<= 1e-06: met" in shown


def test_a_part_that_fails_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def broken(setup):
        yield Figure("before", 1.0)
        raise RuntimeError("out of luck")

    def lacking(setup):
        import a_package_that_nobody_has  # noqa: F401

        yield Figure("never", 1.0)

    monkeypatch.setitem(gpu_check.PARTS, "parity", (lacking, 1.0))
    monkeypatch.setitem(gpu_check.PARTS, "speed", (broken, 1.0))
    status, report = check(tmp_path / "gpu.json", "--parts", "parity", "speed", "scoring")
    assert status == 1
    parity, speed, scoring = report["parts"]
    assert parity["status"] == "skipped"
    assert "a_package_that_nobody_has" in parity["reason"]
    assert (speed["status"], speed["reason"]) == ("failed", "RuntimeError: out of luck")
    assert [figure["name"] for figure in speed["figures"]] == ["before"]
    assert scoring["status"] == "done"
    assert "failed: RuntimeError: out of luck" in capsys.readouterr().out


def test_parts_are_left_out_where_the_budget_is_used_up(tmp_path):
    status, report = check(tmp_path / "gpu.json", "--budget", "0")
    assert status == 0
    assert {part["status"] for part in report["parts"]} == {"left out"}
    with pytest.raises(OutOfTime, match="the time for it is used up"), alarm(0.05):
        time.sleep(60)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_a_rehearsal_runs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--out", str(tmp_path / "gpu.json")])
    assert "torch sees no GPU; --small rehearses the check" in capsys.readouterr().err


def test_another_number_than_the_cpus_fails_the_check():
    equal, different, unknown = (
        Figure("deaths", value, target=1e-6, decides=True) for value in (1e-7, 1e-5, math.nan)
    )
    slow = Figure("seconds", 9.0, target=0.1)
    worst = Worst()
    for measure in (lambda: 1e-8, lambda: 1 / 0, lambda: 1e-3):
        worst.add("here", measure)
    assert "ZeroDivisionError" in line(worst.figure("trees"))
    assert exit_status([Part("parity", figures=[worst.figure("trees")])]) == 1
    assert exit_status([Part("parity", figures=[equal, slow])]) == 0
    for wrong in (different, unknown):
        assert exit_status([Part("parity", figures=[equal, wrong])]) == 1
