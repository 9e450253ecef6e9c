"""Arguments that are refused or pointed out before training begins."""

import re
import warnings

import pytest
import torch
from helpers.scores import NEVER
from helpers.training import BEST
from transformers import TrainerCallback

from sepstop import PastPeak, SepStopCallback
from sepstop.callbacks.checks import _planned_scores
from sepstop.criteria import InfoMax


class Interrupts(TrainerCallback):
    """Ends a run before its first step."""

    def on_step_begin(self, args, state, control, **_):
        raise KeyboardInterrupt


# The Trainer's arguments


def test_two_callbacks_are_refused(make_trainer, pool):
    trainer = make_trainer(SepStopCallback(pool))
    trainer.add_callback(SepStopCallback(pool))
    with pytest.raises(ValueError, match="expected one SepStopCallback in a Trainer, got two"):
        trainer.train()
    assert trainer.state.global_step == 0


class Lowest(InfoMax):
    name, higher_is_better = "lowest", False


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        ({}, BEST | {"greater_is_better": False}, "needs greater_is_better=True, got False"),
        (
            {"criterion": Lowest()},
            {"metric_for_best_model": "eval_lowest"},
            "metric_for_best_model='lowest' needs greater_is_better=False, got True",
        ),
        (
            {"criterion": "neighbor_mi"},
            BEST,
            "metric_for_best_model='separability', but the criterion is 'neighbor_mi'",
        ),
        (
            {"criterion": "infomax", "policy": NEVER, "extra_criteria": ["entropy"]},
            BEST | {"metric_for_best_model": "entropy"},
            "metric_for_best_model='entropy', but the criterion is 'infomax'",
        ),
        (
            {"criterion": "separability"},
            BEST | {"metric_for_best_model": "robust_mi"},
            "metric_for_best_model='robust_mi' is not recorded: name it as criterion= or in",
        ),
        (
            {},
            BEST | {"metric_for_best_model": "eval_robust_mi_of_cumulative"},
            "is the score of one candidate, .* name the score itself: 'robust_mi'",
        ),
        (
            {"load_best_model_at_end": True},
            {},
            r"load_best_model_at_end=True\) is for runs with eval_strategy='no'",
        ),
    ],
)
def test_arguments_that_contradict_each_other(make_trainer, pool, callback, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(SepStopCallback(pool, **callback), **options)
    with pytest.raises(ValueError, match=message):
        SepStopCallback(pool, **callback).attach(make_trainer(None, **options))


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        ({"criterion": "label_mi"}, {}, "the criterion 'label_mi' is for a model whose outputs"),
        ({}, {"metric_for_best_model": "label_mi"}, "the criterion 'label_mi' is for a model"),
        (
            {"criterion": Lowest(), "policy": PastPeak()},
            {},
            "past_peak needs a score that is better when higher, got 'lowest'",
        ),
    ],
)
def test_what_the_model_shows_to_be_wrong(make_trainer, pool, callback, options, message):
    trainer = make_trainer(SepStopCallback(pool, **callback), **options)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_missing_tokenizer_is_said_before_the_first_step(make_trainer, pool):
    trainer = make_trainer(SepStopCallback(pool))
    trainer.callback_handler.processing_class = None
    with pytest.raises(ValueError, match="no tokenizer for the pool"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_model_without_hidden_states_is_said_before_the_first_step(make_trainer, pool):
    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.EmbeddingBag(30, 2)

        def forward(self, input_ids, labels=None, **_):
            logits = self.words(input_ids)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    trainer = make_trainer(SepStopCallback(pool), Bag())
    with pytest.raises(ValueError, match="outputs of Bag have no hidden states"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"load_best_model_at_end": True}, "is 'loss', so Trainer keeps checkpoints"),
        ({"metric_for_best_model": "loss"}, "is 'loss', so Trainer keeps checkpoints"),
        (
            {"metric_for_best_model": "loss", "save_total_limit": 3},
            "is 'loss', so Trainer keeps and deletes checkpoints",
        ),
    ],
)
def test_another_best_metric_is_pointed_out(make_trainer, pool, options, kept):
    callback = SepStopCallback(pool)
    trainer = make_trainer(callback, max_steps=2, **options)
    said = f"{kept} by that metric; set it to 'robust_mi' to keep the label-free pick"
    with pytest.warns(UserWarning, match=said):
        trainer.train()
    assert callback.session.decides == "robust_mi"


def test_a_folder_with_checkpoints_of_an_earlier_run_is_pointed_out(make_trainer, pool):
    make_trainer(SepStopCallback(pool, verbose=False), max_steps=2).train()
    trainer = make_trainer(SepStopCallback(pool, verbose=False), max_steps=2)
    with pytest.warns(
        UserWarning, match=r"holds checkpoints of an earlier run, such as checkpoint-2;"
    ):
        trainer.train()


@pytest.mark.filterwarnings("ignore:sepstop. metric_for_best_model is 'loss'")
@pytest.mark.parametrize(
    ("callback", "options", "said"),
    [
        (
            {},
            BEST,
            "separability decides; policy plateau; the best checkpoint is loaded at the end",
        ),
        (
            {"criterion": "infomax", "extra_criteria": []},
            {"save_strategy": "no"},
            "infomax decides; policy plateau; no checkpoint is kept (save_strategy='no')",
        ),
        (
            {},
            {"metric_for_best_model": "loss", "load_best_model_at_end": True},
            "robust_mi decides (separability recorded beside it); policy past_peak; checkpoints "
            "are kept by metric_for_best_model='loss'",
        ),
        (
            {},
            {"eval_strategy": "no", "metric_for_best_model": "separability"},
            "separability decides; policy plateau; the best checkpoint is kept on disk",
        ),
        (
            {"policy": "first_optimum", "load_best_model_at_end": True},
            {"eval_strategy": "no"},
            "robust_mi decides (separability recorded beside it); policy first_optimum; the best "
            "checkpoint is loaded at the end",
        ),
    ],
)
def test_what_decides_stops_and_is_kept_is_said_in_a_line(
    make_trainer, pool, capsys, callback, options, said
):
    trainer = make_trainer(SepStopCallback(pool, average=False, **callback), **options)
    trainer.add_callback(Interrupts())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("sepstop: ")] == [f"sepstop: {said}"]


# Schedules


@pytest.mark.parametrize(
    ("every", "options", "said"),
    [
        (None, {"eval_strategy": "no", "max_steps": 40}, None),  # 8 steps an epoch: 5 scores
        (None, {"eval_strategy": "no", "max_steps": 30}, "4 scores in 30 .* every_n_steps=3"),
        (10, {"eval_strategy": "no", "max_steps": 40}, "4 scores in 40 .* every_n_steps=4"),
        (None, {"eval_strategy": "no", "max_steps": -1, "num_train_epochs": 1}, "1 score in 8"),
        (
            None,
            {"eval_steps": 4, "max_steps": 12},
            "3 scores .* eval_strategy='steps', eval_steps=1",
        ),
        (None, {"eval_steps": 4, "max_steps": 18}, None),  # the last step is evaluated as well
        (None, {"eval_steps": 3, "eval_delay": 6, "max_steps": 16}, None),
        (None, {"eval_steps": 3, "eval_delay": 7, "max_steps": 15}, "3 scores"),
        (4, {"eval_steps": 2, "max_steps": 12}, "4 scores"),  # at 2, 6, 10 and the last
        (None, {"eval_strategy": "epoch", "max_steps": 24}, "3 scores in 24 .* eval_steps=2"),
        (1, {"eval_strategy": "no", "max_steps": 3}, None),  # no more to be had
    ],
)
def test_a_schedule_of_too_few_scores_is_said_before_training(
    make_trainer, pool, every, options, said
):
    callback = SepStopCallback(pool, every_n_steps=every, verbose=False)
    trainer = make_trainer(callback, **({"save_strategy": "no"} | options))
    trainer.add_callback(Interrupts())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    found = [str(w.message) for w in caught if "this run will have" in str(w.message)]
    assert len(found) == bool(said)
    assert all(re.search(said, sentence) for sentence in found)


def test_a_stream_is_said_to_have_one_score(make_trainer, pool, train_rows):
    callback = SepStopCallback(pool, verbose=False)
    options = {"eval_strategy": "no", "save_strategy": "no", "max_steps": 20}
    trainer = make_trainer(callback, **options)
    trainer.train_dataset = train_rows.remove_columns("text").to_iterable_dataset().repeat(None)
    with pytest.warns(UserWarning, match=r"1 score in 20 steps, .* set every_n_steps=2"):
        trainer.train()
    assert len(callback.history) == 1


@pytest.mark.parametrize("every", [None, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"eval_steps": 3},
        {"eval_steps": 4, "eval_delay": 5},
        {"eval_strategy": "epoch"},
        {"eval_strategy": "epoch", "gradient_accumulation_steps": 3},
        {"eval_strategy": "no"},
        {"eval_strategy": "no", "gradient_accumulation_steps": 3},
    ],
)
def test_as_many_scores_as_planned_are_taken(make_trainer, pool, every, options):
    planned = []

    class Asks(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader, **_):
            planned.append(_planned_scores(args, state, every, train_dataloader))

    callback = SepStopCallback(pool, policy=NEVER, every_n_steps=every, verbose=False)
    trainer = make_trainer(callback, max_steps=20, **({"save_strategy": "no"} | options))
    trainer.add_callback(Asks())
    trainer.train()
    assert planned == [len(callback.history)]
