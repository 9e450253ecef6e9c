"""The Lightning callback in real Lightning runs of a tiny model."""

import re
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import make_decoder
from helpers.lightning_module import Classifier
from helpers.scores import NEVER, values
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from sepstop import Monitor, Patience, SepStopConfig
from sepstop.callbacks.lightning import SepStopCallback
from sepstop.decide.policies import replay
from sepstop.measure.neighbors import NEIGHBORS_FILE
from sepstop.runs.history import HISTORY_FILE, read_history

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]


@pytest.fixture
def fit(tmp_path, batches):
    def run(callback, *others, model=None, validates=True, ckpt_path=None, folder="run", **options):
        torch.manual_seed(1)
        model = model or Classifier()
        defaults = {"max_epochs": 5, "val_check_interval": 4 if validates else None}
        trainer = pl.Trainer(
            default_root_dir=tmp_path / folder,
            callbacks=[*([callback] if callback else []), *others],
            **{"logger": False, "enable_checkpointing": bool(others)} | defaults | options,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, batches, batches if validates else None, ckpt_path=ckpt_path)
        return trainer, model

    return run


def test_each_validation_is_scored_and_the_best_is_kept(fit, pool, tokenizer, tmp_path):
    callback = SepStopCallback(pool, policy=NEVER, tokenizer=tokenizer, num_resamples=4)
    keep = ModelCheckpoint(tmp_path / "best", monitor="separability", mode="max")
    early = EarlyStopping("neighbor_mi", mode="max", patience=100)  # finds it, too
    trainer, model = fit(callback, keep, early, logger=CSVLogger(tmp_path / "logs"))
    assert [record.step for record in callback.history] == list(range(4, 41, 4))
    best = callback.decision.best_step
    assert f"step={best}.ckpt" in keep.best_model_path
    series = callback.session.recorded().series
    assert float(keep.best_model_score) == pytest.approx(series.score_at(best).value)
    assert trainer.callback_metrics["neighbor_mi"] == pytest.approx(
        values(callback.history, "neighbor_mi")[-1]
    )
    # The weights on disk have the score of their step; the model of the run, its last one.
    monitor = Monitor(pool, SepStopConfig(tokenizer=tokenizer, num_resamples=4))
    saved = torch.load(keep.best_model_path, weights_only=False)["state_dict"]
    again = Classifier()
    again.load_state_dict(saved)
    assert separability(monitor, again.net) == pytest.approx(series.score_at(best).value)
    assert separability(monitor, model.net) == pytest.approx(values(callback.history)[-1])
    assert list(read_history(tmp_path / "run" / HISTORY_FILE).records) == callback.history
    assert (tmp_path / "run" / NEIGHBORS_FILE).is_file()


def separability(monitor, model):
    return monitor.measure(model, 1).scores["separability"].value


def test_loggers_have_the_scores_at_their_steps(fit, pool, tokenizer, tmp_path):
    import csv

    callback = SepStopCallback(pool, policy=NEVER, tokenizer=tokenizer, num_resamples=4)
    logger = CSVLogger(tmp_path / "logs")
    fit(callback, logger=logger, log_every_n_steps=1)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["separability"]]
    assert [int(row["step"]) for row in rows] == [record.step for record in callback.history]
    for row, record in zip(rows, callback.history, strict=True):
        for name, score in record.scores.items():
            assert float(row[name]) == pytest.approx(score.value)
            assert float(row[f"{name}_low"]) == pytest.approx(score.low)


@pytest.mark.parametrize("validates", [True, False])
def test_a_watched_run_trains_as_an_unwatched_one(fit, pool, tokenizer, validates):
    _, plain = fit(None, validates=validates)
    callback = SepStopCallback(pool, policy=NEVER, tokenizer=tokenizer, num_resamples=4)
    _, watched = fit(callback, validates=validates)
    assert callback.history
    for before, after in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("every", "steps"), [(None, [8, 16, 24, 32, 40]), (6, [6, 12, 18, 24, 30, 36, 40])]
)
def test_a_schedule_of_its_own(fit, pool, tokenizer, every, steps):
    callback = SepStopCallback(
        pool, policy=NEVER, tokenizer=tokenizer, num_resamples=2, every_n_steps=every
    )
    fit(callback, validates=False, max_steps=40, max_epochs=-1)
    assert [record.step for record in callback.history] == steps


def test_it_stops_and_a_resumed_run_goes_on_or_stays_stopped(fit, pool, tokenizer, tmp_path):
    def callback(**options):
        return SepStopCallback(
            pool, policy=Patience(patience=2), tokenizer=tokenizer, num_resamples=4, **options
        )

    whole = SepStopCallback(pool, policy=NEVER, tokenizer=tokenizer, num_resamples=4)
    keep = ModelCheckpoint(tmp_path / "all", save_top_k=-1, every_n_train_steps=4)
    fit(whole, keep)
    stop = replay(Patience(patience=2), whole.session.recorded().series)
    assert stop.stop

    first = callback()
    trainer, _ = fit(first, ModelCheckpoint(tmp_path / "first", save_top_k=-1), folder="first")
    assert trainer.global_step == first.history[-1].step == stop.step
    assert first.decision.best_step == stop.best_step

    # From the middle; Lightning itself does not restore the random states of dropout.
    (middle,) = (tmp_path / "all").glob("*step=8.ckpt")
    resumed = callback()
    fit(resumed, ckpt_path=middle)
    assert resumed.history[:2] == whole.history[:2]  # the second by the folder alone
    steps = [record.step for record in resumed.history]
    assert steps == [*range(4, steps[-1] + 1, 4)]
    assert resumed.monitor.neighborhoods.steps == [0, *steps]

    (end,) = (tmp_path / "first").glob(f"*step={stop.step}.ckpt")
    stopped = callback()
    trainer, _ = fit(stopped, ckpt_path=end, folder="first")
    assert trainer.global_step == stop.step
    assert stopped.history == first.history
    onward = callback(continue_after_stop=True)
    trainer, _ = fit(onward, ckpt_path=end, folder="first")
    assert trainer.global_step > stop.step


def test_a_failing_measurement_is_a_warning(fit, pool, tokenizer):
    def broken(points):
        raise RuntimeError("out of luck")

    broken.name, broken.higher_is_better = "broken", True
    callback = SepStopCallback(pool, criterion=broken, tokenizer=tokenizer, num_resamples=2)
    with pytest.warns(RuntimeWarning, match="could not measure step [48].*out of luck"):
        trainer, _ = fit(callback, max_epochs=1)
    assert trainer.global_step == 8
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(SepStopCallback(pool, criterion=broken, tokenizer=tokenizer, on_error="raise"))


def test_which_model_is_scored(fit, pool, tokenizer):
    class Two(Classifier):
        def __init__(self):
            super().__init__()
            self.teacher = make_decoder()

    with pytest.raises(ValueError, match=r"one model .* in Two, found net, teacher"):
        fit(SepStopCallback(pool, tokenizer=tokenizer), model=Two())
    scores = []
    for model in ("net", "net.bert", lambda module: module.net):
        callback = SepStopCallback(pool, tokenizer=tokenizer, model=model, policy=NEVER)
        fit(callback, model=Two(), max_epochs=1)
        scores.append(values(callback.history))
        expected = "component_mi" if model == "net.bert" else "neighbor_mi"
        assert list(callback.history[0].scores) == ["separability", expected]
    assert scores[0] == scores[1] == scores[2]


def test_not_every_validation_needs_to_be_scored(fit, pool, tokenizer, tmp_path):
    callback = SepStopCallback(
        pool, policy=NEVER, tokenizer=tokenizer, num_resamples=2, every_n_steps=10
    )
    keep = ModelCheckpoint(tmp_path / "best", monitor="separability", mode="max")
    fit(callback, keep)
    assert [record.step for record in callback.history] == [4, 16, 28, 40]
    assert f"step={callback.decision.best_step}.ckpt" in keep.best_model_path


def test_validating_alone_is_no_score(fit, pool, tokenizer, batches):
    callback = SepStopCallback(pool, policy=NEVER, tokenizer=tokenizer, num_resamples=2)
    trainer, model = fit(callback, max_epochs=1)
    seen = list(callback.history)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        trainer.validate(model, batches, verbose=False)
    assert callback.history == seen


def test_the_pool_is_read_in_the_precision_of_training(fit, pool, tokenizer):
    dtypes = {True: set(), False: set()}
    model = Classifier()
    model.net.bert.encoder.layer[0].attention.self.query.register_forward_hook(
        lambda module, inputs, output: dtypes[module.training].add(output.dtype)
    )
    callback = SepStopCallback(pool, policy=NEVER, tokenizer=tokenizer, every_n_steps=4)
    fit(callback, model=model, validates=False, max_epochs=1, precision="bf16-mixed")
    assert dtypes == {True: {torch.bfloat16}, False: {torch.bfloat16}}
    assert callback.monitor.settings["precision"] == "bf16"


@pytest.mark.parametrize(
    ("every", "options", "said"),
    [
        (None, {"validates": False}, None),  # an epoch has 8 steps
        (None, {"validates": False, "max_epochs": 3}, "3 scores in 24 steps.* every_n_steps=2"),
        (8, {"validates": False, "max_epochs": 3}, "3 scores in 24 steps"),
        (None, {"max_epochs": 2}, r"4 scores in 16 steps.*val_check_interval=1\)"),
        (None, {"max_epochs": 3}, None),
    ],
)
def test_too_few_scores_are_said_before_training(fit, pool, tokenizer, every, options, said):
    callback = SepStopCallback(
        pool, policy=NEVER, tokenizer=tokenizer, every_n_steps=every, verbose=False
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(callback, **options)
    found = [str(w.message) for w in caught if "this run will have" in str(w.message)]
    assert len(found) == bool(said)
    assert all(re.search(said, sentence) for sentence in found)
    if said:
        assert f"have {len(callback.history)} score" in found[0]


def test_a_run_without_a_score_is_pointed_out(fit, pool, tokenizer):
    callback = SepStopCallback(pool, tokenizer=tokenizer, every_n_steps=2)
    options = {"max_epochs": 1, "val_check_interval": None, "check_val_every_n_epoch": 9}
    with pytest.warns(RuntimeWarning, match="the pool was not scored once in 8 steps: .* set val_"):
        fit(callback, **options)
    assert callback.history == []


def test_labels_that_do_not_exclude_each_other_are_known_from_the_loader(
    train_rows, pool, tokenizer, tmp_path
):
    rows = train_rows.map(lambda row: {"labels": [float(row["label"]), 1.0]})
    rows = rows.with_format("torch", columns=["input_ids", "attention_mask", "labels"])
    loader = torch.utils.data.DataLoader(rows, batch_size=8)
    callback = SepStopCallback(pool, tokenizer=tokenizer, num_resamples=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pl.Trainer(
            default_root_dir=tmp_path,
            callbacks=[callback],
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Classifier(), loader)
    assert callback.monitor.settings["outputs"] == "labels"
    assert callback.session.decides == "label_mi"
    assert all(set(record.scores) == {"label_mi", "separability"} for record in callback.history)
    assert not any("as assumed before training" in str(warning.message) for warning in caught)


def test_what_decides_stops_and_is_kept_is_said(fit, pool, tokenizer, capsys):
    callback = SepStopCallback(pool, tokenizer=tokenizer, extra_criteria=["infomax"])
    fit(callback, max_epochs=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sepstop")]
    assert lines[0] == (
        "sepstop: neighbor_mi decides (infomax recorded beside it); policy past_peak; "
        "checkpoints are kept as ModelCheckpoint says"
    )
    assert lines[1].startswith("sepstop: step 4  neighbor_mi ")
    assert "  infomax " in lines[1]


def test_settings_that_contradict_each_other_end_it_before_training(fit, pool, tokenizer):
    callback = SepStopCallback(pool, tokenizer=tokenizer, criterion="label_mi")
    module = Classifier()
    before = [weight.clone() for weight in module.parameters()]
    with pytest.raises(ValueError, match="the criterion 'label_mi' is for a model whose outputs"):
        fit(callback, model=module)
    for weight, after in zip(before, module.parameters(), strict=True):
        assert torch.equal(weight, after)


def test_a_checkpoint_from_before_training_has_no_history(pool, tokenizer):
    callback = SepStopCallback(pool, tokenizer=tokenizer)
    assert callback.state_dict() == {}  # which Lightning does not save
