"""Runs that are interrupted, and go on."""

import dataclasses
import json
import os
import random
import subprocess
import sys
import time

import pytest

from sepstop.finetune.resume import last_checkpoint
from sepstop.finetune.run import main, set_up
from sepstop.runs.history import read_history

UNNAMED_HEAD = pytest.mark.filterwarnings("ignore:sepstop. .* classes without names")


@UNNAMED_HEAD
def test_an_interrupted_run_goes_on_only_when_asked_to(settings):
    main([f"--config={settings}", "--training.max_steps=5"])
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run"):
        main([f"--config={settings}"])
    _, callback = main([f"--config={settings}", "--resume=true"])
    assert [record.step for record in callback.history[:3]] == [5, 10, 15]


@pytest.mark.parametrize("lora", [(), ("--model.lora", "{target_modules: [query]}")])
@UNNAMED_HEAD
def test_a_run_goes_on_with_the_classes_it_had(settings, tmp_path, lora):
    short = ["--config", str(settings), "--training.max_steps", "5", *lora]
    main(short)
    rows = tmp_path / "rows.csv"
    rows.write_text(
        rows.read_text().replace(",good", ",a good one")
    )  # the first, no longer the last
    with pytest.raises(ValueError, match="classes bad, good, but the data has a good one, bad:"):
        set_up([*short, "--resume", "true"])


def history_lines(tmp_path):
    path = tmp_path / "run" / "sepstop_history.jsonl"
    return len(read_history(path).records) if path.is_file() else 0


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(settings, tmp_path):
    """SIGKILL at random moments: nothing is cleaned up, and what was half written stays so."""
    options = [f"--config={settings}", '--sepstop.policy={"name": "patience", "patience": null}']
    command = [sys.executable, "-m", "sepstop", "finetune", *options]
    quiet = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL}
    moments = random.Random(0)
    killed = 0
    for more in (1, 3, 3):
        goal = history_lines(tmp_path) + more
        run = subprocess.Popen([*command, "--resume=true"], **quiet)
        while run.poll() is None and history_lines(tmp_path) < goal:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        killed += run.poll() is None
        run.kill()
        run.wait()
        read_history(tmp_path / "run" / "sepstop_history.jsonl")  # whole, at any moment
    assert killed == 3
    subprocess.run([*command, "--resume=true"], check=True, **quiet)
    subprocess.run([*command, f"--training.output_dir={tmp_path}/whole"], check=True, **quiet)

    def left(run):
        records = read_history(tmp_path / run / "sepstop_history.jsonl").records
        state = json.loads((tmp_path / run / "checkpoint-60" / "trainer_state.json").read_text())
        return [dataclasses.replace(r, seconds=0) for r in records], state["best_global_step"]

    assert left("run") == left("whole")
    assert [record.step for record in left("run")[0]] == list(range(5, 61, 5))


@pytest.mark.parametrize("left", [None, '{"global_'])
def test_a_checkpoint_that_was_not_saved_whole_is_passed_over(tmp_path, left):
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    if left is not None:
        (tmp_path / "checkpoint-10" / "trainer_state.json").write_text(left)
    assert last_checkpoint(str(tmp_path), resume=True).endswith("checkpoint-5")
    with pytest.raises(ValueError, match="resume it with --resume true"):
        last_checkpoint(str(tmp_path), resume=False)
