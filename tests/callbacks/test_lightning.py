"""The Lightning callback in real Lightning runs of a tiny model."""

import math
import re
import shutil
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import make_decoder
from helpers.launch import TESTS, torchrun
from helpers.lightning_module import Classifier, Headed
from helpers.scores import NEVER, Scripted, values
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoTokenizer, BertForSequenceClassification

from sepstop import Monitor, Patience, SepStopConfig
from sepstop.callbacks.lightning import MODULE_FILE, SepStopCallback
from sepstop.decide.policies import replay
from sepstop.measure.average import AVERAGES
from sepstop.measure.neighbors import NEIGHBORS_FILE
from sepstop.runs.average_files import read_average
from sepstop.runs.history import HISTORY_FILE, read_history

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]


@pytest.fixture
def fit(tmp_path, batches):
    def run(
        callback,
        *others,
        model=None,
        loader=batches,
        validates=True,
        ckpt_path=None,
        folder="run",
        **options,
    ):
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
        trainer.fit(model, loader, batches if validates else None, ckpt_path=ckpt_path)
        return trainer, model

    return run


def test_each_validation_is_scored_and_the_best_checkpoint_is_kept(fit, pool, tokenizer, tmp_path):
    callback = SepStopCallback(
        pool, policy=NEVER, tokenizer=tokenizer, num_resamples=4, average=False
    )
    keep = ModelCheckpoint(tmp_path / "best", monitor="robust_mi", mode="max")
    early = EarlyStopping("separability", mode="max", patience=100)  # finds it, too
    trainer, model = fit(callback, keep, early, logger=CSVLogger(tmp_path / "logs"))
    assert [record.step for record in callback.history] == list(range(4, 41, 4))
    best = callback.decision.best_step
    assert f"step={best}.ckpt" in keep.best_model_path
    series = callback.session.recorded().series
    assert float(keep.best_model_score) == pytest.approx(series.score_at(best).value)
    separabilities = dict(zip(series.steps, values(callback.history, "separability"), strict=True))
    assert trainer.callback_metrics["separability"] == pytest.approx(separabilities[40])
    # The weights on disk have the score of their step; the model of the run, its last one.
    monitor = Monitor(pool, SepStopConfig(tokenizer=tokenizer, num_resamples=4))
    saved = torch.load(keep.best_model_path, weights_only=False)["state_dict"]
    again = Classifier()
    again.load_state_dict(saved)
    assert separability(monitor, again.net) == pytest.approx(separabilities[best])
    assert separability(monitor, model.net) == pytest.approx(separabilities[40])
    assert list(read_history(tmp_path / "run" / HISTORY_FILE).records) == callback.history
    assert (tmp_path / "run" / NEIGHBORS_FILE).is_file()
    assert callback.load_best(model).step == best
    assert all(map(torch.equal, model.parameters(), again.parameters()))


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
        candidates = [record.candidates for record in callback.history]
        scores.append([{key: one["separability"] for key, one in of.items()} for of in candidates])
        expected = "component_mi" if model == "net.bert" else "robust_mi"
        assert list(callback.history[0].scores) == [expected, "separability"]
    assert scores[0] == scores[1] == scores[2]


def test_not_every_validation_needs_to_be_scored(fit, pool, tokenizer, tmp_path):
    callback = SepStopCallback(
        pool, policy=NEVER, tokenizer=tokenizer, num_resamples=2, every_n_steps=10
    )
    keep = ModelCheckpoint(tmp_path / "best", monitor="robust_mi", mode="max")
    fit(callback, keep)
    assert [record.step for record in callback.history] == [4, 16, 28, 40]
    assert callback.session.averages.count == 40
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
        (
            None,
            {"max_epochs": 6, "val_check_interval": 16, "check_val_every_n_epoch": None},
            r"3 scores in 48 steps.*val_check_interval=4\)",
        ),
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


# Averages


class Weights(pl.Callback):
    """The trained weights after each optimizer step."""

    def __init__(self):
        self.steps = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps[trainer.global_step] = {
            name: weight.detach().clone() for name, weight in pl_module.named_parameters()
        }

    def averaged(self, average):
        """What an average should be, from the definition of its decay."""
        steps = [step for step in self.steps if average.first_step <= step <= average.last_step]
        assert len(steps) == average.count
        decay = AVERAGES[average.name]
        shares = torch.tensor([math.prod(range(n, n + decay)) for n in range(1, len(steps) + 1)])
        shares = shares.double() / shares.sum()
        return {
            name: sum(s * self.steps[step][name] for s, step in zip(shares, steps, strict=True))
            for name in self.steps[steps[0]]
        }


class ByHand(Classifier):
    """Steps on every second batch, by itself."""

    automatic_optimization = False

    def training_step(self, batch, index):
        self.manual_backward(self.loss(batch))
        if index % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


def assert_close(found, expected):
    for name, weight in found.items():
        assert torch.allclose(weight.double(), expected[name].double(), atol=1e-6), name


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Classifier, {}),
        (Classifier, {"accumulate_grad_batches": 2}),
        (ByHand, {}),
        (Headed, {"validates": False}),
    ],
)
def test_the_best_average_is_saved_and_loaded(fit, pool, tokenizer, tmp_path, make, options):
    callback = SepStopCallback(
        pool,
        policy=NEVER,
        tokenizer=tokenizer,
        num_resamples=2,
        every_n_steps=None if options.get("validates", True) else 4,
    )
    weights = Weights()
    trainer, model = fit(callback, weights, model=make(), max_epochs=3, **options)
    assert callback.session.averages.count == trainer.global_step == max(weights.steps)
    last = {name: weight.clone() for name, weight in model.named_parameters()}
    assert all(
        torch.equal(last[name], now) for name, now in weights.steps[max(weights.steps)].items()
    )

    best = callback.load_best(model)
    assert best.step == callback.decision.best_step
    assert (best.average.first_step, best.average.last_step) == (1, best.step)
    expected = weights.averaged(best.average)
    assert_close(dict(model.named_parameters()), expected)
    assert not any(torch.equal(last[name], now) for name, now in model.named_parameters())

    (folder,) = (tmp_path / "run").glob("*average-*")
    assert (folder.name, read_average(folder)) == (f"average-{best.step}", best.average)
    saved = BertForSequenceClassification.from_pretrained(folder)
    assert all(map(torch.equal, saved.parameters(), model.net.parameters()))
    assert AutoTokenizer.from_pretrained(folder)(pool[0]) == tokenizer(pool[0])
    again = SepStopConfig(tokenizer=tokenizer, num_resamples=2)
    score = Monitor(pool, again).measure(saved, 1).scores["separability"]
    assert score.value == pytest.approx(best.scores["separability"].value)
    assert (folder / MODULE_FILE).exists() == (make is Headed)
    if make is Headed:
        loaded = Headed.load_from_checkpoint(folder / MODULE_FILE)
        assert_close(dict(loaded.named_parameters()), expected)
        (folder / MODULE_FILE).unlink()
        with pytest.raises(ValueError, match=r"the weights of the whole module in .*module.ckpt"):
            callback.load_best(model)


class Saver(pl.Callback):
    """Saves a checkpoint at a step, before other callbacks see that step."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_has_the_same_averages_to_the_bit(
    fit, pool, tokenizer, batches, tmp_path, early, every
):
    rows = batches.dataset.select([*range(8)] * 8)
    alike = torch.utils.data.DataLoader(rows, batch_size=8)  # resuming starts the epoch's data anew

    def run(*others, **options):
        callback = SepStopCallback(
            pool,
            policy=NEVER,
            tokenizer=tokenizer,
            num_resamples=2,
            average_every_n_steps=every,
            score_checkpoints=True,
        )
        order = [*others, callback] if early else [callback, *others]
        model = Classifier(dropout=0.0)
        fit(*order, ModelCheckpoint(), model=model, loader=alike, max_epochs=3, **options)
        return callback

    whole = run(Saver(tmp_path / "middle.ckpt", 10))
    saved = torch.load(tmp_path / "middle.ckpt", weights_only=True)["callbacks"]["SepStopCallback"]
    assert saved["averages"]["last_step"] == (9 if every == 3 or early else 10)
    assert all(
        weight.device.type == "cpu" and not weight.is_inference()
        for weights in saved["averages"]["averages"].values()
        for weight in weights.values()
    )
    resumed = run(ckpt_path=tmp_path / "middle.ckpt")
    expected, found = (one.session.averages.state_dict() for one in (whole, resumed))
    assert {k: v for k, v in found.items() if k != "averages"} == {
        k: v for k, v in expected.items() if k != "averages"
    }
    for name, weights in expected["averages"].items():
        for key, weight in weights.items():
            assert torch.equal(found["averages"][name][key], weight), (name, key)
    for before, after in zip(whole.history, resumed.history, strict=True):
        assert (before.step, before.average) == (after.step, after.average)
        assert before.candidates == after.candidates


def test_an_average_that_a_killed_run_did_not_save_is_saved_when_it_is_resumed(
    fit, pool, tokenizer, tmp_path
):
    def run(*others, **options):
        callback = SepStopCallback(
            pool, policy=NEVER, criterion=Scripted(range(99)), tokenizer=tokenizer, num_resamples=1
        )
        order = [*others, callback, ModelCheckpoint()]
        fit(*order, model=Classifier(dropout=0.0), max_epochs=-1, **options)
        assert callback.decision.best_step == 12
        return BertForSequenceClassification.from_pretrained(folder)

    folder = tmp_path / "run" / "average-12"
    before = run(Saver(tmp_path / "last.ckpt", 12), max_steps=12)
    shutil.rmtree(folder)
    after = run(max_steps=13, ckpt_path=tmp_path / "last.ckpt")
    assert all(map(torch.equal, before.parameters(), after.parameters()))


def test_an_average_of_a_part_of_the_module_is_never_seen(
    fit, pool, tokenizer, tmp_path, monkeypatch
):
    """The process may be killed before the rest of the module is written."""
    seen = []

    def save(trainer, path, *_, **__):
        if Path(path).name != MODULE_FILE:
            return
        seen.append(sorted(one.name for one in (tmp_path / "run").glob("average-*")))
        raise OSError("no space left")

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save)
    callback = SepStopCallback(
        pool, policy=NEVER, tokenizer=tokenizer, num_resamples=1, every_n_steps=4
    )
    with pytest.warns(RuntimeWarning, match=r"could not save the .*no space left"):
        fit(callback, model=Headed(), validates=False, max_epochs=1, enable_checkpointing=True)
    assert seen
    assert not any(seen)
    assert not list((tmp_path / "run").glob("average-*"))


def test_two_processes_keep_one_average_and_resume_it(tmp_path):
    torchrun(TESTS / "helpers" / "lightning_run.py", tmp_path, processes=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for found in (first, second):
        assert [record["step"] for record in found["history"]] == [2, 4, 6, 8]
        assert found["resumed history"] == first["history"]
        assert found["best"] == first["best"]
        for name in ("averages", "resumed averages", "loaded"):
            expected = first["averages" if "averages" in name else name]
            assert found[name].keys() == expected.keys()
            assert all(torch.equal(found[name][key], expected[key]) for key in expected), name
    best = first["best"]
    assert best["average"]["count"] == best["step"]
    (folder,) = (tmp_path / "run").glob("*average-*")
    assert folder.name == f"average-{best['step']}"
    saved = BertForSequenceClassification.from_pretrained(folder)
    assert_close(
        {f"net.{name}": weight for name, weight in saved.named_parameters()}, first["loaded"]
    )


def test_averages_begin_after_the_warm_up_or_are_left_out(fit, pool, tokenizer, tmp_path):
    options = {"policy": NEVER, "tokenizer": tokenizer, "num_resamples": 2}
    callback = SepStopCallback(pool, warmup_steps=10, **options)
    fit(callback, ModelCheckpoint(), max_epochs=2)
    averages = [record.average for record in callback.history]
    assert averages[:2] == [None, None]
    assert [(one.first_step, one.count) for one in averages[2:]] == [(10, 3), (10, 7)]

    short = SepStopCallback(pool, warmup_steps=10, **options)
    _, model = fit(short, ModelCheckpoint(), max_epochs=1, folder="short")
    best = short.decision.best_step
    with pytest.raises(ValueError, match=rf"are those of step {best}, which no ModelCheckpoint ke"):
        short.load_best(model)
    without = SepStopCallback(pool, **options)
    _, model = fit(without, max_epochs=1, folder="without")
    with pytest.raises(ValueError, match=r"expected the best average in .*, which is missing"):
        without.load_best(model)
    assert not [*tmp_path.glob("short/average-*"), *tmp_path.glob("without/average-*")]


def test_a_module_that_cannot_be_averaged_is_refused_before_training(fit, pool, tokenizer):
    class Normed(Classifier):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)

    with pytest.raises(ValueError, match=r"norm is a BatchNorm layer.*set average=False"):
        fit(SepStopCallback(pool, tokenizer=tokenizer), model=Normed())


# Messages and state


def test_what_decides_stops_and_is_kept_is_said(fit, pool, tokenizer, capsys):
    callback = SepStopCallback(pool, tokenizer=tokenizer, extra_criteria=["infomax"])
    fit(callback, max_epochs=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sepstop")]
    assert lines[0] == (
        "sepstop: robust_mi decides (infomax recorded beside it); policy past_peak; "
        "averages of the weights from step 1 on are scored; "
        "no weights are kept: the Trainer saves no checkpoints"
    )
    assert re.match(r"sepstop: step 4, \w+ average of steps 1 to 4  robust_mi ", lines[1])
    assert "  infomax " in lines[1]
    kept = {True: r"the best average is kept in .*run/average-STEP$", False: "checkpoints are kept"}
    for average, sentence in kept.items():
        callback = SepStopCallback(pool, tokenizer=tokenizer, average=average)
        fit(callback, ModelCheckpoint(), max_epochs=1)
        assert re.search(f"; {sentence}", capsys.readouterr().out, re.MULTILINE)


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
