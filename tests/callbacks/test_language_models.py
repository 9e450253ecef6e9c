"""Language models without a head, by TRL's SFTTrainer: known answers, unknown ones, and text."""

import copy

import datasets
import pytest
import torch
from conftest import make_decoder, make_texts
from helpers.scores import NEVER, values
from helpers.training import EVERY_SECOND_STEP
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from sepstop import SepStopCallback, select_checkpoint


def fine_tuning(callback, rows, tokenizer, folder, quantization=None, lora=True, **options):
    """An SFTTrainer, with adapters unless said otherwise, of a base on disk."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    size = 64 if quantization else 16  # what the kernels for 4 bits need
    make_decoder(hidden_size=size).save_pretrained(folder / "base")
    given = EVERY_SECOND_STEP | {"bf16": False, "gradient_checkpointing": True} | options
    args = SFTConfig(
        str(folder / "run"),
        max_length=16,
        eos_token="[SEP]",
        load_best_model_at_end=True,
        report_to=[],
        use_cpu=True,
        **given,
    )
    loading = {"quantization_config": quantization, "device_map": "cpu"} if quantization else {}
    return SFTTrainer(
        LlamaForCausalLM.from_pretrained(folder / "base", **loading),
        args,
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
        processing_class=copy.deepcopy(tokenizer),  # the trainer sets its eos_token
        peft_config=LoraConfig(r=8, target_modules="all-linear") if lora else None,
        callbacks=[callback],
    )


def test_supervised_fine_tuning_by_trl_with_an_adapter(pool, tokenizer, tmp_path):
    texts = datasets.Dataset.from_dict({"text": pool[:24]})
    callback = SepStopCallback(pool, average=False, num_resamples=4, pooling="last")
    trainer = fine_tuning(
        callback,
        texts,
        tokenizer,
        tmp_path,
        learning_rate=1e-2,
        metric_for_best_model="separability",
    )
    callback.attach(trainer)
    trainer.train()
    assert [record.step for record in callback.history] == [2, 4]
    assert trainer.state.best_global_step == callback.decision.best_step
    chosen = select_checkpoint(tmp_path / "run", pool, average=False)
    assert chosen.best_step == callback.decision.best_step
    for name in callback.history[0].scores:
        assert values(chosen.records, name) == pytest.approx(
            values(callback.history, name), rel=1e-4
        )


def test_fine_tuning_on_answers_by_trl(pool, tokenizer, tmp_path):
    """The pool has prompts; a run on disk is scored by the answers that it recorded."""
    texts, labels = make_texts(64, seed=2)
    words = [(" awful", " great")[label] for label in labels]
    rows = datasets.Dataset.from_dict({"prompt": texts, "completion": words})
    callback = SepStopCallback(
        datasets.Dataset.from_dict({"prompt": pool, "completion": [" awful"] * len(pool)}),
        answers=[" awful", " great"],
        num_resamples=4,
        policy=NEVER,
        average=False,
    )
    trainer = fine_tuning(
        callback,
        rows,
        tokenizer,
        tmp_path,
        learning_rate=5e-2,
        metric_for_best_model="infomax",
        max_steps=12,
        per_device_train_batch_size=16,
    )
    trainer.train()
    assert callback.session.decides == "infomax"
    assert len(callback.history) == 6
    scores = values(callback.history)
    assert max(scores) > min(scores)
    chosen = select_checkpoint(tmp_path / "run", pool, average=False)
    assert chosen.settings["answers"] == [" awful", " great"]
    assert values(chosen.records) == pytest.approx(scores, rel=1e-3)
    assert chosen.best_step == callback.decision.best_step


def test_a_language_model_without_answers_is_pointed_out(pool, tokenizer):
    callback = SepStopCallback(pool, average=False, num_resamples=2)
    with pytest.warns(UserWarning, match=r"component_mi decides, .* name the answers \(answers="):
        callback.session.prepare(make_decoder(), tokenizer)


def prompts_and_answers():
    texts, labels = make_texts(64, seed=2)
    words = [(" awful", " great")[label] for label in labels]
    return datasets.Dataset.from_dict({"prompt": texts, "completion": words})


LEARNING = {
    "learning_rate": 5e-2,
    "metric_for_best_model": "infomax",
    "max_steps": 12,
    "per_device_train_batch_size": 16,
}


@pytest.mark.parametrize(
    ("bits", "options"),
    [
        (None, {"bf16": True}),
        (None, {"packing": True, "packing_strategy": "wrapped"}),
        (4, {}),
        (8, {}),
    ],
    ids=["bf16", "packing", "4 bits", "8 bits"],
)
def test_answers_however_the_model_is_trained(bits, options, pool, tokenizer, tmp_path):
    """The average that is loaded at the end has the score that it was kept for."""
    quantization = None
    if bits:
        pytest.importorskip("bitsandbytes")
        quantization = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    callback = SepStopCallback(pool, answers=[" awful", " great"], num_resamples=4, policy=NEVER)
    trainer = fine_tuning(
        callback,
        prompts_and_answers(),
        tokenizer,
        tmp_path,
        quantization,
        **LEARNING | options,
    )
    trainer.train()
    assert len(callback.history) == 6
    scores = values(callback.history, "infomax")
    assert max(scores) > min(scores)
    assert callback.monitor.observer.precision == ("bf16" if "bf16" in options else "no")
    step = callback.decision.best_step
    (kept,) = (record for record in callback.history if record.step == step)
    assert kept.average is not None
    again = callback.monitor.observe(trainer.model)  # which has the best weights now
    found = callback.monitor.score(again, kept.step)
    assert found.scores["infomax"].value == pytest.approx(kept.scores["infomax"].value, rel=0.05)


def test_unknown_answers(pool, tokenizer, tmp_path):
    """The run and its checkpoints are scored by what the model says first."""
    callback = SepStopCallback(pool, answers=3, num_resamples=4, policy=NEVER, average=False)
    options = LEARNING | {"lora": False, "max_steps": 40, "eval_steps": 10, "save_steps": 10}
    trainer = fine_tuning(callback, prompts_and_answers(), tokenizer, tmp_path, **options)
    trainer.train()
    scores = values(callback.history)
    assert max(scores) > min(scores)
    seen = callback.monitor.observe(trainer.model)
    said = seen.logits.argmax(dim=-1)
    assert (said <= 1).double().mean() > 0.9  # mostly the two words that it has learned to say
    chosen = select_checkpoint(tmp_path / "run", pool, average=False)
    assert chosen.settings["answers"] == 3
    assert values(chosen.records) == pytest.approx(scores, rel=1e-3)
    assert chosen.best_step == callback.decision.best_step


def test_continued_pre_training(pool, tokenizer, tmp_path):
    """The loss on the pool falls; the best weights are those of its minimum."""
    texts = datasets.Dataset.from_dict({"text": make_texts(64, seed=2)[0]})
    callback = SepStopCallback(pool, criterion="pool_loss", num_resamples=4)
    options = LEARNING | {"metric_for_best_model": "pool_loss", "greater_is_better": False}
    trainer = fine_tuning(callback, texts, tokenizer, tmp_path, **options)
    trainer.train()
    losses = values(callback.history, "pool_loss")
    assert losses[-1] < losses[0]
    best = min(callback.history, key=lambda record: record.scores["pool_loss"].value)
    assert callback.decision.best_step == trainer.state.best_global_step == best.step
    again = callback.monitor.observe(trainer.model).token_losses.double().sum(dim=0)
    assert float(again[0] / again[1]) == pytest.approx(min(losses), rel=0.02)
    chosen = select_checkpoint(tmp_path / "run", pool, average=False)
    assert chosen.decides == "pool_loss"
    assert all(torch.isfinite(torch.tensor(values(chosen.records, "pool_loss"))))
