"""Averages of the weights in real Trainer runs: scored, kept, loaded, resumed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_decoder_classifier, make_encoder
from helpers.scores import NEVER, Scripted, StopAt, values
from helpers.training import BEST, QUIET, TRAINS_AGAIN, Recorder, checkpoints, steps
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sepstop import Patience, SepStopCallback
from sepstop.measure.average import AVERAGES, RunningAverages
from sepstop.runs.average_files import average_folder, find_averages, read_average
from sepstop.runs.history import from_log, read_history, read_log_history, read_run
from sepstop.types import Average

OWN = {"eval_strategy": "no", "save_steps": 4}
"""Scored every second step, saved every fourth."""


class Falling(Scripted):
    """Gives the averages, then the checkpoint where it is scored, the next of these scores.

    Args:
        averages: score of all averages of a step, by evaluation.
        checkpoints: score of the checkpoint; None where it is not scored.
    """

    def __init__(self, averages, checkpoints=()):
        scores = []
        for place, score in enumerate(averages):
            scores += [score] * len(AVERAGES) + list(checkpoints[place : place + 1])
        super().__init__(scores)


def own(pool, **options):
    return SepStopCallback(pool, **({"policy": NEVER, "every_n_steps": 2} | options))


def run_of(trainer):
    return Path(trainer.args.output_dir)


def best_of(callback):
    return next(r for r in callback.history if r.step == callback.decision.best_step)


def assert_holds(model, weights, rtol=1e-6):
    """The model's trainable weights are these, up to rounding in its dtype."""
    found = dict(model.named_parameters())
    assert weights
    for name, expected in weights.items():
        assert torch.allclose(found[name].double(), expected, rtol=rtol, atol=rtol / 100), name


# What is kept


def frozen():
    model = make_encoder()
    model.bert.embeddings.requires_grad_(False)
    return model


class Tied(BertForSequenceClassification):
    """Two layers with the same weights, which are saved once."""

    _tied_weights_keys = {  # noqa: RUF012
        "bert.encoder.layer.1.output.dense.weight": "bert.encoder.layer.0.output.dense.weight"
    }


@pytest.mark.parametrize(
    ("make", "options", "config"),
    [
        (make_encoder, {}, {}),
        (make_encoder, {"warmup_steps": 5}, {"average_every_n_steps": 3}),
        (make_encoder, {"warmup_steps": 0.25}, {"score_checkpoints": True}),
        (
            make_encoder,
            {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
            {"average_device": "cpu"},
        ),
        (lambda: make_encoder().to(torch.bfloat16), {"bf16": True}, {}),
        (frozen, {}, {}),
        (make_decoder_classifier, {}, {"policy": StopAt(8)}),
    ],
    ids=["plain", "every third", "checkpoints too", "accumulated", "bf16", "frozen", "stopped"],
)
@pytest.mark.parametrize("schedule", [{}, OWN], ids=["evaluations", "own schedule"])
def test_the_best_average_is_that_of_the_recorded_weights(
    make_trainer, pool, schedule, make, options, config
):
    callback, recorder = SepStopCallback(pool, **{"policy": NEVER} | config), Recorder()
    if schedule:
        callback = own(pool, **config)
    trainer = make_trainer(callback, make(), **schedule, **options)
    trainer.add_callback(recorder)
    trainer.train()
    best, every = best_of(callback), config.get("average_every_n_steps", 1)
    first = max(1, trainer.args.get_warmup_steps(12))
    for record in callback.history:
        assert (record.average is None) is (record.step - record.step % every < first) or (
            config.get("score_checkpoints")
        )
    if best.average is None:  # a checkpoint has won
        assert checkpoints(trainer).count(best.step)
        return
    folder = average_folder(run_of(trainer), best.step)
    assert read_average(folder) == best.average
    assert best.average.first_step == -(-first // every) * every
    half = trainer.model.dtype == torch.bfloat16
    expected = recorder.average(best.average, every)
    kept = AutoModelForSequenceClassification.from_pretrained(folder)
    assert kept.dtype == trainer.model.dtype
    assert_holds(kept, expected, rtol=2**-7 if half else 1e-6)
    for name, weight in kept.named_parameters():  # what is frozen, and what was trained last
        held = dict(trainer.model.named_parameters())[name]
        assert torch.equal(held, weight) is (name not in expected) or half
    assert (folder / "tokenizer.json").is_file()


def test_rounded_weights_are_averaged_without_rounding(make_trainer, pool):
    """bf16 weights that hardly move: their average in bf16 would stay where it began."""
    callback, recorder = own(pool), Recorder()
    trainer = make_trainer(callback, make_encoder().to(torch.bfloat16), **OWN, max_steps=40)
    trainer.add_callback(recorder)
    trainer.train()
    for name in AVERAGES:
        average = callback.session.averages.described(name)
        assert average == Average(name, 1, 40, 40)
        expected = recorder.average(average)
        for key, found in callback.session.averages.state_dict()["averages"][name].items():
            assert found.dtype == torch.float32
            assert torch.allclose(found.double(), expected[key], rtol=1e-5, atol=1e-7)


def test_tied_weights_stay_tied(make_trainer, pool):
    callback, recorder = own(pool, load_best_model_at_end=True), Recorder()
    config = make_encoder().config
    config.tie_word_embeddings = True
    trainer = make_trainer(callback, Tied(config), **OWN)
    trainer.add_callback(recorder)
    trainer.train()
    best = best_of(callback)
    for model in (
        trainer.model,
        Tied.from_pretrained(average_folder(run_of(trainer), best.step)),
    ):
        assert_holds(model, recorder.average(best.average))
        first, second = model.bert.encoder.layer
        assert second.output.dense.weight is first.output.dense.weight


# Which weights are loaded


@pytest.mark.parametrize("loads", [False, True])
@pytest.mark.parametrize("schedule", [BEST, OWN], ids=["evaluations", "own schedule"])
def test_the_best_average_is_loaded_and_saved_at_the_end(
    make_trainer, pool, tmp_path, capsys, schedule, loads
):
    scores = [0.1, 0.3, 0.9, 0.4, 0.3, 0.2]
    callback = SepStopCallback(
        pool,
        criterion=Falling(scores),
        policy=NEVER,
        every_n_steps=2 if schedule is OWN else None,
        load_best_model_at_end=loads and schedule is OWN,
    )
    options = schedule if schedule is OWN else schedule | {"load_best_model_at_end": loads}
    trainer, recorder = make_trainer(callback, **options), Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    best, folder = best_of(callback), run_of(trainer) / "average-6"
    assert (best.step, best.average.last_step) == (6, 6)
    assert trainer.state.best_model_checkpoint == str(folder)
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (6, pytest.approx(0.9))
    assert trainer.args.load_best_model_at_end is (loads and schedule is BEST)
    expected = recorder.average(best.average)
    assert_holds(trainer.model, expected if loads else recorder.weights[12])
    trainer.save_model(str(tmp_path / "saved"))
    trainer.save_state()
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert_holds(saved, expected if loads else recorder.weights[12])
    state = json.loads((run_of(trainer) / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(folder)
    assert list(from_log(state["log_history"]).records) == callback.history
    *_, last = [line for line in capsys.readouterr().out.splitlines() if line[:7] == "sepstop"]
    said = "the model holds the best weights," if loads else "the best weights are"
    assert last == f"sepstop: {said} the {best.average}: {folder}"


@pytest.mark.parametrize("schedule", [BEST, OWN], ids=["evaluations", "own schedule"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_a_checkpoint_that_is_better_than_all_averages_is_kept(
    make_trainer, pool, schedule, warmup
):
    """By its own score, or because averages begin after the warm-up."""
    averages, own_scores = [0.1, 0.3, 0.2, 0.4, 0.3, 0.2], [0.2, 0.9, 0.1, 0.1, 0.1, 0.1]
    criterion = Falling(averages, own_scores)
    if warmup:
        criterion = Falling(averages[2:])
        criterion.scores = own_scores[:2] + criterion.scores
    callback = SepStopCallback(
        pool,
        criterion=criterion,
        policy=NEVER,
        score_checkpoints=not warmup,
        every_n_steps=2 if schedule is OWN else None,
        load_best_model_at_end=schedule is OWN,
    )
    trainer, recorder = make_trainer(callback, **schedule, warmup_steps=warmup), Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    best = best_of(callback)
    assert (best.step, best.average) == (4, None)
    assert set(best.others) == (set() if warmup else set(AVERAGES))
    assert trainer.state.best_model_checkpoint == str(run_of(trainer) / "checkpoint-4")
    assert trainer.state.best_global_step == 4
    assert_holds(trainer.model, recorder.weights[4], rtol=0)


@pytest.mark.filterwarnings("ignore:sepstop. metric_for_best_model is 'loss'")
def test_another_metric_loads_its_checkpoint_and_the_average_is_on_disk(make_trainer, pool, capsys):
    callback, recorder = SepStopCallback(pool, policy=NEVER), Recorder()
    trainer = make_trainer(callback, load_best_model_at_end=True)
    trainer.add_callback(recorder)
    trainer.train()
    best = best_of(callback)
    loaded = trainer.state.best_model_checkpoint
    assert loaded == str(run_of(trainer) / f"checkpoint-{trainer.state.best_global_step}")
    assert_holds(trainer.model, recorder.weights[trainer.state.best_global_step], rtol=0)
    kept = AutoModelForSequenceClassification.from_pretrained(
        average_folder(run_of(trainer), best.step)
    )
    assert_holds(kept, recorder.average(best.average))
    said = capsys.readouterr().out
    assert "kept by metric_for_best_model='loss', the best average in average-STEP" in said
    assert f"sepstop: the best weights are the {best.average}: " in said


def test_nothing_is_written_if_nothing_may_be_saved(make_trainer, pool, capsys):
    callback = SepStopCallback(pool, policy=NEVER)
    trainer = make_trainer(callback, save_strategy="no")
    trainer.train()
    assert best_of(callback).average is not None
    assert {path.name for path in run_of(trainer).iterdir()} == {
        "sepstop_history.jsonl",
        "sepstop_neighbors.npz",
    }
    said = capsys.readouterr().out
    assert "no weights are kept (save_strategy='no')" in said
    assert "the best weights" not in said


def test_older_averages_are_removed_as_checkpoints_are(make_trainer, pool):
    callback = SepStopCallback(
        pool, criterion=Falling([0.1, 0.2, 0.3, 0.9, 0.1, 0.2]), policy=NEVER
    )
    trainer = make_trainer(callback, save_total_limit=1)
    seen = {}

    class Sees(TrainerCallback):
        def on_save(self, args, state, control, **_):
            seen[state.global_step] = list(find_averages(args.output_dir))

    trainer.add_callback(Sees())
    trainer.train()
    assert seen == {2: [2], 4: [4], 6: [6], 8: [8], 10: [8], 12: [8]}
    assert checkpoints(trainer) == [12]


class Meddles(TrainerCallback):
    """Changes the loaded model, or removes what should be loaded."""

    def __init__(self, what):
        self.what = what

    def on_log(self, args, state, control, logs, **_):
        if "train_runtime" in logs and self.what == "folder":
            (folder,) = find_averages(args.output_dir).values()
            folder.rename(folder.with_name("elsewhere"))

    def on_train_end(self, args, state, control, model=None, **_):
        if self.what == "weights":
            model.classifier.bias.data += 1


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("weights", r"1 tensors differ from those in .*average-\d+, such as classifier.bias"),
        ("folder", r"FileNotFoundError: .*average-\d+"),
    ],
)
def test_weights_that_are_not_the_best_are_said(make_trainer, pool, what, said):
    callback = own(pool, load_best_model_at_end=True)
    trainer = make_trainer(None, **OWN, save_total_limit=1)
    trainer.add_callback(Meddles(what))
    trainer.add_callback(callback)
    with pytest.warns(
        RuntimeWarning, match=rf"best weights, those of the \w+ average of steps .*: {said}"
    ):
        trainer.train()


def test_an_average_that_can_not_be_saved_is_a_warning_and_training_goes_on(make_trainer, pool):
    trainer = make_trainer(own(pool), **OWN, max_steps=2)
    (run_of(trainer) / ".average-2.unfinished").touch()  # not a folder
    with pytest.warns(RuntimeWarning, match="sepstop: could not save the .* average of steps 1 to"):
        trainer.train()
    assert trainer.state.global_step == 2


# Before training


def test_a_model_that_can_not_be_averaged_is_said_before_training(make_trainer, pool):
    model = make_encoder()
    model.classifier = nn.Sequential(nn.BatchNorm1d(16), model.classifier)
    trainer = make_trainer(SepStopCallback(pool), model)
    with pytest.raises(ValueError, match=r"classifier\.0 is a BatchNorm layer.*average=False"):
        trainer.train()
    divided = make_encoder()
    divided.classifier.weight.ds_id = 0  # as DeepSpeed marks it
    trainer = make_trainer(SepStopCallback(pool), divided)
    with pytest.raises(ValueError, match=r"ZeRO 3 divides can't be averaged; set average=False"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("callback", "options", "said"),
    [
        ({}, BEST, "averages of the weights from step 1 on are scored; the best is loaded"),
        (
            {"score_checkpoints": True},
            {"warmup_steps": 4},
            "averages of the weights from step 4 on and checkpoints are scored; the best is kept",
        ),
        (
            {},
            {"eval_strategy": "no", "save_strategy": "no"},
            "step 1 on are scored; no weights are kept (save_strategy='no')",
        ),
    ],
)
def test_what_is_scored_and_kept_is_said(make_trainer, pool, capsys, callback, options, said):
    make_trainer(SepStopCallback(pool, policy=NEVER, **callback), max_steps=4, **options).train()
    assert f"; policy patience; {said}" in capsys.readouterr().out.replace(
        "; averages of the weights from step 1 on are scored; no", "; step 1 on are scored; no"
    )


def test_averages_left_by_an_earlier_run_are_pointed_out(make_trainer, pool):
    trainer = make_trainer(own(pool), **OWN, max_steps=2, save_only_model=True)
    average_folder(run_of(trainer), 3).mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"checkpoints of an earlier run, such as average-3;"):
        trainer.train()


# Resuming


def state_of(callback):
    state = callback.session.averages.state_dict()
    averages = state.pop("averages")
    return state, averages


def assert_same_averages(one, other):
    (known, averages), (found, others) = state_of(one), state_of(other)
    assert found == known
    for name, tensors in averages.items():
        assert tensors.keys() == others[name].keys()
        assert all(torch.equal(others[name][key], weight) for key, weight in tensors.items())


@TRAINS_AGAIN
@pytest.mark.parametrize("resume_at", [2, 4, 8])
@pytest.mark.parametrize(
    ("schedule", "config"),
    [
        ({}, {}),
        ({"warmup_steps": 3}, {"average_every_n_steps": 3, "score_checkpoints": True}),
        ({"eval_strategy": "no"}, {"every_n_steps": 2, "load_best_model_at_end": True}),
    ],
    ids=["evaluations", "every third", "own schedule"],
)
def test_a_resumed_run_has_the_averages_of_an_uninterrupted_one(
    make_trainer, pool, tmp_path, schedule, config, resume_at
):
    def run(folder, resume=None):
        callback = SepStopCallback(pool, **({"policy": NEVER} | config))
        options = schedule | {"output_dir": str(tmp_path / folder)}
        trainer = make_trainer(callback, make_encoder(dropout=0.1), **options)
        trainer.train(resume_from_checkpoint=resume)
        return callback, trainer

    whole, trainer = run("run")
    checkpoint = tmp_path / "run" / f"checkpoint-{resume_at}"
    resumed, again = run("run", str(checkpoint))
    assert [r.scores for r in resumed.history] == [r.scores for r in whole.history]
    assert [r.average for r in resumed.history] == [r.average for r in whole.history]
    assert any(r.average for r in whole.history)
    assert_same_averages(whole, resumed)
    assert again.state.best_model_checkpoint == trainer.state.best_model_checkpoint
    for a, b in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_without_averages_is_a_warning_and_they_start_anew(make_trainer, pool):
    options = {"save_only_model": True, "max_steps": 4}
    make_trainer(SepStopCallback(pool, policy=NEVER), **options).train()
    trainer = make_trainer(callback := SepStopCallback(pool, policy=NEVER), max_steps=8)
    assert not list(run_of(trainer).glob("**/sepstop_average_state*"))
    with pytest.warns(UserWarning, match="averages of the weights can't be resumed .* anew af"):
        trainer.train(resume_from_checkpoint=True)
    newest = callback.history[-1]
    assert (newest.average.first_step, newest.average.last_step) == (5, 8)


def test_files_that_can_not_be_moved_are_a_warning_and_training_goes_on(
    make_trainer, pool, monkeypatch
):
    rename, replace = Path.rename, Path.replace

    def busy(act, name):
        def tried(path, target):
            if name in str(target):
                raise PermissionError(f"{target} is busy")
            return act(path, target)

        return tried

    monkeypatch.setattr(Path, "rename", busy(rename, ".removed."))
    monkeypatch.setattr(Path, "replace", busy(replace, "checkpoint-2"))
    callback = SepStopCallback(pool, policy=NEVER, criterion=Falling([0.1, 0.2]))
    trainer = make_trainer(callback, **BEST, max_steps=4, save_total_limit=1)
    with (
        pytest.warns(RuntimeWarning, match="could not move the state of the averages; training"),
        pytest.warns(RuntimeWarning, match="could not remove older averages; training goes on"),
    ):
        trainer.train()
    assert trainer.state.best_model_checkpoint == str(run_of(trainer) / "average-4")


def test_a_state_that_can_not_be_written_is_a_warning_and_training_goes_on(
    make_trainer, pool, monkeypatch
):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(RunningAverages, "state_dict", full)
    trainer = make_trainer(callback := SepStopCallback(pool, policy=NEVER), max_steps=4)
    with pytest.warns(RuntimeWarning, match="could not save the state of the averages; training"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert callback.history[-1].average is not None
    callback = SepStopCallback(pool, policy=NEVER, on_error="raise")
    trainer = make_trainer(callback, max_steps=4, output_dir=str(run_of(trainer) / "other"))
    with pytest.raises(OSError, match="No space left on device"):
        trainer.train()


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("schedule", [BEST, OWN], ids=["evaluations", "own schedule"])
def test_a_stopped_run_that_is_resumed_stays_stopped_with_the_best_average(
    make_trainer, pool, schedule, limit
):
    def run(scores):
        callback = SepStopCallback(
            pool,
            criterion=Falling(scores),
            policy=Patience(patience=2),
            every_n_steps=2 if schedule is OWN else None,
            load_best_model_at_end=schedule is OWN,
        )
        return callback, make_trainer(callback, **schedule, save_total_limit=limit, max_steps=24)

    first, trainer = run([0.1, 0.9, 0.3, 0.2])
    trainer.train()
    assert first.decision.stop
    assert checkpoints(trainer)  # a launcher that resumes finds that the run was stopped
    again, resumed = run([])
    resumed.train(resume_from_checkpoint=True)
    assert again.decision == first.decision
    assert steps(again) == [2, 4, 6, 8]
    assert resumed.state.best_model_checkpoint == str(run_of(trainer) / "average-4")
    for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("schedule", "moments"),
    [
        (
            "evaluations",
            ["before on_save", "after on_save", "before save_average", "after save_state"],
        ),
        ("own", ["before on_save", "before save_average", "after save_average"]),
        pytest.param("epochs", ["before save_average", "after on_save"], marks=pytest.mark.slow),
        pytest.param(
            "evaluated epochs",
            ["before save_average", "after save_average"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_is_killed_at_any_moment_ends_like_one_that_is_not(tmp_path, schedule, moments):
    script = Path(__file__).parents[1] / "helpers" / "killed_run.py"
    subprocess.run(
        [sys.executable, str(script), str(tmp_path), schedule, *moments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        capture_output=True,
    )
    whole = json.loads((tmp_path / "whole" / "found.json").read_text())
    assert whole.pop("resumed from") is None
    assert whole["best"].startswith("average-")
    for moment in moments:
        found = json.loads((tmp_path / moment.replace(" ", "-") / "found.json").read_text())
        # Before the checkpoint of the step is complete, the one before is resumed.
        is_saved = moment.endswith("on_save") or schedule == "evaluated epochs"
        before = {"evaluations": "checkpoint-14", "own": "checkpoint-12", "epochs": "checkpoint-8"}
        at = "checkpoint-16" if is_saved else before[schedule]
        assert found.pop("resumed from") == at, moment
        if schedule == "evaluated epochs":
            # Trainer draws random numbers for its evaluation, which came after the checkpoint.
            assert found["history"][:2] == whole["history"][:2]
            assert "average-16" in found["files"] == whole["files"]
        else:
            assert found == whole, moment


def test_other_ways_of_averaging_are_a_warning_on_resuming(make_trainer, pool):
    make_trainer(SepStopCallback(pool, policy=NEVER), max_steps=4).train()
    trainer = make_trainer(SepStopCallback(pool, policy=NEVER, average_every_n_steps=2))
    with pytest.warns(UserWarning, match="measured differently.*average_every_n_steps was 1 and i"):
        trainer.train(resume_from_checkpoint=True)
    assert read_run(trainer.args.output_dir).settings["average_every_n_steps"] == 2


# Scores


def test_rows_and_trackers_say_which_average(make_trainer, pool):
    callback = SepStopCallback(pool, policy=NEVER, score_checkpoints=True)
    trainer = make_trainer(callback, max_steps=4, **BEST)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "sepstop" in row]
    for row, record in zip(rows, callback.history, strict=True):
        average = row["sepstop"]["record"]["average"]
        assert average == (record.average and vars_of(record.average))
        for name, scores in record.others.items():
            assert row[f"eval_separability_of_{name}"] == scores["separability"].value
        assert set(record.candidates) == {*AVERAGES, "checkpoint"}
    saved = read_log_history(run_of(trainer) / "checkpoint-4")
    assert list(from_log(saved).records) == callback.history
    assert values(callback.history)[-1] == rows[-1]["eval_separability"]


def vars_of(average):
    return {key: getattr(average, key) for key in ("name", "first_step", "last_step", "count")}


@TRAINS_AGAIN
@pytest.mark.filterwarnings("ignore:.*is missing or belongs to another run, pool or pooling")
def test_another_runs_averages_are_not_taken_over(make_trainer, pool, tmp_path):
    def run(folder, seed=0, **kwargs):
        callback = SepStopCallback(pool, policy=NEVER)
        options = {"output_dir": str(tmp_path / folder), "max_steps": 8}
        make_trainer(callback, make_encoder(seed), **options).train(**kwargs)
        return callback

    run("other", seed=1)
    run("run")
    checkpoint = str(tmp_path / "run" / "checkpoint-4")
    for folder, said in [
        ("other", "belongs to other weights than those of the checkpoint; a run that is resumed"),
        ("nowhere", r"no .* in .*nowhere.*; a run that is resumed from another folder needs its"),
    ]:
        with pytest.warns(UserWarning, match=rf"can't be resumed \(.*{said}"):
            callback = run(folder, resume_from_checkpoint=checkpoint)
        assert callback.history[-1].average.first_step == 5


class Interrupts(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@TRAINS_AGAIN
def test_a_half_done_update_is_not_saved(make_trainer, pool, monkeypatch):
    copy, copies = RunningAverages._copy, iter(range(99))

    def full(averages, weight):
        if next(copies) == 9:
            raise torch.OutOfMemoryError("no memory")
        return copy(averages, weight)

    monkeypatch.setattr(RunningAverages, "_copy", full)
    options = {"save_steps": 2, "eval_steps": 6, "max_steps": 12}
    trainer = make_trainer(SepStopCallback(pool, policy=NEVER), **options)
    trainer.add_callback(Interrupts(5))
    with (
        pytest.raises(KeyboardInterrupt),
        pytest.warns(RuntimeWarning, match="could not average the weights, so checkpoints are"),
    ):
        trainer.train()
    monkeypatch.setattr(RunningAverages, "_copy", copy)
    assert not list(run_of(trainer).rglob("*sepstop_average_state*"))
    callback = SepStopCallback(pool, policy=NEVER)
    with pytest.warns(UserWarning, match="they begin anew after step 4"):
        make_trainer(callback, **options).train(resume_from_checkpoint=True)
    assert (callback.history[0].average.first_step, callback.history[0].average.count) == (5, 2)


def test_a_best_average_takes_no_checkpoint_more_than_the_limit(make_trainer, pool):
    class Counts(TrainerCallback):
        most = 0

        def on_step_begin(self, args, state, control, **_):
            self.most = max(self.most, len(checkpoints_in(args)))

    def checkpoints_in(args):
        return list(Path(args.output_dir).glob("checkpoint-*"))

    criterion = Falling([0.1, 0.9, 0.5, 0.5, 0.5, 0.5])
    callback = SepStopCallback(pool, policy=NEVER, criterion=criterion, num_resamples=1)
    trainer = make_trainer(callback, save_total_limit=1)
    trainer.add_callback(counts := Counts())
    trainer.train()
    assert counts.most == 1
    assert trainer.state.best_model_checkpoint == str(run_of(trainer) / "average-4")


def test_a_warm_up_that_lasts_to_the_end_is_said(make_trainer, pool):
    callback = SepStopCallback(pool, policy=NEVER, num_resamples=1)
    with pytest.warns(UserWarning, match="warm-up lasts until step 500 and the run until step 4"):
        make_trainer(callback, warmup_steps=500, max_steps=4).train()
    assert not any(record.average for record in callback.history)


def test_the_trials_of_a_search_have_folders_of_their_own(tokenizer, train_rows, pool, tmp_path):
    pytest.importorskip("optuna")

    def search(callback, attach):
        options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 4}
        trainer = Trainer(
            model_init=lambda: make_encoder(),
            args=TrainingArguments(str(tmp_path / "search"), **(QUIET | options)),
            train_dataset=train_rows,
            eval_dataset=train_rows.select(range(8)),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        if attach:
            callback.attach(trainer)
        return trainer.hyperparameter_search(
            lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)},
            compute_objective=lambda metrics: metrics["eval_separability"],
            backend="optuna",
            n_trials=2,
        )

    with pytest.raises(ValueError, match=r"call callback.attach\(trainer\) before the search"):
        search(SepStopCallback(pool, num_resamples=1), attach=False)
    shutil.rmtree(tmp_path / "search", ignore_errors=True)
    search(SepStopCallback(pool, num_resamples=1), attach=True)
    assert {path.name for path in (tmp_path / "search").iterdir()} == {"run-0", "run-1"}
    for trial in ("run-0", "run-1"):
        run = tmp_path / "search" / trial
        decided = read_history(run / "sepstop_history.jsonl").decisions[-1]
        assert (run / f"average-{decided.best_step}").is_dir()
        assert (run / "checkpoint-4" / "sepstop_average_state.safetensors").is_file()
