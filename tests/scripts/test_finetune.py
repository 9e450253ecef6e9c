"""scripts/finetune.py as a user runs it, with a tiny model."""

import csv
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import bench_overhead
import finetune
import pytest
import torch
import yaml
from conftest import (
    WORDS,
    make_decoder,
    make_decoder_classifier,
    make_encoder,
    make_texts,
    make_tokenizer,
)
from datasets import ClassLabel, Dataset, Features, Value
from transformers import (
    AutoConfig,
    BartConfig,
    BartForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForSequenceClassification,
    XLNetConfig,
    XLNetModel,
)

from sepstop import select_checkpoint
from sepstop.measure.monitor import Monitor
from sepstop.measure.observer import Observer
from sepstop.measure.pool import read_pool
from sepstop.measure.scorer import Scorer
from sepstop.runs.history import read_history

ROOT = Path(__file__).parents[2]
UNNAMED_HEAD = pytest.mark.filterwarnings("ignore:sepstop. .* classes without names")


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


@UNNAMED_HEAD
def test_a_run_stops_and_leaves_what_the_offline_pick_needs(settings, tmp_path, capsys):
    trainer, callback = finetune.main(
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
    trainer, callback = finetune.main(
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


def load(settings, *options):
    parser = finetune.build_parser()
    config = parser.parse_args([f"--config={settings}", *options])
    return finetune.load_data(parser.instantiate(config).data)


def test_labeled_rows_and_pool_are_disjoint(settings):
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
        ("c", "expected labels among 'bad', 'good', got 'c' in the data"),
        (None, "rows without a label"),
    ],
)
def test_validation_labels_must_be_known(settings, tmp_path, label, message):
    rows = [{"body": f"text {i}", "topic": "bad"} for i in range(5)]
    file = write_rows(tmp_path / "odd.jsonl", [*rows, {"body": "text", "topic": label}])
    with pytest.raises(SystemExit, match=message):
        load(settings, f"--data.validation={file}")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["None", "NA", "null"], ["NA", "None", "null"]),
        (["00", "01", "02"], ["00", "01", "02"]),
        ([10, 9, ""], ["9", "10"]),
        ([True, False, ""], ["False", "True"]),
    ],
)
def test_classes_of_csv_files_are_as_they_stand(settings, tmp_path, labels, names):
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["body", "topic"])
        csv.writer(file).writerows((f"text {i}", labels[i % 3]) for i in range(60))
    data = load(settings, f"--data.train={tmp_path}/train.csv", "--data.labeled_rows=30")
    assert data.names == names
    for text, label in zip(data.train["text"], data.train["label"], strict=True):
        assert names[label] == str(labels[int(text.split()[1]) % 3])


def test_rows_without_text_are_in_no_part(settings, tmp_path, recwarn):
    rows = [{"body": f"text {i}" if i % 10 else "", "topic": "ab"[i % 2]} for i in range(60)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    validation = write_rows(tmp_path / "validation.jsonl", rows[:10])
    data = load(settings, f"--data.train={train}", f"--data.validation={validation}")
    assert sorted([*data.train["text"], *data.pool["text"]]) == sorted(
        row["body"] for row in rows if row["body"]
    )
    assert "" not in data.validation["text"]
    said = [str(warning.message) for warning in recwarn if "empty" in str(warning.message)]
    assert said == [
        f"sepstop: 6 empty rows left out of the data {train}",
        f"sepstop: 1 empty row left out of the data {validation}",
    ]


@pytest.mark.parametrize(("train", "validation"), [([1, 0], ["1", "0"]), (["1", "0"], [1.0, 0.0])])
def test_validation_labels_may_be_of_another_type(settings, tmp_path, train, validation):
    files = [
        write_rows(
            tmp_path / f"{i}.jsonl",
            [{"body": f"text {n}", "topic": labels[n % 2]} for n in range(50)],
        )
        for i, labels in enumerate((train, validation))
    ]
    data = load(settings, f"--data.train={files[0]}", f"--data.validation={files[1]}")
    assert data.names == ["0", "1"]
    assert list(data.validation["label"]) == [1, 0] * 25


@pytest.mark.filterwarnings("ignore:sepstop. none of the 40 labeled rows")
def test_scores_as_labels_are_classes_with_a_warning(settings, tmp_path):
    rows = [{"body": f"text {i}", "topic": i / 4 + 0.1} for i in range(50)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    with pytest.warns(UserWarning, match=r"numbers such as 0\.1; each of the 50 becomes a class"):
        load(settings, f"--data.train={train}")


def test_classes_without_a_labeled_row_are_named(settings, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text(rows.read_text() + "a film that was odd,odd\n")
    with pytest.warns(UserWarning, match="none of the 4 labeled rows is of the class .*odd"):
        load(settings, "--data.labeled_rows=4")


def test_one_class_is_none(settings, tmp_path):
    train = write_rows(
        tmp_path / "train.jsonl", [{"body": f"text {i}", "topic": "a"} for i in "ab"]
    )
    with pytest.raises(SystemExit, match="expected at least 2 classes in the data "):
        load(settings, f"--data.train={train}")


@UNNAMED_HEAD
def test_the_pool_of_a_run_keeps_its_token_types(settings, tmp_path):
    ids = [[2, 4 + i % 9, 5 + i % 7, 3] for i in range(40)]
    types = [[0, 0, 1, 1] for _ in ids]
    pool = tmp_path / "pool.parquet"
    Dataset.from_dict({"input_ids": ids, "token_type_ids": types}).to_parquet(pool)
    _, callback = finetune.main(
        [f"--config={settings}", f"--data.pool={pool}", "--training.max_steps=5"]
    )
    assert read_pool(tmp_path / "run" / "pool.jsonl") == callback.monitor.pool
    assert callback.monitor.pool.token_type_ids == tuple(map(tuple, types))


@UNNAMED_HEAD
def test_an_interrupted_run_goes_on_only_when_asked_to(settings):
    finetune.main([f"--config={settings}", "--training.max_steps=5"])
    with pytest.raises(SystemExit, match="holds checkpoints of an earlier run"):
        finetune.main([f"--config={settings}"])
    _, callback = finetune.main([f"--config={settings}", "--resume=true"])
    assert [record.step for record in callback.history[:3]] == [5, 10, 15]


@pytest.mark.parametrize("lora", [(), ("--model.lora", "{target_modules: [query]}")])
@UNNAMED_HEAD
def test_a_run_goes_on_with_the_classes_it_had(settings, tmp_path, lora):
    short = ["--config", str(settings), "--training.max_steps", "5", *lora]
    finetune.main(short)
    rows = tmp_path / "rows.csv"
    rows.write_text(
        rows.read_text().replace(",good", ",a good one")
    )  # the first, no longer the last
    with pytest.raises(SystemExit, match="classes bad, good, but the data has a good one, bad:"):
        finetune.set_up([*short, "--resume", "true"])


@UNNAMED_HEAD
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
            "--sepstop.pooling=last",
            "--training.max_steps=20",
        ]
    )
    assert callback.history
    assert (Path(trainer.args.output_dir) / "checkpoint-5" / "adapter_config.json").is_file()


@pytest.mark.filterwarnings("ignore:sepstop. none of the 39 labeled rows")
@pytest.mark.filterwarnings("ignore:sepstop. 1 empty row left out of .* split validation")
def test_splits_of_a_data_set(settings, tmp_path):
    """From a folder, which `datasets` reads as it does one of the hub."""
    features = Features(text=Value("string"), label=ClassLabel(names=["z", "a", "m"]))
    folder = tmp_path / "data"
    folder.mkdir()
    for split, rows in (("train", 60), ("validation", 20)):
        texts = [f"{split} {i}" if i else " " for i in range(rows)]
        labels = [(2, 0, -1 if split == "train" else 1)[i % 3] for i in range(rows)]
        table = Dataset.from_dict({"text": texts, "label": labels}, features=features)
        table.to_parquet(folder / f"{split}.parquet")
    with pytest.warns(UserWarning, match=r"1 empty row left out of the data .*, split train"):
        data = load(
            settings,
            f"--data.train={folder}",
            "--data.validation=validation",
            "--data.text_column=text",
            "--data.label_column=label",
            "--data.labeled_rows=null",
        )
    assert data.names == ["z", "a", "m"]
    assert (len(data.train), len(data.pool), len(data.validation)) == (39, 20, 19)
    for split, expected in ((data.train, (2, 0)), (data.validation, (2, 0, 1))):
        for text, label in zip(split["text"], split["label"], strict=True):
            assert label == expected[int(text.split()[1]) % 3]


SMALL = {"vocab_size": len(WORDS), "d_model": 16, "pad_token_id": 0, "eos_token_id": 3}


def make_encoder_decoder(kind):
    torch.manual_seed(0)
    if kind == "t5":
        config = T5Config(**SMALL, d_kv=8, d_ff=32, num_layers=1, num_heads=2, num_labels=2)
        config.decoder_start_token_id = 0
        return T5ForSequenceClassification(config)
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    return BartForSequenceClassification(
        BartConfig(**SMALL, **sides, num_labels=2, bos_token_id=2, decoder_start_token_id=3)
    )


@pytest.mark.parametrize("kind", ["bart", "t5"])
@UNNAMED_HEAD
def test_encoder_decoder_classifiers(settings, tmp_path, kind):
    make_encoder_decoder(kind).save_pretrained(tmp_path / "model")
    trainer, _ = finetune.main(
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


def config_of(**changes):
    config = make_encoder().config
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def load_saved(model, folder, tokenizer, names=("bad", "good", "odd")):
    """The model as the script loads it from a folder, and what it says of it."""
    model.save_pretrained(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = finetune.load_model(finetune.ModelSettings(str(folder)), list(names), tokenizer)
    said = [str(w.message) for w in caught if str(w.message).startswith("sepstop: ")]
    assert loaded.config.id2label == dict(enumerate(names))
    assert loaded.config.problem_type == "single_label_classification"
    return loaded, [message.removeprefix(f"sepstop: {folder} ") for message in said]


NEW = "its head is new for bad, good, odd (classifier.bias, classifier.weight)"
POOLER = "has no weights for bert.pooler.dense.bias, bert.pooler.dense.weight; they are new"
THREE = {"id2label": dict(enumerate("xyz")), "label2id": {"x": 0, "y": 1, "z": 2}}
MULTI = {"num_labels": 3, "problem_type": "multi_label_classification"}


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (None, {"num_labels": 5}, [f"was fine-tuned for 5 labels; {NEW}"]),
        (None, {"num_labels": 1}, [f"was fine-tuned for 1 label; {NEW}"]),
        (None, THREE, [f"was fine-tuned for x, y, z; {NEW}"]),
        (None, MULTI, [f"was fine-tuned for multi_label_classification; {NEW}"]),
        (
            BertForTokenClassification,
            {"num_labels": 3},
            [POOLER, f"was fine-tuned as BertForTokenClassification; {NEW}"],
        ),
    ],
)
def test_a_head_for_other_labels_is_new(tmp_path, tokenizer, kind, changes, said):
    config = config_of(**changes)
    saved = (kind or BertForSequenceClassification)(config)
    torch.nn.init.constant_(saved.classifier.bias, 7)
    loaded, messages = load_saved(saved, tmp_path / "model", tokenizer)
    assert messages == said
    assert loaded.classifier.weight.shape == (3, 16)
    assert loaded.classifier.weight.std().item() == pytest.approx(config.initializer_range, rel=0.5)
    assert not loaded.classifier.bias.any()
    if saved.classifier.weight.shape == (3, 16):
        assert not torch.equal(loaded.classifier.weight, saved.classifier.weight)
    for name, weight in saved.bert.named_parameters():
        assert torch.equal(weight, loaded.bert.get_parameter(name)), name


def test_a_head_for_the_same_labels_is_kept(tmp_path, tokenizer):
    names = ["bad", "good", "odd"]
    numbers = {name: number for number, name in enumerate(names)}
    named = config_of(id2label=dict(enumerate(names)), label2id=numbers)
    unnamed = "has a head for 3 classes without names; it is kept for bad, good, odd"
    for config, said in ((named, []), (config_of(num_labels=3), [unnamed])):
        saved = BertForSequenceClassification(config)
        loaded, messages = load_saved(saved, tmp_path / "model", tokenizer)
        assert messages == said
        assert torch.equal(loaded.classifier.weight, saved.classifier.weight)


def test_a_base_model_gets_its_head_without_a_word(tmp_path, tokenizer):
    for saved in (BertModel(config_of()), make_decoder()):
        loaded, messages = load_saved(saved, tmp_path / "model", tokenizer)
        assert messages == []
        assert loaded.num_labels == 3


def test_a_reward_model_gets_a_head_of_classes(tmp_path, tokenizer):
    saved = make_decoder_classifier()
    loaded, messages = load_saved(saved, tmp_path / "model", tokenizer)
    assert messages == [
        "was fine-tuned for 2 labels; its head is new for bad, good, odd (score.weight)"
    ]
    assert loaded.score.weight.shape == (3, 16)


def test_labels_of_a_head_are_counted_by_its_weights(tmp_path, tokenizer):
    """A BART with two labels has a configuration that reads back as three."""
    _, messages = load_saved(make_encoder_decoder("bart"), tmp_path / "model", tokenizer)
    assert AutoConfig.from_pretrained(tmp_path / "model").num_labels == 3
    head = "classification_head.out_proj"
    assert messages == [
        "was fine-tuned for 2 labels; its head is new for bad, good, odd "
        f"({head}.bias, {head}.weight)"
    ]


def test_weights_that_are_missing_are_named(tmp_path, tokenizer):
    _, messages = load_saved(BertForMaskedLM(config_of()), tmp_path / "model", tokenizer)
    assert messages == [POOLER]


def test_weights_of_another_shape_are_refused(tmp_path, tokenizer):
    make_encoder().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 32', '"intermediate_size": 48'))
    message = r"do not fit its configuration: bert\..*intermediate.* is \(32,\), not \(48,\)"
    with pytest.raises(SystemExit, match=message):
        finetune.load_model(
            finetune.ModelSettings(str(tmp_path / "model")), ["bad", "good"], tokenizer
        )


@pytest.mark.parametrize("kind", ["bart", "t5", "distilbert", "xlnet"])
@pytest.mark.filterwarnings("ignore:sepstop. .* was fine-tuned for 2 labels")
def test_lora_trains_the_whole_head(tmp_path, tokenizer, kind):
    """Also the heads that peft does not know, which would stay as they were drawn."""
    pytest.importorskip("peft")
    if kind == "distilbert":
        config = DistilBertConfig(
            vocab_size=len(WORDS), dim=16, n_layers=1, n_heads=2, hidden_dim=32
        )
        model, heads = DistilBertModel(config), {"pre_classifier", "classifier"}
    elif kind == "xlnet":
        config = XLNetConfig(vocab_size=len(WORDS), d_model=16, n_layer=1, n_head=2, d_inner=32)
        model, heads = XLNetModel(config), {"sequence_summary", "logits_proj"}
    else:
        model, heads = make_encoder_decoder(kind), {"classification_head"}
    model.save_pretrained(tmp_path)
    lora = {"r": 2, "target_modules": "all-linear"}
    model = finetune.load_model(
        finetune.ModelSettings(str(tmp_path), lora=lora), ["bad", "good", "odd"], tokenizer
    )
    whole = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert {name.split(".")[2] for name in whole} == heads


def test_a_tokenizer_that_can_not_pad(tmp_path):
    make_decoder().save_pretrained(tmp_path / "model")
    bare = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer)
    with pytest.raises(SystemExit, match="has no token to pad with: set its pad_token"):
        finetune.load_model(finetune.ModelSettings(str(tmp_path / "model")), ["a", "b"], bare)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.text_column=text", "has no column 'text'; its columns are body, topic"),
        ("--data.labeled_rows=140", "leaves no pool"),
        ("--data.labeled_rows=0", "expected data.labeled_rows >= 1, got 0"),
        (
            "--data.label_column=body",
            "expected different columns .*, got 'body' for both",
        ),
        ("--data.train=none.csv", "no data file at none.csv"),
        ("--data.validation=test", "data.train is a file, which has no splits: .* got test$"),
    ],
)
def test_bad_settings_are_a_sentence(settings, option, message):
    with pytest.raises(SystemExit, match=message):
        finetune.main([f"--config={settings}", option])


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--training.learnin_rate=1", "learnin_rate"),
        ("--sepstop.num_resample=3", "num_resample"),
        ("--sepstop.load_best_at_end=true", "load_best_at_end"),
        ("--sepstop.num_resamples=many", "num_resamples"),
        ("--sepstop.verbose=maybe", "verbose"),
        ("--sepstop.precision=bf8", "precision"),
        ("--sepstop.padding=some", "padding"),
        ("--sepstop.every_n_steps=0", "every_n_steps"),
        ("--data.max_length=long", "max_length"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_unknown_and_ill_typed_settings_are_refused(
    settings, tmp_path, capsys, option, name, in_file
):
    if in_file:
        key, _, value = option.removeprefix("--").partition("=")
        part, _, field = key.partition(".")
        lines = yaml.safe_load(settings.read_text())
        lines[part][field] = yaml.safe_load(value)
        settings.write_text(yaml.safe_dump(lines))
    options = [] if in_file else [option]
    with pytest.raises(SystemExit) as ended:
        finetune.main([f"--config={settings}", *options])
    assert name in capsys.readouterr().err + str(ended.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), (16, "text")),
        (("--sepstop.max_length=9",), (9, "text")),
        (('--sepstop={"every_n_steps": 7}',), (16, "text")),
        (("--data.pool=pool.csv",), (16, "body")),
        (("--data.pool=pool.csv", "--sepstop.text_column=words"), (16, "words")),
    ],
)
def test_the_pool_is_read_like_the_data_unless_said_otherwise(settings, options, expected):
    found = finetune.read_settings([f"--config={settings}", *options]).sepstop
    assert (found.max_length, found.text_column) == expected


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_configurations_are_valid(path):
    parser = finetune.build_parser()
    config = parser.instantiate(parser.parse_args([f"--config={path}"]))
    assert config.training.max_steps > 0
    assert config.sepstop.load_best_model_at_end is True


def history_lines(tmp_path):
    path = tmp_path / "run" / "sepstop_history.jsonl"
    return len(read_history(path).records) if path.is_file() else 0


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
        records = read_history(tmp_path / run / "sepstop_history.jsonl").records
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
    with pytest.raises(SystemExit, match="resume it with --resume true"):
        finetune.last_checkpoint(str(tmp_path), resume=False)


@pytest.mark.parametrize("chat", [False, True])
def test_a_language_model_learns_to_answer(tmp_path, settings, monkeypatch, chat):
    """It is scored by its answers, in training and afterwards."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    if chat:
        tokenizer.chat_template = CHAT
    make_decoder().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts, labels = make_texts(140)
    words = [("awful", "great")[label] for label in labels]
    rows = [{"body": text, "topic": word} for text, word in zip(texts, words, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer, callback = finetune.main(
        [
            f"--config={settings}",
            f"--data.train={tmp_path / 'rows.jsonl'}",
            "--data.prompt=the {text} was",
            f"--data.answer={'{label}' if chat else ' {label}'}",
            f"--data.chat={str(chat).lower()}",
            "--sepstop.pooling=auto",
            "--sepstop.criterion=infomax",
            "--sepstop.policy=auto",
            "--sepstop.average=false",
        ]
    )
    run = Path(trainer.args.output_dir)
    assert callback.session.decides == "infomax"
    assert json.loads((run / "classes.json").read_text()) == ["awful", "great"]
    shown = callback.monitor.observer.tokens(trainer.model).ids[0]
    assert [WORDS[i] for i in shown][-1] == ("film" if chat else "was")
    chosen = select_checkpoint(run, run / "pool.jsonl", average=False, progress=False)
    recorded = {record.step: record.scores["infomax"].value for record in callback.history}
    for record in chosen.records:
        assert record.scores["infomax"].value == pytest.approx(recorded[record.step], rel=1e-3)


def test_answers_can_be_treated_as_unknown(tmp_path, settings):
    make_decoder().save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path / "model")
    _, callback, *_ = finetune.set_up(
        [f"--config={settings}", "--data.prompt=the {text} was", "--sepstop.answers=3"]
    )
    assert callback.monitor.settings["answers"] == 3


CHAT = (
    "{% for m in messages %}{{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}[SEP]{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}film {% endif %}"
)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.prompt=no text"], r"expected {text} in data\.prompt, got 'no text'"),
        (["--data.prompt={text}", "--data.answer=yes"], r"expected {label} in data\.answer"),
    ],
)
def test_templates_that_name_nothing(settings, options, said):
    with pytest.raises(SystemExit, match=said):
        finetune.main([f"--config={settings}", *options])


# What a run costs


@UNNAMED_HEAD
def test_the_cost_of_a_run_is_measured_beside_plain_loops(settings, monkeypatch, capsys):
    for owner, names in {
        Monitor: ("prepare", "measure", "set_reference"),
        Observer: ("observe_pool",),
        Scorer: ("best_of", "add_neighbors"),
    }.items():
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))  # undone at the end
    monkeypatch.setattr(bench_overhead, "LOOPS", (8, 64))
    bench_overhead.main([f"--config={settings}", "--training.max_steps=10", "--rounds=1"])
    rows = [row.split("│")[1:-1] for row in capsys.readouterr().out.splitlines() if row[:1] == "│"]
    found = {name.strip(): (value.strip(), share.strip()) for name, value, share in rows}
    assert found["run with sepstop"][1] == "100.0%"
    assert "in the callback, 2 scores and the start" in found
    assert {"sepstop", "a loop, 8 texts", "a loop, 64 texts"} <= found.keys()
    ratios = [float(found[f"a loop, {size} texts"][1]) for size in (8, 64)]
    assert max(ratios) == 1
