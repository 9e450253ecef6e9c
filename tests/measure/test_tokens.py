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


@pytest.mark.parametrize("begin", [[], [2], [2, 8, 9]])
@pytest.mark.parametrize("end", [[], [3], [7, 3]])
def test_what_all_texts_begin_or_end_with_is_not_dropped(begin, end):
    """Special tokens, a prompt, what asks for the answer, and separators between two texts."""
    texts = [[10, 11, 8, 12], [13, 14], [15, *end, 16, 17]]
    tokens = [torch.tensor(begin + text + end) for text in texts]
    (whole, pair, separated) = (row.tolist() for row in drop_tokens(tokens, 1.0, seed=0))
    first, last = ([] if begin else [10]), ([] if end else [12])
    assert whole == begin + first + last + end  # the 8 of the prompt is a word elsewhere
    assert pair == begin + ([] if begin else [13]) + ([] if end else [14]) + end
    assert separated == begin + ([] if begin else [15]) + end + ([] if end else [17]) + end


def test_the_same_tokens_are_dropped_with_and_without_special_tokens():
    """They use up random numbers as before, when only the first and the last token stayed."""
    texts = [torch.arange(4 + length, 4 + 2 * length) for length in (9, 12, 30)]
    closed = [torch.tensor([2, *text.tolist(), 3]) for text in texts]
    generator = torch.Generator().manual_seed(5)
    expected = []
    for row in closed:
        kept = torch.rand(len(row), generator=generator) >= 0.3
        kept[[0, -1]] = True
        expected.append(row[kept].tolist())
    assert [row.tolist() for row in drop_tokens(closed, 0.3, seed=5)] == expected


@pytest.mark.parametrize("special", [False, True])
def test_texts_of_one_token(special):
    rows = [[2, word, 3] if special else [word] for word in range(4, len(WORDS))]
    seen = make_monitor(rows).observe(make_encoder())
    assert seen.corrupted_logits.isfinite().all()
    if not special:
        torch.testing.assert_close(seen.corrupted_logits, seen.logits)


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


def test_a_prompt_is_not_dropped(sentence_transformer, pool):
    """Even where the prompt's tokens are told by their number alone."""
    prompts = {"topic": "the film was "}
    model = sentence_transformer(prompts=prompts, default_prompt_name="topic")
    tokens = make_monitor(pool).observer.tokens(model)
    assert tokens.prompt_length == 4
    for kept in (tokens.corrupted(1.0, seed=0), tokens.at([0]).corrupted(1.0, seed=0)):
        assert kept.prompt_length == 4
        for ids, whole in zip(kept, tokens, strict=False):
            assert ids[:4].tolist() == whole[:4].tolist()
            assert ids[-1] == whole[-1]
    assert [len(ids) for ids in tokens.corrupted(1.0, seed=0)] == [5] * len(pool)


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
