"""Runs of `sepstop finetune` with tiny models, from a YAML file to what they kept."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_decoder
from datasets import Dataset
from helpers.encoder_decoder import make_encoder_decoder
from transformers import BertForSequenceClassification

from sepstop import select_checkpoint
from sepstop.finetune.run import main
from sepstop.measure.pool import read_pool
from sepstop.runs.history import read_history

UNNAMED_HEAD = pytest.mark.filterwarnings("ignore:sepstop. .* classes without names")


@UNNAMED_HEAD
def test_a_run_stops_and_leaves_what_the_offline_pick_needs(settings, tmp_path, capsys):
    trainer, callback = main(
        [
            f"--config={settings}",
            "--sepstop.load_best_model_at_end=true",
            "--sepstop.average=false",
        ]
    )
    assert callback.decision.stop
    assert trainer.state.global_step < 60
    run, best = tmp_path / "run", callback.decision.best_step
    said = capsys.readouterr().out
    assert "40 labeled rows, 2 classes, pool of 100 texts" in said
    assert f"best weights: those of step {best}, in {run}/checkpoint-{best}\n" in said
    assert f"{run}/model holds the best weights\n" in said
    assert (run / "model" / "model.safetensors").is_file()
    assert list(read_history(run / "sepstop_history.jsonl").records) == callback.history
    pool = [json.loads(line)["text"] for line in (run / "pool.jsonl").read_text().splitlines()]
    assert tuple(pool) == callback.monitor.pool.rows
    selection = select_checkpoint(run, run / "pool.jsonl", progress=False, average=False)
    assert selection.best_step == callback.decision.best_step


@pytest.mark.parametrize("loads", [True, False])
@UNNAMED_HEAD
def test_the_best_average_is_kept_and_said(settings, tmp_path, capsys, loads):
    """Two of the fields are set in the file, two on the command line."""
    settings.write_text(
        settings.read_text().replace(
            "{every_n_steps: 5,", "{every_n_steps: 5, average: true, average_every_n_steps: 2,"
        )
    )
    trainer, callback = main(
        [
            f"--config={settings}",
            "--sepstop.score_checkpoints=false",
            "--sepstop.average_device=cpu",
            f"--sepstop.load_best_model_at_end={str(loads).lower()}",
            "--training.warmup_steps=4",
        ]
    )
    record = next(one for one in callback.history if one.step == callback.decision.best_step)
    first, last = record.average.first_step, record.average.last_step
    assert (first, last) == (4, record.step - record.step % 2)
    run, said = tmp_path / "run", capsys.readouterr().out
    assert f"best weights: {record.average}, in {run}/average-{record.step}\n" in said
    holds = "the best weights" if loads else "the last weights; to have the best there, set sepstop"
    assert f"{run}/model holds {holds}" in said
    kept, model = (
        BertForSequenceClassification.from_pretrained(run / name)
        for name in (f"average-{record.step}", "model")
    )
    same = map(torch.equal, kept.parameters(), model.parameters())
    assert all(same) if loads else not any(same)
    assert all(map(torch.equal, trainer.model.parameters(), model.parameters()))


@UNNAMED_HEAD
def test_the_pool_of_a_run_keeps_its_token_types(settings, tmp_path):
    ids = [[2, 4 + i % 9, 5 + i % 7, 3] for i in range(40)]
    types = [[0, 0, 1, 1] for _ in ids]
    pool = tmp_path / "pool.parquet"
    Dataset.from_dict({"input_ids": ids, "token_type_ids": types}).to_parquet(pool)
    _, callback = main([f"--config={settings}", f"--data.pool={pool}", "--training.max_steps=5"])
    assert read_pool(tmp_path / "run" / "pool.jsonl") == callback.monitor.pool
    assert callback.monitor.pool.token_type_ids == tuple(map(tuple, types))


@UNNAMED_HEAD
def test_validation_labels_can_be_watched_beside(settings, tmp_path):
    trainer, callback = main(
        [
            f"--config={settings}",
            f"--data.validation={tmp_path}/rows.csv",
            "--training.eval_strategy=steps",
            "--training.eval_steps=5",
            '--sepstop={"policy": {"name": "patience", "patience": 2}}',
            "--training.metric_for_best_model=separability",
            "--training.load_best_model_at_end=true",
        ]
    )
    rows = [row for row in trainer.state.log_history if "eval_accuracy" in row]
    assert len(rows) == len(callback.history)
    assert trainer.state.best_global_step == callback.decision.best_step


def test_lora_on_a_decoder_without_padding_token(settings, tmp_path, bare_tokenizer):
    pytest.importorskip("peft")
    make_decoder().save_pretrained(tmp_path / "decoder")
    bare_tokenizer.save_pretrained(tmp_path / "decoder")
    trainer, callback = main(
        [
            f"--config={settings}",
            f"--model.name={tmp_path}/decoder",
            '--model.lora={"r": 4, "target_modules": "all-linear"}',
            "--sepstop.pooling=last",
            "--training.max_steps=20",
        ]
    )
    assert callback.history
    assert (Path(trainer.args.output_dir) / "checkpoint-5" / "adapter_config.json").is_file()


@pytest.mark.parametrize("kind", ["bart", "t5"])
@UNNAMED_HEAD
def test_encoder_decoder_classifiers(settings, tmp_path, kind):
    make_encoder_decoder(kind).save_pretrained(tmp_path / "model")
    trainer, _ = main(
        [
            f"--config={settings}",
            f"--data.validation={tmp_path}/rows.csv",
            "--training.eval_strategy=steps",
            "--training.eval_steps=5",
            "--training.max_steps=5",
        ]
    )
    prediction = trainer.predict(trainer.eval_dataset)
    assert prediction.predictions.shape == (140, 2)
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    row = next(row for row in trainer.state.log_history if "eval_accuracy" in row)
    assert row["eval_accuracy"] == pytest.approx(right.mean())
