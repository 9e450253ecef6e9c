"""What whoever attaches the callback finds as it was: logs, other callbacks, the run itself."""

import copy
import math
import shutil
import warnings
from pathlib import Path

import datasets
import pytest
import torch
from conftest import GOOD, make_decoder, make_decoder_classifier, make_encoder
from helpers.scores import NEVER, Scripted, values
from helpers.training import BEST, QUIET, TRAINS_AGAIN
from transformers import (
    EarlyStoppingCallback,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sepstop import SepStopCallback

CLOCK = ("runtime", "per_second")


@pytest.fixture
def train(tmp_path, tokenizer, train_rows):
    def run(callbacks, attached=None, data=None, **options):
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 10,
            "per_device_train_batch_size": 8,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_steps": 1,
            "logging_steps": 1,
            **QUIET,
        }
        args = TrainingArguments(**(defaults | options))
        trainer = Trainer(
            make_encoder(),
            args,
            train_dataset=train_rows if data is None else data,
            eval_dataset=None if args.eval_strategy == "no" else train_rows.select(range(8)),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        if attached is not None:
            attached.attach(trainer)
        trainer.train()
        return trainer

    return run


def rows_of(trainer):
    """The log less what a clock says, and less sepstop's own rows."""
    rows = [row for row in trainer.state.log_history if "sepstop" not in row]
    return [{k: v for k, v in row.items() if not k.endswith(CLOCK)} for row in rows]


# The order of callbacks


class Sees(TrainerCallback):
    """What an evaluation's metrics have when this callback gets them."""

    def __init__(self):
        self.seen = []

    def on_evaluate(self, args, state, control, metrics, **_):
        self.seen.append(metrics.get("eval_robust_mi"))


@pytest.mark.parametrize("order", ["before", "after", "attached last"])
def test_every_callback_sees_the_metric_whatever_the_order(train, pool, order):
    early, sees, ours = EarlyStoppingCallback(2), Sees(), SepStopCallback(pool, verbose=False)
    callbacks = {"before": [early, sees, ours], "after": [ours, early, sees]}
    trainer = train(
        callbacks.get(order, [early, sees]),
        ours if order == "attached last" else None,
        learning_rate=1e-9,  # nothing improves
        metric_for_best_model="robust_mi",
        load_best_model_at_end=True,
    )
    assert trainer.state.global_step == 3
    assert sees.seen == values(ours.history, "robust_mi")


def test_an_evaluation_by_hand_of_another_set_is_no_evaluation_of_the_run(train, pool):
    class ByHand(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            self.trainer.evaluate(metric_key_prefix="other")

    by_hand, ours = ByHand(), SepStopCallback(pool, policy=NEVER, verbose=False)
    args = {"max_steps": 2, "eval_steps": 2, "save_strategy": "no"}

    class Late(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            by_hand.trainer = ours._trainer

    train([Late(), by_hand], ours, **args)
    assert [record.step for record in ours.history] == [1, 2]


# The log


@TRAINS_AGAIN
@pytest.mark.parametrize("schedule", [{}, {"eval_strategy": "no"}])
@pytest.mark.parametrize("attached", [False, True])
def test_the_rows_of_the_log_are_those_of_a_run_without(train, pool, schedule, attached):
    plain = train(None, logging_steps=2, **schedule)
    ours = SepStopCallback(pool, policy=NEVER, every_n_steps=2, verbose=False)
    watched = train(
        None if attached else [ours], ours if attached else None, **schedule, logging_steps=2
    )
    assert rows_of(watched) == rows_of(plain)
    assert sum("sepstop" in row for row in watched.state.log_history) == len(ours.history)


BRIEF = {"max_steps": 6, "logging_steps": 3, "save_strategy": "no", "bf16": False, **QUIET}


def sft(folder, tokenizer, pool):
    from trl import SFTConfig, SFTTrainer

    rows = datasets.Dataset.from_dict({"text": pool[:24]})
    args = SFTConfig(
        str(folder),
        max_length=16,
        eos_token="[SEP]",
        eval_strategy="steps",
        eval_steps=3,
        **BRIEF,
    )
    data = {"train_dataset": rows, "eval_dataset": rows.select(range(8))}
    return SFTTrainer(make_decoder(), args, processing_class=tokenizer, **data)


def preferences(pool, tokenizer):
    """Pairs of texts, and a tokenizer as the trainers of preferences want it."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = "[SEP]"
    good = [text for text in pool if set(text.split()) & set(GOOD)]
    rows = {"prompt": ["the film was "] * 16, "chosen": good[:16], "rejected": pool[:16]}
    return {"train_dataset": datasets.Dataset.from_dict(rows), "processing_class": tokenizer}


def dpo(folder, tokenizer, pool):
    from trl import DPOConfig, DPOTrainer

    make_decoder().save_pretrained(folder / "base")  # the reference is loaded from there
    model = LlamaForCausalLM.from_pretrained(folder / "base")
    args = DPOConfig(str(folder), max_length=24, **BRIEF)
    return DPOTrainer(model, args=args, **preferences(pool, tokenizer))


def reward(folder, tokenizer, pool):
    from trl import RewardConfig, RewardTrainer

    model = make_decoder_classifier()
    model.config.num_labels, model.num_labels = 1, 1
    model.score = torch.nn.Linear(16, 1, bias=False)
    args = RewardConfig(str(folder), max_length=24, **BRIEF)
    return RewardTrainer(model, args=args, **preferences(pool, tokenizer))


@pytest.mark.filterwarnings("ignore:sepstop. nothing is known of what this language model")
@pytest.mark.parametrize("make", [sft, dpo, reward])
def test_trl_keeps_all_of_its_metrics(make, tmp_path, tokenizer, pool):
    pytest.importorskip("trl")
    rows = []
    for watched in (False, True):
        torch.manual_seed(0)
        trainer = make(tmp_path, tokenizer, pool)
        if watched:
            SepStopCallback(pool, policy=NEVER, every_n_steps=2, verbose=False).attach(trainer)
        trainer.train()
        rows.append(rows_of(trainer))
    assert rows[0] == rows[1]
    assert sum("loss" in row and len(row) > 6 for row in rows[0]) == 2


def test_a_failing_measurement_costs_no_run_that_is_kept_by_its_score(train, pool):
    """Trainer ends with a KeyError where its metric is missing."""
    calls = []

    def pooling(model, input_ids, attention_mask):
        calls.extend([1] * (len(input_ids) == len(pool)))
        if len(calls) in (4, 5):  # after one before training and two at step 1
            raise RuntimeError("the disk is on fire")
        return model.bert(input_ids, attention_mask).last_hidden_state[:, 0]

    ours = SepStopCallback(pool, average=False, pooling=pooling, batch_size=100, verbose=False)
    with pytest.warns(RuntimeWarning, match="could not measure step [23].*the disk is on fire"):
        trainer = train([ours], metric_for_best_model="robust_mi", load_best_model_at_end=True)
    assert [math.isnan(value) for value in values(ours.history)][:4] == [False, True, True, False]
    assert trainer.state.global_step == 10


def test_a_run_whose_evaluations_never_reach_the_callbacks_is_said(
    pool, tokenizer, train_rows, tmp_path
):
    class Own(Trainer):
        def evaluate(self, *_, **__):
            return {"eval_mine": 1.0}

    args = TrainingArguments(
        str(tmp_path), max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="no", **QUIET
    )
    rows = {"train_dataset": train_rows, "eval_dataset": train_rows}
    ours = SepStopCallback(pool, verbose=False)
    trainer = Own(make_encoder(), args, processing_class=tokenizer, callbacks=[ours], **rows)
    with pytest.warns(RuntimeWarning, match="not scored once in 2 steps: .* super"):
        trainer.train()


# The best weights at the end


@pytest.mark.parametrize("options", [{}, {"eval_strategy": "no"}])
def test_the_weights_at_the_end_are_those_of_the_best_checkpoint(train, pool, options):
    own = {"every_n_steps": 2, "load_best_model_at_end": True} if options else {}
    best = {} if options else BEST
    ours = SepStopCallback(
        pool, average=False, policy=NEVER, criterion="separability", verbose=False, **own
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train([ours], **options, **best)
    assert not [w for w in caught if "best weights" in str(w.message)]


class Meddles(TrainerCallback):
    """Changes the model, or the checkpoint, after the best was saved."""

    def __init__(self, what):
        self.what = what

    def on_log(self, args, state, control, logs, model=None, **_):
        if "train_runtime" not in logs:
            return
        if self.what == "folder":
            folder = Path(args.output_dir)
            shutil.copytree(folder / "checkpoint-1", folder / "checkpoint-99")
            state.best_model_checkpoint = str(folder / "checkpoint-99")
        if self.what == "nothing":
            state.best_model_checkpoint = None

    def on_train_end(self, args, state, control, model=None, **_):
        if self.what == "weights":
            model.classifier.bias.data += 1


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("weights", r"1 tensors differ from those in .*checkpoint-\d+, such as classifier.bias"),
        ("folder", "Trainer loaded .*checkpoint-99"),
        ("nothing", "Trainer loaded no checkpoint"),
    ],
)
def test_weights_that_are_not_the_best_are_said(train, pool, what, said):
    ours = SepStopCallback(
        pool,
        average=False,
        policy=NEVER,
        every_n_steps=2,
        load_best_model_at_end=True,
        verbose=False,
    )
    with pytest.warns(RuntimeWarning, match=f"does not hold the best weights, .*{said}"):
        train([Meddles(what), ours], eval_strategy="no")


def test_an_adapter_that_trainer_cannot_load_is_said(pool, tokenizer, train_rows, tmp_path):
    """Trainer looks for an adapter in the checkpoint's own folder, and warns in its log only."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        make_encoder(),
        peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]),
        adapter_name="topics",
    )
    ours = SepStopCallback(
        pool,
        average=False,
        criterion=Scripted([0.9, 0.5, 0.1]),
        policy=NEVER,
        every_n_steps=2,
        load_best_model_at_end=True,
        verbose=False,
    )
    args = TrainingArguments(str(tmp_path / "run"), max_steps=6, save_steps=2, **QUIET)
    trainer = Trainer(
        model, args, train_dataset=train_rows, processing_class=tokenizer, callbacks=[ours]
    )
    with pytest.warns(RuntimeWarning, match="does not hold the best weights, those of step 2"):
        trainer.train()
