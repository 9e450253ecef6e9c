"""What is loaded from a checkpoint is what was saved, or an error says what is not."""

import json
import shutil

import pytest
import torch
import transformers
from conftest import WORDS, make_decoder, make_encoder
from safetensors.torch import load_file, save_file

from sepstop.measure.embedding import embed
from sepstop.measure.pooling import mean_pooling
from sepstop.runs.loading import (
    BaseCache,
    Loading,
    MisfitError,
    load_base_model,
    load_model,
    weights_that_differ,
)
from sepstop.runs.saved_weights import base_of_adapter

SIZES = {"vocab_size": len(WORDS), "pad_token_id": 0}
BERT = SIZES | {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
T5 = SIZES | {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
IDS = torch.tensor([[2, 5, 9, 12, 3], [2, 7, 15, 20, 3]])


def load(folder, bases=None, **options):
    return load_model(folder, Loading(device="cpu", **options), bases)


def bert(**options):
    return transformers.BertConfig(**(BERT | options))


def t5(**options):
    return transformers.T5Config(**(T5 | options))


def encoder_decoder():
    decoder = transformers.BertLMHeadModel(bert(is_decoder=True, add_cross_attention=True))
    return transformers.EncoderDecoderModel(encoder=transformers.BertModel(bert()), decoder=decoder)


MODELS = {
    "T5EncoderModel": lambda: transformers.T5EncoderModel(t5()),
    "T5ForTokenClassification": lambda: transformers.T5ForTokenClassification(t5()),
    "MT5EncoderModel": lambda: transformers.MT5EncoderModel(transformers.MT5Config(**T5)),
    "DPRContextEncoder": lambda: transformers.DPRContextEncoder(transformers.DPRConfig(**BERT)),
    "EncoderDecoderModel": encoder_decoder,
    "BertForMaskedLM": lambda: transformers.BertForMaskedLM(bert()),
    "BertForNextSentencePrediction": lambda: transformers.BertForNextSentencePrediction(bert()),
    "BertModel": lambda: transformers.BertModel(bert()),
    "LlamaForCausalLM": make_decoder,
}


class Own(transformers.BertPreTrainedModel):
    """A model of one's own, as many have it."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = transformers.BertModel(config)
        self.head = torch.nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        hidden = self.bert(input_ids, attention_mask).last_hidden_state
        return {"logits": self.head(hidden[:, 0])}


class Elsewhere(torch.nn.Module):
    """One that is none of transformers', saved in its own way."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    @classmethod
    def from_pretrained(cls, folder):
        model = cls()
        model.load_state_dict(load_file(f"{folder}/model.safetensors"), strict=False)
        return model


def edit(folder, change, name="model.safetensors"):
    """The tensors on disk, after ``change`` had them."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("name", MODELS)
def test_the_class_is_the_one_that_was_trained(tmp_path, name):
    torch.manual_seed(0)
    model = MODELS[name]()
    model.save_pretrained(tmp_path)
    found = load(tmp_path)
    assert type(found).__name__ == name
    assert weights_that_differ(found, tmp_path) == []
    assert weights_that_differ(model, tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bert.pooler.dense.weight"), r"missing there.*: bert\.pooler\.dense\.w"),
        (lambda t: t.pop("classifier.bias"), r"missing there.*: classifier\.bias"),
        (
            lambda t: t.update({"classifier.weight": torch.zeros(3, 16)}),
            r"of another shape: classifier\.weight",
        ),
        (lambda t: t.update({"head.weight": torch.zeros(3)}), r"without a place in it: head\.w"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, encoder, change, message):
    encoder.save_pretrained(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(MisfitError, match=f"BertForSequenceClassification does not .*{message}"):
        load(tmp_path)


def test_a_body_that_was_saved_without_a_pooler_has_none(tmp_path):
    model = transformers.BertModel(bert(), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    assert load(tmp_path).pooler is None


@pytest.mark.parametrize("labels", [2, 5])
def test_a_head_of_another_size_than_the_configuration_says(tmp_path, labels):
    """BART's configuration reads 2 labels back as 3; a replaced head is in no configuration."""
    sizes = {"vocab_size": len(WORDS), "d_model": 16, "max_position_embeddings": 64}
    sides = {f"{side}_{of}": 1 for side in ("encoder", "decoder") for of in ("layers", "ffn_dim")}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(**sizes, **sides, **heads, num_labels=labels, eos_token_id=3)
    model = transformers.BartForSequenceClassification(config)
    config.num_labels = 2
    model.save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).num_labels == 3
    found = load(tmp_path)
    assert logits(found).shape == (2, labels)
    assert torch.equal(logits(found), logits(model))
    edit(tmp_path, lambda t: t.update({"classification_head.dense.weight": torch.zeros(8, 16)}))
    with pytest.raises(MisfitError, match=r"another shape: classification_head\.dense\.weight"):
        load(tmp_path)


def test_without_the_name_of_a_class_the_body_has_to_fit(tmp_path):
    def forget(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"architectures": None}))

    transformers.BertModel(bert()).save_pretrained(tmp_path / "body")
    make_encoder().save_pretrained(tmp_path / "whole")
    forget(tmp_path / "body")
    forget(tmp_path / "whole")
    assert type(load(tmp_path / "body")) is transformers.BertModel
    with pytest.raises(MisfitError, match=r"without a place in it: classifier\.bias"):
        load(tmp_path / "whole")


def test_a_class_of_ones_own_is_asked_for(tmp_path):
    model = Own(bert())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"as Own, which transformers does not .*model_class="):
        load(tmp_path)
    found = load(tmp_path, model_class=Own)
    assert weights_that_differ(found, tmp_path) == []
    named = load(tmp_path, model_class=f"{__name__}:Own")
    assert type(named).__name__ == "Own"
    with pytest.raises(MisfitError, match=r"BertModel does not fit .*head\.bias, head\.weight"):
        load(tmp_path, model_class="transformers:BertModel")


def test_a_class_of_another_library_is_checked_too(tmp_path):
    save_file(Elsewhere().state_dict(), tmp_path / "model.safetensors")
    found = load(tmp_path, model_class=Elsewhere)
    assert weights_that_differ(found, tmp_path) == []
    edit(tmp_path, lambda tensors: tensors.pop("layer.bias"))
    with pytest.raises(MisfitError, match=r"Elsewhere does not fit .*layer\.bias"):
        load(tmp_path, model_class=Elsewhere)


def test_a_start_may_hold_more_than_is_taken(tmp_path):
    model = transformers.BertForPreTraining(bert())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]  # as many pretrained models on the hub
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(load_base_model(tmp_path)) is transformers.BertForMaskedLM
    with pytest.raises(MisfitError, match=r"without a place in it: bert\.pooler\.dense\.bias"):
        load(tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop("bert.embeddings.LayerNorm.bias"))
    with pytest.raises(MisfitError, match=r"missing there.*: bert\.embeddings\.LayerNorm\.bias"):
        load_base_model(tmp_path)


# What a live model and a checkpoint do not share.


@pytest.mark.parametrize("saved_as", ["safetensors", "shards", "bin"])
def test_each_tensor_is_compared_bit_for_bit(tmp_path, encoder, saved_as):
    encoder.save_pretrained(tmp_path, max_shard_size="1KB" if saved_as == "shards" else "5GB")
    if saved_as == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(encoder.state_dict(), tmp_path / "pytorch_model.bin")
    assert weights_that_differ(encoder, tmp_path) == []
    assert weights_that_differ(load(tmp_path), tmp_path) == []
    with torch.no_grad():
        encoder.classifier.bias[0] += 1e-7
    assert weights_that_differ(encoder, tmp_path) == ["classifier.bias"]


def test_what_only_one_of_both_has_is_named(tmp_path, encoder):
    encoder.save_pretrained(tmp_path)
    edit(tmp_path, lambda t: t.update(extra=t.pop("classifier.weight")))
    assert weights_that_differ(encoder, tmp_path) == ["extra", "classifier.weight"]


def test_saved_values_are_cast_as_by_loading(tmp_path, encoder):
    encoder.save_pretrained(tmp_path)
    assert weights_that_differ(encoder.bfloat16(), tmp_path) == []
    with torch.no_grad():
        encoder.bert.pooler.dense.bias.fill_(torch.nan)
    encoder.save_pretrained(tmp_path)
    assert weights_that_differ(encoder, tmp_path) == []


def test_tied_weights_are_one(tmp_path):
    model = transformers.BertForMaskedLM(bert())
    model.save_pretrained(tmp_path)
    assert "cls.predictions.decoder.weight" not in load_file(tmp_path / "model.safetensors")
    assert weights_that_differ(model, tmp_path) == []


def test_wrappers_are_looked_through(tmp_path, encoder):
    encoder.save_pretrained(tmp_path)
    compiled = torch.compile(encoder, backend="eager")
    assert weights_that_differ(compiled, tmp_path) == []
    assert weights_that_differ(torch.nn.DataParallel(encoder), tmp_path) == []
    encoder.bert.encoder.layer[0].compile(backend="eager")
    assert weights_that_differ(encoder, tmp_path) == []


@pytest.mark.parametrize("content", [None, b"torn"])
def test_a_folder_that_can_not_be_compared_says_so(tmp_path, encoder, content):
    if content:
        (tmp_path / "model.safetensors").write_bytes(content)
    (said,) = weights_that_differ(encoder, tmp_path)
    assert "could not be compared: " in said


def test_a_sentence_transformer_is_compared_module_by_module(tmp_path, tokenizer):
    library = pytest.importorskip("sentence_transformers")
    transformers.BertModel(bert()).save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    body = library.SentenceTransformer(str(tmp_path / "body"), device="cpu")
    dense = library.sentence_transformer.modules.Dense(16, 4)
    model = library.SentenceTransformer(modules=[*body, dense], device="cpu")
    model.save_pretrained(str(tmp_path / "whole"))
    assert weights_that_differ(model, tmp_path / "whole") == []
    assert weights_that_differ(load(tmp_path / "whole"), tmp_path / "whole") == []
    with torch.no_grad():
        model[2].linear.bias += 1
        model[0].auto_model.pooler.dense.bias += 1
    assert weights_that_differ(model, tmp_path / "whole") == ["pooler.dense.bias", "linear.bias"]
    edit(tmp_path / "whole" / "2_Dense", lambda tensors: tensors.pop("linear.bias"))
    with pytest.raises((MisfitError, RuntimeError), match=r"linear\.bias"):
        load(tmp_path / "whole")


def test_a_sentence_transformer_may_lack_a_pooler_and_hold_positions(tmp_path, tokenizer):
    """As many on the hub do."""
    library = pytest.importorskip("sentence_transformers")
    transformers.BertModel(bert()).save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    whole = tmp_path / "whole"
    library.SentenceTransformer(str(tmp_path / "body"), device="cpu").save_pretrained(str(whole))

    def change(tensors):
        tensors["embeddings.position_ids"] = torch.arange(64)[None]
        del tensors["pooler.dense.weight"], tensors["pooler.dense.bias"]

    edit(whole, change)
    assert load(whole).transformers_model.pooler is None
    edit(whole, lambda tensors: tensors.update({"embeddings.position_ids": torch.ones(1, 64)}))
    with pytest.raises(MisfitError, match=r"SentenceTransformer differ: embeddings\.position_ids"):
        load(whole)


def test_an_adapter_inside_a_sentence_transformer(tmp_path, tokenizer):
    library, peft = pytest.importorskip("sentence_transformers"), pytest.importorskip("peft")
    transformers.BertModel(bert()).save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    model = library.SentenceTransformer(str(tmp_path / "body"), device="cpu")
    model.add_adapter(peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["query"]))
    trained(model)
    model.save_pretrained(str(tmp_path / "whole"))
    assert weights_that_differ(model, tmp_path / "whole") == []
    found = load(tmp_path / "whole")
    assert found.encode("good film").tolist() == model.encode("good film").tolist()


# Adapters.


def trained(model, seed=1):
    """As if it was: what learns has moved."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


@pytest.fixture
def base(tmp_path):
    """A classifier with two classes."""
    make_encoder(dropout=0).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def classifier(base, **options):
    return transformers.BertForSequenceClassification.from_pretrained(base, **options)


@pytest.mark.parametrize(
    ("init", "loads"),
    [(True, 1), ("gaussian", 1), ("orthogonal", 1), ("pissa", 4), ("olora", 4)],
)
def test_a_base_is_reused_only_as_it_was(tmp_path, peft, base, monkeypatch, init, loads):
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, init_lora_weights=init, target_modules=["query", "dense"]
    )
    model = peft.get_peft_model(classifier(base), config)
    expected = {}
    for step in (1, 2, 3):
        trained(model, step).save_pretrained(tmp_path / f"checkpoint-{step}")
        expected[step] = logits(model)
    loaded = []
    original = transformers.AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForSequenceClassification,
        "from_pretrained",
        lambda *args, **kwargs: loaded.append(args) or original(*args, **kwargs),
    )
    bases = BaseCache()
    for step in (1, 2, 3):
        found = load(tmp_path / f"checkpoint-{step}", bases=bases)
        assert torch.allclose(logits(found), expected[step], atol=1e-5)
    assert len(loaded) == loads  # the first time twice, to see that it comes out the same


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_a_residual_saved_by_conversion_is_a_plain_adapter(tmp_path, peft, base):
    body = transformers.BertModel.from_pretrained(base)
    config = peft.LoraConfig(r=4, init_lora_weights="pissa", target_modules=["query"])
    model = peft.get_peft_model(body, config).eval()
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    expected = trained(model)(IDS).last_hidden_state
    model.save_pretrained(
        tmp_path / "checkpoint-1", path_initial_model_for_weight_conversion=tmp_path / "initial"
    )
    found = load(tmp_path / "checkpoint-1")
    assert torch.allclose(found(IDS).last_hidden_state, expected, atol=1e-5)


def test_an_initialisation_that_is_random_can_not_be_repeated(tmp_path, peft, base):
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights="pissa_niter_0")
    model = peft.get_peft_model(classifier(base), config)
    trained(model).save_pretrained(tmp_path / "checkpoint-1")
    with pytest.raises(MisfitError, match=r"drawn at random .*'pissa_niter_0' can't be repeated"):
        load(tmp_path / "checkpoint-1")


def test_a_base_changed_by_gradients_can_not_be_had_again(tmp_path, peft, base):
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=True)
    model = peft.get_peft_model(classifier(base), config)
    model.peft_config["default"].init_lora_weights = "lora_ga"
    model.save_pretrained(tmp_path / "checkpoint-1")
    with pytest.raises(MisfitError, match="LoRA-GA changes the base by gradients"):
        load(tmp_path / "checkpoint-1")


def resized(peft, base, options):
    model = transformers.LlamaForSequenceClassification.from_pretrained(base)
    model.resize_token_embeddings(len(WORDS) + 2)
    config = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["q_proj"]} | options
    return trained(peft.get_peft_model(model, peft.LoraConfig(**config)))


RESIZED = {
    "modules_to_save": {"modules_to_save": ["embed_tokens"]},
    "trainable tokens": {"trainable_token_indices": {"embed_tokens": [len(WORDS), len(WORDS) + 1]}},
    "lora": {"target_modules": ["q_proj", "embed_tokens"]},
    "saved with the adapter": {},
}


@pytest.fixture
def decoder_base(tmp_path):
    config = make_decoder().config
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


@pytest.mark.parametrize("how", RESIZED)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_resized_embeddings_are_resized(tmp_path, peft, decoder_base, how):
    model = resized(peft, decoder_base, RESIZED[how])
    bases = BaseCache()
    for step in (1, 2):
        trained(model, step).save_pretrained(tmp_path / f"checkpoint-{step}")
        found = load(tmp_path / f"checkpoint-{step}", bases=bases)
        assert len(found.get_base_model().get_input_embeddings().weight) == len(WORDS) + 2
        ids = [torch.tensor([2, 5, len(WORDS), len(WORDS) + 1, 3])]
        texts = (ids, lambda m, i, a: mean_pooling(m.get_base_model().model(i, a)[0], a))
        assert torch.equal(embed(found, *texts), embed(model, *texts))


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("indices", [[len(WORDS)], [len(WORDS), len(WORDS) + 1]])
def test_rows_that_were_never_saved_are_an_error(tmp_path, peft, decoder_base, indices):
    options = {"trainable_token_indices": {"embed_tokens": indices}}
    model = resized(peft, decoder_base, options)
    model.save_pretrained(tmp_path / "checkpoint-1", save_embedding_layers=False)
    if len(indices) == 2:
        found = load(tmp_path / "checkpoint-1")
        ids = [torch.tensor([2, 5, len(WORDS), len(WORDS) + 1, 3])]
        texts = (ids, lambda m, i, a: mean_pooling(m.get_base_model().model(i, a)[0], a))
        assert torch.equal(embed(found, *texts), embed(model, *texts))
        return
    config = tmp_path / "checkpoint-1" / "adapter_config.json"
    saved = json.loads(config.read_text())
    saved["trainable_token_indices"] = {"embed_tokens": [len(WORDS) + 1]}  # not the one before
    config.write_text(json.dumps(saved))
    with pytest.raises(MisfitError, match=r"neither the adapter nor .*model\.embed_tokens\.weight"):
        load(tmp_path / "checkpoint-1")


def test_a_head_that_was_never_saved(tmp_path, peft, base):
    """One that is in the base, or none at all, is no error."""
    transformers.BertModel(bert()).save_pretrained(tmp_path / "body")
    config = {"r": 4, "target_modules": ["query"]}
    headless = peft.get_peft_model(classifier(tmp_path / "body"), peft.LoraConfig(**config))
    headless.save_pretrained(tmp_path / "checkpoint-1")
    with pytest.raises(MisfitError, match=r"classifier\.bias, classifier\.weight.*no trained head"):
        load(tmp_path / "checkpoint-1")
    whole = trained(peft.get_peft_model(classifier(base), peft.LoraConfig(**config)))
    whole.save_pretrained(tmp_path / "checkpoint-2")
    assert torch.equal(logits(load(tmp_path / "checkpoint-2")), logits(whole))
    body = transformers.BertModel.from_pretrained(tmp_path / "body")
    body = trained(peft.get_peft_model(body, peft.LoraConfig(**config)))
    body.save_pretrained(tmp_path / "checkpoint-3")
    found = load(tmp_path / "checkpoint-3")
    assert torch.equal(found(IDS).last_hidden_state, body.eval()(IDS).last_hidden_state)


def test_no_other_class_stands_in_for_a_head_that_peft_does_not_know(tmp_path, peft):
    sizes = {f"{end}_{what}": 1 for end in ("encoder", "decoder") for what in ("layers", "ffn_dim")}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "eos_token_id": 3}
    config = transformers.BartConfig(**SIZES, d_model=8, **sizes, **heads)
    transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    model = transformers.BartForSequenceClassification.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "checkpoint-1")
    with pytest.raises(MisfitError, match=r"classification_head\.dense\.bias.*no trained head"):
        load(tmp_path / "checkpoint-1")


def test_no_base_hands_a_head_on_to_the_next(tmp_path, peft, base):
    transformers.BertModel(bert()).save_pretrained(tmp_path / "body")
    config = {"r": 4, "target_modules": ["query"], "task_type": "SEQ_CLS"}
    model = peft.get_peft_model(classifier(tmp_path / "body"), peft.LoraConfig(**config))
    trained(model).save_pretrained(tmp_path / "checkpoint-1")
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "checkpoint-2")
    edit(
        tmp_path / "checkpoint-2",
        lambda tensors: tensors.pop("base_model.model.classifier.weight"),
        "adapter_model.safetensors",
    )
    bases = BaseCache()
    load(tmp_path / "checkpoint-1", bases=bases)
    with pytest.raises(MisfitError, match=r"lacks 'base_model\.model\.classifier\.weight'"):
        load(tmp_path / "checkpoint-2", bases=bases)


@pytest.mark.parametrize("labels", [2, 5])
def test_heads_of_any_name_have_their_size(tmp_path, peft, labels):
    sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}
    config = transformers.DistilBertConfig(vocab_size=len(WORDS), **sizes)
    transformers.DistilBertModel(config).save_pretrained(tmp_path / "body")
    model = transformers.DistilBertForSequenceClassification.from_pretrained(
        tmp_path / "body", num_labels=labels
    )
    adapter = peft.LoraConfig(
        task_type="SEQ_CLS",
        target_modules=["q_lin"],
        modules_to_save=["pre_classifier", "classifier"],
    )
    model = trained(peft.get_peft_model(model, adapter))
    model.save_pretrained(tmp_path / "checkpoint-1")
    assert torch.equal(logits(load(tmp_path / "checkpoint-1")), logits(model))
    key = "base_model.model.pre_classifier.weight"
    name = "adapter_model.safetensors"
    edit(tmp_path / "checkpoint-1", lambda t: t.update({key: torch.zeros(7, 16)}), name)
    with pytest.raises(MisfitError, match=r"does not fit .*pre_classifier\.weight"):
        load(tmp_path / "checkpoint-1")


def test_an_adapter_of_any_name_is_found(tmp_path, peft, base):
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"])
    model = peft.get_peft_model(classifier(base), config, adapter_name="topics")
    trained(model).save_pretrained(tmp_path / "checkpoint-1")
    assert not (tmp_path / "checkpoint-1" / "adapter_config.json").exists()
    found = load(tmp_path / "checkpoint-1")
    assert torch.equal(logits(found), logits(model))
    assert weights_that_differ(model, tmp_path / "checkpoint-1") == []
    model.add_adapter("other", config)
    model.save_pretrained(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=r"expected one adapter .*, found 2: other, topics"):
        load(tmp_path / "checkpoint-1")
    found = load(tmp_path / "checkpoint-1", adapter="topics")
    assert torch.equal(logits(found), logits(model))
    with pytest.raises(
        ValueError, match=r"no adapter 'mine' in the checkpoint; found other, topics"
    ):
        load(tmp_path / "checkpoint-1", adapter="mine")


def test_an_adapter_with_a_configuration_or_a_whole_model_beside_it(tmp_path, peft, base):
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"])
    model = trained(peft.get_peft_model(classifier(base), config))
    model.save_pretrained(tmp_path / "checkpoint-1")
    model.config.save_pretrained(tmp_path / "checkpoint-1")
    assert torch.equal(logits(load(tmp_path / "checkpoint-1")), logits(model))
    expected = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=r"which may be merged already .*--adapter"):
        load(tmp_path / "checkpoint-1")
    found = load(tmp_path / "checkpoint-1", adapter="default")
    assert torch.equal(logits(found), expected)


def test_a_base_that_was_moved_can_be_named(tmp_path, peft, base):
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"])
    model = trained(peft.get_peft_model(classifier(base), config))
    model.save_pretrained(tmp_path / "checkpoint-1")
    base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"base model .* can't be read. If .*--base-model"):
        load(tmp_path / "checkpoint-1")
    found = load(tmp_path / "checkpoint-1", base_model=tmp_path / "moved")
    assert torch.equal(logits(found), logits(model))


def test_a_base_has_the_revision_that_the_adapter_names(tmp_path, peft, base, monkeypatch):
    """A hub that has the base at this revision only."""
    asked = []

    def patched(kind, name):
        of_folder = getattr(kind, name).__func__

        def read(cls, source, *args, revision="main", **options):
            if source == "org/base":
                asked.append(revision)
                if revision != "v1.0":
                    raise OSError(f"no {source} at {revision}")
                source = str(base)
            return of_folder(cls, source, *args, **options)

        monkeypatch.setattr(kind, name, classmethod(read))

    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], revision="v1.0")
    model = trained(peft.get_peft_model(classifier(base), config))
    model.peft_config["default"].base_model_name_or_path = "org/base"
    model.save_pretrained(tmp_path / "checkpoint-1", save_embedding_layers=False)
    patched(transformers.PreTrainedConfig, "get_config_dict")
    patched(transformers.AutoConfig, "from_pretrained")
    patched(transformers.AutoModelForSequenceClassification, "from_pretrained")
    found = load(tmp_path / "checkpoint-1")
    assert torch.equal(logits(found), logits(model))
    assert set(asked) == {"v1.0"}
    assert base_of_adapter(tmp_path / "checkpoint-1") == ("org/base", "v1.0")


@pytest.mark.parametrize("named", [False, True])
def test_adapters_on_a_class_that_the_task_does_not_name(tmp_path, peft, named):
    """An encoder alone, whose automatic class has a decoder too."""
    transformers.T5EncoderModel(t5()).save_pretrained(tmp_path / "base")
    model = transformers.T5EncoderModel.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["q"])
    model = trained(peft.get_peft_model(model, config))
    model.save_pretrained(tmp_path / "checkpoint-1")
    options = {"model_class": transformers.T5EncoderModel} if named else {}
    found = load(tmp_path / "checkpoint-1", **options)
    assert torch.equal(found(IDS).last_hidden_state, model.eval()(IDS).last_hidden_state)


def test_prompts_are_put_on_the_base_one_after_the_other(tmp_path, peft, base):
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    model = peft.get_peft_model(classifier(base), config)
    bases = BaseCache()
    for step in (1, 2):
        trained(model, step).save_pretrained(tmp_path / f"checkpoint-{step}")
        found = load(tmp_path / f"checkpoint-{step}", bases=bases)
        assert torch.equal(logits(found), logits(model))
        assert weights_that_differ(model, tmp_path / f"checkpoint-{step}") == []
