"""Tokenization of the pool: truncation, prompts, tokenizers."""

import pytest
import torch
from conftest import WORDS, make_encoder, make_monitor, make_tokenizer
from helpers.padding import bart

from sepstop.measure.tokens import drop_tokens


def test_a_tokenized_pool_is_truncated_before_its_closing_token(tokenizer, pool):
    """BART's classifier reads the closing token and fails without one."""
    texts = [f"{a} {b}" for a, b in zip(pool, pool[::-1], strict=True)]
    model = bart()
    given = make_monitor(tokenizer(texts)["input_ids"], max_length=8)
    expected = make_monitor(texts, tokenizer=tokenizer, max_length=8).measure(model, 1)
    assert given.measure(model, 1).scores == expected.scores
    assert {int(row[-1]) for row in given.observer.tokens(model)} == {3}


def test_token_ids_without_a_closing_token_are_truncated_at_the_end(pool, tokenizer):
    ids = [row[1:-1] for row in tokenizer(pool)["input_ids"]]
    tokens = make_monitor(ids, max_length=3, tokenizer=tokenizer).observer.tokens(make_encoder())
    assert [row.tolist() for row in tokens] == [row[:3] for row in ids]


@pytest.mark.parametrize("is_set", [False, True])
def test_a_fast_tokenizer_keeps_its_truncation_and_padding(pool, is_set):
    """Each checkpoint saves them in its tokenizer.json."""
    tokenizer = make_tokenizer()
    backend = tokenizer.backend_tokenizer
    if is_set:
        backend.enable_truncation(7, strategy="only_first")
        backend.enable_padding(length=9, direction="left", pad_id=1)
    before = backend.to_str()
    make_monitor(pool, tokenizer=tokenizer, max_length=32).prepare(make_encoder())
    assert backend.to_str() == before


def test_dropped_tokens_are_reproducible_and_never_the_ends():
    tokens = [torch.arange(length) for length in (1, 2, 3, 400)]
    dropped = drop_tokens(tokens, 0.3, seed=1)
    for ids, kept in zip(tokens, dropped, strict=True):
        assert kept[0] == ids[0]
        assert kept[-1] == ids[-1]
        assert torch.equal(kept, kept.sort().values)
    assert len(dropped[3]) / 400 == pytest.approx(0.7, abs=0.07)
    again = drop_tokens(tokens, 0.3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(dropped, again, strict=True))
    assert not torch.equal(dropped[3], drop_tokens(tokens, 0.3, seed=2)[3])


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
    seen = make_monitor(pool).observe(model)
    torch.testing.assert_close(seen.points, model.encode(pool, convert_to_tensor=True))
    plain = model.encode(pool, prompt="", convert_to_tensor=True)
    assert (seen.points - plain).abs().max() > 1e-3


def test_a_static_embedding_uses_its_own_tokenizer(pool, tokenizer):
    library = pytest.importorskip("sentence_transformers")
    torch.manual_seed(0)
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    static = modules.StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)
    model = library.SentenceTransformer(modules=[static], device="cpu")
    seen = make_monitor(pool).observe(model)
    torch.testing.assert_close(seen.points, model.encode(pool, convert_to_tensor=True))


def test_a_sentence_transformer_of_another_kind_is_an_error(pool):
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    model = library.SentenceTransformer(modules=[modules.BoW(WORDS)], device="cpu")
    model.append(torch.nn.Linear(1, 1))  # so that the model has a weight
    with pytest.raises(ValueError, match="begins with BoW; expected one that begins with a transf"):
        make_monitor(pool).prepare(model)
