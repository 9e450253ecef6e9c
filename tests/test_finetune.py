"""scripts/finetune.py as a user runs it, with a tiny model."""

import csv
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_decoder, make_encoder, make_texts

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import finetune  # noqa: E402

from sepstop import select_checkpoint  # noqa: E402
from sepstop.history import read_history  # noqa: E402


@pytest.fixture
def settings(tmp_path, tokenizer):
    """A YAML file as in configs/, for a model and data of a few lines."""
    make_encoder().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts, labels = make_texts(140)
    with (tmp_path / "rows.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "topic"])
        writer.writerows(zip(texts, (("bad", "good")[label] for label in labels), strict=True))
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"""
model: {{name: {tmp_path}/model}}
data:
  train: {tmp_path}/rows.csv
  text_column: body
  label_column: topic
  labeled_rows: 40
  max_length: 16
sepstop: {{every_n_steps: 5, policy: {{name: plateau, window: 1, tolerance: 0.9, warmup: 3}}}}
training:
  output_dir: {tmp_path}/run
  max_steps: 60
  learning_rate: 3e-3
  eval_strategy: "no"
  save_steps: 5
  report_to: none
  use_cpu: true
  disable_tqdm: true
"""
    )
    return path


def test_a_run_stops_and_leaves_what_the_offline_pick_needs(settings, tmp_path, capsys):
    trainer, callback = finetune.main([f"--config={settings}", "--sepstop.load_best_at_end=true"])
    assert callback.decision.stop
    assert trainer.state.global_step < 60
    assert "40 labelled rows, 2 classes, pool of 100 texts" in capsys.readouterr().out
    run = tmp_path / "run"
    assert (run / "model" / "model.safetensors").is_file()
    assert read_history(run / "sepstop_history.jsonl") == callback.history
    pool = [json.loads(line)["text"] for line in (run / "pool.jsonl").read_text().splitlines()]
    assert tuple(pool) == callback.monitor.pool.rows
    selection = select_checkpoint(run, run / "pool.jsonl", progress=False)
    assert selection.best_step == callback.decision.best_step


def load(settings, *options):
    parser = finetune.build_parser()
    config = parser.parse_args([f"--config={settings}", *options])
    return finetune.load_data(parser.instantiate(config).data)


def test_labelled_rows_and_pool_are_disjoint(settings):
    data = load(settings)
    assert not set(data.train["text"]) & set(data.pool["text"])
    assert data.pool.column_names == ["text"]
    assert data.names == ["bad", "good"]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([2, 10, 1, 10], ["1", "2", "10"]),
        (["b", "a", "c", "a"], ["a", "b", "c"]),
        ([True, False, True, True], ["False", "True"]),
    ],
)
def test_classes_are_in_order_and_validation_is_numbered_by_them(settings, tmp_path, labels, names):
    """Also where the columns are named the other way round, and validation lacks a class."""
    rows = [{"label": f"text {i}", "text": labels[i % 4]} for i in range(40)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    validation = write_rows(tmp_path / "validation.jsonl", rows[1::2])
    data = load(
        settings,
        f"--data.train={train}",
        f"--data.validation={validation}",
        "--data.text_column=label",
        "--data.label_column=text",
        "--data.labeled_rows=20",
    )
    assert data.names == names
    numbers = {row["label"]: names.index(str(row["text"])) for row in rows}
    for split in (data.train, data.validation):
        assert [numbers[text] for text in split["text"]] == list(split["label"])
    assert len(data.validation) == 20


def test_rows_without_a_label_are_pool(settings, tmp_path):
    rows = [{"body": f"text {i}", "topic": ["a", "b", None][i % 3]} for i in range(60)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    data = load(settings, f"--data.train={train}", "--data.labeled_rows=null")
    assert len(data.train) == 40
    assert sorted(data.pool["text"]) == sorted(r["body"] for r in rows if r["topic"] is None)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("c", "has a label 'c' that is none of the classes 'bad', 'good'"),
        (None, "rows without a label"),
    ],
)
def test_validation_labels_must_be_known(settings, tmp_path, label, message):
    rows = [{"body": f"text {i}", "topic": "bad"} for i in range(5)]
    file = write_rows(tmp_path / "odd.jsonl", [*rows, {"body": "text", "topic": label}])
    with pytest.raises(SystemExit, match=message):
        load(settings, f"--data.validation={file}")


def test_an_interrupted_run_goes_on_only_when_asked_to(settings):
    finetune.main([f"--config={settings}", "--training.max_steps=5"])
    with pytest.raises(SystemExit, match="holds checkpoints of an earlier run"):
        finetune.main([f"--config={settings}"])
    _, callback = finetune.main([f"--config={settings}", "--resume=true"])
    assert [record.step for record in callback.history[:3]] == [5, 10, 15]


def test_validation_labels_can_be_watched_beside(settings, tmp_path):
    trainer, callback = finetune.main(
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
    trainer, callback = finetune.main(
        [
            f"--config={settings}",
            f"--model.name={tmp_path}/decoder",
            '--model.lora={"r": 4, "target_modules": "all-linear"}',
            "--sepstop.embedder=last",
            "--training.max_steps=20",
        ]
    )
    assert callback.history
    assert (Path(trainer.args.output_dir) / "checkpoint-5" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.text_column=text", "has no column 'text'; its columns are body, topic"),
        ("--data.labeled_rows=140", "leaves no pool"),
        ("--data.labeled_rows=0", "expected data.labeled_rows >= 1, got 0"),
        ("--data.label_column=body", "'body' can't be both texts and labels"),
        ("--data.train=none.csv", "no data file at none.csv"),
    ],
)
def test_bad_settings_are_a_sentence(settings, option, message):
    with pytest.raises(SystemExit, match=message):
        finetune.main([f"--config={settings}", option])


def test_unknown_settings_are_refused(settings, capsys):
    with pytest.raises(SystemExit):
        finetune.main([f"--config={settings}", "--training.learnin_rate=1"])
    assert "learnin_rate" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_configurations_are_valid(path):
    parser = finetune.build_parser()
    config = parser.instantiate(parser.parse_args([f"--config={path}"]))
    assert config.training.max_steps > 0
    assert config.sepstop["load_best_at_end"] is True


def history_lines(tmp_path):
    path = tmp_path / "run" / "sepstop_history.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(settings, tmp_path):
    """SIGKILL at random moments: nothing is cleaned up, and what was half written stays so."""
    options = [f"--config={settings}", '--sepstop.policy={"name": "patience", "patience": null}']
    script = [sys.executable, str(ROOT / "scripts" / "finetune.py"), *options]
    quiet = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL}
    moments = random.Random(0)
    killed = 0
    for more in (1, 3, 3):
        goal = history_lines(tmp_path) + more
        run = subprocess.Popen([*script, "--resume=true"], **quiet)
        while run.poll() is None and history_lines(tmp_path) < goal:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        killed += run.poll() is None
        run.kill()
        run.wait()
        read_history(tmp_path / "run" / "sepstop_history.jsonl")  # whole, at any moment
    assert killed == 3
    subprocess.run([*script, "--resume=true"], check=True, **quiet)
    subprocess.run([*script, f"--training.output_dir={tmp_path}/whole"], check=True, **quiet)

    def left(run):
        records = read_history(tmp_path / run / "sepstop_history.jsonl")
        state = json.loads((tmp_path / run / "checkpoint-60" / "trainer_state.json").read_text())
        return [dataclasses.replace(r, seconds=0) for r in records], state["best_global_step"]

    assert left("run") == left("whole")
    assert [record.step for record in left("run")[0]] == list(range(5, 61, 5))


@pytest.mark.parametrize("left", [None, '{"global_'])
def test_a_checkpoint_that_was_not_saved_whole_is_passed_over(tmp_path, left):
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    if left is not None:
        (tmp_path / "checkpoint-10" / "trainer_state.json").write_text(left)
    assert finetune.last_checkpoint(str(tmp_path), resume=True).endswith("checkpoint-5")
    with pytest.raises(SystemExit, match="go on with --resume true"):
        finetune.last_checkpoint(str(tmp_path), resume=False)
