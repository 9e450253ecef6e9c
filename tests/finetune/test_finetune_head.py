"""The head of a classifier that is loaded, and what is said of it."""

import warnings

import pytest
import torch
from conftest import WORDS, make_decoder, make_decoder_classifier, make_encoder, make_tokenizer
from helpers.encoder_decoder import make_encoder_decoder
from transformers import (
    AutoConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetModel,
)

from sepstop.finetune.classifier import load_classifier
from sepstop.finetune.settings import ModelSettings


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
        loaded = load_classifier(ModelSettings(str(folder)), list(names), tokenizer)
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
    with pytest.raises(ValueError, match=message):
        load_classifier(ModelSettings(str(tmp_path / "model")), ["bad", "good"], tokenizer)


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
    model = load_classifier(
        ModelSettings(str(tmp_path), lora=lora), ["bad", "good", "odd"], tokenizer
    )
    whole = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert {name.split(".")[2] for name in whole} == heads


def test_a_tokenizer_that_can_not_pad(tmp_path):
    make_decoder().save_pretrained(tmp_path / "model")
    bare = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer)
    with pytest.raises(ValueError, match="has no token to pad with: set its pad_token"):
        load_classifier(ModelSettings(str(tmp_path / "model")), ["a", "b"], bare)
