"""Trainers, models and tools of other libraries, as they come."""

import datasets
import pytest
import torch
from conftest import make_encoder

from sepstop import Monitor, SepStopCallback


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
    monitor = Monitor(pool, criterion=criterion, resamples=1, resample_size=len(pool))
    monitor.measure(sentence_model, step=1)  # with the tokenizer that it brings along
    expected = sentence_model.encode(list(monitor.pool.rows), convert_to_tensor=True)
    assert torch.allclose(seen[0][0], expected[monitor.resamples[0]], atol=1e-5)


def test_layers_of_a_sentence_transformer(sentence_model, pool):
    first, last = (
        Monitor(pool, embedder={"name": "mean", "layer": layer}, resamples=2).measure(
            sentence_model, step=1
        )
        for layer in (0, -1)
    )
    assert first.score != last.score


def test_the_trainer_of_sentence_transformers(sentence_model, pool, tmp_path):
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    pairs = datasets.Dataset.from_dict({"anchor": pool[:24], "positive": pool[1:25]})
    callback = SepStopCallback(pool, resamples=4)
    trainer = SentenceTransformerTrainer(
        sentence_model,
        SentenceTransformerTrainingArguments(
            str(tmp_path / "run"),
            max_steps=4,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
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
    record = Monitor(pool, resamples=4).measure(kept, step=best)
    score = next(record.score for record in callback.history if record.step == best)
    assert record.score == pytest.approx(score, rel=1e-4)
