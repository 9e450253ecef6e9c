"""Trainer's options: whatever they are, the best weights on disk are those that scored best."""

from pathlib import Path

import pytest
import torch
from conftest import make_encoder
from helpers.scores import NEVER, deciding, values
from helpers.training import QUIET, TRAINS_AGAIN, Recorder
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from sepstop import Monitor, SepStopCallback, SepStopConfig
from sepstop.runs.average_files import read_average
from sepstop.runs.history import from_log, read_log_history
from sepstop.runs.loading import load_model

STEPS = 8
EVERY = {"steps": {"eval_steps": 2, "save_steps": 2}, "epoch": {}, "no": {}, "best": {}}

SCHEDULES = [  # when it evaluates, when it saves
    (evaluates, saves)
    for evaluates in ("no", "steps", "epoch")
    for saves in ("no", "steps", "epoch", "best")
    if not (evaluates == "no" and saves == "best")  # nothing to be best at
]
OPTIONS = {
    "plain": {},
    "one kept": {"save_total_limit": 1},
    "best loaded": {"load_best_model_at_end": True, "save_total_limit": 1},
    "weights only": {"save_only_model": True},
    "start, two sets, accumulation": {
        "eval_on_start": True,
        "eval_sets": ("first", "second"),
        "gradient_accumulation_steps": 2,
    },
}


def is_allowed(evaluates, saves, options):
    loads = options.get("load_best_model_at_end", False)
    if evaluates == "no":
        return not loads and not options.get("eval_on_start")
    return not loads or saves in (evaluates, "best")


@pytest.fixture
def make(tmp_path, tokenizer, train_rows, pool):
    def trainer(metric="separability", eval_sets=(), average=True, **options):
        callback = SepStopCallback(
            pool, criterion=metric, policy=NEVER, num_resamples=3, average=average
        )
        own = options["eval_strategy"] == "no"
        rows = train_rows.select(range(8))
        made = Trainer(
            model=make_encoder(),
            args=TrainingArguments(
                str(tmp_path / "run"),
                max_steps=STEPS,
                per_device_train_batch_size=16 // options.get("gradient_accumulation_steps", 1),
                learning_rate=1e-2,
                metric_for_best_model=None if own else metric,
                **QUIET,
                **options,
            ),
            train_dataset=train_rows,
            eval_dataset=None if own else {name: rows for name in eval_sets} or rows,
            processing_class=tokenizer,
            callbacks=[callback],
        )
        return made, callback

    return trainer


CASES = [
    pytest.param(*schedule, name, id=f"{'-'.join(schedule)}-{name}")
    for schedule in SCHEDULES
    for name, options in OPTIONS.items()
    if is_allowed(*schedule, options)
]


@TRAINS_AGAIN
@pytest.mark.parametrize("average", [False, True], ids=["checkpoints", "averages"])
@pytest.mark.parametrize(("evaluates", "saves", "name"), CASES)
def test_the_best_on_disk_is_the_best_of_the_history(
    make, pool, tokenizer, evaluates, saves, name, average
):
    options = {
        "eval_strategy": evaluates,
        "save_strategy": saves,
        **EVERY[evaluates],
        **EVERY[saves],
        **OPTIONS[name],
    }
    trainer, callback = make(average=average, **options)
    recorder = Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    trained = [record for record in callback.history if record.step > 0]
    every = 2 if evaluates == "steps" else 4  # an epoch has 4 steps
    assert [record.step for record in trained] == list(range(every, STEPS + 1, every))
    assert (callback.history[0].step == 0) is options.get("eval_on_start", False)
    best = max(trained, key=lambda record: (deciding(record).value, -record.step))
    assert callback.decision.best_step == best.step

    monitor = Monitor(pool, SepStopConfig(num_resamples=3, tokenizer=tokenizer))
    loads, run = options.get("load_best_model_at_end", False), Path(trainer.args.output_dir)
    folder = run / f"{'average' if average else 'checkpoint'}-{best.step}"
    assert folder.is_dir() is (saves != "no" or (average and loads))
    if folder.is_dir():
        assert read_average(folder) == best.average
        assert separability(monitor, load_model(folder)) == pytest.approx(deciding(best).value)
        for kind in ("checkpoint", "average"):
            kept = [path for path in run.iterdir() if path.name.startswith(kind)]
            assert len(kept) <= 2 * options.get("save_total_limit", STEPS)  # the best and the last
    if saves != "no" and not average:
        known = {record.step: record for record in from_log(read_log_history(folder)).records}
        assert known[best.step] == best
    last = get_last_checkpoint(run)
    assert last is not None or saves == "no"  # the run can be resumed
    assert not list(run.glob(".*"))
    if loads:
        assert trainer.state.best_model_checkpoint == str(folder)
        assert (trainer.state.best_global_step, trainer.state.best_metric) == (
            best.step,
            pytest.approx(deciding(best).value),
        )
        assert separability(monitor, trainer.model) == pytest.approx(deciding(best).value)
    left = recorder.average(best.average) if average and loads else recorder.weights[STEPS]
    for key, weight in trainer.model.named_parameters() if average or not loads else ():
        assert torch.allclose(weight.double(), left[key], rtol=1e-6, atol=1e-8)

    # What comes after training is no part of the run.
    seen = list(callback.history)
    trainer.predict(trainer.train_dataset.select(range(4)))
    if evaluates != "no":
        assert "eval_separability" not in trainer.evaluate(trainer.train_dataset.select(range(4)))
    assert callback.history == seen

    # Another train() on the same Trainer is a run of its own.
    trainer.train()
    assert [record.step for record in callback.history] == [record.step for record in seen]


@pytest.mark.parametrize("metric", ["separability", "robust_mi"])
@pytest.mark.parametrize(
    ("evaluates", "saves"), [case for case in SCHEDULES if case[1] not in ("no", "best")]
)
def test_a_run_that_is_resumed_anywhere_ends_alike(make, evaluates, saves, metric):
    options = {
        "eval_strategy": evaluates,
        "save_strategy": saves,
        **EVERY[evaluates],
        **EVERY[saves],
    }
    trainer, callback = make(metric, **options)
    trainer.train()
    whole, decision = callback.history, callback.decision
    checkpoints = sorted(Path(trainer.args.output_dir).glob("checkpoint-*"))
    assert len(checkpoints) > 1
    for checkpoint in checkpoints:
        trainer, callback = make(metric, **options)
        trainer.train(resume_from_checkpoint=str(checkpoint))
        assert [r.step for r in callback.history] == [r.step for r in whole]
        assert values(callback.history) == pytest.approx(values(whole))
        assert callback.decision.best_step == decision.best_step


@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_precision_compilation_and_checkpointed_activations(make, pool, tokenizer, options):
    plan = {"eval_strategy": "steps", "save_strategy": "no", **EVERY["steps"]}
    trainer, usual = make(average=False, **plan)
    trainer.train()
    unwatched, callback = make(average=False, **plan, **options)
    unwatched.remove_callback(callback)
    unwatched.args.metric_for_best_model = None
    unwatched.train()
    watched, callback = make(average=False, **plan, **options)
    watched.train()
    for before, after in zip(unwatched.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(before, after)
    expected = values(usual.history)
    assert values(callback.history) == pytest.approx(expected, abs=0.02)
    monitor = Monitor(pool, SepStopConfig(num_resamples=3, tokenizer=tokenizer))
    assert separability(monitor, watched.model) == pytest.approx(values(callback.history)[-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(pool, tokenizer, dtype):
    monitor = Monitor(pool, SepStopConfig(num_resamples=3, tokenizer=tokenizer))
    model = make_encoder()
    expected = separability(monitor, model)
    assert separability(monitor, model.to(dtype)) == pytest.approx(expected, abs=0.02)
    assert monitor.decides == "robust_mi"


def separability(monitor, model):
    return monitor.measure(model, STEPS).scores["separability"].value


@pytest.mark.parametrize("metric", ["neighbor_mi", "eval_infomax", "robust_mi"])
def test_a_score_in_metric_for_best_model_decides(make_trainer, pool, metric):
    callback = SepStopCallback(pool, policy=NEVER, num_resamples=2)
    options = {"metric_for_best_model": metric, "load_best_model_at_end": True}
    trainer = make_trainer(callback, **options, max_steps=4)
    trainer.train()
    assert callback.session.decides == metric.removeprefix("eval_")
    best = callback.decision.best_step
    (record,) = (record for record in callback.history if record.step == best)
    assert trainer.state.best_metric == record.scores[callback.session.decides].value
    assert Path(trainer.state.best_model_checkpoint).name == f"average-{best}"


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_a_metric_with_the_name_of_a_score_is_not_replaced(make_trainer, pool, on_error):
    callback = SepStopCallback(pool, policy=NEVER, num_resamples=2, on_error=on_error)
    trainer = make_trainer(callback, metric_for_best_model="separability", max_steps=4)
    trainer.compute_metrics = lambda _: {"separability": 0.5, "other": 0.25}
    said = "expected no metric with the name of a score; rename yours: separability$"
    if on_error == "raise":
        with pytest.raises(ValueError, match=said):
            trainer.train()
        return
    with pytest.warns(RuntimeWarning, match=f"do not join the evaluation's metrics.*{said[:-1]}"):
        trainer.train()
    logged = [row for row in trainer.state.log_history if "eval_other" in row]
    assert [row["eval_separability"] for row in logged] == [0.5, 0.5]
    assert [record.step for record in callback.history] == [2, 4]


class EvaluatesInside(TrainerCallback):
    """Evaluates another set whenever one was evaluated."""

    trainer, busy = None, False

    def on_evaluate(self, args, state, control, **_):
        if not self.busy:
            self.busy = True
            self.trainer.evaluate(self.trainer.eval_dataset, metric_key_prefix="other")
            self.busy = False


@pytest.mark.parametrize("inside", [False, True])
def test_scores_that_are_there_already_are_no_metrics_of_the_user(make_trainer, pool, inside):
    callback = SepStopCallback(pool, policy=NEVER, num_resamples=2, on_error="raise")
    trainer = make_trainer(None, max_steps=4)
    if inside:
        trainer.add_callback(other := EvaluatesInside())
        other.trainer = trainer
    else:  # an evaluation of one's own that logs the metrics again
        evaluate = trainer.evaluate

        def twice(*args, **kwargs):
            metrics = evaluate(*args, **kwargs)
            trainer.log({**metrics, "eval_extra": 1.0})
            return metrics

        trainer.evaluate = twice
    callback.attach(trainer)
    trainer.train()
    assert [record.step for record in callback.history] == [2, 4]
