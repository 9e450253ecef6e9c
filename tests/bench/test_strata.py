"""Strata of recorded runs."""

import pytest

from sepstop.bench.strata import STRATA, stratum_of


@pytest.mark.parametrize(
    ("changes", "stratum"),
    [
        ({}, "clean"),
        ({"noise": 0.2}, "mild"),
        ({"noise": 0.25}, "harsh"),
        ({"learning_rate": 9e-4, "noise": 0.1}, "mild"),
        ({"learning_rate": 1e-3}, "harsh"),
        ({"learning_rate": 1e-3, "start": "lora"}, "clean"),
        ({"learning_rate": 1e-2, "start": "lora"}, "harsh"),
        ({"noise": 0.4, "start": "lora"}, "harsh"),
        ({"noise": 0.1, "noise_kind": "class"}, "by rule"),
        ({"noise_kind": "class"}, "clean"),  # no wrong labels at all
    ],
)
def test_strata(changes, stratum):
    settings = {"learning_rate": 1e-4, "noise": 0.0, "noise_kind": "uniform", "start": "base"}
    assert stratum_of(settings | changes) == stratum
    assert stratum in STRATA


def test_a_file_without_settings():
    assert stratum_of({}) == "unknown"
