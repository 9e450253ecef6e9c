"""Observations to records, without a model, a pool or a tokenizer."""

import math
import random
import warnings

import numpy as np
import pytest
import torch
from clouds import normal

from sepstop import Score, Scorer, SepStopConfig
from sepstop.bench.criteria import Churn, RankMe
from sepstop.criteria import (
    INPUTS,
    ComponentMI,
    Consistency,
    InfoMax,
    LabelMI,
    NegativeEntropy,
    NeighborMI,
    RobustMI,
    Separability,
)
from sepstop.measure.embedding import Observation
from sepstop.measure.neighbors import Neighborhoods, nearest_neighbors
from sepstop.measure.resampling import draw_resamples
from sepstop.measure.scorer import CriterionError, build_criterion, criteria_for
from sepstop.statistics import interval

N = 40
RESAMPLES = draw_resamples(N, 5, 20, seed=0)
EVERY_CLASS = [
    NeighborMI(),
    Separability(),
    ComponentMI(),
    InfoMax(),
    NegativeEntropy(),
    RankMe(),
    RobustMI(),
    Churn(),
    Consistency(),
]


def observation(seed, **changes):
    """N texts in two clumps; the logits know something of them."""
    side = (torch.arange(N) % 2 * 2 - 1).float()[:, None]
    points = normal(N, 6, seed=seed)
    points[:, :1] += 3 * side
    logits = normal(N, 3, seed=seed + 100)
    logits[:, :1] += 2 * side
    corrupted = logits + normal(N, 3, seed=seed + 200) / 2
    return Observation(points, logits, corrupted)._replace(**changes)


def records_of(criteria, seeds=(1, 2, 3)):
    scorer = Scorer(criteria, RESAMPLES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [scorer(observation(seed), 10 * seed, epoch=seed / 2) for seed in seeds]


def criterion(*needs, name="own", shape=None, higher_is_better=True):
    """A criterion that keeps the inputs of its calls in ``seen``."""

    class Own:
        def __call__(self, *inputs):
            self.seen.append(inputs)
            return inputs[0].flatten(start_dim=1).double().mean(dim=1)

    own = Own()
    own.name, own.higher_is_better, own.needs, own.seen = name, higher_is_better, needs, []
    return own


def same(first, second):
    """True if two scores are equal, NaN included."""
    return first == second or (
        not first.is_finite and not second.is_finite and str(first) == str(second)
    )


# Records


def test_a_record_has_the_scores_of_all_criteria_the_deciding_one_first():
    record = records_of([Separability(), InfoMax()], seeds=[3])[0]
    assert list(record.scores) == ["separability", "infomax"]
    assert (record.step, record.epoch) == (30, 1.5)
    assert (record.resample_size, record.pool_size) == (20, N)
    seen = observation(3)
    for one, whole in ((Separability(), seen.points), (InfoMax(), seen.logits)):
        values = one(whole[RESAMPLES]).tolist()
        score = record.scores[one.name]
        assert score.resample_values == pytest.approx(values)
        assert score.value == pytest.approx(sum(values) / 5)
        assert (score.low, score.high) == pytest.approx(interval(values, 20, N))


@pytest.mark.parametrize("place", range(len(EVERY_CLASS)))
def test_several_criteria_score_as_each_alone(place):
    alone = EVERY_CLASS[place]
    together = records_of(EVERY_CLASS[place:] + EVERY_CLASS[:place])
    assert next(iter(together[0].scores)) == alone.name
    for record, expected in zip(together, records_of([alone]), strict=True):
        assert list(expected.scores) == [alone.name]
        assert same(record.scores[alone.name], expected.scores[alone.name])
    assert together[-1].scores[alone.name].is_finite


def test_directions_belong_to_the_criteria():
    lower = criterion("points", name="lower", higher_is_better=False)
    scorer = Scorer([lower, Separability()], RESAMPLES)
    assert scorer.decides == "lower"
    assert scorer.higher_is_better == {"lower": False, "separability": True}


@pytest.mark.parametrize(
    ("criteria", "names"), [([], r"\[\]"), ([InfoMax(), InfoMax()], r"\['infomax', 'infomax'\]")]
)
def test_criteria_have_names_of_their_own(criteria, names):
    with pytest.raises(ValueError, match=f"one or more criteria of different names, got {names}"):
        Scorer(criteria, RESAMPLES)


def test_a_replay_gives_the_same_records():
    assert records_of(EVERY_CLASS[:7]) == records_of(EVERY_CLASS[:7])


def test_the_step_measured_last_does_not_change_those_before():
    """A replay that ends earlier has the same records up to there."""
    assert records_of(EVERY_CLASS[:7], seeds=[1, 2]) == records_of(EVERY_CLASS[:7])[:2]


def test_random_states_are_left_alone():
    def restless(points):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return points.mean(dim=(1, 2))

    restless.name, restless.higher_is_better = "restless", True
    scorer = Scorer([restless, NeighborMI()], RESAMPLES)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    scorer(observation(1), 1)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_autocast_around_a_loop_changes_no_scores():
    def similarity(points):
        return (points @ points.mT).mean(dim=(1, 2))

    similarity.name, similarity.higher_is_better = "similarity", True
    expected = records_of([*EVERY_CLASS, similarity])
    with torch.autocast("cpu", torch.bfloat16):
        found = records_of([*EVERY_CLASS, similarity])
    for record, other in zip(found, expected, strict=True):
        for name, score in record.scores.items():
            assert same(score, other.scores[name]), name


def test_no_gradient_is_kept():
    seen = observation(1)
    seen.points.requires_grad_()
    own = criterion("points")
    Scorer([own], RESAMPLES)(seen, 1)
    assert not (own.seen[0][0] * 1).requires_grad


# Neighbors


def test_a_criterion_gets_the_neighbors_of_all_steps_so_far():
    own = criterion("neighbors", "points")
    scorer = Scorer([own], RESAMPLES)
    for step in (0, 10, 20):
        scorer(observation(step), step)
    near = torch.stack([nearest_neighbors(observation(step).points) for step in (0, 10, 20)], dim=1)
    assert [inputs[0].shape[2] for inputs in own.seen] == [1, 2, 3]
    assert torch.equal(own.seen[-1][0], near[RESAMPLES])
    assert scorer.reference_step == 0


def agreeing(seed):
    """An observation whose classes already agree with those of the neighbors."""
    seen = observation(seed)
    side = torch.arange(N) % 2 * 2 - 1
    points = seen.points / 10
    points[:, 0] = 9 * side
    return seen._replace(points=points, logits=torch.stack([side, -side], dim=1).float())


def test_only_criteria_of_predictions_leave_out_a_start_that_agrees_anyway():
    classes, embeddings = (
        criterion("neighbor_classes", "logits", name="classes"),
        criterion("neighbors", name="embeddings"),
    )
    scorer = Scorer([classes, embeddings], RESAMPLES)
    with pytest.warns(RuntimeWarning, match="untrained head .*reference is disabled") as caught:
        scorer(agreeing(0), 0)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer(observation(1), 1)
        scorer(observation(2), 2)
    assert [inputs[0].shape[2] for inputs in classes.seen] == [1, 1, 1]
    assert [inputs[0].shape[2] for inputs in embeddings.seen] == [1, 2, 3]
    now = observation(2)
    expected = now.logits.argmax(dim=-1)[nearest_neighbors(now.points)][:, None]  # (N, 1, 3)
    assert torch.equal(classes.seen[-1][0], expected[RESAMPLES])
    robust = Scorer([RobustMI()], RESAMPLES, scorer.neighborhoods)(now, 2).scores["robust_mi"]
    inputs = now.logits[RESAMPLES], now.corrupted_logits[RESAMPLES], expected[RESAMPLES]
    assert robust.resample_values == pytest.approx(RobustMI()(*inputs).tolist())
    assert robust.value > 0.1
    assert scorer.reference_step is None
    assert Scorer([embeddings], RESAMPLES, scorer.neighborhoods).reference_step == 0


def test_neighbors_are_classes_of_now():
    own = criterion("neighbor_classes")
    scorer = Scorer([own], RESAMPLES)
    scorer(observation(1), 1)
    scorer(observation(2), 2)
    near = torch.stack([nearest_neighbors(observation(step).points) for step in (1, 2)], dim=1)
    expected = observation(2).logits.argmax(dim=-1)[near]
    assert torch.equal(own.seen[-1][0], expected[RESAMPLES])


def test_outputs_without_classes_have_no_neighbor_classes():
    scorer = Scorer([criterion("neighbor_classes"), LabelMI(), ComponentMI()], RESAMPLES)
    with pytest.warns(RuntimeWarning, match="gave no finite number at step 1; no score for own$"):
        record = scorer(observation(1, outputs="labels"), 1)
    assert [score.is_finite for score in record.scores.values()] == [False, True, True]


def test_earlier_neighborhoods_are_taken_up():
    known = Neighborhoods()
    known.add(5, observation(5).points)
    resumed = Scorer([NeighborMI(), ComponentMI()], RESAMPLES, known)
    whole = Scorer([NeighborMI(), ComponentMI()], RESAMPLES)
    whole(observation(5), 5)
    assert resumed(observation(6), 6) == whole(observation(6), 6)
    assert resumed.reference_step == 5


def test_a_reference_is_added_without_a_record():
    scored, added = (Scorer([ComponentMI()], RESAMPLES) for _ in range(2))
    scored(observation(0), 0)
    added.add_neighbors(observation(0), 0)
    assert added(observation(1), 1) == scored(observation(1), 1)
    assert added.reference_step == 0


def test_neighbors_are_looked_for_only_if_a_criterion_needs_them():
    scorer = Scorer([Separability(), InfoMax()], RESAMPLES)
    assert not scorer.uses_neighbors
    scorer(observation(1), 1)
    scorer.add_neighbors(observation(2), 2)
    assert scorer.neighborhoods.steps == []
    assert scorer.reference_step is None
    beside = Scorer([Separability(), ComponentMI()], RESAMPLES)
    assert beside.uses_neighbors
    beside(observation(1), 1)
    assert beside.neighborhoods.steps == [1]
    assert beside.reference_step is None  # of the deciding score


# Other inputs


def test_previous_logits_are_those_of_the_record_before():
    own = criterion("previous_logits", "logits")
    scorer = Scorer([own, Churn()], RESAMPLES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is wrong
        first = scorer(observation(1), 1)
    assert [str(score) for score in first.scores.values()] == ["no score"] * 2
    assert own.seen == []
    for step in (2, 3):
        record = scorer(observation(step), step)
        previous, logits = own.seen[-1]
        assert torch.equal(previous, observation(step - 1).logits[RESAMPLES])
        assert torch.equal(logits, observation(step).logits[RESAMPLES])
        churn = (previous.argmax(dim=-1) != logits.argmax(dim=-1)).double().mean(dim=1)
        assert record.scores["churn"].resample_values == pytest.approx(churn.tolist())


def test_inputs_come_in_the_order_of_the_needs():
    own = criterion("corrupted_logits", "points", "logits")
    Scorer([own], RESAMPLES)(observation(4), 4)
    seen = observation(4)
    for found, expected in zip(
        own.seen[0], (seen.corrupted_logits, seen.points, seen.logits), strict=True
    ):
        assert torch.equal(found, expected[RESAMPLES])


def with_bad(values, value):
    values = values.clone()
    values[[3, 7], 1] = value
    return values


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("part", "words", "missing"),
    [
        (
            "points",
            "embeddings",
            ["neighbor_mi", "separability", "component_mi", "rankme", "robust_mi"],
        ),
        ("logits", "logits", ["neighbor_mi", "infomax", "entropy", "robust_mi", "consistency"]),
        ("corrupted_logits", "corrupted logits", ["robust_mi", "consistency"]),
    ],
)
def test_what_is_not_finite_gives_no_score_and_one_warning(part, words, missing, value):
    criteria = [one for one in EVERY_CLASS if one.name != "churn"]
    scorer = Scorer(criteria, RESAMPLES)
    seen = observation(7)
    message = rf"^sepstop: 2 of 40 {words} are NaN or infinite at step 7; "
    with pytest.warns(RuntimeWarning, match=message) as caught:
        record = scorer(seen._replace(**{part: with_bad(getattr(seen, part), value)}), 7)
    (warning,) = caught
    assert str(warning.message).endswith(f"; no score for {', '.join(missing)}")
    assert [name for name, score in record.scores.items() if not score.is_finite] == missing
    for name in missing:
        assert str(record.scores[name]) == "no score"
        assert all(map(math.isnan, record.scores[name].resample_values))
    again = scorer(observation(8), 8)
    assert all(score.is_finite for score in again.scores.values())
    assert scorer.neighborhoods.steps == ([8] if part == "points" else [7, 8])


class Fails:
    name, higher_is_better = "fails", True

    def __call__(self, points):
        raise ZeroDivisionError("nothing to divide by")


def test_an_extra_criterion_that_fails_costs_only_its_own_score():
    alone = Scorer([Separability()], RESAMPLES)(observation(1), 10)
    scorer = Scorer([Separability(), Fails(), InfoMax()], RESAMPLES, on_error="skip")
    said = "^sepstop: no score for fails at step 10: ZeroDivisionError: nothing to divide by$"
    with pytest.warns(RuntimeWarning, match=said) as caught:
        record = scorer(observation(1), 10)
    assert len(caught) == 1
    assert record.scores["separability"] == alone.scores["separability"]
    assert record.scores["infomax"].is_finite
    assert str(record.scores["fails"]) == "no score"
    for criteria, on_error in (([Separability(), Fails()], "raise"), ([Fails()], "skip")):
        with pytest.raises(ZeroDivisionError):
            Scorer(criteria, RESAMPLES, on_error=on_error)(observation(1), 10)


def test_a_resample_without_a_score_leaves_the_record_without_one():
    def some(points):
        return torch.tensor([1.0, math.nan, 1.0, 1.0, 1.0])

    some.name, some.higher_is_better = "some", True
    with pytest.warns(RuntimeWarning, match="gave no finite number at step 1; no score for some$"):
        record = Scorer([some, Separability()], RESAMPLES)(observation(1), 1)
    assert not record.scores["some"].is_finite
    assert record.scores["some"].resample_values[0] == 1.0
    assert record.scores["separability"].is_finite


# The criteria of a run


def names(**config):
    outputs = config.pop("outputs", "classes")
    has_logits = config.pop("has_logits", True)
    return [one.name for one in criteria_for(SepStopConfig(**config), outputs, has_logits)]


@pytest.mark.parametrize(
    ("outputs", "has_logits", "decides"),
    [
        ("classes", True, "robust_mi"),
        ("labels", True, "label_mi"),
        ("none", True, "component_mi"),
        ("none", False, "component_mi"),
    ],
)
def test_auto_is_the_mutual_information_of_the_outputs(outputs, has_logits, decides):
    given = {"outputs": outputs, "has_logits": has_logits}
    assert names(**given) == [decides, "separability"]
    assert names(**given, policy="plateau") == [decides, "separability"]
    assert names(**given, criterion="separability") == ["separability"]
    assert names(**given, criterion="separability", extra_criteria=["auto"]) == [
        "separability",
        decides,
    ]
    assert names(**given, extra_criteria=()) == [decides]


def test_a_name_counts_once_and_the_first_counts():
    plain = {"name": "separability", "normalize": False}
    extra = ["separability", "auto", "neighbor_mi"]
    with pytest.warns(UserWarning, match="two criteria are called 'separability'; the second, Sep"):
        found = criteria_for(SepStopConfig(criterion=plain, extra_criteria=extra), "classes")
    assert [one.name for one in found] == ["separability", "robust_mi", "neighbor_mi"]
    assert found[0] == Separability(normalize=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # equal ones, or in the place of a default
        assert names(criterion="robust_mi", extra_criteria=["auto"]) == ["robust_mi"]
        assert names(criterion=plain) == ["separability"]


@pytest.mark.parametrize(
    ("outputs", "has_logits", "name", "message"),
    [
        ("labels", True, "infomax", "'infomax' is for .* one class out of k, but they are labels"),
        ("none", False, "neighbor_mi", "'neighbor_mi' is for .*: use 'component_mi'"),
        ("labels", True, "robust_mi", "'robust_mi' is for .*: use 'label_mi'"),
        ("classes", True, "label_mi", "'label_mi' is for .*: use 'robust_mi'"),
        ("none", False, "logits", "the criterion 'own' needs logits, and the model returns none"),
        ("none", False, "neighbor_classes", "the criterion 'own' needs logits, and the model"),
    ],
)
def test_a_misfit_that_decides_is_an_error_and_another_is_left_out(
    outputs, has_logits, name, message
):
    spec = criterion(name) if name in INPUTS else name
    given = {"outputs": outputs, "has_logits": has_logits}
    with pytest.raises(CriterionError, match=message):
        names(**given, criterion=spec)
    with pytest.warns(UserWarning, match=f"^sepstop: .*{message}.*; it is left out$"):
        found = names(**given, extra_criteria=["separability", spec, "auto"])
    assert found == names(**given)


def test_a_criterion_on_logits_takes_those_of_any_outputs():
    for outputs in ("classes", "labels", "none"):
        assert "own" in names(outputs=outputs, extra_criteria=[criterion("logits")])


class Misread:
    name, higher_is_better = "own", True

    def __init__(self, attribute, value):
        setattr(self, attribute, value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("depth", "unknown criterion 'depth'; known: component_mi, consistency,"),
        ("snd", "'snd' is for comparison only, as 'sepstop.bench.criteria:SND'"),
        (criterion("labels"), "'own' needs labels; known: points, logits"),
        (criterion("points", name="runtime"), "'runtime' would replace the Trainer's own eval_run"),
        (criterion("points", name="own_low"), "'own_low' could be confused with an end of an int"),
        (criterion("points", name="a_of_b"), "'a_of_b' could be confused with the score of one of"),
        (lambda points: points, "has no attribute `name`"),
        (criterion("points", name=None), "expected a string as `name` .*, got None"),
        (
            criterion("points", higher_is_better="min"),
            "expected a bool as `higher_is_.*, got 'min'",
        ),
        (Misread("needs", "logits"), "expected a tuple as `needs` of 'own', got 'logits'"),
        (Misread("outputs", "class"), "`outputs` of 'own' among 'classes', .*, got 'class'"),
    ],
)
def test_what_is_no_criterion_is_an_error(spec, message):
    with pytest.raises(ValueError, match=message):
        build_criterion(spec)


def test_specs_of_a_criterion():
    for spec in ("infomax", {"name": "infomax"}, InfoMax, InfoMax(), "sepstop.criteria:InfoMax"):
        assert build_criterion(spec) == InfoMax()


def test_a_score_is_the_mean_with_its_interval():
    def fixed(points):
        return torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])

    fixed.name, fixed.higher_is_better = "fixed", True
    score = Scorer([fixed], RESAMPLES)(observation(1), 1).scores["fixed"]
    values = (0.1, 0.2, 0.3, 0.4, 0.5)
    assert score.resample_values == pytest.approx(values)
    low, high = interval(values, 20, N)
    assert score == Score(
        pytest.approx(0.3), pytest.approx(low), pytest.approx(high), score.resample_values
    )
