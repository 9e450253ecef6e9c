"""What the commands show of a run whose steps have several candidates."""

import json
import re

import pytest
from helpers.averaged import averaged_run
from typer.testing import CliRunner

from sepstop.cli.main import app
from sepstop.report.candidates import best_label, candidate_series, kept_record, other_names
from sepstop.runs.history import HISTORY_FILE, KEY, row_to_dict, write_history
from sepstop.types import CHECKPOINT

RUN = averaged_run()
HOSTILE = ("[/]\x1b[31m<img src=x onerror='alert(1)'>", "$\\frac{" + "long" * 80)


def command(*arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "90"})
    assert result.exit_code == 0, result.output
    return result.stdout


def as_history(folder, run):
    write_history(folder / HISTORY_FILE, run)


def as_trainer_state(folder, run):
    rows = [
        {KEY: row_to_dict(record, decision, run)}
        for record, decision in zip(run.records, run.decisions, strict=True)
    ]
    (folder / "checkpoint-50").mkdir()
    (folder / "checkpoint-50" / "trainer_state.json").write_text(json.dumps({"log_history": rows}))


def test_a_series_per_candidate_whichever_is_the_best():
    assert other_names(RUN) == [CHECKPOINT, "cumulative", "recent"]
    values = {
        name: [score.value for score in candidate_series(RUN, name, "neighbor_mi").scores]
        for name in other_names(RUN)
    }
    assert values[CHECKPOINT] == [0.2, 0.3, 0.25, 0.35, 0.15]
    assert values["recent"][1:] == [0.4, 0.5, 0.6, 0.55]
    assert str(candidate_series(RUN, "cumulative", "neighbor_mi").score_at(10)) == "no score"
    assert best_label(RUN) == "best candidate (checkpoint, recent average, cumulative average)"
    assert kept_record(RUN).average.last_step == 40


@pytest.mark.parametrize("write", [as_history, as_trainer_state])
def test_every_command_says_that_an_average_is_kept(tmp_path, write):
    write(tmp_path, RUN)
    kept = "cumulative average of steps 11 to 40"
    text = command("watch", tmp_path, "--once")
    rows = [line.split() for line in text.splitlines() if re.match(r" +\d0 ", line)]
    assert [row[0] for row in rows] == ["10", "20", "30", "40", "50"]
    weights = [CHECKPOINT, "recent", "recent", "cumulative", "cumulative"]
    assert all(one in row for row, one in zip(rows, weights, strict=True))
    assert f"best: {kept}\n" in text
    card = command("card", tmp_path)
    assert "## How these weights were chosen" in card
    assert f"The weights are the {kept}, chosen without labels by\nsepstop " in card
    assert "in a run of 50 training steps. At 5 steps" in card
    command("plot", tmp_path, "-o", tmp_path / "x.svg")
    command("report", tmp_path, "-o", tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert f"The run was stopped at step 50. Keep the {kept}." in page
    assert "which weights to keep" in page
    assert "<td>11 to 20, recent</td>" in page


def test_names_from_a_file_are_cut_and_stay_text(tmp_path):
    as_history(tmp_path, averaged_run(HOSTILE))
    assert "\x1b" not in command("watch", tmp_path, "--once")
    card = command("card", tmp_path)
    assert "\x1b" not in card
    assert "<img" not in card
    command("plot", tmp_path, "-o", tmp_path / "x.svg")
    command("report", tmp_path, "-o", tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert "<img" not in page
    assert "&lt;img src=x" in page
    assert "longlong" in page
    assert "long" * 20 not in page
