"""A run in a plain torch loop: measured, decided, interrupted, resumed and continued."""

import copy
import dataclasses
import math
import textwrap
import warnings

import pytest
import torch
from conftest import make_encoder
from helpers.scores import NEVER, Scripted, StopAt, values
from torch import nn

from sepstop import (
    Monitor,
    PastPeak,
    Patience,
    Plateau,
    RunningAverages,
    SepStopConfig,
    replay,
)
from sepstop.callbacks.session import Session
from sepstop.measure.neighbors import NEIGHBORS_FILE
from sepstop.runs.history import HISTORY_FILE, read_history, read_run
from sepstop.runs.records import RunHistory
from sepstop.types import CHECKPOINT, Average

EVERY, WARMUP = 4, 6


class Loop:
    """A training loop with a checkpoint at each evaluation, as a user writes it."""

    def __init__(self, folder, session, batches, learning_rate=3e-3):
        self.folder, self.session, self.batches = folder, session, list(batches)
        self.model, self.step, self.averages = make_encoder(dropout=0.0), 0, None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate)

    def load(self, checkpoint):
        self.step = checkpoint["step"]
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.averages = checkpoint["averages"]
        return self

    @property
    def checkpoint(self):
        averages = self.session.averages
        return copy.deepcopy(
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "averages": None if averages is None else averages.state_dict(),
            }
        )

    def begin(self):
        path = self.folder / HISTORY_FILE
        recorded = read_history(path) if self.step else RunHistory()
        self.session.prepare(self.model)
        self.session.averaged_steps.begin_at(WARMUP)
        self.session.resume(recorded.where(lambda record: record.step <= self.step))
        self.session.averaged_steps.restore(lambda: self.averages, self.model, self.step)
        self.session.write(self.folder)
        if not self.session.settle_stop():
            self.session.set_reference(self.folder, self.step, self.model)

    def run(self, until):
        """Train to a step or to the stop; the checkpoints on the way, by step."""
        self.begin()
        saved = {}
        while self.step < until and not self.session.stays_stopped:
            batch = self.batches[self.step % len(self.batches)]
            self.model.train()
            self.model(**batch).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.session.after_step(self.model, self.step)
            if self.step % EVERY == 0:
                _, decision = self.session.measure(self.model, self.step, None, self.folder)
                saved[self.step] = self.checkpoint
                if decision.stop:
                    break
        self.session.end(self.folder, self.step)
        return saved


@pytest.fixture
def loop(tmp_path, pool, tokenizer, batches):
    def make(folder="run", texts=pool, **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        options = {"verbose": False, "average": False} | options
        config = SepStopConfig(tokenizer=tokenizer, **options)
        return Loop(tmp_path / folder, Session(texts, config), batches)

    return make


def timeless(records):
    return [dataclasses.replace(record, seconds=0) for record in records]


def test_it_measures_decides_and_writes(loop):
    run = loop()
    run.run(40)
    session, written = run.session, read_run(run.folder)
    assert session.policy == PastPeak(min_best=0.2)
    assert list(written.records) == session.records
    assert [record.step for record in session.records] == list(range(EVERY, run.step + 1, EVERY))
    assert all(list(record.scores) == ["robust_mi", "separability"] for record in written.records)
    assert list(written.decisions) == session.decisions
    assert session.decision == replay(session.policy, written.series)
    assert written.decides == session.decides == "robust_mi"
    assert written.settings == session.settings
    assert written.policy == {"name": "past_peak", **dataclasses.asdict(session.policy)}
    assert written.higher_is_better == {"robust_mi": True, "separability": True}
    assert written.ended == run.step


def test_the_file_begins_before_the_first_score_and_has_no_end_yet(loop):
    run = loop()
    run.begin()
    written = read_history(run.folder / HISTORY_FILE)
    assert (written.records, written.ended) == ((), None)
    assert written.decides == "robust_mi"
    run.session.measure(run.model, 1, 0.5, run.folder)
    written = read_history(run.folder / HISTORY_FILE)
    assert [(record.step, record.epoch) for record in written.records] == [(1, 0.5)]
    assert written.ended is None


def test_a_step_is_scored_once(loop):
    run = loop()
    run.begin()
    assert run.session.measure(run.model, 1, None, run.folder) is not None
    assert run.session.measure(run.model, 1, None, run.folder) is None
    assert len(run.session.records) == 1


@pytest.mark.parametrize("policy", ["auto", Plateau(window=1, tolerance=0.3, warmup=3)])
@pytest.mark.parametrize("resume_at", [4, 12])
def test_a_resumed_run_is_an_uninterrupted_one(loop, policy, resume_at):
    whole = loop("whole", policy=policy)
    whole.run(32)
    checkpoint = loop(policy=policy).run(resume_at)[resume_at]
    resumed = loop(policy=policy).load(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "sepstop: all .* scores of")
        resumed.run(32)
    assert timeless(resumed.session.records) == timeless(whole.session.records)
    assert resumed.session.decisions == whole.session.decisions
    assert resumed.step == whole.step
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_going_back_forgets_what_came_after(loop):
    saved = loop(policy=NEVER).run(16)
    again = loop(policy=NEVER).load(saved[8])
    again.begin()
    assert [record.step for record in again.session.records] == [4, 8]
    assert again.session.monitor.neighborhoods.steps == [0, 4, 8]


def test_a_missing_neighbors_file_is_a_warning(loop):
    saved = loop().run(8)
    again = loop().load(saved[8])
    (again.folder / NEIGHBORS_FILE).unlink()
    with pytest.warns(RuntimeWarning, match="sepstop: .* is missing or belongs to another run"):
        again.run(12)
    assert len(again.session.records) == 3


# Averages


def averaged(weights, decay):
    """The average of tensors, the n-th weighed by n (n + 1) ... (n + decay - 1), in float64."""
    shares = torch.tensor([math.prod(range(n, n + decay)) for n in range(1, len(weights) + 1)])
    shares = shares.double() / shares.sum()
    return sum(share * one.double() for share, one in zip(shares, weights, strict=True))


@pytest.mark.parametrize(("every", "checkpoints"), [(1, False), (3, True)])
def test_averages_are_scored_from_the_end_of_the_warm_up_on(loop, every, checkpoints):
    run = loop(average=True, average_every_n_steps=every, score_checkpoints=checkpoints)
    run.begin()
    weights = []
    for step in range(1, 11):
        with torch.no_grad():
            run.model.classifier.weight += step
        run.session.after_step(run.model, step)
        if step >= WARMUP and step % every == 0:
            weights.append(run.model.classifier.weight.clone())
        if step == 4:
            run.session.measure(run.model, step, None, run.folder)
    before = copy.deepcopy(run.model.state_dict())
    record, _ = run.session.measure(run.model, 10, None, run.folder)
    assert all(torch.equal(before[key], one) for key, one in run.model.state_dict().items())
    assert (run.session.records[0].average, run.session.records[0].others) == (None, {})
    last = 10 - 10 % every
    expected = {
        name: Average(name, WARMUP, last, len(weights)) for name in run.session.averages.decays
    }
    assert set(record.candidates) == {*expected, *([CHECKPOINT] if checkpoints else [])}
    if record.average is not None:
        assert record.average == expected[record.average.name]
    for name, decay in run.session.averages.decays.items():
        with run.session.averages.applied(run.model, name):
            kept = run.model.classifier.weight.double()
            assert torch.allclose(kept, averaged(weights, decay), rtol=1e-6)
            scored = Monitor(run.session.monitor.pool, run.session.config)
            scored.neighborhoods = run.session.monitor.neighborhoods
            alone = scored.measure(run.model, 10)
        for criterion, score in record.candidates[name].items():
            if criterion == "separability":
                assert alone.scores[criterion] == score


@pytest.mark.parametrize("resume_at", [4, 8, 12])
@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_has_the_averages_of_an_uninterrupted_one(loop, resume_at, every):
    options = {"policy": NEVER, "average": True, "average_every_n_steps": every}
    whole = loop("whole", **options)
    whole.run(20)
    checkpoint = loop(**options).run(resume_at)[resume_at]
    resumed = loop(**options).load(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.run(20)
    assert timeless(resumed.session.records) == timeless(whole.session.records)
    assert any(record.average for record in resumed.session.records)
    expected = whole.session.averages.state_dict()
    found = resumed.session.averages.state_dict()
    for name, tensors in expected.pop("averages").items():
        ours = found["averages"][name]
        assert all(torch.equal(ours[key], one) for key, one in tensors.items())
    found.pop("averages")
    assert found == expected


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"decays": {"other": 1}}, "expected averages .*, got {'other': 1}"),
        ({}, "decays"),
    ],
)
def test_averages_that_can_not_be_resumed_begin_anew_with_a_warning(loop, state, said):
    options = {"policy": NEVER, "average": True}
    checkpoint = loop(**options).run(8)[8]
    again = loop(**options).load(checkpoint | {"averages": state})
    match = rf"sepstop: .* can't be resumed \(.*{said}.*\); they begin anew after step 8"
    with pytest.warns(UserWarning, match=match):
        again.run(12)
    newest = again.session.records[-1]
    assert (newest.average.first_step, newest.average.count) == (9, 4)


def test_averages_that_can_not_be_updated_are_given_up_with_a_warning(loop):
    def updated(averages, steps):
        run = loop(average=True, on_error=averages)
        run.begin()
        for step in range(WARMUP, WARMUP + steps):
            run.session.after_step(run.model, step)
        run.session.averages._averages["cumulative"]["classifier.bias"] = torch.zeros(9)
        run.session.after_step(run.model, WARMUP + steps)
        return run

    run = updated("skip", 2)
    with pytest.warns(RuntimeWarning, match="sepstop: could not average the weights, so check"):
        record, _ = run.session.measure(run.model, 9, None, run.folder)
    assert record.average is None
    assert record.scores["robust_mi"].is_finite
    run.session.after_step(run.model, 10)
    run = updated("raise", 2)
    with pytest.raises(RuntimeError, match="size"):
        run.session.measure(run.model, 9, None, run.folder)


def test_a_model_or_a_device_that_does_not_fit_is_said_before_training(loop):
    run = loop(average=True)
    run.model.classifier = nn.Sequential(nn.BatchNorm1d(16), run.model.classifier)
    with pytest.raises(ValueError, match=r"BatchNorm layer.*set average=False"):
        run.begin()
    with pytest.raises(ValueError, match="expected a device as `average_device`, got 'gpu'"):
        loop(average=True, average_device="gpu").begin()


def test_what_is_scored_is_said(loop, capsys):
    session = (run := loop(average=True, score_checkpoints=True, verbose=True)).session
    run.begin()
    session.announce_start("all is kept")
    session.after_step(run.model, 7)
    session.announce(*session.measure(run.model, 8, None, run.folder))
    start, step, cost = capsys.readouterr().out.splitlines()
    assert start.endswith(
        "; averages of the weights from step 6 on and checkpoints are scored; all is kept"
    )
    of = session.records[0].average
    shown = "" if of is None else f", {of}"
    assert step.startswith(f"sepstop: step 8{shown}  robust_mi ")
    assert cost.startswith("sepstop: a score takes 0.")


# Other settings than before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"num_resamples": 5}, "num_resamples was 20 and is 5"),
        ({"average": True, "average_every_n_steps": 9}, "average was False and is True"),
        ({"pooling": "cls", "criterion": "separability", "extra_criteria": []}, "pooling was"),
        ({"criterion": {"name": "separability", "normalize": False}}, "criterion was"),
        (
            {
                "criterion": "separability",
                "extra_criteria": [{"name": "component_mi", "min_size": 9}],
            },
            "an extra criterion was .*'min_size': 3.* and is .*'min_size': 9",
        ),
    ],
)
def test_other_settings_are_a_warning(loop, options, said):
    saved = loop(policy=NEVER, extra_criteria=["separability", "component_mi"]).run(8)
    again = loop(**({"policy": NEVER} | options)).load(saved[8])
    with pytest.warns(UserWarning, match=f"sepstop: the resumed run was measured .*{said}"):
        again.begin()
    again.session.measure(again.model, 12, None, again.folder)
    written = read_run(again.folder)
    assert [record.step for record in written.records] == [4, 8, 12]
    assert [record.step for record in written.measured_alike] == [12]


def test_a_significant_improvement_needs_the_same_resamples(loop):
    policy = Patience(patience=9, significance=0.05)
    saved = loop(policy=policy).run(8)
    with pytest.raises(ValueError, match=r"seed was 0 and is 1\. A policy with `significance`"):
        loop(policy=policy, seed=1).load(saved[8]).begin()


def test_another_recorded_score_may_decide_from_now_on(loop):
    saved = loop(criterion="robust_mi").run(8)
    again = loop(criterion="separability", extra_criteria=["infomax"]).load(saved[8])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # all of its scores compare
        again.begin()
    assert [record.step for record in again.session.records] == [4, 8]
    assert again.session.decision == Plateau()(again.session.monitor.series(again.session.records))
    again.session.measure(again.model, 12, None, again.folder)
    assert list(read_run(again.folder).series.steps) == [4, 8, 12]


def test_records_without_the_score_that_decides_are_left_out_with_a_warning(loop):
    saved = loop(policy=NEVER).run(8)
    again = loop(criterion="infomax").load(saved[8])
    with pytest.warns(UserWarning, match="sepstop: 2 of the resumed run's 2 records .* 'infomax'"):
        again.begin()
    assert again.session.records == []


def test_recorded_outputs_replace_a_guess(loop):
    """Without labels and a ``problem_type``, a head may be for classes or for labels."""
    session = (run := loop()).session
    session.prepare(run.model)
    assert (session.decides, session.policy) == ("robust_mi", PastPeak(min_best=0.2))
    session.resume(RunHistory(settings={"outputs": "labels"}))
    assert (session.decides, session.policy) == ("label_mi", PastPeak(since_lowest=True))


# Stopped runs


SCORES = [0.5, 0.4, 0.3, 0.2, 0.1]


def test_a_stopped_run_stays_stopped(loop, capsys):
    first = loop(policy=StopAt(8))
    saved = first.run(20)
    assert first.step == 8
    again = loop(policy=StopAt(8)).load(saved[8])
    again.session.verbose = True
    again.run(20)
    assert again.session.stays_stopped
    assert again.step == 8
    assert again.session.decision == first.session.decision
    assert "was stopped before and stays stopped (as told)" in capsys.readouterr().out
    assert read_run(again.folder).ended == 8


def test_a_stopped_run_continues_if_told_to(loop):
    policy = Patience(patience=1)
    first = loop(policy=policy, criterion=Scripted(SCORES))
    saved = first.run(20)
    assert first.step == 8
    again = loop(policy=policy, criterion=Scripted(SCORES[2:]), continue_after_stop=True)
    again.load(saved[8]).run(20)
    assert again.step == 16  # the policy started afresh at 0.3
    assert values(again.session.records) == pytest.approx([0.5, 0.4, 0.3, 0.2])
    assert again.session.decision.best_step == 4  # of the whole run
    third = loop(policy=policy, criterion=Scripted([])).load(again.checkpoint)
    third.begin()
    assert third.session.decision == again.session.decision


def test_a_stop_found_after_the_last_checkpoint(loop):
    """The policy has to be asked about records that the checkpoint lacks."""
    policy = Patience(patience=2)
    first = loop(policy=policy, criterion=Scripted(SCORES))
    saved = first.run(20)
    whole = read_history(first.folder / HISTORY_FILE)
    for goes_on in (False, True):
        again = loop(
            policy=policy, criterion=Scripted(SCORES[1:]), continue_after_stop=goes_on
        ).load(saved[4])
        session = again.session
        again.begin()
        decision = session.decide(list(whole.records))
        assert decision == first.session.decision
        session.take_over_stop(whole, decision, again.step)
        assert session.settle_stop() is not goes_on
        assert [record.step for record in session.records] == ([4] if goes_on else [4, 8, 12])
    session.measure(again.model, 8, None, again.folder)
    _, decision = session.measure(again.model, 12, None, again.folder)
    assert not decision.stop  # 0.4 and 0.3: one evaluation without improvement since step 4


# Failures


def test_a_measurement_that_fails_is_a_warning(loop):
    run = loop(criterion=Scripted([0.1]), extra_criteria=["auto"])
    run.begin()
    run.session.measure(run.model, 1, None, run.folder)
    with pytest.warns(RuntimeWarning, match="sepstop: could not measure step 2; training goes on"):
        record, decision = run.session.measure(run.model, 2, None, run.folder)
    assert list(record.scores) == ["separability", "robust_mi"]
    assert not any(score.is_finite for score in record.scores.values())
    assert decision.best_step == 1
    run = loop("other", criterion=Scripted([]), on_error="raise")
    run.begin()
    with pytest.raises(IndexError):
        run.session.measure(run.model, 1, None, run.folder)


def test_an_extra_criterion_that_fails_is_a_warning_and_the_run_is_decided(loop):
    failing = Scripted([])
    failing.name = "failing"
    run = loop(extra_criteria=[failing])
    with pytest.warns(RuntimeWarning, match="sepstop: no score for failing at step 4: IndexError"):
        run.run(EVERY)
    assert run.session.records[0].scores["robust_mi"].is_finite
    assert run.session.decision.best_step == EVERY
    run = loop("other", extra_criteria=[failing], on_error="raise")
    with pytest.raises(IndexError):
        run.run(EVERY)


def test_a_policy_that_fails_is_a_warning_and_the_best_is_known(loop):
    def policy(series):
        raise ZeroDivisionError("nothing to divide by")

    run = loop(policy=policy, criterion=Scripted([0.1, 0.3, 0.2]))
    with pytest.warns(RuntimeWarning, match="sepstop: could not decide at step (4|8|12);"):
        run.run(12)
    assert not run.session.decision.stop
    assert run.session.decision.best_step == 8
    assert "the policy failed: ZeroDivisionError" in run.session.decision.reason


# Without a session


def test_the_loop_in_monitors_docstring_runs_as_written(
    pool, tokenizer, batches, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _, _, code = Monitor.__doc__.partition("::\n")
    code, _, _ = code.partition("    Without ``averages``")
    run = Loop(None, None, batches)

    def train(model, step):
        model.train()
        model(**run.batches[step % len(run.batches)]).loss.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()

    names = {
        "texts": pool,
        "tokenizer": tokenizer,
        "model": run.model,
        "train": train,
        "Monitor": Monitor,
        "PastPeak": PastPeak,
        "RunningAverages": RunningAverages,
        "SepStopConfig": SepStopConfig,
    }
    exec(textwrap.dedent(code), names)
    records, monitor = names["records"], names["monitor"]
    assert monitor.neighborhoods.steps == [0, *(record.step for record in records)]
    assert all(value > 0 for value in values(records, "separability"))
    decision = PastPeak()(monitor.series(records))
    assert names["step"] == 100 or decision.stop
    (best,) = (record for record in records if record.step == decision.best_step)
    kept = monitor.measure(run.model.from_pretrained("best"), names["step"] + 1)
    assert kept.scores["separability"] == best.scores["separability"]


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0, 0], True),
        ([2, 2, math.nan], True),
        ([1, 2], False),
        ([0], False),
        ([1, math.nan], False),
    ],
)
@pytest.mark.filterwarnings("ignore:.*no score for:RuntimeWarning")
def test_scores_that_tell_nothing_are_said_at_the_end(loop, scores, said):
    run = loop(criterion=Scripted(scores), policy=NEVER, extra_criteria=())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.run(EVERY * len(scores))
    found = [str(one.message) for one in caught if "do not tell" in str(one.message)]
    assert len(found) == said
    assert not said or f"all 2 scores of separability are {scores[0]}, so they" in found[0]
