"""What a model is given to read: token types, closing tokens, padding, prompts, precision."""

import pytest
import torch
from conftest import (
    WORDS,
    make_decoder_classifier,
    make_encoder,
    make_tokenizer,
)
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
    Gemma3Config,
    Gemma3Model,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from sepstop import Monitor, Patience, SepStopCallback

SMALL = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def bart(**more):
    torch.manual_seed(0)
    return BartForSequenceClassification(
        BartConfig(
            vocab_size=len(WORDS),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_labels=3,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=3,
            forced_eos_token_id=None,
            **more,
        )
    ).eval()


def alone(model, rows, **inputs):
    """The logits of each text by itself, with nothing padded."""
    found = []
    for place, row in enumerate(rows):
        more = {key: torch.tensor(values[place])[None] for key, values in inputs.items()}
        with torch.no_grad():
            found.append(model(input_ids=torch.tensor(row)[None], **more).logits[0])
    return torch.stack(found)


# Closing tokens


def test_a_tokenized_pool_is_cut_before_its_closing_token(tokenizer, pool):
    """BART's classifier reads the closing token and fails without it."""
    ids = [
        row
        for row in tokenizer([f"{a} {b}" for a, b in zip(pool, pool[::-1], strict=True)])[
            "input_ids"
        ]
    ]
    model = bart()
    given = Monitor(ids, max_length=8)
    texts = Monitor(
        [f"{a} {b}" for a, b in zip(pool, pool[::-1], strict=True)],
        tokenizer=tokenizer,
        max_length=8,
    )
    assert given.measure(model, 1).resamples == texts.measure(model, 1).resamples
    assert {int(row[-1]) for row in given._tokenized(model)} == {3}


def test_token_ids_that_nothing_closes_are_simply_cut(pool, tokenizer):
    ids = [row[1:-1] for row in tokenizer(pool)["input_ids"]]
    tokens = Monitor(ids, max_length=3, tokenizer=tokenizer)._tokenized(make_encoder())
    assert [row.tolist() for row in tokens] == [row[:3] for row in ids]


# Padding


@pytest.mark.parametrize("as_set", [False, True])
def test_a_fast_tokenizer_keeps_its_truncation_and_padding(pool, as_set):
    """They are written into each checkpoint's tokenizer.json."""
    tokenizer = make_tokenizer()
    backend = tokenizer.backend_tokenizer
    if as_set:
        backend.enable_truncation(7, strategy="only_first")
        backend.enable_padding(length=9, direction="left", pad_id=1)
    before = backend.to_str()
    Monitor(pool, tokenizer=tokenizer, max_length=32).prepare(make_encoder())
    assert backend.to_str() == before


def test_a_decoder_without_a_padding_token_is_read_one_text_at_a_time(pool, bare_tokenizer):
    model = make_decoder_classifier().eval()
    model.config.pad_token_id = None
    monitor = Monitor(pool, tokenizer=bare_tokenizer)
    seen = monitor.observe(model)
    torch.testing.assert_close(seen.logits, alone(model, bare_tokenizer(pool)["input_ids"]))
    assert monitor.settings["padding"] is False


def test_a_padding_token_that_is_none_pads_nothing(pool, tokenizer):
    """An id that the head cannot find leaves it at the last place, whatever is there."""
    model = make_decoder_classifier().eval()
    model.config.pad_token_id = -1
    seen = Monitor(pool, tokenizer=tokenizer).observe(model)
    torch.testing.assert_close(seen.logits, alone(model, tokenizer(pool)["input_ids"]))


def xlnet():
    return XLNetForSequenceClassification(
        XLNetConfig(
            vocab_size=len(WORDS), d_model=16, n_layer=1, n_head=2, d_inner=32, num_labels=2
        )
    )


def funnel():
    return FunnelForSequenceClassification(
        FunnelConfig(
            vocab_size=len(WORDS), d_model=16, n_head=2, d_head=8, d_inner=32, block_sizes=[1, 1]
        )
    )


@pytest.mark.parametrize("make", [xlnet, funnel])
@pytest.mark.parametrize("embedder", ["mean", "cls", "last"])
def test_where_padding_changes_what_is_seen_no_text_is_padded(make, embedder, pool, tokenizer):
    """XLNet's head takes the last place; Funnel pools neighboring places."""
    torch.manual_seed(0)
    model = make().eval()
    monitor = Monitor(pool, tokenizer=tokenizer, embedder=embedder)
    seen = monitor.observe(model)
    torch.testing.assert_close(seen.logits, alone(model, tokenizer(pool)["input_ids"]))
    single = Monitor(pool, tokenizer=tokenizer, embedder=embedder, batch_size=1).observe(model)
    torch.testing.assert_close(seen.points, single.points)
    again = Monitor(pool, tokenizer=tokenizer, embedder=embedder, padding=False).observe(model)
    torch.testing.assert_close(again.points, seen.points, atol=1e-3, rtol=1e-3)


def test_models_that_mask_padding_get_full_batches(pool, tokenizer):
    monitor = Monitor(pool, tokenizer=tokenizer)
    monitor.observe(make_encoder())
    assert monitor.settings["padding"] is True
    with pytest.raises(ValueError, match="expected `padding` among"):
        Monitor(pool, padding="yes")


def test_padding_is_tried_on_devices_without_float64(pool, tokenizer, monkeypatch):
    """As Apple's GPUs are: there, float64 is for the CPU's copies alone."""
    double, copied = torch.Tensor.double, []

    def cpu(tensor):
        copied.append(tensor.clone())
        return copied[-1]

    def only_copies(tensor):
        if not any(tensor is copy for copy in copied):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch.Tensor, "double", only_copies)
    monitor = Monitor(pool, tokenizer=tokenizer)
    monitor.prepare(make_encoder())
    assert monitor.settings["padding"] is True


# Checks before training


def test_an_id_beyond_the_embeddings_names_its_row(pool, tokenizer):
    ids = tokenizer(pool)["input_ids"]
    ids[7] = [2, len(WORDS), 3]  # short: not among the texts that are tried
    message = f"row 7 of the pool has the token id {len(WORDS)}, but BertForSequenceClassification"
    with pytest.raises(ValueError, match=message):
        Monitor(ids).prepare(make_encoder())


def gpt2(positions):
    return GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=len(WORDS),
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=positions,
            pad_token_id=0,
        )
    )


def roberta(positions):
    config = RobertaConfig(**SMALL, max_position_embeddings=positions + 2, pad_token_id=1)
    return RobertaForSequenceClassification(config)


def bert(positions):
    return BertForSequenceClassification(BertConfig(**SMALL, max_position_embeddings=positions))


def bart_of(positions):
    return bart(max_position_embeddings=positions)


@pytest.mark.parametrize("make", [bert, gpt2, roberta, bart_of])
def test_a_text_beyond_the_positions_names_its_row(make, pool, tokenizer):
    ids = tokenizer(pool)["input_ids"]
    ids[11] = [2, *([9] * 14), 3]
    with pytest.raises(
        ValueError, match=r"row 11 of the pool has 16 tokens.* 15 positions; pass max_length=15"
    ):
        Monitor(ids).prepare(make(15))
    Monitor(ids).prepare(make(16))
    Monitor(ids, max_length=15).prepare(make(15))


def test_positions_of_images_are_not_those_of_texts(pool, tokenizer):
    text = dict(SMALL, num_key_value_heads=1, head_dim=8, pad_token_id=0)
    image = {"image_size": 28, "patch_size": 14, **{k: v for k, v in SMALL.items() if k[0] != "v"}}
    config = Gemma3Config(
        text_config=text,
        vision_config=image,
        mm_tokens_per_image=1,
        boi_token_index=1,
        eoi_token_index=2,
        image_token_index=5,
    )
    assert Monitor(pool, tokenizer=tokenizer).measure(Gemma3Model(config), 1).is_finite


def test_relative_positions_have_no_end(pool, tokenizer):
    Monitor([*pool, " ".join(pool[:20])], tokenizer=tokenizer).prepare(make_decoder_classifier())


# sentence-transformers


@pytest.fixture
def sentence_transformer(tokenizer, tmp_path):
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    library = pytest.importorskip("sentence_transformers")
    make_encoder().bert.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")

    def make(**options):
        body = modules.Transformer(str(tmp_path / "bert"))
        pooling = modules.Pooling(16, include_prompt=options.pop("include_prompt", True))
        return library.SentenceTransformer(modules=[body, pooling], device="cpu", **options)

    return make


@pytest.mark.parametrize("include_prompt", [True, False])
def test_the_default_prompt_is_put_before_each_text(sentence_transformer, pool, include_prompt):
    model = sentence_transformer(
        prompts={"topic": "the film was "},
        default_prompt_name="topic",
        include_prompt=include_prompt,
    )
    seen = Monitor(pool).observe(model)
    torch.testing.assert_close(seen.points, model.encode(pool, convert_to_tensor=True))
    plain = model.encode(pool, prompt="", convert_to_tensor=True)
    assert (seen.points - plain).abs().max() > 1e-3


def test_a_static_embedding_is_read_by_its_own_tokenizer(pool, tokenizer):
    library = pytest.importorskip("sentence_transformers")
    torch.manual_seed(0)
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    static = modules.StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)
    model = library.SentenceTransformer(modules=[static], device="cpu")
    seen = Monitor(pool).observe(model)
    torch.testing.assert_close(seen.points, model.encode(pool, convert_to_tensor=True))


def test_another_first_module_is_refused_in_a_sentence(pool):
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    model = library.SentenceTransformer(modules=[modules.BoW(WORDS)], device="cpu")
    model.append(torch.nn.Linear(1, 1))  # something with a weight
    with pytest.raises(ValueError, match="begins with BoW: expected a transformers model"):
        Monitor(pool).prepare(model)


# Precision


def trained(model, rows, tokenizer, folder, callbacks, **options):
    torch.manual_seed(0)
    args = TrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=8,
        save_strategy="steps",
        save_steps=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )
    Trainer(
        model, args, train_dataset=rows, processing_class=tokenizer, callbacks=callbacks
    ).train()
    return model


def test_the_pool_is_read_in_the_precision_of_training(train_rows, tokenizer, pool, tmp_path):
    plain = trained(make_encoder(), train_rows, tokenizer, tmp_path / "plain", [], bf16=True)
    model, dtypes = make_encoder(), {True: set(), False: set()}
    model.bert.encoder.layer[0].attention.self.query.register_forward_hook(
        lambda module, inputs, output: dtypes[module.training].add(output.dtype)
    )
    callback = SepStopCallback(pool, policy=Patience(None), every_n_steps=2, verbose=False)
    trained(model, train_rows, tokenizer, tmp_path / "run", [callback], bf16=True)
    assert dtypes == {True: {torch.bfloat16}, False: {torch.bfloat16}}
    assert callback.monitor.settings["precision"] == "bf16"
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True)
    )


def test_a_run_in_float32_is_read_in_float32_by_the_same_callback(
    train_rows, tokenizer, pool, tmp_path
):
    callback = SepStopCallback(pool, policy=Patience(None), every_n_steps=2, verbose=False)
    for bf16, named in ((True, "bf16"), (False, "no")):
        folder = tmp_path / named
        trained(make_encoder(), train_rows, tokenizer, folder, [callback], bf16=bf16)
        assert callback.monitor.settings["precision"] == named


def test_a_loop_with_accelerate_is_read_in_its_precision(pool, tokenizer):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        accelerator = Accelerator(mixed_precision="bf16", cpu=True)
        model = accelerator.prepare(make_encoder())
        monitor = Monitor(pool, tokenizer=tokenizer)
        record = monitor.measure(model, 1)
        assert monitor.settings["precision"] == "bf16"
        same = Monitor(pool, tokenizer=tokenizer, precision="bf16").measure(make_encoder(), 1)
        assert same.resamples == record.resamples
    finally:
        AcceleratorState._reset_state(True)
