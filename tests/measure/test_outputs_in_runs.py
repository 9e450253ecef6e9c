"""Outputs in whole runs: training, resuming, offline selection, report and command line."""

import json
import warnings

import datasets
import numpy as np
import pytest
import torch
from conftest import GOOD, WORDS, deciding, make_encoder, make_texts
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)
from typer.testing import CliRunner

from sepstop import SepStopCallback, select_checkpoint
from sepstop.cli.main import app
from sepstop.report.html.collect import collect
from sepstop.runs.history import HISTORY_FILE, read_log_history, rows_in

SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 66,
}
MULTI = "multi_label_classification"


def classifier(labels=3, problem_type=None, **options):
    torch.manual_seed(0)
    config = BertConfig(**SIZES, num_labels=labels, problem_type=problem_type, **options)
    return BertForSequenceClassification(config)


def values_of(records):
    """The deciding score of each record."""
    return [deciding(record).value for record in records]


def multi_labels(texts):
    """Three labels per text: has a good word; has none; always 1."""
    good = [float(any(word in GOOD for word in text.split())) for text in texts]
    return [[g, 1.0 - g, 1.0] for g in good]


@pytest.fixture(scope="module")
def multi_rows(tokenizer):
    texts = make_texts(64, seed=2)[0]
    rows = datasets.Dataset.from_dict({"text": texts, "labels": multi_labels(texts)})
    return rows.map(
        lambda batch: tokenizer(batch["text"], padding="max_length", max_length=12), batched=True
    )


def train(folder, tokenizer, rows, callback, model, **options):
    defaults = {
        "max_steps": 60,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 10,
        "save_steps": 10,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    is_list = hasattr(rows, "select")
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(folder), **(defaults | options)),
        train_dataset=rows,
        eval_dataset=rows.select(range(8)) if is_list else None,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def multi_run(tmp_path_factory, tokenizer, multi_rows, pool):
    """A run whose configuration has no ``problem_type`` before the first training step."""
    folder = tmp_path_factory.mktemp("multi") / "run"
    callback = SepStopCallback(pool, average=False, num_resamples=5)
    model = make_encoder(dropout=0.0)
    model.classifier, model.num_labels = torch.nn.Linear(16, 3), 3
    model.config.num_labels = 3
    torch.manual_seed(0)
    model.classifier.reset_parameters()
    train(
        folder,
        tokenizer,
        multi_rows,
        callback,
        model,
        metric_for_best_model="label_mi",
        load_best_model_at_end=True,
    )
    assert model.config.problem_type == MULTI
    return folder, callback


def test_labels_of_a_trainer_run_are_scored_and_decide(multi_run):
    folder, callback = multi_run
    assert callback.monitor.decides == "label_mi"
    assert {tuple(record.scores) for record in callback.history} == {("label_mi", "separability")}
    assert callback.monitor.settings["outputs"] == "labels"
    scores = values_of(callback.history)
    # Two of the three labels are informative, up to log 2 each.
    assert 0.1 < max(scores) <= 2 / 3 * (np.log(2) + 1 / 40)
    best = max(callback.history, key=lambda record: deciding(record).value).step
    assert callback.decision.best_step == best
    header = rows_in(read_log_history(folder / f"checkpoint-{best}"))[-1].header
    assert header.settings["outputs"] == "labels"
    assert header.decides == "label_mi"


def test_offline_selection_scores_labels_as_online(multi_run, pool):
    folder, callback = multi_run
    chosen = select_checkpoint(folder, pool, progress=False, average=False)
    assert values_of(chosen.records) == pytest.approx(values_of(callback.history), abs=1e-5)
    assert chosen.decides == "label_mi"
    assert chosen.settings["outputs"] == "labels"
    assert chosen.best_step == callback.decision.best_step
    with pytest.raises(ValueError, match="'infomax' is for a model whose outputs are one class"):
        select_checkpoint(folder, pool, criterion="infomax", progress=False, average=False)
    alike = select_checkpoint(folder, pool, criterion="label_mi", progress=False, average=False)
    assert values_of(alike.records) == pytest.approx(values_of(chosen.records))


def test_the_report_groups_by_components_if_outputs_are_labels(multi_run, pool, tmp_path):
    folder = multi_run[0]
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps({"text": text, "label": "good"}) + "\n" for text in pool))
    run = collect(folder, file, labels="label", progress=False)
    assert not run.has_classes
    assert [series.name for series in run.series] == ["label_mi", "separability"]
    assert not any("accuracy" in name for frame in run.frames for name in frame.supervised)
    criteria = ["infomax", "sepstop.bench.criteria:RankMe"]
    named = collect(folder, file, extra_criteria=criteria, progress=False)
    assert [series.name for series in named.series] == ["label_mi", "separability", "rankme"]
    assert any("'infomax' is for" in note and "it is left out" in note for note in named.notes)


def test_the_command_skips_criteria_that_are_not_for_labels(multi_run, pool, tmp_path):
    folder = multi_run[0]
    (tmp_path / "pool.txt").write_text("\n".join(pool))
    command = ["select", str(folder), "--pool", str(tmp_path / "pool.txt"), "--json"]
    criteria = "infomax,sepstop.bench.criteria:RankMe"
    result = CliRunner().invoke(app, [*command, "--extra-criteria", criteria])
    assert result.exit_code == 0
    said = " ".join(result.stderr.split())
    assert "the criterion 'infomax' is for" in said
    assert "it is left out" in said
    found = json.loads(result.stdout)
    assert found["decides"] == "label_mi"
    assert list(found["best_steps"]) == ["label_mi", "rankme"]
    # Also in sequence, from cached observations.
    names = {"none": "component_mi", "classes": "robust_mi", "labels": "label_mi"}
    for outputs, name in names.items():
        options = ["--outputs", outputs, "--criterion", "auto"]
        result = CliRunner().invoke(app, [*command, *options])
        assert json.loads(result.stdout)["decides"] == name
    assert CliRunner().invoke(app, [*command, "--criterion", "infomax"]).exit_code == 2


def test_a_resumed_run_keeps_its_outputs(tmp_path, tokenizer, multi_rows, pool):
    options = {"max_steps": 4, "eval_steps": 2, "save_steps": 2}
    train(tmp_path, tokenizer, multi_rows, SepStopCallback(pool), classifier(3), **options)
    callback = SepStopCallback(pool)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.filterwarnings("ignore", "sepstop: all .* scores of")
        trainer = Trainer(
            model=classifier(3),
            args=TrainingArguments(
                str(tmp_path),
                **options | {"max_steps": 6},
                eval_strategy="steps",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=multi_rows,
            eval_dataset=multi_rows.select(range(8)),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        trainer.train(resume_from_checkpoint=True)
    assert [next(iter(record.scores)) for record in callback.history] == ["label_mi"] * 3


def test_streamed_labels_are_known_after_the_first_step(tmp_path, tokenizer, multi_rows, pool):
    callback = SepStopCallback(pool, every_n_steps=2)
    with pytest.warns(RuntimeWarning, match="trained for labels that do not exclude each other"):
        train(
            tmp_path,
            tokenizer,
            multi_rows.remove_columns("text").to_iterable_dataset(),
            callback,
            classifier(3),
            max_steps=4,
            eval_strategy="no",
            save_strategy="no",
        )
    assert [next(iter(record.scores)) for record in callback.history] == ["label_mi"] * 2


def test_outputs_of_an_adapter_come_from_its_history(tmp_path, tokenizer, multi_rows, pool):
    peft = pytest.importorskip("peft")
    classifier(3).save_pretrained(tmp_path / "base")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=4))
    callback = SepStopCallback(pool, average=False, num_resamples=3)
    folder = tmp_path / "run"
    options = {"max_steps": 4, "eval_steps": 2, "save_steps": 2}
    train(folder, tokenizer, multi_rows, callback, model, **options)
    chosen = select_checkpoint(folder, pool, progress=False, average=False)
    assert chosen.decides == "label_mi"
    assert values_of(chosen.records) == pytest.approx(values_of(callback.history), abs=1e-5)
    # Without the history it is a guess, and the user can set it.
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        state.unlink()
    (folder / HISTORY_FILE).unlink()
    with pytest.warns(UserWarning, match="assumed to be one class out of k"):
        guessed = select_checkpoint(folder, pool, progress=False, average=False)
    assert guessed.decides == "robust_mi"
    said = select_checkpoint(folder, pool, outputs="labels", progress=False, average=False)
    assert said.decides == "label_mi"
