"""Passes over the pool: number, padding, batches and precision, as a run settles them."""

import json

import pytest
import torch
from conftest import (
    WORDS,
    make_decoder_classifier,
    make_encoder,
    make_monitor,
)
from helpers.averages import averaged
from helpers.padding import alone
from transformers import (
    FunnelConfig,
    FunnelForSequenceClassification,
    Trainer,
    TrainingArguments,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from sepstop import Patience, SepStopCallback, SepStopConfig
from sepstop.criteria import CRITERIA
from sepstop.measure.average import AVERAGES
from sepstop.measure.observer import Observer, embedding_key
from sepstop.measure.pool import read_pool
from sepstop.measure.pooling import MeanPooling
from sepstop.measure.scorer import CriterionError
from sepstop.measure.tokens import DROP_RATE, drop_tokens


def count_calls(module):
    """A list that grows by one with each forward pass of ``module``."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# Number of passes

BATCHES = {"batch_size": 64}  # two for 80 texts
MANY = ["auto", "separability", "infomax", "entropy", "sepstop.bench.criteria:RankMe"]


@pytest.mark.parametrize("extra", [[], ["separability"], MANY, ["consistency", *MANY]])
@pytest.mark.parametrize("criterion", ["auto", "separability", "infomax"])
def test_any_number_of_criteria_takes_one_pass_and_one_of_corrupted_texts(
    criterion, extra, pool, tokenizer
):
    model = make_encoder()
    options = BATCHES | {"criterion": criterion, "extra_criteria": extra}
    monitor = make_monitor(pool, tokenizer=tokenizer, **options)
    monitor.prepare(model)  # tries what padding does
    layer, head = count_calls(model.bert.encoder.layer[0]), count_calls(model.classifier)
    record = monitor.measure(model, 1)
    passes = 2 if "auto" in (criterion, *extra) else 1
    assert monitor.needs("corrupted_logits") is (passes == 2)
    assert len(layer) == len(head) == 2 * passes
    assert next(iter(record.scores)) == monitor.decides
    assert set(record.scores) >= {name for name in extra if name in CRITERIA}
    monitor.measure(model, 2)
    assert len(layer) == len(head) == 4 * passes


@pytest.mark.parametrize("outputs", ["classes", "labels", "none"])
def test_each_candidate_takes_one_pass_of_corrupted_texts_if_it_has_classes(
    outputs, pool, tokenizer
):
    model = make_encoder()
    options = BATCHES | {"outputs": outputs, "score_checkpoints": True}
    monitor = make_monitor(pool, tokenizer=tokenizer, **options)
    monitor.prepare(model)
    averages = averaged(model)
    layer = count_calls(model.bert.encoder.layer[0])
    record = monitor.measure(model, 4, averages=averages)
    candidates = len(AVERAGES) + 1
    assert len(record.candidates) == candidates
    assert len(layer) == 2 * candidates * (2 if outputs == "classes" else 1)
    assert all(scores[monitor.decides].is_finite for scores in record.candidates.values())


def test_a_model_without_logits_takes_no_pass_of_corrupted_texts(pool, tokenizer):
    model = make_encoder().bert
    monitor = make_monitor(pool, tokenizer=tokenizer, **BATCHES)
    monitor.prepare(model)
    layer = count_calls(model.encoder.layer[0])
    seen = monitor.observe(model)
    assert (monitor.decides, monitor.needs("corrupted_logits")) == ("component_mi", False)
    assert seen.corrupted_logits is None
    assert len(layer) == 2


def test_an_observation_of_an_earlier_process_is_complete_if_it_has_what_is_needed(pool, tokenizer):
    model = make_encoder()

    def monitor(**options):
        return make_monitor(pool, tokenizer=tokenizer, **options)

    whole = monitor().observe(model)
    without = whole._replace(corrupted_logits=None)
    with pytest.raises(RuntimeError, match="expected `prepare` or `measure` first"):
        assert monitor().needs("corrupted_logits")
    for options, needs in (
        ({}, True),
        ({"criterion": "infomax"}, False),
        ({"criterion": "infomax", "extra_criteria": ["robust_mi"]}, True),
        ({"outputs": "labels"}, False),
    ):
        assert monitor(**options).is_complete(whole)
        assert monitor(**options).is_complete(without) is not needs
    with pytest.raises(CriterionError, match="'infomax' is for a model whose outputs are one cl"):
        monitor(criterion="infomax", outputs="labels").is_complete(whole)


def test_the_reference_takes_one_pass(pool, tokenizer):
    model = make_encoder()
    monitor = make_monitor(pool, tokenizer=tokenizer, **BATCHES)
    monitor.prepare(model)
    layer, head = count_calls(model.bert.encoder.layer[0]), count_calls(model.classifier)
    monitor.set_reference(model)
    assert (len(layer), len(head)) == (2, 2)
    assert monitor.neighborhoods.steps == [0]


def test_no_reference_is_taken_if_no_criterion_looks_at_neighbors(pool, tokenizer):
    model = make_encoder()
    options = BATCHES | {"criterion": "separability", "extra_criteria": ["infomax"]}
    monitor = make_monitor(pool, tokenizer=tokenizer, **options)
    assert not monitor.uses_neighbors
    monitor.prepare(model)
    layer = count_calls(model.bert.encoder.layer[0])
    monitor.set_reference(model)
    monitor.measure(model, 1)
    assert len(layer) == 2
    assert monitor.neighborhoods.steps == []


# Batches


def test_a_batch_halved_for_want_of_memory_stays_so(pool, tokenizer):
    sizes = []

    def hungry(model, input_ids, attention_mask):
        sizes.append(len(input_ids))
        if len(input_ids) > 20:
            raise torch.OutOfMemoryError("too much")
        return MeanPooling()(model, input_ids, attention_mask)

    model = make_encoder()
    monitor = make_monitor(
        pool, tokenizer=tokenizer, criterion="neighbor_mi", pooling=hungry, batch_size=40
    )
    record = monitor.measure(model, 1)
    assert monitor.observer.batch_size == 20
    assert 40 in sizes
    sizes.clear()
    again = monitor.measure(model, 2)
    assert sizes == [20] * 4
    expected = make_monitor(
        pool, tokenizer=tokenizer, criterion="neighbor_mi", batch_size=20
    ).measure(model, 1)
    assert again.scores["separability"] == record.scores["separability"]
    assert record.scores == expected.scores


def test_what_is_settled_is_for_one_model_until_the_next_is_prepared(pool, tokenizer):
    observer = Observer(read_pool(pool), SepStopConfig(tokenizer=tokenizer))
    assert (observer.padding, observer.precision) == (None, None)
    model = make_encoder()
    tokens = observer.tokens(model)
    seen = observer.observe(model, tokens, with_logits=True)
    assert seen.points.shape == (80, 16)
    assert seen.logits.shape == (80, 2)
    assert (observer.padding, observer.precision) == (True, "no")
    assert observer.tokens(model) is tokens
    observer.reset()
    assert (observer.padding, observer.precision) == (None, None)
    assert observer.tokens(model) is not tokens


def test_a_pass_without_logits_settles_no_padding(pool, tokenizer):
    """What padding does to the logits is not known yet."""
    monitor = make_monitor(pool, tokenizer=tokenizer)
    torch.manual_seed(0)
    monitor.embed(xlnet().eval())
    assert monitor.observer.padding is None


def test_the_embedding_key_names_what_embeddings_depend_on(pool, tokenizer):
    def key(texts=pool, **options):
        return make_monitor(texts, **options).embedding_key

    for same in ({"num_resamples": 3}, {"seed": 4}, {"criterion": "infomax"}, {"batch_size": 2}):
        assert key(**same) == key()
    for other in ({"pooling": "cls"}, {"max_length": 7}, {"texts": pool[1:]}):
        assert key(**other) != key()
    # Trainer's copies of the settings have their keys sorted.
    copied = json.loads(json.dumps(make_monitor(pool).settings, sort_keys=True))
    assert embedding_key(copied) == key()
    del copied["max_length"]
    assert embedding_key(copied) == ""


def test_the_token_fingerprint_is_that_of_the_ids(pool, tokenizer):
    ids = tokenizer(pool)["input_ids"]
    named = make_monitor(pool, tokenizer=tokenizer).observer.token_fingerprint
    assert named == make_monitor(ids).observer.token_fingerprint
    assert named != make_monitor(ids[::-1]).observer.token_fingerprint
    assert named != make_monitor(ids, max_length=4).observer.token_fingerprint
    monitor = make_monitor(pool)
    assert monitor.observer.token_fingerprint == ""
    monitor.prepare(make_encoder(), tokenizer)
    assert monitor.observer.token_fingerprint == named


# Padding


def test_a_decoder_without_a_padding_token_reads_one_text_at_a_time(pool, bare_tokenizer):
    model = make_decoder_classifier().eval()
    model.config.pad_token_id = None
    monitor = make_monitor(pool, tokenizer=bare_tokenizer)
    seen = monitor.observe(model)
    ids = bare_tokenizer(pool)["input_ids"]
    torch.testing.assert_close(seen.logits, alone(model, ids))
    left = drop_tokens([torch.tensor(row) for row in ids], DROP_RATE, seed=0)
    torch.testing.assert_close(seen.corrupted_logits, alone(model, [row.tolist() for row in left]))
    assert monitor.settings["padding"] is False


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
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_no_text_is_padded_if_padding_changes_the_result(make, pooling, pool, tokenizer):
    """XLNet's head reads the last position; Funnel pools neighboring positions."""
    torch.manual_seed(0)
    model = make().eval()
    monitor = make_monitor(pool, tokenizer=tokenizer, pooling=pooling)
    seen = monitor.observe(model)
    torch.testing.assert_close(seen.logits, alone(model, tokenizer(pool)["input_ids"]))
    single = make_monitor(pool, tokenizer=tokenizer, pooling=pooling, batch_size=1).observe(model)
    torch.testing.assert_close(seen.points, single.points)
    again = make_monitor(pool, tokenizer=tokenizer, pooling=pooling, padding=False).observe(model)
    torch.testing.assert_close(again.points, seen.points, atol=1e-3, rtol=1e-3)


def test_models_that_mask_padding_get_padded_batches(pool, tokenizer):
    monitor = make_monitor(pool, tokenizer=tokenizer)
    monitor.observe(make_encoder())
    assert monitor.settings["padding"] is True
    with pytest.raises(ValueError, match="expected `padding` among"):
        make_monitor(pool, padding="yes")


def test_padding_is_tried_on_devices_without_float64(pool, tokenizer, monkeypatch):
    """On Apple GPUs, only copies on the CPU can be float64."""
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
    monitor = make_monitor(pool, tokenizer=tokenizer)
    monitor.prepare(make_encoder())
    assert monitor.settings["padding"] is True


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


def test_the_pool_is_embedded_in_the_precision_of_training(train_rows, tokenizer, pool, tmp_path):
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


def test_a_reused_callback_follows_the_precision_of_each_run(train_rows, tokenizer, pool, tmp_path):
    callback = SepStopCallback(pool, policy=Patience(None), every_n_steps=2, verbose=False)
    for bf16, named in ((True, "bf16"), (False, "no")):
        folder = tmp_path / named
        trained(make_encoder(), train_rows, tokenizer, folder, [callback], bf16=bf16)
        assert callback.monitor.settings["precision"] == named


def test_a_loop_with_accelerate_is_embedded_in_its_precision(pool, tokenizer):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        accelerator = Accelerator(mixed_precision="bf16", cpu=True)
        model = accelerator.prepare(make_encoder())
        monitor = make_monitor(pool, tokenizer=tokenizer)
        record = monitor.measure(model, 1)
        assert monitor.settings["precision"] == "bf16"
        same = make_monitor(pool, tokenizer=tokenizer, precision="bf16").measure(make_encoder(), 1)
        assert same.scores == record.scores
    finally:
        AcceleratorState._reset_state(True)
