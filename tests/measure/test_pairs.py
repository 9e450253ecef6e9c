"""Pools of sentence pairs, whose token types reach the model."""

import warnings

import datasets
import pytest
import torch
from conftest import deciding, make_encoder, make_monitor
from helpers.padding import alone, bart

from sepstop.measure.tokens import DROP_RATE, drop_tokens


def make_pair_encoder():
    """A model with large weights for token types, so that their effect is visible."""
    model = make_encoder().eval()
    model.bert.embeddings.token_type_embeddings.weight.data *= 50
    model.classifier.weight.data *= 100
    return model


@pytest.fixture
def pairs(tokenizer, pool):
    def both(row):
        first, second = tokenizer(row["a"])["input_ids"], tokenizer(row["b"])["input_ids"][1:]
        return {
            "input_ids": first + second,
            "attention_mask": [1] * len(first + second),
            "token_type_ids": [0] * len(first) + [1] * len(second),
        }

    rows = datasets.Dataset.from_dict({"a": pool, "b": pool[1:] + pool[:1]})
    return rows.map(both, remove_columns=["a", "b"])


def test_token_types_of_a_tokenized_pool_reach_the_model(pairs):
    model = make_pair_encoder()
    seen = make_monitor(pairs).observe(model)
    types = {"token_type_ids": pairs["token_type_ids"]}
    torch.testing.assert_close(seen.logits, alone(model, pairs["input_ids"], **types))
    without = alone(model, pairs["input_ids"])
    assert (seen.logits - without).abs().max() > 1e-3


def test_token_types_are_truncated_and_dropped_with_their_tokens(pairs):
    model = make_pair_encoder()
    monitor = make_monitor(pairs, max_length=10, criterion="consistency")
    tokens = monitor.observer.tokens(model)
    for row, ids, types in zip(pairs, tokens.ids, tokens.types, strict=True):
        cut = [*row["input_ids"][:9], row["input_ids"][-1]]
        assert ids.tolist() == (cut if len(row["input_ids"]) > 10 else row["input_ids"])
        cut = [*row["token_type_ids"][:9], row["token_type_ids"][-1]]
        assert types.tolist() == (cut if len(row["input_ids"]) > 10 else row["token_type_ids"])
    assert max(map(len, tokens.ids)) == 10 < max(map(len, pairs["input_ids"]))
    dropped = tokens.corrupted(0.3, seed=0)
    expected = drop_tokens(tokens.ids, 0.3, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(dropped.ids, expected, strict=True))
    assert [len(ids) for ids in dropped.ids] == [len(types) for types in dropped.types]
    assert deciding(monitor.measure(model, 1)).is_finite


def test_the_corrupted_copy_of_a_pair_is_a_pair(pairs):
    """The separator between its texts stays, and each token has the type that it had."""
    model = make_pair_encoder()
    monitor = make_monitor(pairs, seed=3)
    dropped = monitor.observer.tokens(model).corrupted(DROP_RATE, seed=3)
    for row, ids, types in zip(pairs, dropped.ids, dropped.types, strict=True):
        assert ids.tolist().count(3) == 2  # [SEP]
        places = iter(zip(row["input_ids"], row["token_type_ids"], strict=True))
        for pair in zip(ids.tolist(), types.tolist(), strict=True):
            assert pair in places  # in order
    seen = monitor.observe(model)
    rows = [ids.tolist() for ids in dropped.ids]
    types = {"token_type_ids": [one.tolist() for one in dropped.types]}
    torch.testing.assert_close(seen.corrupted_logits, alone(model, rows, **types))
    assert (seen.corrupted_logits - seen.logits).abs().max() > 1e-3


def test_a_model_without_token_types_gets_none(pairs):
    torch.manual_seed(0)
    assert deciding(make_monitor(pairs).measure(bart(), 1)).is_finite


def test_a_pooling_function_without_token_types_is_an_error(pairs):
    def first(model, input_ids, attention_mask):
        return model.bert(input_ids, attention_mask).last_hidden_state[:, 0]

    with pytest.raises(ValueError, match="has token_type_ids, which your pooling function"):
        make_monitor(pairs, pooling=first).prepare(make_pair_encoder())

    def second(model, input_ids, attention_mask, **inputs):
        return model.bert(input_ids, attention_mask, **inputs).last_hidden_state[:, 0]

    with_types = make_monitor(pairs, pooling=second).measure(make_pair_encoder(), 1)
    expected = make_monitor(pairs, pooling="cls").measure(make_pair_encoder(), 1)
    assert with_types.scores == expected.scores


def test_a_cross_encoder_reads_pairs(pool, pairs, tokenizer, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    make_pair_encoder().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = library.CrossEncoder(str(tmp_path), num_labels=2, device="cpu")
    with pytest.raises(ValueError, match="a CrossEncoder reads pairs of texts"):
        make_monitor(pool).prepare(model)
    monitor = make_monitor(pairs)
    record = monitor.measure(model, 1)
    assert record.scores["robust_mi"].is_finite
    assert monitor.decides == "robust_mi"
    seen = monitor.observe(model)
    types = {"token_type_ids": pairs["token_type_ids"]}
    torch.testing.assert_close(seen.logits, alone(model.model.eval(), pairs["input_ids"], **types))


def test_an_ignored_input_of_the_model_is_a_warning(pairs):
    with_positions = pairs.map(lambda row: {"position_ids": list(range(len(row["input_ids"])))})
    with_labels = pairs.map(lambda row: {"labels": 1, "length": len(row["input_ids"])})
    with pytest.warns(UserWarning, match="column position_ids is an input of BertForSeq"):
        make_monitor(with_positions).prepare(make_pair_encoder())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_monitor(with_labels).prepare(make_pair_encoder())
