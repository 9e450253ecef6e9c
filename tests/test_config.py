"""The configuration of a run, as the callbacks take it."""

import dataclasses
import inspect

import pytest

from sepstop import Patience, SepStopCallback, SepStopConfig
from sepstop.callbacks import lightning


@pytest.mark.parametrize(
    ("callback", "left_out"),
    [
        (SepStopCallback, set()),
        (lightning.SepStopCallback, {"load_best_model_at_end"}),
    ],
)
def test_the_callbacks_take_the_fields_of_the_configuration(callback, left_out):
    parameters = dict(inspect.signature(callback).parameters)
    for name in ("pool", "model", "warmup_steps"):
        parameters.pop(name, None)
    taken = [(one.name, one.annotation, one.default) for one in parameters.values()]
    assert {one.kind for one in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert taken == [
        (field.name, field.type, field.default)
        for field in dataclasses.fields(SepStopConfig)
        if field.name not in left_out
    ]


def test_the_callback_keeps_what_it_is_given(pool):
    given = {"policy": "plateau", "num_resamples": 3, "max_length": 7, "every_n_steps": 5}
    assert SepStopCallback(pool, **given).config == SepStopConfig(**given)
    with pytest.raises(TypeError, match="positional"):
        SepStopCallback(pool, "separability")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "patient"}, "unknown policy 'patient'; known: first_optimum, past_peak, pat"),
        ({"criterion": "separation"}, "unknown criterion 'separation'; known: component_mi, cons"),
        ({"criterion": "rankme"}, "as 'sepstop.bench.criteria:RankMe'"),
        ({"extra_criteria": ["auto", "separation"]}, "unknown criterion 'separation'"),
        ({"extra_criteria": "separability"}, "expected a list of criteria as `extra_criteria`"),
        ({"policy": Patience(significance=0.05), "num_resamples": 1}, "needs at least 2 resamples"),
        (
            {"policy": Patience(significance=0.05), "resample_size": 80},
            "smaller than the pool, got 20 of 80 of 80 texts",
        ),
        ({"resample_size": 81}, "`resample_size` from 2 to the 80 texts of the pool, got 81"),
        ({"every_n_steps": 0}, "expected `every_n_steps` >= 1, got 0"),
        ({"num_resamples": 0}, "expected `num_resamples` >= 1, got 0"),
        ({"on_error": "ignore"}, "expected `on_error` among 'skip', 'raise', got 'ignore'"),
        ({"precision": "bf8"}, "expected `precision` among 'no', 'bf16', 'fp16', None"),
        ({"outputs": "class"}, "expected `outputs` among 'auto', 'classes', 'labels', 'none'"),
    ],
)
def test_settings_that_cannot_be(pool, options, message):
    with pytest.raises(ValueError, match=message):
        SepStopCallback(pool, **options)
