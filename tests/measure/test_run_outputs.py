"""The outputs of one run, from the first model to the last score."""

import warnings

import pytest
from test_outputs import MULTI, classifier

from sepstop.measure.outputs import InferredOutputs
from sepstop.measure.run_outputs import RunOutputs

GUESS = InferredOutputs("classes", is_guess=True)


def test_only_a_guess_is_replaced_by_recorded_outputs():
    for inferred, recorded, outputs in (
        (GUESS, "labels", "labels"),
        (GUESS, None, "classes"),
        (GUESS, "sigmoid", "classes"),
        (InferredOutputs("classes"), "labels", "classes"),
    ):
        run = RunOutputs()
        run.set(3, inferred)
        run.restore(recorded)
        assert run.outputs == outputs


def test_a_problem_type_set_in_training_is_adopted_until_the_first_score():
    model, run = classifier(3), RunOutputs()
    run.set(3, GUESS)
    assert not run.update(model)
    model.config.problem_type = MULTI
    with pytest.warns(RuntimeWarning, match="not for one class out of k as assumed before"):
        assert run.update(model)
    assert run.outputs == "labels"

    fixed = RunOutputs()
    fixed.set(3, InferredOutputs("classes"))
    fixed.freeze(1)
    requested = RunOutputs("classes")
    requested.set(3, InferredOutputs("classes"))
    for run in (fixed, requested):
        assert not run.update(model)
        assert run.outputs == "classes"


def test_an_observation_that_contradicts_the_run_is_an_error():
    run = RunOutputs()
    assert run.resolve(3, declared="labels") == "labels"
    assert run.resolve(3, declared=None) == "labels"
    with pytest.raises(ValueError, match=r"expected logits of labels .*, got none"):
        run.resolve(0, declared="none")
    with pytest.raises(ValueError, match=r"as measured before, got one class out of k; .*outputs="):
        run.resolve(3, declared="classes")
    assert RunOutputs("labels").resolve(3, declared="classes") == "labels"


def test_a_guess_is_a_warning_once():
    run = RunOutputs()
    run.set(3, GUESS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.freeze(0)
    with pytest.warns(UserWarning, match="^sepstop: neither the model's configuration nor"):
        run.freeze(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.freeze(2)
