"""The judgement of criteria and policies on recorded runs."""

import json

import numpy as np
import pytest
from helpers.recorded import toy_run, without_logits

from sepstop import SepStopCallback
from sepstop.bench.judge import JUDGED, JUDGED_POLICIES, KNOWN, judge
from sepstop.bench.scores import ScoreCache, score_run
from sepstop.criteria import ComponentMI, InfoMax, NeighborMI, Separability
from sepstop.decide.policies import Patience, Plateau, default_policy, replay


def test_every_criterion_for_one_class_out_of_k_is_judged():
    assert {*JUDGED, "label_mi"} == set(KNOWN)
    assert len(JUDGED) == len(set(JUDGED))


def test_regret_by_hand():
    # infomax follows the logits' scale: the last step is the first run's pick, 0.2 below its best
    runs = [toy_run(), toy_run("other", scores=(0, 1, 3, 2))]
    found = judge(runs, [InfoMax()], {"patience 1": Patience(1)})
    assert found.find("oracle").regrets == pytest.approx([0, 0])
    assert found.find("last checkpoint").regrets == pytest.approx([0.2, 0.2])
    assert found.find("infomax").picks == [30, 20]
    assert found.find("infomax").regrets == pytest.approx([0.2, 0])
    assert [one.spearman for one in found.find("infomax").outcomes] == pytest.approx([0.5, 1.0])
    stopped = found.find("infomax", "patience 1")
    assert stopped.picks == [30, 20]
    assert stopped.saved == pytest.approx([0, 0])
    rows = {(row["criterion"], row["policy"]): row for row in found.summaries()}
    assert rows["last checkpoint", "hindsight"]["against"] == "infomax"  # the best peer
    assert rows["last checkpoint", "hindsight"]["difference_mean"] == pytest.approx(0.1)
    assert not rows["oracle", "hindsight"]["label_free"]


def test_stopping_saves_steps_and_may_cost_accuracy():
    run = toy_run(accuracy=(0.1, 0.9, 0.8, 0.7, 0.95), scores=(0, 3, 2, 1, 4))
    found = judge([run], [InfoMax()], {"patience 2": Patience(2)})
    stop = found.find("infomax", "patience 2")
    assert (stop.picks, stop.saved) == ([10], pytest.approx([0.25]))
    assert stop.regrets == pytest.approx([0.05])
    assert found.find("infomax").regrets == pytest.approx([0])


def test_references_have_a_direction_and_may_see_labels():
    run = toy_run()
    run.arrays["tr_loss"] = np.array([np.nan, 1.0, 0.4, 0.5])
    run.arrays["va_loss"] = np.array([0.1, 0.9, 0.8, 0.7])
    run.arrays["va_acc"] = np.array([0.9, 0.6, 0.6, 0.5])
    found = judge([run], [])
    picks = {verdict.criterion: verdict.picks for verdict in found.verdicts}
    assert {name: pick for name, (pick,) in picks.items() if name != "default"} == {
        "oracle": 20,
        "last checkpoint": 30,
        "training loss": 20,
        "validation loss": 30,
        "validation accuracy": 10,
    }
    free = {verdict.criterion for verdict in found.verdicts if verdict.label_free}
    assert free == {"last checkpoint", "training loss", "default"}


@pytest.mark.parametrize(
    ("run", "criterion"), [(toy_run(), NeighborMI()), (without_logits(toy_run()), ComponentMI())]
)
def test_the_default_is_the_callbacks(run, criterion):
    """Its criterion fits the run's outputs, and its policy the criterion."""
    config = SepStopCallback([f"text {i}" for i in range(9)]).config
    assert (config.criterion, config.policy) == ("auto", "auto")
    found = judge([run], [criterion], {})
    by_default, by_name = found.find("default"), found.find(criterion.name)
    assert by_default.outcomes == by_name.outcomes
    (series,) = score_run(run, [criterion]).values()
    decision = replay(default_policy(criterion.name), series)
    assert found.find("default", "auto").picks == [decision.best_step]


def test_a_run_without_logits_is_judged_by_its_embeddings():
    found = judge([without_logits(toy_run())], [ComponentMI(), InfoMax()], {"plateau": Plateau()})
    names = {verdict.criterion for verdict in found.verdicts}
    assert names == {"oracle", "last checkpoint", "component_mi", "default"}
    assert found.find("default", "auto").outcomes == found.find("component_mi", "plateau").outcomes
    assert found.label_regrets == {}
    assert json.dumps(found.as_json(), allow_nan=False)


def test_what_a_run_lacks_is_left_out_for_all():
    whole, bare = toy_run("whole"), toy_run("bare")
    whole.arrays["tr_loss"] = np.array([2.0, 1.0, 0.5, 0.4])
    whole.arrays["pool_d"] = whole.arrays["pool_l"]
    criteria = [InfoMax(), KNOWN["consistency"]()]
    named = {verdict.criterion for verdict in judge([whole], criteria, {}).verdicts}
    found = judge([whole, bare], criteria, {})
    left_out = named - {verdict.criterion for verdict in found.verdicts}
    assert left_out == {"training loss", "consistency"}
    assert json.dumps(found.as_json(), allow_nan=False)


def test_all_criteria_with_all_policies(tmp_path):
    run = toy_run()
    run.arrays["pool_d"] = run.arrays["pool_l"]
    cache = ScoreCache(tmp_path, num_resamples=2)
    found = judge([run], [KNOWN[name]() for name in JUDGED], scores=cache)
    pairs = {(name, policy) for name in JUDGED for policy in ("hindsight", *JUDGED_POLICIES)}
    references = {("oracle", "hindsight"), ("last checkpoint", "hindsight")}
    default = {("default", "hindsight"), ("default", "auto")}
    judged = [(verdict.criterion, verdict.policy) for verdict in found.verdicts]
    assert set(judged) == pairs | references | default
    assert len(judged) == len(set(judged))


def test_nothing_to_judge():
    with pytest.raises(ValueError, match="expected at least one recorded run"):
        judge([], [InfoMax()])


def test_two_criteria_of_one_name():
    criteria = [Separability(), Separability(normalize=False)]
    with pytest.raises(ValueError, match="different names, got two called 'separability'"):
        judge([toy_run()], criteria)
