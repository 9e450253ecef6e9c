"""Outputs inferred from the request, the configuration, the labels and the logits."""

import warnings

import datasets
import pytest
import torch
from conftest import WORDS, deciding, make_decoder, make_monitor
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    RobertaConfig,
    RobertaForMultipleChoice,
)

from sepstop.bench.criteria import COMPARED
from sepstop.criteria import CRITERIA
from sepstop.measure.outputs import infer_outputs
from sepstop.measure.scorer import MUTUAL_INFORMATION, CriterionError

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


class CustomModel(torch.nn.Module):
    """A model whose output is ``head(linear, hidden)`` of its ``(b, L, 16)`` hidden states."""

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


def found_outputs(model, pool, tokenizer, labels=None, **options):
    monitor = make_monitor(pool, tokenizer=tokenizer, num_resamples=2, **options)
    assert monitor.settings.get("outputs") == options.get("outputs")
    monitor.prepare(model, labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = monitor.measure(model, 1)
    outputs = monitor.settings["outputs"]
    assert list(record.scores) == [MUTUAL_INFORMATION[outputs], "separability"]
    return outputs


HALVES = [[0.2, 0.7, 0.1], [1.0, 0.0, 0.5]]
REALS = [[0.2, 1.7, -3.0], [1.0, 0.0, 0.5]]


@pytest.mark.parametrize(
    ("k", "problem", "labels", "outputs"),
    [
        # The number of logits alone.
        (3, None, None, "classes"),
        (1, None, None, "none"),
        # The configuration, which comes before the labels.
        (3, SINGLE, None, "classes"),
        (3, MULTI, None, "labels"),
        (1, MULTI, [[0.0], [1.0]], "labels"),
        (3, "regression", None, "none"),
        (3, "regression", [[1.0, 0.0, 1.0]], "none"),
        (1, "regression", [3, 4], "none"),
        (3, MULTI, HALVES, "labels"),
        (3, SINGLE, [1.0, 2.0], "classes"),  # a collator may convert them to integers
        (3, "custom", [[1.0, 0.0, 1.0]], "labels"),
        # The labels, read as by the loss of transformers.
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
        (1, None, [0, 1, 1], "none"),  # transformers trains a regression
        (1, None, [0.5, 1.5], "none"),
        # Labels that leave it open.
        (3, None, [[0, 1], [2, 1, 0]], "classes"),
        (3, None, ["good", "bad"], "classes"),
        (3, None, [None, None], "classes"),
        (3, None, [], "classes"),
    ],
)
def test_outputs_of_a_classifier(k, problem, labels, outputs):
    model = classifier(k, problem if problem != "custom" else None)
    if problem == "custom":
        model.config.problem_type = problem
    assert infer_outputs(model, k, labels).outputs == outputs


@pytest.mark.parametrize(
    ("k", "problem", "labels", "message"),
    [
        (3, SINGLE, [[0.0, 1.0, 1.0]], "'single_label.*', but each training label has 3 numbers"),
        (3, SINGLE, [0.5, 1.5], "the training labels are not whole numbers"),
        (3, MULTI, [0, 2], "'multi_label.*', but each training label is one number, not 3"),
    ],
)
def test_contradicting_labels_are_an_error(k, problem, labels, message):
    model = classifier(k, problem)
    with pytest.raises(
        ValueError, match=f"{message}; set config.problem_type .* outputs='classes'"
    ):
        infer_outputs(model, k, labels)
    assert infer_outputs(model, k, labels, "labels").outputs == "labels"  # a request settles it


def test_classes_need_two_logits():
    model = classifier(1)
    model.config.problem_type = SINGLE  # a new configuration cannot have it
    with pytest.raises(ValueError, match="the head has a single logit"):
        infer_outputs(model, 1)
    with pytest.raises(ValueError, match=r"'classes' needs logits .* k >= 2, got k = 1"):
        infer_outputs(model, 1, requested="classes")


@pytest.mark.parametrize("problem", [None, MULTI])
def test_labels_outside_0_and_1_are_a_warning(problem):
    with pytest.warns(UserWarning, match="below 0 or above 1.*problem_type='regression'"):
        assert infer_outputs(classifier(3, problem), 3, REALS).outputs == "labels"


def test_labels_of_a_custom_model():
    """Its loss need not be binary cross-entropy, so fractions are not labels."""
    model = CustomModel(lambda linear, hidden: linear(hidden[:, 0]))
    for labels, outputs in (([0, 2], "classes"), ([[0.0, 1, 1]], "labels"), (HALVES, "none")):
        assert infer_outputs(model, 3, labels).outputs == outputs
    assert infer_outputs(model, 3) == ("classes", True)


@pytest.mark.parametrize("wrap", ["compile", "peft", "DataParallel"])
def test_the_configuration_inside_wrappers_is_found(wrap):
    model = classifier(3, MULTI)
    if wrap == "compile":
        model = torch.compile(model, backend="eager")
    elif wrap == "peft":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS"))
    else:
        model = torch.nn.DataParallel(model)
    assert infer_outputs(model, 3).outputs == "labels"


@pytest.mark.parametrize("k", [1, 3])
def test_a_cross_encoder_does_not_use_the_loss_of_its_model(k, tokenizer, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    classifier(k).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = library.CrossEncoder(str(tmp_path), num_labels=k, device="cpu")
    assert infer_outputs(model, k, [0, 1]).outputs == ("classes" if k == 3 else "none")
    assert infer_outputs(model, k, [0.5, 0.1]).outputs == "none"
    assert infer_outputs(model, k, [[0.5] * k]).outputs == "none"


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
def test_outputs_of_transformers_models(make, outputs, pool, tokenizer):
    torch.manual_seed(0)
    assert found_outputs(make(), pool, tokenizer) == outputs


@pytest.mark.parametrize(
    ("head", "outputs"),
    [
        (lambda linear, hidden: {"logits": linear(hidden[:, 0])}, "classes"),
        (lambda linear, hidden: (linear(hidden[:, 0]), hidden), "classes"),
        (lambda linear, hidden: linear(hidden[:, 0]).mul(1000).long(), "classes"),
        (lambda linear, hidden: linear(hidden[:, 0]) * torch.nan, "classes"),
        (lambda linear, hidden: {"text_embeds": linear(hidden[:, 0])}, "none"),
        (lambda linear, hidden: hidden[:, 0], "none"),  # the embedding itself
        (lambda linear, hidden: hidden[..., 0], "none"),  # one score per token
        (lambda linear, hidden: linear(hidden).flatten(end_dim=1), "none"),  # tokens in a row
    ],
)
def test_outputs_of_custom_models(head, outputs, pool, tokenizer):
    one = [pool[0].split()[0], *pool]  # with a text of one word
    assert found_outputs(CustomModel(head), one, tokenizer, pooling=first_token) == outputs


def test_scores_of_tokens_are_not_classes_for_a_text_of_one_token():
    """One score per token of a single text, ``(1, L)``, has the shape of a row of logits."""
    tokens = datasets.Dataset.from_dict({"input_ids": [[5], [6], [5, 7], [6, 8], [9, 5, 7]]})
    model = CustomModel(lambda linear, hidden: hidden[..., 0])
    assert found_outputs(model, tokens, None, pooling=first_token, resample_size=4) == "none"


def test_the_requested_outputs_come_first(pool, tokenizer):
    for outputs in ("classes", "labels", "none"):
        found = found_outputs(classifier(3), pool, tokenizer, [[0.0, 1, 1]], outputs=outputs)
        assert found == outputs
    with pytest.raises(ValueError, match="got none from BertModel"):
        found_outputs(classifier(3).bert, pool, tokenizer, outputs="labels")
    with pytest.raises(ValueError, match=r"expected `outputs` among 'auto', .*, got 'sigmoid'"):
        make_monitor(pool, outputs="sigmoid")


@pytest.mark.parametrize("problem", [MULTI, "regression"])
@pytest.mark.parametrize(
    "name",
    ["robust_mi", "neighbor_mi", "consistency", "infomax", "entropy", "bnm", "snd", "churn"],
)
def test_criteria_on_classes_are_an_error_for_other_outputs(name, problem, pool, tokenizer):
    criterion = (CRITERIA | COMPARED)[name]
    monitor = make_monitor(pool, criterion=criterion, tokenizer=tokenizer)
    instead = "label_mi" if problem == MULTI else "component_mi"
    with pytest.raises(CriterionError, match=f"'{name}' is for .* class out of k.*use '{instead}'"):
        monitor.prepare(classifier(3, problem))
    beside = make_monitor(pool, extra_criteria=["auto", criterion], tokenizer=tokenizer)
    with pytest.warns(UserWarning, match=f"^sepstop: the criterion '{name}' is for .*left out"):
        beside.prepare(classifier(3, problem))
    assert list(beside.measure(classifier(3, problem), 1).scores) == [instead]


def test_a_custom_criterion_gets_the_logits_of_any_head(pool, tokenizer):
    def spread(logits):
        return logits.std(dim=(1, 2))

    spread.name, spread.higher_is_better, spread.needs = "spread", True, ("logits",)
    for k, problem in ((3, MULTI), (3, "regression"), (1, None)):
        monitor = make_monitor(pool, criterion=spread, tokenizer=tokenizer)
        assert deciding(monitor.measure(classifier(k, problem), 1)).is_finite


def test_a_classifier_without_logits_for_the_pool_is_an_error(pool, tokenizer):
    """Its head looks for a closing token that the tokenizer does not add."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    config = BartConfig(vocab_size=len(WORDS), **sizes, eos_token_id=9, decoder_start_token_id=2)
    model = BartForSequenceClassification(config)
    with pytest.raises(
        ValueError, match=r"returns no logits .*at least one <eos> token.*outputs='no"
    ):
        found_outputs(model, pool, tokenizer)
    assert found_outputs(model, pool, tokenizer, outputs="none") == "none"


def test_a_guess_is_a_warning_at_the_first_trained_step_only(pool, tokenizer):
    monitor = make_monitor(pool, tokenizer=tokenizer, num_resamples=2)
    model = classifier(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.measure(model, 0)
    with pytest.warns(UserWarning, match="assumed to be one class out of k; .* set outputs="):
        monitor.measure(model, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.measure(model, 2)
        make_monitor(pool, tokenizer=tokenizer, outputs="classes").measure(model, 1)


def test_more_classes_than_logits_are_a_warning():
    with pytest.warns(UserWarning, match="labels go up to 3, but the head has 2 logits"):
        assert infer_outputs(classifier(2), 2, [0, 3, 1]) == ("none", False)


def test_whole_numbers_as_floats_are_a_guess():
    assert infer_outputs(classifier(3), 3, [0.0, 2.0]) == ("classes", True)


def test_one_hot_labels_are_a_guess(pool, tokenizer):
    model = classifier(3)
    monitor = make_monitor(pool, tokenizer=tokenizer, num_resamples=2)
    monitor.prepare(model, labels=[[0.0, 1.0, 0.0]])
    with pytest.warns(UserWarning, match="assumed to be labels that do not exclude"):
        monitor.measure(model, 1)
    for rows in ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [[0.1, 0.8, 0.1]], [[0, 0, 1]]):
        assert infer_outputs(model, 3, rows) == ("labels", True)
    assert infer_outputs(model, 3, [[0, 0, 1], [0, 1, 1]]) == ("labels", False)
