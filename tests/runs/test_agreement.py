"""Scores of checkpoints beside those of the run's own log."""

import json
import math
from dataclasses import replace

import pytest
from conftest import make_encoder
from safetensors.torch import load_file, save_file
from test_select import train
from typer.testing import CliRunner

from sepstop import SepStopCallback, select_checkpoint
from sepstop.cli.main import app
from sepstop.runs.agreement import differences_from_log
from sepstop.types import Record

SETTINGS = {
    "criterion": {"name": "separability"},
    "embedder": {"name": "auto"},
    "resamples": 10,
    "resample_size": 40,
    "seed": 0,
    "max_length": 128,
    "pool": "abc",
}
OWN = Record(5, 0.5, score=0.4, information=0.8, resample_size=40)


@pytest.mark.parametrize(
    ("change", "half", "said"),
    [
        ({}, False, None),
        ({"score": 0.4009}, False, None),
        ({"score": 0.4011}, False, "separability 0.4011, in the run's log 0.4000"),
        ({"score": 0.4049}, True, None),
        ({"score": 0.4051}, True, "separability 0.4051, in the run's log 0.4000"),
        ({"score": math.nan}, False, "separability nan, in the run's log 0.4000"),
        ({"information": 0.849}, False, None),  # two of 40 texts
        ({"information": 0.851}, False, "information 0.8510, in the run's log 0.8000"),
        (
            {"information_of": "components", "information": 0.8},
            False,
            "information of components, in the run's log of classes",
        ),
        ({"step": 6, "score": 0.1}, False, None),  # the run has no score there
    ],
)
def test_what_is_more_than_rounding_is_said(change, half, said):
    found = differences_from_log([replace(OWN, **change)], [OWN], SETTINGS, SETTINGS, half)
    assert list(found) == ([5] if said else [])
    assert said is None or found[5].startswith(f"{said}: the model loaded here is not the one")


def test_both_scores_are_compared_whichever_decides():
    other = replace(OWN, score=0.1, information=0.1)
    (said,) = differences_from_log([other], [OWN], SETTINGS, SETTINGS).values()
    assert "separability 0.1000" in said
    assert "information 0.1000" in said


@pytest.mark.parametrize("setting", ["pool", "seed", "max_length", "embedder", "resamples"])
def test_only_what_was_measured_alike_is_compared(setting):
    other = replace(OWN, score=0.1)
    assert differences_from_log([other], [OWN], SETTINGS | {setting: "another"}, SETTINGS) == {}


def test_information_that_refers_to_other_neighbors_is_not_compared():
    other = replace(OWN, information=0.1)
    assert differences_from_log([other], [OWN], SETTINGS, SETTINGS, same_neighbors=False) == {}
    other = replace(OWN, information_of="components")
    assert differences_from_log([other], [OWN], SETTINGS, SETTINGS, same_neighbors=False)


def test_scores_that_were_not_finite_are_the_same():
    nothing = replace(OWN, score=math.nan, information=math.nan)
    assert differences_from_log([nothing], [nothing], SETTINGS, SETTINGS) == {}


def test_weights_that_are_not_those_of_the_run_are_noticed(tmp_path, tokenizer, train_rows, pool):
    pool_file = tmp_path / "pool.txt"
    pool_file.write_text("\n".join(pool))
    folder = tmp_path / "run"
    callback = SepStopCallback(pool_file, every_n_steps=4)
    train(folder, tokenizer, train_rows, callback, make_encoder(), max_steps=12)
    assert select_checkpoint(folder, pool_file, progress=False).differences == {}
    path = folder / "checkpoint-8" / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.encoder.layer.1.output.dense.weight"] *= 5
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"checkpoint-8: separability .* in the run's log"):
        selection = select_checkpoint(folder, pool_file, progress=False)
    assert list(selection.differences) == [8]

    arguments = ["select", str(folder), "--pool", str(pool_file)]
    result = CliRunner().invoke(app, [*arguments, "--strict"])
    assert result.exit_code == 3
    assert "sepstop: checkpoint-8: separability" in " ".join(result.stderr.split())
    assert result.stdout.count("≠ log") == 1
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0
    assert list(json.loads(result.stdout)["differences"]) == [str(folder / "checkpoint-8")]
