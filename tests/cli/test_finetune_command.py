"""`sepstop finetune` and scripts/finetune.py as commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from sepstop.cli.main import app
from sepstop.finetune.lora import with_lora
from sepstop.finetune.run import set_up
from sepstop.finetune.settings import read_settings
from sepstop.runs.history import HISTORY_FILE, read_history

SCRIPT = str(Path(__file__).parents[2] / "scripts" / "finetune.py")
BIN = Path(sys.executable).parent
ACCELERATE = ["accelerate", "launch", "--cpu", "--num_processes=2", "--num_machines=1"]


def finetune(*arguments):
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


@pytest.mark.training
@pytest.mark.parametrize(
    "command",
    [
        ["sepstop", "finetune"],
        ["torchrun", "--standalone", "--nproc-per-node=2", SCRIPT],
        pytest.param(
            [
                *ACCELERATE,
                "--mixed_precision=no",
                "--dynamo_backend=no",
                "-m",
                "sepstop",
                "finetune",
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["command", "torchrun", "accelerate"],
)
def test_a_run_as_a_command(settings, tmp_path, command):
    """An option with two dashes and a value, and one with an equals sign, override the file."""
    done = subprocess.run(
        [BIN / command[0], *command[1:], "--config", settings,
         "--training.max_steps", "10", "--sepstop.criterion=entropy"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=500, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("40 labeled rows, 2 classes, pool of 100 texts") == 1
    assert done.stdout.count(f"{tmp_path}/run/model holds the last weights") == 1
    records = read_history(tmp_path / "run" / HISTORY_FILE).records
    assert [record.step for record in records] == [5, 10]
    assert "entropy" in records[-1].scores
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.config.id2label == {0: "bad", 1: "good"}


def test_help_shows_every_setting():
    shown = finetune("--help")
    assert shown.exit_code == 0
    assert shown.stdout.startswith("usage: sepstop finetune [--config FILE]")
    for option in ("--model.lora", "--data.labeled_rows", "--sepstop.max_overhead", "--resume"):
        assert f"\n  {option} " in shown.stdout
    assert "\n  --training.learning_rate LEARNING_RATE" in shown.stdout


def test_errors_are_a_sentence(settings, tmp_path):
    for arguments, status, said in (
        ((), 2, "error: the following arguments are required: model.name, data.train"),
        (("--config", settings, "--data.labeled_rows=many"), 2, "data.labeled_rows"),
        (("--config", settings, "--data.labeled_row=1"), 2, "data.labeled_row"),
        (("--config", settings, "more"), 2, "more"),
        (("--config", settings, "--data.train=none.csv"), 2, "sepstop: no data file at none.csv"),
        (("--config", settings, f"--model.name={tmp_path}/none"), 2, "as model.name, got"),
    ):
        result = finetune(*arguments)
        assert result.exit_code == status, arguments
        assert said in result.output
        assert "Traceback" not in result.output


def test_a_file_of_settings_can_be_printed(tmp_path):
    options = ["--model.name=one", "--data.train=rows.csv", "--sepstop.every_n_steps=7"]
    options += ["--training.learning_rate=3e-4", f"--training.output_dir={tmp_path}/run"]
    for flags in ("", "=skip_default"):
        printed = finetune(*options, f"--print_config{flags}")
        assert printed.exit_code == 0
        file = tmp_path / "settings.yaml"
        file.write_text(printed.stdout)
        found = read_settings([f"--config={file}"])
        assert (found.model.name, found.data.train) == ("one", "rows.csv")
        assert (found.sepstop.every_n_steps, found.training.learning_rate) == (7, 3e-4)
    assert len(printed.stdout.splitlines()) == 9


def test_missing_packages_are_named(settings, monkeypatch):
    for package in ("peft", "trl"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"^LoRA needs peft: pip install 'sepstop\[peft\]'$"):
        with_lora(None, {})
    with pytest.raises(ImportError, match=r"^data\.prompt needs trl: pip install trl$"):
        set_up([f"--config={settings}", "--data.prompt={text} was"])
