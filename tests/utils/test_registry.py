import math
from dataclasses import dataclass

import pytest

from sepstop import Patience, Plateau, h0_separability
from sepstop.criteria import CRITERIA, Separability
from sepstop.decide.policies import POLICIES
from sepstop.measure.pooling import POOLINGS, CLSPooling, MeanPooling
from sepstop.utils.registry import build, describe

KNOWN = {**POLICIES, **CRITERIA, **POOLINGS}


class Own:
    """Somebody else's policy; no dataclass."""

    def __init__(self, size=1):
        self.size = size

    def __eq__(self, other):
        return type(other) is Own and other.size == self.size

    __hash__ = None


@dataclass(frozen=True)
class Threshold:
    """Somebody else's policy; a dataclass, so its settings can be read off."""

    level: float = 0.9

    def passes(self, points):
        return points > self.level


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("patience", Patience()),
        ("plateau", Plateau()),
        ("separability", Separability()),
        ({"name": "patience", "patience": 2, "warmup": 1}, Patience(patience=2, warmup=1)),
        ({"name": "mean", "layer": 6}, MeanPooling(layer=6)),
        ("sepstop.decide.policies:Plateau", Plateau()),
        ({"name": "sepstop.decide.policies:Plateau", "window": 7}, Plateau(window=7)),
        (f"{__name__}:Own", Own()),
        ({"name": f"{__name__}:Own", "size": 3}, Own(3)),
        (Own, Own()),
        ("sepstop.criteria:h0_separability", h0_separability),
        ({"name": "math:hypot"}, math.hypot),
    ],
)
def test_build(spec, expected):
    assert build("policy", spec, KNOWN) == expected


@pytest.mark.parametrize("thing", [Patience(patience=2), Own(3), h0_separability])
def test_an_object_is_passed_through(thing):
    assert build("policy", thing, POLICIES) is thing
    assert build("policy", {"name": thing}, POLICIES) is thing


def test_building_leaves_the_settings_alone():
    spec = {"name": "plateau", "window": 7}
    build("policy", spec, POLICIES)
    assert spec == {"name": "plateau", "window": 7}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "patient",
            "unknown policy 'patient'; known: first_optimum, past_peak, patience, plateau",
        ),
        ({"name": "patient", "patience": 2}, "unknown policy 'patient'"),
        ("", "unknown policy ''"),
        ({"patience": 2}, "expected a `name` in the settings of the policy, got {'patience': 2}"),
        (
            {"name": "patience", "window": 2},
            "policy 'patience' does not take these settings: .*win",
        ),
        ({"name": "patience", "patience": 0}, "expected `patience` >= 1 or None, got 0"),
        ({"name": "math:hypot", "x": 1}, r"'math:hypot' is not a class, so it takes no \['x'\]"),
        ("no_such_module:x", "could not import the policy 'no_such_module:x': No module named"),
        ("math:nothing", "could not import the policy 'math:nothing': .*no attribute 'nothing'"),
        ("math:", "could not import the policy 'math:'"),
        (":hypot", "could not import the policy ':hypot'"),
        pytest.param(
            ".math:hypot",
            "could not import the policy '.math:hypot'",
        ),
    ],
)
def test_errors(spec, message):
    with pytest.raises(ValueError, match=message):
        build("policy", spec, POLICIES)


def test_parameters_beside_an_object_are_an_error():
    with pytest.raises(ValueError, match="patience"):
        build("policy", {"name": Patience(), "patience": 2}, POLICIES)


@pytest.mark.parametrize(
    ("thing", "settings"),
    [
        (CLSPooling(layer=3), {"name": "cls", "layer": 3}),
        (Separability(normalize=False), {"name": "separability", "normalize": False}),
        (Plateau(), {"name": "plateau", "window": 3, "tolerance": 0.1, "warmup": 5}),
        (h0_separability, {"name": "sepstop.criteria.separability:h0_separability"}),
        (Threshold(level=0.5), {"name": f"{__name__}:Threshold", "level": 0.5}),
        (Threshold, {"name": f"{__name__}:Threshold"}),
    ],
)
def test_describe_is_what_build_takes(thing, settings):
    described = describe(thing, KNOWN)
    assert described.items() >= settings.items()
    assert build("policy", described, KNOWN) == (thing() if isinstance(thing, type) else thing)


def test_what_settings_can_not_make_again_has_no_name():
    def nested(points):
        return points

    for thing, path in (
        (Own(3), f"{__name__}:Own"),
        (Threshold(0.5).passes, f"{__name__}:Threshold.passes"),  # of this object
        (lambda points: points, "<lambda>"),
        (nested, "<locals>.nested"),
        (Threshold(level=math.inf), f"{__name__}:Threshold"),  # not a JSON value
        (Threshold(level=nested), f"{__name__}:Threshold"),
    ):
        described = describe(thing, KNOWN)
        assert list(described) == ["custom"]
        assert described["custom"].endswith(path)
