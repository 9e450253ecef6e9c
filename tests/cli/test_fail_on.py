"""`sepstop select --fail-on`."""

import json
import math
import re
from pathlib import Path

import pytest
from conftest import make_encoder
from helpers.walks import walk
from typer.testing import CliRunner

from sepstop import Decision, Record, Score
from sepstop.cli.fail_on import failures, parse_conditions
from sepstop.cli.main import app
from sepstop.cli.outcome import Outcome
from sepstop.decide.selection import Selection

NOISE = (-0.03, -0.01, 0.01, 0.03)  # of the resamples, the same at each step: it cancels


def score(value):
    return Score(value, resample_values=tuple(value + one for one in NOISE))


def outcome(*values, best, ties=(), higher=True, differences=(), skipped=(), tied=()):
    """A run with a score at steps 10, 20, ... that differ significantly if they differ at all."""
    records = tuple(
        Record(step, None, {"mi": score(value)}, resample_size=20, pool_size=40)
        for step, value in enumerate(values, start=1)
    )
    selection = Selection(
        Decision(False, best, "as told"),
        "mi",
        {"mi": higher},
        records,
        {record.step: Path(f"checkpoint-{record.step}") for record in records},
        skipped={Path(name): "torn" for name in skipped},
        ties=ties,
        differences=dict.fromkeys(differences, "mi 0.3, logged 0.2"),
    )
    return Outcome({"run": selection}, "run", tied, {})


HOLDS = [
    ("skipped", outcome(0.1, best=1, skipped=["checkpoint-9"]), "checkpoint-9"),
    ("skipped", outcome(0.1, best=1), None),
    ("differs", outcome(0.1, 0.2, best=1, differences=[2]), "run's log: checkpoint-2"),
    ("differs", outcome(0.1, 0.2, best=1), None),
    ("ties", outcome(0.3, 0.3, 0.1, best=1, ties=(2,)), "step 1 is .* better or worse than step 2"),
    ("ties", outcome(0.3, best=1, tied=["other"]), "better or worse than other"),
    ("ties", outcome(0.3, 0.2, best=1), None),
    ("overtrained", outcome(0.1, 0.3, 0.2, best=2), "step, 3, is .* step 2: mi 0.200 after 0.300"),
    ("overtrained", outcome(0.1, 0.2, 0.3, best=3), None),
    ("overtrained", outcome(0.1, 0.3, 0.3, best=2, ties=(3,)), None),
    ("overtrained", outcome(0.3, 0.1, 0.2, best=2, higher=False), "mi 0.200 after 0.100"),
    ("overtrained", outcome(0.1, math.nan, best=1), "mi nan after 0.100"),
]


@pytest.mark.parametrize(("name", "found", "why"), HOLDS)
def test_conditions(name, found, why):
    failed = failures(parse_conditions([name]), found)
    if why is None:
        assert failed == {}
    else:
        assert list(failed) == [name]
        assert re.search(why, failed[name])


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    return walk(tmp_path_factory.mktemp("walk") / "run", make_encoder(), tokenizer, count=3)


@pytest.fixture(scope="module")
def select(run, pool, tmp_path_factory):
    """`sepstop select` of the run; the score to keep is that of the criterion `entropy`."""
    file = tmp_path_factory.mktemp("pool") / "pool.txt"
    file.write_text("\n".join(pool))

    def command(*arguments):
        options = ["--criterion", "entropy", "--num-resamples", "5", "--no-average"]
        named = ["select", run, "--pool", file, *options, *arguments]
        return CliRunner().invoke(app, [*map(str, named)])

    return command


def test_a_score_below_or_above_a_number(select):
    best = json.loads(select("--json").stdout)
    value = max(row["scores"]["entropy"]["value"] for row in best["ranking"])
    conditions = [f"entropy<{value - 0.1}", f"entropy < {value + 0.1}", f"entropy>{value - 0.1}"]
    result = select("--ties", "best", "--fail-on", ",".join(conditions), "--json")
    assert result.exit_code == 3
    assert list(json.loads(result.stdout)["failed"]) == conditions[1:]
    for condition in conditions[1:]:
        assert f"sepstop: {condition}: the weights to keep have {value:.3f}" in result.stderr
    assert select("--ties", "best", "--fail-on", conditions[0]).exit_code == 0


def test_conditions_may_be_repeated(select):
    separability = ["--criterion", "separability"]  # as good at each step of a walk
    result = select(*separability, "--fail-on", "skipped", "--fail-on", "ties")
    assert result.exit_code == 3
    assert "sepstop: ties: step " in result.stderr
    assert "sepstop: skipped" not in result.stderr


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("tie", "does not know 'tie'; expected skipped, differs, ties, overtrained, SCORE<NUMBER"),
        ("rankme<2", "does not know the score in 'rankme<2'; expected one of robust_mi,"),
        ("infomax<", "does not know 'infomax<'"),
        ("infomax<low", "expects a number after < in 'infomax<low'"),
        ("infomax>nan", "expects a number after > in 'infomax>nan'"),
    ],
)
def test_an_unknown_condition_is_an_error_before_anything_is_computed(
    select, monkeypatch, condition, message
):
    monkeypatch.setattr("sepstop.runs.select.select_checkpoint", None)
    result = select("--fail-on", condition)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_score_that_was_not_measured_is_an_error(select):
    result = select("--fail-on", "infomax<0.2")
    assert result.exit_code == 2
    assert "the score infomax, which was not measured; there are entropy" in " ".join(
        result.stderr.split()
    )
    measured = ["--extra-criteria", "infomax,sepstop.bench.criteria:RankMe"]
    assert select(*measured, "--fail-on", "infomax<9,rankme<0").exit_code == 3
