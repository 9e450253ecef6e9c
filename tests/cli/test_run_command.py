"""`sepstop run`: the callback in commands that know nothing of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import make_texts
from helpers.answering import TRL, assert_scored, write_answering
from typer.testing import CliRunner

from sepstop.cli.main import app
from sepstop.runs.history import HISTORY_FILE, read_history

SCRIPT = Path(__file__).parents[1] / "helpers" / "command_run.py"
SEPSTOP = [sys.executable, "-m", "sepstop", "run"]
NOTHING = "nothing was scored: the command made no Trainer of transformers"


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / "pool.txt"
    path.write_text("\n".join(make_texts(40)[0]))
    return path


def call(*arguments, **more):
    """The finished process of `sepstop run`."""
    command = [*SEPSTOP, *map(str, arguments)]
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more.pop("env", {})
    return subprocess.run(
        command, capture_output=True, text=True, timeout=400, env=os.environ | own, **more
    )


@pytest.mark.training
def test_the_first_trainer_of_a_script_gets_the_callback(pool, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "sitecustomize.py").touch()
    config = tmp_path / "sepstop.yaml"
    config.write_text(
        yaml.safe_dump({"sepstop": {"extra_criteria": ["entropy"]}, "model": {"name": "x"}})
    )
    options = ["--config", config.name, "--pool", pool.name]
    done = call(
        *options, sys.executable, SCRIPT, tmp_path / "out", cwd=tmp_path,
        env={"PYTHONPATH": str(theirs)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert NOTHING not in done.stderr
    found = json.loads((tmp_path / "out" / "found_0.json").read_text())
    assert found["first"].count("SepStopCallback") == 1
    assert "SepStopCallback" not in found["second"]
    assert Path(found["theirs"]) == theirs / "sitecustomize.py"
    records = read_history(tmp_path / "out" / HISTORY_FILE).records
    assert [record.step for record in records] == [2, 4]
    assert "entropy" in records[-1].scores


@pytest.mark.training
def test_every_process_of_a_launcher_gets_the_callback(pool, tmp_path):
    launcher = ["torchrun", "--standalone", "--nproc-per-node=2"]
    launcher[0] = str(Path(sys.executable).with_name(launcher[0]))
    done = call("--pool", pool, "--", *launcher, SCRIPT, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        found = json.loads((tmp_path / "out" / f"found_{rank}.json").read_text())
        assert "SepStopCallback" in found["first"]
    records = read_history(tmp_path / "out" / HISTORY_FILE).records
    assert [record.step for record in records] == [2, 4]


@pytest.mark.training
def test_the_status_of_the_command_is_kept(pool):
    done = call("--pool", pool, sys.executable, "-c", "raise SystemExit(3)")
    assert done.returncode == 3
    assert "sepstop" not in done.stderr
    done = call("--pool", pool, sys.executable, "-c", "print('trained')")
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert f"sepstop: {NOTHING}" in done.stderr
    done = call("--pool", pool, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert done.returncode == 128 + signal.SIGKILL


@pytest.mark.training
def test_a_signal_reaches_the_command(pool, tmp_path):
    mark = tmp_path / "started"
    program = f"import pathlib, time; pathlib.Path({str(mark)!r}).touch(); time.sleep(300)"
    process = subprocess.Popen([*SEPSTOP, "--pool", str(pool), sys.executable, "-c", program])
    while not mark.exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM


def test_errors_come_before_the_command_runs(pool, tmp_path):
    bad = {
        "unknown.yaml": ("sepstop: {pol_size: 3}", "pol_size"),
        "kind.yaml": ("sepstop: {max_overhead: often}", "often"),
        "value.yaml": ("sepstop: {pool_size: 0}", "expected `pool_size` >= 1, got 0"),
        "none.yaml": ("model: {}", "expected a section `sepstop:`"),
        "text.yaml": ("sepstop: [", "is no YAML"),
    }
    never = ["--", sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"]

    def refused(*options):
        result = CliRunner().invoke(app, ["run", *map(str, options), *never])
        assert result.exit_code == 2
        return result.stderr.replace("\n", " ")

    for name, (content, message) in bad.items():
        (tmp_path / name).write_text(content)
        assert message in refused("--pool", pool, "--config", tmp_path / name)
    assert "expected a pool of unlabeled texts" in refused()
    assert "missing.txt" in refused("--pool", tmp_path / "missing.txt")
    assert not (tmp_path / "ran").exists()
    result = CliRunner().invoke(app, ["run", "--pool", str(pool), "trl-of-old", "sft"])
    assert (result.exit_code, result.stderr) == (127, "sepstop: there is no command 'trl-of-old'\n")


@pytest.mark.slow
def test_trl_on_its_command_line(tmp_path):
    rows = [
        json.dumps({"prompt": prompt, "completion": answer})
        for prompt, answer in write_answering(tmp_path)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "sft.yaml").write_text(
        yaml.safe_dump(
            TRL
            | {
                "model_name_or_path": str(tmp_path / "model"),
                "datasets": [{"path": "json", "data_files": str(tmp_path / "train.jsonl")}],
            }
        )
    )
    (tmp_path / "sepstop.yaml").write_text("sepstop: {every_n_steps: 2}")
    trl = str(Path(sys.executable).with_name("trl"))
    done = call(
        "--pool", "pool.txt", "--answers", "answers.txt", "--config", "sepstop.yaml",
        "--", trl, "sft", "--config", "sft.yaml", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_scored(tmp_path, [2, 4, 6, 8])
