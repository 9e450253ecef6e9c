"""Records, decisions and histories through JSON and back."""

import json
import math
from dataclasses import replace

import pytest

from sepstop import Decision, Record, Score
from sepstop.runs.records import (
    RunHistory,
    decision_from_dict,
    decision_to_dict,
    from_state,
    header_from_dict,
    header_to_dict,
    pair_from_dict,
    record_from_dict,
    record_to_dict,
    to_state,
)

NAN, INF = math.nan, math.inf
FULL = Record(
    step=30,
    epoch=1.5,
    scores={
        "my_score": Score(0.5, 0.4, 0.6, (0.45, 0.55)),
        "neighbor_mi": Score(0.1 + 0.2, 0.2, 0.4, (0.25, 0.35)),
    },
    seconds=2.25,
    resample_size=10,
    pool_size=40,
)
RECORDS = {
    "full": FULL,
    "one score": Record(10, None, {"a": Score(1 / 3)}),
    "no scores": Record(10, None, {}),
    "not finite": Record(20, None, {"a": Score(NAN, resample_values=(NAN, 0.5))}),
    "step 0": Record(0, 0.0, {"a": Score(1.0)}),
    "any name": Record(1, None, {"größe 大 \n\"'": Score(1.0), "": Score(2.0)}),
}
RUN = RunHistory(
    records=(
        Record(10, 0.5, {"separability": Score(0.2), "neighbor_mi": Score(0.9)}),
        Record(20, 1.0, {"separability": Score(NAN)}),
        Record(30, 1.5, {"separability": Score(0.4), "neighbor_mi": Score(0.8)}),
    ),
    decisions=(
        Decision(False, 10, "improving", 10),
        None,
        Decision(True, 30, "nothing to hope for", 30),
    ),
    settings={"criterion": {"name": "separability"}, "seed": 3, "pool": "abc"},
    settings_since=15,
    policy={"custom": "script:my_policy"},
    decides="separability",
    higher_is_better={"separability": True, "neighbor_mi": True},
    ended=30,
)


def through_json(values):
    return json.loads(json.dumps(values, allow_nan=False))


# NaN is unequal to itself, so records are compared by their repr.


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_record_round_trip(record):
    assert repr(record_from_dict(through_json(record_to_dict(record)))) == repr(record)


def test_the_scores_keep_their_order():
    scores = {name: Score(1.0) for name in ("b", "a", "c")}
    record = record_from_dict(through_json(record_to_dict(Record(1, None, scores))))
    assert list(record.scores) == ["b", "a", "c"]


def test_infinity_becomes_nan():
    score = Score(INF, -INF, INF, (INF, 1.0, -INF))
    (found,) = record_from_dict(
        through_json(record_to_dict(Record(1, INF, {"a": score}, seconds=INF)))
    ).scores.values()
    assert repr(found) == repr(Score(NAN, NAN, NAN, (NAN, 1.0, NAN)))


def test_unknown_keys_are_ignored():
    values = record_to_dict(FULL)
    values["scores"]["my_score"]["invented_later"] = 1
    assert record_from_dict({**values, "invented_later": [1, 2]}) == FULL


SCORES = {"a": {"value": 0.5}}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"scores": SCORES},
        {"step": 1},
        {"step": "x", "scores": SCORES},
        {"step": True, "scores": SCORES},
        {"step": -1, "scores": SCORES},
        {"step": 10**400, "scores": SCORES},
        {"step": 1, "scores": [0.5]},
        {"step": 1, "scores": {"a": 0.5}},
        {"step": 1, "scores": {"a": {}}},
        {"step": 1, "scores": {"a": {"value": "high"}}},
        {"step": 1, "scores": {"a": {"value": 10**400}}},
        {"step": 1, "scores": {"a": {"value": 0.5, "resample_values": 0.5}}},
        {"step": 1, "scores": {5: {"value": 0.5}}},
        {"step": 1, "scores": SCORES, "epoch": "first"},
        {"step": 1, "scores": SCORES, "pool_size": "large"},
        5,
        None,
        [1],
    ],
    ids=str,
)
def test_not_a_record(values):
    with pytest.raises(ValueError, match="expected a sepstop record, got"):
        record_from_dict(values)


def test_a_record_of_an_earlier_version_says_what_to_do():
    old = {"step": 1, "score": 0.5, "information": 0.4, "criterion": "separability"}
    message = "earlier development version of sepstop; start the run again, or score its checkpoi"
    with pytest.raises(ValueError, match=message):
        record_from_dict(old)
    with pytest.raises(ValueError, match=message):
        from_state({"history": [old], "settings": {}, "policy": {}})


@pytest.mark.parametrize("decision", [None, Decision(True, None, "why", 3), RUN.decisions[0]])
def test_decision_round_trip(decision):
    assert decision_from_dict(through_json(decision_to_dict(decision)), step=7) == decision


def test_a_decision_without_a_step_is_of_its_record():
    values = {"record": None} | record_to_dict(FULL)
    decision = {"stop": False, "best_step": 10, "reason": "why"}
    assert pair_from_dict(values | {"decision": decision})[1] == Decision(False, 10, "why", 30)


@pytest.mark.parametrize(
    "change",
    [
        {"stop": 1},
        {"stop": None},
        {"best_step": "10"},
        {"best_step": -1},
        {"best_step": True},
        {"reason": None},
        {"step": 1.5},
        {"step": 2**63},
    ],
    ids=str,
)
def test_not_a_decision(change):
    good = {"stop": True, "best_step": 10, "reason": "why", "step": 20}
    assert decision_from_dict(good, 0) is not None
    with pytest.raises(ValueError, match=r"expected a decision, got \{"):
        decision_from_dict(good | change, 0)
    with pytest.raises(ValueError, match=r"expected a decision, got \[True\]"):
        decision_from_dict([True], 0)


def test_state_round_trip():
    assert repr(from_state(through_json(to_state(RUN)))) == repr(RUN)
    begun = replace(RUN, records=(), decisions=(), ended=None)
    assert from_state(through_json(to_state(begun))) == begun


def test_the_header_is_the_history_without_records():
    header = through_json(header_to_dict(RUN))
    assert header_from_dict(header | {"invented_later": 1}) == replace(
        RUN, records=(), decisions=()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"settings": []},
        {"settings": {"criterion": "separability"}},
        {"settings": {"criterion": {1: 2}}},
        {"settings": {"extra_criteria": {"name": "entropy"}}},
        {"settings": {"extra_criteria": ["entropy"]}},
        {"settings": {"seed": -1}},
        {"settings": {"num_resamples": 10**9}},
        {"settings": {"resample_size": 2.5}},
        {"settings": {"pool": 5}},
        {"settings": {"outputs": "numbers"}},
        {"settings_since": -1},
        {"policy": "patience"},
        {"decides": None},
        {"decides": ""},
        {"higher_is_better": ["separability"]},
        {"higher_is_better": {"separability": 1}},
        {"higher_is_better": {"neighbor_mi": True}},  # not of the one that decides
        {"ended": "now"},
        {"ended": -1},
    ],
    ids=str,
)
def test_not_a_header(change):
    with pytest.raises(TypeError, match="not a header"):
        header_from_dict(header_to_dict(RUN) | change)
    with pytest.raises(ValueError, match=r"expected a sepstop history, got \{"):
        from_state(to_state(RUN) | change)


@pytest.mark.parametrize("state", [{}, {"history": 5}, {"history": [5]}, 5, None])
def test_not_a_state(state):
    with pytest.raises(ValueError, match="expected a sepstop"):
        from_state(state)


# The history of a run


def test_the_series_of_a_history():
    assert RUN.names == ("separability", "neighbor_mi")
    assert (RUN.series.name, RUN.series.higher_is_better) == ("separability", True)
    assert repr(RUN.series.scores) == repr((Score(0.2), Score(NAN), Score(0.4)))
    assert repr(RUN.series_of("neighbor_mi").scores) == repr((Score(0.9), Score(NAN), Score(0.8)))
    lower = replace(RUN, decides="neighbor_mi", higher_is_better={"neighbor_mi": False})
    assert lower.names == ("neighbor_mi", "separability")
    assert (lower.series.higher_is_better, lower.series.best_step) == (False, 30)


def test_parts_of_a_history():
    short = RUN.where(lambda record: record.step != 20)
    assert [record.step for record in short.records] == [10, 30]
    assert [decision.step for decision in short.decisions] == [10, 30]
    assert short.decision == RUN.decision
    nothing = RUN.where(lambda record: False)
    assert (nothing.records, nothing.decisions, nothing.decision) == ((), (), None)
    assert (nothing.settings, nothing.decides) == (RUN.settings, RUN.decides)


def test_the_records_measured_alike():
    assert [record.step for record in RUN.measured_alike] == [20, 30]
    assert replace(RUN, settings={}).measured_alike == ()
    assert replace(RUN, settings_since=0).measured_alike == RUN.records
