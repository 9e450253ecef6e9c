"""Trainers, models and tools of other libraries, as they come."""

import json
import warnings

import datasets
import pytest
import torch
from conftest import make_decoder, make_decoder_classifier, make_encoder, make_texts
from helpers.scores import NEVER, StopAt, values
from helpers.training import EVERY_SECOND_STEP, Recorder
from transformers import (
    BertForSequenceClassification,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from sepstop import Monitor, SepStopCallback, SepStopConfig, select_checkpoint


@pytest.fixture
def sentence_model(tmp_path, tokenizer):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as models

    make_encoder().base_model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    transformer = models.Transformer(str(tmp_path / "encoder"))
    pooling = models.Pooling(transformer.get_embedding_dimension(), "cls")
    return SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu")


def test_a_sentence_transformer_embeds_by_its_own_modules(sentence_model, pool):
    seen = []

    def criterion(points):
        seen.append(points)
        return points.new_zeros(len(points))

    criterion.name, criterion.higher_is_better = "points", True
    config = SepStopConfig(
        criterion=criterion, extra_criteria=[], num_resamples=1, resample_size=len(pool)
    )
    monitor = Monitor(pool, config)
    monitor.measure(sentence_model, step=1)  # with the tokenizer that it brings along
    expected = sentence_model.encode(list(monitor.pool.rows), convert_to_tensor=True)
    assert torch.allclose(seen[0][0], expected[monitor.resample_indices[0]], atol=1e-5)


def test_layers_of_a_sentence_transformer(sentence_model, pool):
    first, last = (
        Monitor(
            pool, SepStopConfig(pooling={"name": "mean", "layer": layer}, num_resamples=2)
        ).measure(sentence_model, step=1)
        for layer in (0, -1)
    )
    assert first.scores["separability"] != last.scores["separability"]


def test_the_trainer_of_sentence_transformers(sentence_model, pool, tmp_path):
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    pairs = datasets.Dataset.from_dict({"anchor": pool[:24], "positive": pool[1:25]})
    callback = SepStopCallback(pool, average=False, num_resamples=4)
    trainer = SentenceTransformerTrainer(
        sentence_model,
        SentenceTransformerTrainingArguments(
            str(tmp_path / "run"),
            **EVERY_SECOND_STEP,
            learning_rate=1e-3,
            metric_for_best_model="separability",
            load_best_model_at_end=True,
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=pairs,
        eval_dataset={"one": pairs, "two": pairs},  # each is an evaluation of its own
        loss=losses.MultipleNegativesRankingLoss(sentence_model),
        callbacks=[callback],
    )
    trainer.train()
    assert [record.step for record in callback.history] == [2, 4]
    best = callback.decision.best_step
    assert trainer.state.best_global_step == best
    kept = SentenceTransformer(str(tmp_path / "run" / f"checkpoint-{best}"), device="cpu")
    record = Monitor(pool, SepStopConfig(num_resamples=4)).measure(kept, step=best)
    score = callback.session.recorded().series.score_at(best).value
    assert record.scores["separability"].value == pytest.approx(score, rel=1e-4)
    chosen = select_checkpoint(tmp_path / "run", pool, average=False)
    assert chosen.best_step == best
    for name in callback.history[0].scores:
        assert values(chosen.records, name) == pytest.approx(
            values(callback.history, name), rel=1e-4
        )


@pytest.mark.parametrize("evaluates", ["no", "steps"])
def test_the_average_of_a_sentence_transformer(sentence_model, pool, tmp_path, evaluates):
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    pairs = datasets.Dataset.from_dict({"anchor": pool[:24], "positive": pool[1:25]})
    own = evaluates == "no"
    callback = SepStopCallback(
        pool,
        num_resamples=4,
        policy=NEVER,
        criterion="separability",
        every_n_steps=2 if own else None,
        load_best_model_at_end=own,
    )
    kept_by = {"metric_for_best_model": "separability", "load_best_model_at_end": True}
    trainer = SentenceTransformerTrainer(
        sentence_model,
        SentenceTransformerTrainingArguments(
            str(tmp_path / "run"),
            **EVERY_SECOND_STEP | {"eval_strategy": evaluates} | ({} if own else kept_by),
            learning_rate=1e-3,
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=pairs,
        eval_dataset=None if own else pairs,
        loss=losses.MultipleNegativesRankingLoss(sentence_model),
        callbacks=[callback, recorder := Recorder()],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="sepstop: the trained model")
        trainer.train()
    best = next(r for r in callback.history if r.step == callback.decision.best_step)
    expected = recorder.average(best.average)
    folder = tmp_path / "run" / f"average-{best.step}"
    assert trainer.state.best_model_checkpoint == str(folder)
    for model in (trainer.model, SentenceTransformer(str(folder), device="cpu")):
        found = dict(model.named_parameters())
        for name, weight in expected.items():
            assert torch.allclose(found[name].double(), weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("evaluates", ["no", "steps"])
def test_the_average_of_an_adapter(pool, tokenizer, train_rows, tmp_path, evaluates):
    from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model

    make_encoder().save_pretrained(tmp_path / "base")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    own = evaluates == "no"
    callback = SepStopCallback(
        pool,
        num_resamples=4,
        policy=NEVER,
        criterion="separability",
        every_n_steps=2 if own else None,
        load_best_model_at_end=own,
    )
    kept_by = {"metric_for_best_model": "separability", "load_best_model_at_end": True}
    trainer = Trainer(
        get_peft_model(base, lora),
        TrainingArguments(
            str(tmp_path / "run"),
            **EVERY_SECOND_STEP | {"eval_strategy": evaluates} | ({} if own else kept_by),
            learning_rate=1e-2,
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=train_rows,
        eval_dataset=None if own else train_rows,
        processing_class=tokenizer,
        callbacks=[callback, recorder := Recorder()],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="sepstop: the trained model")
        trainer.train()
    best = next(r for r in callback.history if r.step == callback.decision.best_step)
    expected = recorder.average(best.average)
    assert any("lora_A" in name for name in expected)
    assert not any("word_embeddings" in name for name in expected)
    folder = tmp_path / "run" / f"average-{best.step}"
    assert trainer.state.best_model_checkpoint == str(folder)
    assert not (folder / "model.safetensors").exists()
    kept = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    for model in (trainer.model, kept):
        found = dict(model.named_parameters())
        for name, weight in expected.items():
            assert torch.allclose(found[name].double(), weight, rtol=1e-6, atol=1e-8)


def test_a_sentence_transformer_with_code_of_its_own_needs_to_be_allowed(
    sentence_model, pool, tmp_path
):
    checkpoint = tmp_path / "run" / "checkpoint-1"
    sentence_model.save(str(checkpoint))
    assert select_checkpoint(tmp_path / "run", pool, average=False).best_step == 1
    modules = json.loads((checkpoint / "modules.json").read_text())
    modules[1]["type"] = "pooling.Own"
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    (checkpoint / "pooling.py").write_text("raise SystemExit('was run')")
    with pytest.raises(
        ValueError, match=r"brings its own code, pooling\.Own; to run it, pass trust_remote_code"
    ):
        select_checkpoint(tmp_path / "run", pool, average=False)


def test_the_reason_of_a_skipped_folder_names_what_is_missing(sentence_model, pool, tmp_path):
    from safetensors.torch import load_file, save_file
    from sentence_transformers.sentence_transformer.modules import Dense

    sentence_model.append(Dense(16, 8))
    sentence_model.save(str(tmp_path / "model"))
    path = tmp_path / "model" / "3_Dense" / "model.safetensors"
    tensors = load_file(path)
    save_file({"linear.weight": tensors["linear.weight"]}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"state_dict for Dense: .*linear\.bias"):
        select_checkpoint(tmp_path / "model", pool, cache=False, average=False)


def test_an_adapter_that_fits_no_module_is_said(pool, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    make_decoder().save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    checkpoint = tmp_path / "run" / "checkpoint-1"
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    assert select_checkpoint(tmp_path / "run", pool, average=False).best_step == 1
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    config["auto_mapping"] = {"parent_library": "os", "base_model_class": "system"}
    (checkpoint / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the model was trained as system, which transformers"):
        select_checkpoint(tmp_path / "run", pool, average=False)
    config["auto_mapping"] = {
        "parent_library": "transformers.models.llama",
        "base_model_class": "LlamaModel",
    }
    (checkpoint / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="checkpoint-1: MisfitError: the adapter does not fit"):
        select_checkpoint(tmp_path / "run", pool, average=False)


@pytest.fixture
def searching(pool, tokenizer, train_rows, tmp_path):
    """A Trainer to search with, and its callback."""
    callback = SepStopCallback(pool, num_resamples=4)
    trainer = Trainer(
        model_init=lambda: make_encoder(),
        args=TrainingArguments(
            str(tmp_path / "run"),
            max_steps=4,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=train_rows,
        eval_dataset=train_rows.select(range(8)),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    return trainer, callback


def search(trainer, objective, **options):
    def space(trial):
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)}

    return trainer.hyperparameter_search(
        space,
        compute_objective=objective,
        direction="maximize",
        backend="optuna",
        n_trials=3,
        **options,
    )


def test_a_search_by_optuna_takes_the_score_for_its_objective(searching):
    trainer, callback = searching
    scores = []

    def objective(metrics):
        scores.append(metrics["eval_separability"])
        assert metrics["eval_separability"] == values(callback.history, "separability")[-1]
        return metrics["eval_separability"]

    best = search(trainer, objective)
    assert len(set(scores)) == 6  # two evaluations in each of three runs
    assert best.objective == max(scores[1::2])


def test_a_search_by_optuna_prunes_by_the_score(searching):
    import optuna

    seen = {}

    class Second(optuna.pruners.BasePruner):
        """Gives up the second run at its first evaluation."""

        def prune(self, study, trial):
            seen[trial.number] = list(trial.intermediate_values.values())
            assert seen[trial.number][-1] == values(searching[1].history)[-1]
            return trial.number == 1

    objective = lambda metrics: metrics["eval_robust_mi"]  # noqa: E731, as in the README
    search(searching[0], objective, pruner=Second())
    assert [len(values) for values in seen.values()] == [2, 1, 2]


def test_the_trainer_of_sequence_to_sequence_models(pool, tokenizer, tmp_path):
    from transformers import (
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=3,
        )
    )
    rows = datasets.Dataset.from_dict({"text": pool[:24]}).map(
        lambda row: {**tokenizer(row["text"]), "labels": tokenizer(row["text"])["input_ids"]},
        remove_columns="text",
    )
    callback = SepStopCallback(pool, average=False, num_resamples=4)
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(
            str(tmp_path / "run"),
            **EVERY_SECOND_STEP,
            learning_rate=1e-2,
            predict_with_generate=True,
            generation_max_length=8,
            metric_for_best_model="component_mi",
            load_best_model_at_end=True,
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    assert [record.step for record in callback.history] == [2, 4]
    assert callback.session.decides == "component_mi"
    assert trainer.state.best_global_step == callback.decision.best_step
    chosen = select_checkpoint(tmp_path / "run", pool, average=False)
    assert chosen.best_step == callback.decision.best_step
    for name in callback.history[0].scores:
        assert values(chosen.records, name) == pytest.approx(
            values(callback.history, name), rel=1e-4
        )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore:sepstop. the untrained head already predicts")
def test_a_quantized_decoder_with_an_adapter(bits, pool, tokenizer, train_rows, tmp_path):
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig, LlamaForSequenceClassification

    make_decoder_classifier(hidden_size=64).save_pretrained(tmp_path / "base")
    monitor = Monitor(pool, SepStopConfig(num_resamples=4, tokenizer=tokenizer))
    whole = LlamaForSequenceClassification.from_pretrained(tmp_path / "base")
    base = LlamaForSequenceClassification.from_pretrained(
        tmp_path / "base",
        quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}),
        device_map="cpu",
    )
    quantized, exact = values([monitor.measure(base, 0), monitor.measure(whole, 0)], "separability")
    assert quantized != exact
    assert quantized == pytest.approx(exact, abs=0.1)
    model = get_peft_model(
        prepare_model_for_kbit_training(base), LoraConfig(task_type="SEQ_CLS", r=4)
    )
    callback = SepStopCallback(pool, num_resamples=4)
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path / "run"),
            **EVERY_SECOND_STEP,
            learning_rate=1e-2,
            metric_for_best_model="robust_mi",
            load_best_model_at_end=True,
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=train_rows,
        eval_dataset=train_rows.select(range(8)),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    assert [record.step for record in callback.history] == [2, 4]
    assert callback.session.decides == "robust_mi"
    assert trainer.state.best_global_step == callback.decision.best_step


@pytest.mark.parametrize("stop_at", [None, 8])
@pytest.mark.filterwarnings("ignore:sepstop. the scores go to trainer_state.json")
@pytest.mark.filterwarnings("ignore:sepstop. metric_for_best_model is")
def test_the_trainer_of_setfit(sentence_model, pool, tmp_path, monkeypatch, stop_at):
    from setfit import SetFitModel, Trainer, TrainingArguments

    monkeypatch.chdir(tmp_path)
    sentence_model.save(str(tmp_path / "base"))
    texts, labels = make_texts(32, seed=2)
    rows = datasets.Dataset.from_dict({"text": texts, "label": labels})
    callback = SepStopCallback(
        pool, average=False, policy=NEVER if stop_at is None else StopAt(stop_at), num_resamples=4
    )
    trainer = Trainer(
        model=SetFitModel.from_pretrained(tmp_path / "base"),
        args=TrainingArguments(
            output_dir=str(tmp_path / "run"),
            batch_size=8,
            max_steps=12,
            eval_strategy="steps",
            eval_steps=4,
            save_strategy="steps",
            save_steps=4,
            save_total_limit=3,
            report_to="none",
        ),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[callback],
    )
    trainer.train()
    assert [record.step for record in callback.history] == ([4, 8] if stop_at else [4, 8, 12])
    assert list(callback.history[0].scores) == ["component_mi", "separability"]
    monitor = Monitor(pool, SepStopConfig(num_resamples=4))
    record = monitor.measure(trainer.model.model_body, step=12)
    assert record.scores["separability"].value == pytest.approx(
        values(callback.history, "separability")[-1], rel=1e-4
    )
    chosen = select_checkpoint(tmp_path / "run", pool, average=False)
    for name in callback.history[0].scores:
        assert values(chosen.records, name) == pytest.approx(
            values(callback.history, name), rel=1e-4
        )
