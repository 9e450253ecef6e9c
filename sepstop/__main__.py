"""`python -m sepstop`: the same as the command `sepstop`."""

from sepstop.cli.main import app

app(prog_name="sepstop")
