"""The wheel, which has all of the package and nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ["pyproject.toml", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since building writes beside the sources."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "sepstop", copy / "sepstop")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*build, "--wheel-dir", out, copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("sepstop-*.whl"))


def test_the_wheel_has_every_file_of_the_package(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sepstop").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == files
    assert {
        "sepstop/finetune/run.py",
        "sepstop/integrations/startup/sitecustomize.py",
        "sepstop/report/html/page.html.j2",
        "sepstop/py.typed",
    } <= files


def test_the_command_starts_from_the_wheel_alone(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "sepstop = sepstop.cli.main:app" in (tmp_path / entry).read_text()
    command = [sys.executable, "-m", "sepstop", "finetune", "--model.name=one"]
    done = subprocess.run(
        [*command, "--data.train=rows.csv", "--print_config=skip_default"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "model:\n  name: one\ndata:\n  train: rows.csv\n"
