"""Ranges and choices of the configuration's fields."""

import dataclasses
import math
import re

import numpy as np
import pytest

from sepstop import Patience, SepStopConfig

DEFAULTS = SepStopConfig()


@pytest.mark.parametrize(
    "name", ["num_resamples", "max_length", "batch_size", "pool_size", "every_n_steps"]
)
def test_numbers_are_at_least_1(name):
    assert getattr(SepStopConfig(**{name: 1}), name) == 1
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"expected `{name}` >= 1, got {value}"):
            SepStopConfig(**{name: value})


@pytest.mark.parametrize("name", ["pool_size", "batch_size", "every_n_steps", "resample_size"])
def test_some_numbers_may_be_left_open(name):
    assert getattr(SepStopConfig(**{name: None}), name) is None


@pytest.mark.parametrize(
    "name",
    [
        "num_resamples",
        "max_length",
        "batch_size",
        "pool_size",
        "every_n_steps",
        "resample_size",
        "seed",
    ],
)
@pytest.mark.parametrize("value", ["3", 2.5, 3.0, True, [3]])
def test_numbers_are_whole(name, value):
    """A YAML file or a history file may hold anything."""
    message = re.escape(f"expected a whole number as `{name}`, got {value!r}")
    with pytest.raises(ValueError, match=message):
        SepStopConfig(**{name: value})
    assert getattr(SepStopConfig(**{name: np.int64(3)}), name) == 3


@pytest.mark.parametrize("name", ["num_resamples", "max_length", "average_every_n_steps", "seed"])
def test_other_numbers_may_not_be_left_open(name):
    with pytest.raises(ValueError, match=f"expected a whole number as `{name}`, got None"):
        SepStopConfig(**{name: None})


@pytest.mark.parametrize("seed", [-1, 2**63, 10**400])
def test_seeds_are_those_of_torch(seed):
    assert SepStopConfig(seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(ValueError, match=r"expected `seed` from 0 to 2\*\*63 - 1, got"):
        SepStopConfig(seed=seed)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("padding", [True, False, None]),
        ("precision", ["no", "bf16", "fp16", None]),
        ("outputs", ["auto", "classes", "labels", "none"]),
        ("on_error", ["skip", "raise"]),
    ],
)
def test_choices_are_listed_in_the_error(name, choices):
    for choice in choices:
        assert getattr(SepStopConfig(**{name: choice}), name) is choice
    shown = ", ".join(map(repr, choices))
    for other in ("other", 7):
        with pytest.raises(ValueError, match=f"expected `{name}` among {shown}, got {other!r}"):
            SepStopConfig(**{name: other})


@pytest.mark.parametrize("spec", ["separability", {"name": "separability"}])
def test_extra_criteria_are_a_list(spec):
    assert SepStopConfig(extra_criteria=[spec]).extra_criteria == [spec]
    for other in (spec, None, lambda points: points):
        with pytest.raises(ValueError, match="expected a list of criteria as `extra_criteria`"):
            SepStopConfig(extra_criteria=other)


@pytest.mark.parametrize("share", [0, 1, -0.1, 10, "0.1", True, math.nan])
def test_the_largest_share_of_the_time_is_a_share(share):
    message = re.escape(f"expected `max_overhead` between 0 and 1, got {share!r}")
    with pytest.raises(ValueError, match=message):
        SepStopConfig(max_overhead=share)
    assert SepStopConfig(max_overhead=0.1).max_overhead == 0.1


def test_fields_go_by_name_only():
    with pytest.raises(TypeError, match="positional"):
        SepStopConfig("plateau")
    with pytest.raises(TypeError, match="embedder"):
        SepStopConfig(embedder="mean")


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULTS.seed = 3
    assert dataclasses.replace(DEFAULTS, seed=3) == SepStopConfig(seed=3)
    with pytest.raises(ValueError, match="`batch_size` >= 1, got 0"):
        dataclasses.replace(DEFAULTS, batch_size=0)


def test_names_are_those_of_the_fields():
    names = SepStopConfig.names()
    assert names == [field.name for field in dataclasses.fields(SepStopConfig)]
    assert {"policy", "criterion", "extra_criteria", "pooling", "num_resamples"} <= set(names)


def test_a_configuration_of_other_values_takes_what_it_knows():
    policy = Patience(2)
    values = {"self": 1, "pool": ["a"], "policy": policy, "seed": 4}
    assert SepStopConfig.of(values) == SepStopConfig(policy=policy, seed=4)
    assert SepStopConfig.of({}) == DEFAULTS
    everything = {name: getattr(DEFAULTS, name) for name in SepStopConfig.names()}
    assert SepStopConfig.of(everything) == DEFAULTS
    with pytest.raises(ValueError, match="`max_length` >= 1"):
        SepStopConfig.of({"max_length": 0})
