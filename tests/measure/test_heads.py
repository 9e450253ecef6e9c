"""What a model's outputs are: by the user, the configuration, the labels and the logits."""

import json
import random
import warnings
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from conftest import GOOD, WORDS, make_decoder, make_encoder, make_texts
from torch.utils.data import DataLoader, Dataset
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DataCollatorWithPadding,
    RobertaConfig,
    RobertaForMultipleChoice,
    Trainer,
    TrainingArguments,
)
from typer.testing import CliRunner

from sepstop import Monitor, SepStopCallback, select_checkpoint
from sepstop.cli.main import app
from sepstop.measure.heads import outputs_of, training_labels
from sepstop.report.html.run import look_at
from sepstop.runs.history import HISTORY_FILE, read_log_history, rows_in

SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 66,
}
SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def classifier(labels=3, problem_type=None, **options):
    torch.manual_seed(0)
    config = BertConfig(**SIZES, num_labels=labels, problem_type=problem_type, **options)
    return BertForSequenceClassification(config)


class Own(torch.nn.Module):
    """A model of one's own; ``head`` makes its output of the hidden states, ``(b, L, 16)``."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(0)
        self.bert, self.linear, self.head = (
            BertModel(BertConfig(**SIZES)),
            torch.nn.Linear(16, 3),
            head,
        )

    def forward(self, input_ids, attention_mask):
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(self.linear, hidden)


def first_token(model, input_ids, attention_mask):
    return model.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]


def found(model, pool, tokenizer, labels=None, **options):
    monitor = Monitor(pool, tokenizer=tokenizer, resamples=2, **options)
    assert monitor.settings.get("outputs") == options.get("outputs")
    monitor.prepare(model, labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of = monitor.measure(model, 1).information_of
    outputs = monitor.settings["outputs"]
    assert of == {"none": "components"}.get(outputs, outputs)
    return outputs


HALVES = [[0.2, 0.7, 0.1], [1.0, 0.0, 0.5]]
REALS = [[0.2, 1.7, -3.0], [1.0, 0.0, 0.5]]


@pytest.mark.parametrize(
    ("k", "problem", "labels", "outputs"),
    [
        # The shape alone.
        (3, None, None, "classes"),
        (1, None, None, "none"),
        # The configuration, which has the say over the labels.
        (3, SINGLE, None, "classes"),
        (3, MULTI, None, "labels"),
        (1, MULTI, [[0.0], [1.0]], "labels"),
        (3, "regression", None, "none"),
        (3, "regression", [[1.0, 0.0, 1.0]], "none"),
        (1, "regression", [3, 4], "none"),
        (3, MULTI, HALVES, "labels"),
        (3, SINGLE, [1.0, 2.0], "classes"),  # a collator may make whole numbers of them
        (3, "my own", [[1.0, 0.0, 1.0]], "labels"),
        # The labels, as the loss of transformers reads them.
        (3, None, [0, 2, 1], "classes"),
        (3, None, [[0], [2]], "classes"),
        (3, None, [True, False], "classes"),
        (3, None, [[0.0, 1.0, 1.0]], "labels"),
        (3, None, [[0, 1, 1], [0, 0, 0]], "labels"),
        (3, None, torch.tensor([[0.0, 1.0, 1.0]]), "labels"),
        (3, None, [[0.0, 1.0, -100.0]], "labels"),
        (3, None, HALVES, "labels"),
        (3, None, [0.5, 1.5], "none"),
        (3, None, [0.0, 2.0], "classes"),
        (3, None, [1.0, 5.0], "none"),
        (3, None, [[1, 5, 2]], "none"),
        (1, None, [0, 1, 1], "none"),  # a regression to transformers
        (1, None, [0.5, 1.5], "none"),
        # Labels that say nothing.
        (3, None, [[0, 1], [2, 1, 0]], "classes"),
        (3, None, ["good", "bad"], "classes"),
        (3, None, [None, None], "classes"),
        (3, None, [], "classes"),
    ],
)
def test_outputs_of_a_classifier(k, problem, labels, outputs):
    model = classifier(k, problem if problem != "my own" else None)
    if problem == "my own":
        model.config.problem_type = problem
    assert outputs_of(model, k, labels).outputs == outputs


@pytest.mark.parametrize(
    ("k", "problem", "labels", "message"),
    [
        (3, SINGLE, [[0.0, 1.0, 1.0]], "'single_label.*', but each training label has 3 numbers"),
        (3, SINGLE, [0.5, 1.5], "the training labels are no whole numbers"),
        (3, MULTI, [0, 2], "'multi_label.*', but each training label is one number, not 3"),
    ],
)
def test_what_contradicts_itself_is_refused(k, problem, labels, message):
    model = classifier(k, problem)
    with pytest.raises(
        ValueError, match=f"{message}; set config.problem_type .* outputs='classes'"
    ):
        outputs_of(model, k, labels)
    assert outputs_of(model, k, labels, "labels").outputs == "labels"  # what the user says


def test_a_head_of_one_logit_has_no_classes():
    model = classifier(1)
    model.config.problem_type = SINGLE  # which transformers refuses in a new configuration
    with pytest.raises(ValueError, match="the head has a single logit"):
        outputs_of(model, 1)
    with pytest.raises(ValueError, match=r"'classes' needs logits .* k >= 2, got k = 1"):
        outputs_of(model, 1, asked="classes")


@pytest.mark.parametrize("problem", [None, MULTI])
def test_targets_of_a_regression_that_are_trained_as_labels_are_a_warning(problem):
    with pytest.warns(UserWarning, match="below 0 or above 1.*problem_type='regression'"):
        assert outputs_of(classifier(3, problem), 3, REALS).outputs == "labels"


def test_what_the_labels_of_a_model_of_ones_own_are():
    """Its loss is not known to go by binary cross-entropy."""
    model = Own(lambda linear, hidden: linear(hidden[:, 0]))
    for labels, outputs in (([0, 2], "classes"), ([[0.0, 1, 1]], "labels"), (HALVES, "none")):
        assert outputs_of(model, 3, labels).outputs == outputs
    assert outputs_of(model, 3) == ("classes", True)


@pytest.mark.parametrize("wrap", ["compile", "peft", "DataParallel"])
def test_the_configuration_is_found_inside_what_wraps_the_model(wrap):
    model = classifier(3, MULTI)
    if wrap == "compile":
        model = torch.compile(model, backend="eager")
    elif wrap == "peft":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS"))
    else:
        model = torch.nn.DataParallel(model)
    assert outputs_of(model, 3).outputs == "labels"


@pytest.mark.parametrize("k", [1, 3])
def test_the_loss_of_a_cross_encoder_is_not_its_model_s(k, tokenizer, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    classifier(k).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = library.CrossEncoder(str(tmp_path), num_labels=k, device="cpu")
    assert outputs_of(model, k, [0, 1]).outputs == ("classes" if k == 3 else "none")
    assert outputs_of(model, k, [0.5, 0.1]).outputs == "none"
    assert outputs_of(model, k, [[0.5] * k]).outputs == "none"


def next_sentence():
    return BertForNextSentencePrediction(BertConfig(**SIZES))


def multiple_choice():
    return RobertaForMultipleChoice(RobertaConfig(**SIZES, pad_token_id=1))


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (next_sentence, "classes"),
        (lambda: classifier(3, return_dict=False), "classes"),
        (lambda: classifier(1), "none"),  # a reward
        (lambda: classifier(3, "regression"), "none"),
        (multiple_choice, "none"),
        (lambda: BertForTokenClassification(BertConfig(**SIZES, num_labels=3)), "none"),
        (lambda: BertModel(BertConfig(**SIZES, return_dict=False, problem_type=SINGLE)), "none"),
        (make_decoder, "none"),
    ],
)
def test_outputs_of_models_of_transformers(make, outputs, pool, tokenizer):
    torch.manual_seed(0)
    assert found(make(), pool, tokenizer) == outputs


@pytest.mark.parametrize(
    ("head", "outputs"),
    [
        (lambda linear, hidden: {"logits": linear(hidden[:, 0])}, "classes"),
        (lambda linear, hidden: (linear(hidden[:, 0]), hidden), "classes"),
        (lambda linear, hidden: linear(hidden[:, 0]).mul(1000).long(), "classes"),
        (lambda linear, hidden: linear(hidden[:, 0]) * torch.nan, "classes"),
        (lambda linear, hidden: {"text_embeds": linear(hidden[:, 0])}, "none"),
        (lambda linear, hidden: hidden[:, 0], "none"),  # its embedding, as the embedder takes it
        (lambda linear, hidden: hidden[..., 0], "none"),  # one score a token
        (lambda linear, hidden: linear(hidden).flatten(end_dim=1), "none"),  # tokens in a row
    ],
)
def test_outputs_of_models_of_ones_own(head, outputs, pool, tokenizer):
    one = [pool[0].split()[0], *pool]  # and a text of one word
    assert found(Own(head), one, tokenizer, embedder=first_token) == outputs


def test_a_text_of_one_token_makes_no_class_of_tokens():
    """One score a token of one text, ``(1, L)``, would look like a row of logits."""
    tokens = datasets.Dataset.from_dict({"input_ids": [[5], [6], [5, 7], [6, 8], [9, 5, 7]]})
    model = Own(lambda linear, hidden: hidden[..., 0])
    assert found(model, tokens, None, embedder=first_token, resample_size=4) == "none"


def test_what_the_user_says_is_what_they_are(pool, tokenizer):
    for outputs in ("classes", "labels", "none"):
        assert found(classifier(3), pool, tokenizer, [[0.0, 1, 1]], outputs=outputs) == outputs
    with pytest.raises(ValueError, match="got none from BertModel"):
        found(classifier(3).bert, pool, tokenizer, outputs="labels")
    with pytest.raises(ValueError, match=r"expected `outputs` 'auto', .*, got 'sigmoid'"):
        Monitor(pool, outputs="sigmoid")


@pytest.mark.parametrize("problem", [MULTI, "regression"])
@pytest.mark.parametrize("criterion", ["infomax", "entropy", "bnm", "snd", "churn", "consistency"])
def test_criteria_on_classes_are_refused_for_other_outputs(criterion, problem, pool, tokenizer):
    monitor = Monitor(pool, criterion=criterion, tokenizer=tokenizer)
    instead = "label_information" if problem == MULTI else "component_information"
    with pytest.raises(
        ValueError, match=f"'{criterion}' is for .* class out of k.*use '{instead}'"
    ):
        monitor.prepare(classifier(3, problem))


def test_a_criterion_of_ones_own_gets_the_logits_of_any_head(pool, tokenizer):
    def spread(logits):
        return logits.std(dim=(1, 2))

    spread.name, spread.higher_is_better, spread.needs = "spread", True, ("logits",)
    for k, problem in ((3, MULTI), (3, "regression"), (1, None)):
        record = Monitor(pool, criterion=spread, tokenizer=tokenizer).measure(
            classifier(k, problem), 1
        )
        assert record.is_finite


def test_a_classifier_that_gives_no_logits_for_the_pool_is_refused(pool, tokenizer):
    """Its tokenizer closes texts with another token than the one that its head looks for."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    config = BartConfig(vocab_size=len(WORDS), **sizes, eos_token_id=9, decoder_start_token_id=2)
    model = BartForSequenceClassification(config)
    with pytest.raises(
        ValueError, match=r"gives no logits .*at least one <eos> token.*outputs='no"
    ):
        found(model, pool, tokenizer)
    assert found(model, pool, tokenizer, outputs="none") == "none"


def test_a_guess_is_said_once_there_is_a_score_to_decide_by(pool, tokenizer):
    monitor = Monitor(pool, tokenizer=tokenizer, resamples=2)
    model = classifier(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.measure(model, 0)
    with pytest.warns(UserWarning, match="taken for one class out of k. Name them.*outputs="):
        monitor.measure(model, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.measure(model, 2)
        Monitor(pool, tokenizer=tokenizer, outputs="classes").measure(model, 1)


# Training labels


def loader(rows):
    return DataLoader(rows, batch_size=2)


def test_training_labels_come_from_the_first_rows_of_the_data_set():
    rows = datasets.Dataset.from_dict({"text": ["a"] * 300, "label": list(range(300))})
    assert training_labels(loader(rows)) == list(range(100))
    assert training_labels(loader(rows.rename_column("label", "stars")), ["stars"])[0] == 0
    assert training_labels(loader(rows.rename_column("label", "stars"))) is None
    assert training_labels(loader(rows.with_format("torch")))[3] == 3
    listed = [{"input_ids": [1], "labels": [0.0, 1.0]}, {"input_ids": [2], "labels": [1.0, 1.0]}]
    assert training_labels(loader(listed)) == [[0.0, 1.0], [1.0, 1.0]]
    for nothing in (None, loader([(1, 2)]), loader(["a", "b"]), loader([])):
        assert not training_labels(nothing)


def test_a_head_with_fewer_logits_than_classes_has_no_class_each():
    with pytest.warns(UserWarning, match="labels go up to 3, but the head has 2 logits"):
        assert outputs_of(classifier(2), 2, [0, 3, 1]) == ("none", False)


def test_whole_numbers_that_are_floats_are_a_guess():
    assert outputs_of(classifier(3), 3, [0.0, 2.0]) == ("classes", True)


def test_one_hot_labels_may_be_classes_to_a_loss_of_ones_own(pool, tokenizer):
    model = classifier(3)
    monitor = Monitor(pool, tokenizer=tokenizer, resamples=2)
    monitor.prepare(model, labels=[[0.0, 1.0, 0.0]])
    with pytest.warns(UserWarning, match="taken for labels that do not exclude each other"):
        monitor.measure(model, 1)
    for rows in ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [[0.1, 0.8, 0.1]], [[0, 0, 1]]):
        assert outputs_of(model, 3, rows) == ("labels", True)
    assert outputs_of(model, 3, [[0, 0, 1], [0, 1, 1]]) == ("labels", False)


def test_a_collator_of_ones_own_may_make_anything_of_numbers(tokenizer):
    def hot(rows):
        labels = torch.nn.functional.one_hot(torch.tensor([row["label"] for row in rows]), 3)
        return {"labels": labels.float()}

    numbers = datasets.Dataset.from_dict({"label": [0, 1, 2, 1]})
    vectors = datasets.Dataset.from_dict({"label": [[1.0, 0.0, 0.0]]})
    padding = DataCollatorWithPadding(tokenizer)
    assert training_labels(DataLoader(numbers, collate_fn=padding)) == [0, 1, 2, 1]
    for collator in (hot, partial(hot)):
        assert training_labels(DataLoader(numbers, collate_fn=collator)) is None
    assert training_labels(DataLoader(vectors, collate_fn=hot)) == [[1.0, 0.0, 0.0]]


def test_streamed_data_is_not_begun():
    begun = []

    def rows():
        begun.append(1)
        yield {"label": 1}

    assert training_labels(loader(datasets.IterableDataset.from_generator(rows))) is None
    assert not begun


class Restless(Dataset):
    """Draws from every generator there is."""

    def __init__(self):
        self.generators = random.Random(0), np.random.default_rng(0)
        self.python, self.numpy = self.generators
        self.torch = torch.Generator().manual_seed(0)

    def __len__(self):
        return 200

    def draws(self):
        return [
            *(random.random(), np.random.rand(), float(torch.rand(1))),  # noqa: NPY002
            *(self.python.random(), self.numpy.random()),
            float(torch.rand(1, generator=self.torch)),
        ]

    def __getitem__(self, place):
        return {"input_ids": [1], "labels": [float(draw > 0.5) for draw in self.draws()]}


def test_random_states_stay_as_they_are_and_an_error_is_no_label():
    def seeded():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        return Restless()

    expected = seeded().draws()
    rows = seeded()
    assert len(training_labels(loader(rows))) == 100
    assert rows.draws() == expected

    plain = datasets.Dataset.from_dict({"label": [0, 1] * 50})
    drawn = plain.with_transform(
        lambda batch: {"labels": [[random.random()]] * len(batch["label"])}
    )
    random.seed(1)
    assert len(training_labels(loader(drawn))[0]) == 1  # as transformed
    expected = random.random()
    random.seed(1)
    assert random.random() == expected

    def broken(batch):
        raise RuntimeError("no such file")

    assert training_labels(loader(plain.with_transform(broken))) is None


# Runs


def labelled(texts):
    """A word of the first kind; an even number of words; what always holds."""
    good = [float(any(word in GOOD for word in text.split())) for text in texts]
    return [[g, 1.0 - g, 1.0] for g in good]


@pytest.fixture(scope="module")
def multi_rows(tokenizer):
    texts = make_texts(64, seed=2)[0]
    rows = datasets.Dataset.from_dict({"text": texts, "labels": labelled(texts)})
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
    """A run whose configuration says nothing before the first training step."""
    folder = tmp_path_factory.mktemp("multi") / "run"
    callback = SepStopCallback(pool, resamples=5)
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
        metric_for_best_model="information",
        load_best_model_at_end=True,
    )
    assert model.config.problem_type == MULTI
    return folder, callback


def test_labels_of_a_trainer_run_are_scored_and_decide(multi_run):
    folder, callback = multi_run
    assert {record.information_of for record in callback.history} == {"labels"}
    assert callback.monitor.settings["outputs"] == "labels"
    scores = [record.information for record in callback.history]
    # Two labels of three tell something, up to log 2 each.
    assert 0.1 < max(scores) <= 2 / 3 * (np.log(2) + 1 / 40)
    best = max(callback.history, key=lambda record: record.information)
    assert callback.decision.best_step == best.step
    row = rows_in(read_log_history(folder / f"checkpoint-{best.step}"))[-1]
    assert row.header.settings["outputs"] == "labels"


def test_offline_takes_labels_for_labels(multi_run, pool):
    folder, callback = multi_run
    chosen = select_checkpoint(folder, pool, progress=False)
    assert [record.information for record in chosen.records] == pytest.approx(
        [record.information for record in callback.history], abs=1e-5
    )
    assert {record.information_of for record in chosen.records} == {"labels"}
    assert chosen.settings["outputs"] == "labels"
    assert chosen.best_step == callback.decision.best_step
    with pytest.raises(ValueError, match="'infomax' is for a model whose outputs are one class"):
        select_checkpoint(folder, pool, criterion="infomax", progress=False)
    alike = select_checkpoint(folder, pool, criterion="label_information", progress=False)
    assert [record.score for record in alike.records] == pytest.approx(
        [record.information for record in chosen.records]
    )


def test_the_report_groups_by_components_where_labels_exclude_nothing(multi_run, pool, tmp_path):
    folder = multi_run[0]
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps({"text": text, "label": "good"}) + "\n" for text in pool))
    run = look_at(folder, file, labels="label")
    assert not run.classifies
    assert list(run.others) == ["stable_rank"]
    assert not any("own predictions" in name for frame in run.frames for name in frame.supervised)
    named = look_at(folder, file, criteria=["infomax", "rankme"])
    assert list(named.others) == ["rankme"]
    assert any("infomax is not shown: the criterion" in note for note in named.notes)


def test_the_command_leaves_out_what_is_no_criterion_for_labels(multi_run, pool, tmp_path):
    folder = multi_run[0]
    (tmp_path / "pool.txt").write_text("\n".join(pool))
    command = ["select", str(folder), "--pool", str(tmp_path / "pool.txt"), "--json"]
    result = CliRunner().invoke(app, [*command, "--criteria", "infomax,rankme"])
    assert result.exit_code == 0
    assert "the criterion 'infomax' is for a model whose outputs are one class" in result.stderr
    found = json.loads(result.stdout)
    assert list(found["also"]) == ["rankme"]
    assert {row["information_of"] for row in found["ranking"]} == {"labels"}
    # Also one after the other, from what was kept of the checkpoints.
    for outputs, of in (("none", "components"), ("classes", "classes"), ("labels", "labels")):
        result = CliRunner().invoke(app, [*command, "--outputs", outputs])
        assert {row["information_of"] for row in json.loads(result.stdout)["ranking"]} == {of}
    assert CliRunner().invoke(app, [*command, "--criterion", "infomax"]).exit_code == 2


def test_a_resumed_run_goes_on_with_what_it_was(tmp_path, tokenizer, multi_rows, pool):
    options = {"max_steps": 4, "eval_steps": 2, "save_steps": 2}
    train(tmp_path, tokenizer, multi_rows, SepStopCallback(pool), classifier(3), **options)
    callback = SepStopCallback(pool)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
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
    assert [record.information_of for record in callback.history] == ["labels"] * 3


def test_streamed_labels_are_known_once_training_has_begun(tmp_path, tokenizer, multi_rows, pool):
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
    assert [record.information_of for record in callback.history] == ["labels"] * 2


def test_an_adapter_does_not_say_what_it_is_but_its_run_does(tmp_path, tokenizer, multi_rows, pool):
    peft = pytest.importorskip("peft")
    classifier(3).save_pretrained(tmp_path / "base")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=4))
    callback = SepStopCallback(pool, resamples=3)
    folder = tmp_path / "run"
    options = {"max_steps": 4, "eval_steps": 2, "save_steps": 2}
    train(folder, tokenizer, multi_rows, callback, model, **options)
    chosen = select_checkpoint(folder, pool, progress=False)
    assert {record.information_of for record in chosen.records} == {"labels"}
    assert [record.information for record in chosen.records] == pytest.approx(
        [record.information for record in callback.history], abs=1e-5
    )
    # Without the run's log nothing says so; then it is a guess, and the user may say it.
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        state.unlink()
    (folder / HISTORY_FILE).unlink()
    with pytest.warns(UserWarning, match="taken for one class out of k"):
        guessed = select_checkpoint(folder, pool, progress=False)
    assert {record.information_of for record in guessed.records} == {"classes"}
    said = select_checkpoint(folder, pool, outputs="labels", progress=False)
    assert {record.information_of for record in said.records} == {"labels"}
