"""The judgement of criteria and policies on recorded runs."""

import json

import numpy as np
import pytest
from helpers.recorded import toy_run, with_average, without_copies, without_logits

from sepstop import SepStopCallback
from sepstop.bench.judge import CONTENDERS, JUDGED, JUDGED_POLICIES, KNOWN, candidate_sets, judge
from sepstop.bench.recorded_run import RecordedRun
from sepstop.bench.scored import Scored
from sepstop.bench.scores import ScoreCache, score_run
from sepstop.config import SepStopConfig
from sepstop.criteria import ComponentMI, InfoMax, RobustMI, Separability
from sepstop.decide.policies import Patience, Plateau, default_policy, replay
from sepstop.measure.average import AVERAGES
from sepstop.types import Score


def test_every_criterion_for_one_class_out_of_k_is_judged():
    assert {*JUDGED, "label_mi", "pool_loss"} == set(KNOWN)
    assert set(CONTENDERS) < set(JUDGED)
    assert len(JUDGED) == len(set(JUDGED))


def test_regret_by_hand():
    # infomax follows the logits' scale: the last step is the first run's pick, 0.2 below its best
    runs = [toy_run(), toy_run("other", scores=(0, 1, 3, 2))]
    found = judge(runs, [InfoMax()], {"patience 1": Patience(1)})
    assert found.find("oracle").regrets == pytest.approx([0, 0])
    assert found.find("last checkpoint").regrets == pytest.approx([0.2, 0.2])
    assert found.find("infomax").picks == [30, 20]
    assert found.find("infomax").regrets == pytest.approx([0.2, 0])
    assert [one.agreement.spearman for one in found.find("infomax").outcomes] == pytest.approx(
        [0.5, 1.0]
    )
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
    ("run", "criterion"), [(toy_run(), RobustMI()), (without_logits(toy_run()), ComponentMI())]
)
def test_the_default_is_the_callbacks(run, criterion):
    """Its criterion fits the run's outputs, and its policy the criterion."""
    config = SepStopCallback([f"text {i}" for i in range(9)]).config
    assert (config.criterion, config.policy) == ("auto", "auto")
    found = judge([run], [criterion], {})
    by_default, by_name = found.find("default"), found.find(criterion.name)
    assert by_default.outcomes == by_name.outcomes
    (scored,) = score_run(run, [criterion]).values()
    decision = replay(default_policy(criterion.name), scored.series)
    assert found.find("default", "auto").picks == [decision.best_step]


def test_a_run_without_logits_is_judged_by_its_embeddings():
    found = judge([without_logits(toy_run())], [ComponentMI(), InfoMax()], {"plateau": Plateau()})
    names = {verdict.criterion for verdict in found.verdicts}
    assert names == {"oracle", "last checkpoint", "component_mi", "default"}
    assert found.find("default", "auto").outcomes == found.find("component_mi", "plateau").outcomes
    assert found.label_regrets == {}
    assert json.dumps(found.as_json(), allow_nan=False)


def test_what_a_run_lacks_is_left_out_for_all():
    whole, bare = toy_run("whole"), without_copies(toy_run("bare"))
    whole.arrays["tr_loss"] = np.array([2.0, 1.0, 0.5, 0.4])
    criteria = [InfoMax(), KNOWN["consistency"]()]
    named = {verdict.criterion for verdict in judge([whole], criteria, {}).verdicts}
    found = judge([whole, bare], criteria, {})
    left_out = named - {verdict.criterion for verdict in found.verdicts}
    assert left_out == {"training loss", "consistency", "default"}
    assert found.as_json()["default"] is None
    assert json.dumps(found.as_json(), allow_nan=False)


def test_all_criteria_with_all_policies(tmp_path):
    cache = ScoreCache(tmp_path, num_resamples=2)
    found = judge([toy_run()], [KNOWN[name]() for name in JUDGED], scores=cache)
    pairs = {(name, policy) for name in JUDGED for policy in ("hindsight", *JUDGED_POLICIES)}
    references = {("oracle", "hindsight"), ("last checkpoint", "hindsight")}
    default = {("default", "hindsight"), ("default", "auto")}
    # Their own policy is not among the others.
    pairs |= {("robust_mi", "auto"), ("neighbor_mi", "auto")}
    judged = [(verdict.criterion, verdict.policy) for verdict in found.verdicts]
    assert set(judged) == pairs | references | default
    assert len(judged) == len(set(judged))


def averaged_run(name="toy"):
    """Two averages: the cumulative one beats all checkpoints at step 20, by 0.05."""
    run = toy_run(name, accuracy=(0.1, 0.5, 0.9, 0.7), scores=(0, 1, 2, 3))
    run = with_average(run, "cumulative", (0.1, 0.6, 0.95, 0.8), scores=(0, 2, 5, 3))
    return with_average(run, "recent", (0.1, 0.6, 0.85, 0.7), scores=(0, 2, 4, 6))


def test_averages_by_hand():
    """infomax follows the logits' scale, so it keeps the candidate with the highest one."""
    run = averaged_run()
    assert candidate_sets([run]) == {
        "checkpoints": ("checkpoint",),
        "cumulative": ("cumulative",),
        "recent": ("recent",),
        "averages": ("cumulative", "recent"),
        "all": ("cumulative", "recent", "checkpoint"),
    }
    found = judge([run], [InfoMax()], {"patience 1": Patience(1)})
    kept = {
        candidates: found.find("infomax", candidates=candidates).outcomes[0]
        for candidates in candidate_sets([run])
    }
    assert {name: (one.step, one.candidate) for name, one in kept.items()} == {
        "checkpoints": (30, "checkpoint"),
        "cumulative": (20, "cumulative"),
        "recent": (30, "recent"),
        "averages": (30, "recent"),
        "all": (30, "recent"),
    }
    assert {name: one.regret for name, one in kept.items()} == pytest.approx(
        {"checkpoints": 0.2, "cumulative": -0.05, "recent": 0.2, "averages": 0.2, "all": 0.2}
    )
    stopped = found.find("infomax", "patience 1", "cumulative").outcomes[0]
    assert (stopped.step, stopped.candidate, stopped.saved) == (20, "cumulative", 0.0)
    assert found.find("oracle").regrets == pytest.approx([0])
    best = found.find("oracle", candidates="all").outcomes[0]
    assert (best.step, best.candidate, best.regret) == (20, "cumulative", pytest.approx(-0.05))


def test_the_default_chooses_among_the_averages_of_training():
    run = averaged_run()
    config = SepStopConfig()
    names = [name for name in AVERAGES if name in run.averages] if config.average else []
    if config.score_checkpoints or not names:
        names.append("checkpoint")
    found = judge([run], [])
    (default,) = found.find("default").outcomes
    scored = score_run(run, [RobustMI()], names)["robust_mi"]
    assert default.step == scored.series.best_step
    assert default.candidate == scored.best_at(default.step)
    assert found.decides == "robust_mi"


def test_averages_that_need_no_pool():
    arrays = toy_run().arrays | {"plain_te_acc": np.array([0.95, 0.6])}
    run = RecordedRun("toy", arrays, {"plain": ["average of all", "EMA 0.99"]})
    found = judge([run], [])
    assert found.find("average of all").regrets == pytest.approx([-0.05])
    (ema,) = found.find("EMA 0.99").outcomes
    assert (ema.step, ema.candidate, ema.regret) == (30, "EMA 0.99", pytest.approx(0.3))
    assert {name for name, _, candidates in found.question() if candidates == "plain"} == {
        "average of all",
        "EMA 0.99",
    }


def test_averages_that_a_run_lacks_are_left_out_for_all():
    fewer = with_average(toy_run("fewer"), "cumulative", (0.1, 0.6, 0.95, 0.8))
    assert list(candidate_sets([averaged_run(), fewer])) == ["checkpoints", "cumulative", "all"]
    assert list(candidate_sets([averaged_run(), toy_run()])) == ["checkpoints"]
    found = judge([averaged_run(), toy_run("bare")], [InfoMax()])
    assert {verdict.candidates for verdict in found.verdicts} == {"checkpoints"}


def test_a_rule_of_ones_own():
    """Any choice among the candidates can be judged, one in hindsight included."""

    def second_best(run):
        scores = [{"checkpoint": Score(0.0)} for _ in run.steps]
        scores[2] = {"checkpoint": Score(0.0), "recent": Score(1.0)}
        return Scored("rule", True, tuple(run.steps), tuple(scores))

    found = judge([averaged_run()], [], {"patience 1": Patience(1)}, rules={"ours": second_best})
    (kept,) = found.find("ours").outcomes
    assert (kept.step, kept.candidate, kept.regret) == (20, "recent", pytest.approx(0.05))
    assert found.find("ours", "patience 1").candidates == "rule"
    assert ("ours", "hindsight", "rule") in found.question()


def test_strata_of_runs():
    settings = [{"learning_rate": 1e-4, "noise": 0.4}, {"learning_rate": 1e-4}]
    runs = [RecordedRun(f"run {i}", toy_run().arrays, found) for i, found in enumerate(settings)]
    found = judge(runs, [InfoMax()])
    assert found.strata == ["harsh", "clean"]
    assert {name: part.runs for name, part in found.by_stratum.items()} == {
        "clean": ["run 1"],
        "harsh": ["run 0"],
    }


def test_nothing_to_judge():
    with pytest.raises(ValueError, match="expected at least one recorded run"):
        judge([], [InfoMax()])


def test_two_criteria_of_one_name():
    criteria = [Separability(), Separability(normalize=False)]
    with pytest.raises(ValueError, match="different names, got two called 'separability'"):
        judge([toy_run()], criteria)
