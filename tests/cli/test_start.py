"""`sepstop` by itself, and what starting it imports."""

import re
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from sepstop.cli.main import app

OF_THIRD_PARTIES = """
import sys
before = set(sys.modules)
{program}
names = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*names - sys.stdlib_module_names, file=sys.stderr)
"""
HELP = "from sepstop.cli.main import app; app(['--help'], standalone_mode=False)"


def imported(program):
    """The packages that a program imports in a fresh Python, without the standard library."""
    command = [sys.executable, "-c", OF_THIRD_PARTIES.format(program=program)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())


def test_sepstop_alone_shows_where_to_start():
    shown = CliRunner().invoke(app, [])
    assert shown.exit_code == 0
    assert len(shown.stdout.splitlines()) < 24
    named = re.findall(r"^ {4}sepstop (\w+)", shown.stdout, re.MULTILINE)
    assert named == ["finetune", "run", "select"]
    commands = get_command(app).commands
    for name, option in re.findall(r"sepstop (run|select) .*?(--\w+)", shown.stdout):
        assert option in {one for each in commands[name].params for one in each.opts}


def test_help_lists_the_commands():
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for name, command in get_command(app).commands.items():
        first = command.help.split("\n")[0]
        assert re.search(rf"{name} +{re.escape(first)}", shown.stdout), name


@pytest.mark.parametrize("program", ["import sepstop", HELP])
def test_starting_imports_no_torch(program):
    """These take seconds to import."""
    found = imported(program)
    assert "sepstop" in found
    assert not found & {"torch", "transformers", "datasets", "accelerate", "numpy", "jsonargparse"}


def test_importing_sepstop_imports_nothing_else():
    assert imported("import sepstop") == {"sepstop"}
