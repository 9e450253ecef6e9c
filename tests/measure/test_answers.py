"""Answers in words: their likelihoods after prompts, in whatever way a batch is made."""

import json
import warnings

import pytest
import torch
from conftest import WORDS, make_decoder, make_encoder, make_monitor
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from sepstop import SepStopConfig
from sepstop.measure.answers import Answers, mass, read_answers, tokenize_answers
from sepstop.measure.embedding import Batching, observe
from sepstop.measure.monitor import Monitor
from sepstop.measure.pooling import LastTokenPooling
from sepstop.measure.tokens import Tokens

APART = [(5,), (6,), (9, 4)]
SHARED = [(5, 6, 7), (5, 6, 8, 9), (5, 7), (10, 11), (10, 12, 4), (13,)]
PROMPTS = [[2, 5, 9, 12], [2, 7], [2, 15, 16, 17, 8, 6, 9], [2, 10, 11]]
SIZES = {"vocab_size": len(WORDS), "pad_token_id": 0}


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=64))


def lora():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    model = get_peft_model(make_decoder(), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return model


def mamba():
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(**SIZES, hidden_size=16, num_hidden_layers=2, state_size=4))


@torch.no_grad()
def one_by_one(model, prompts, answers):
    """The same, a prompt and an answer at a time."""
    answers, rows = Answers.of([str(ids) for ids in answers], answers).tokens, []
    for prompt in prompts:
        scores = []
        for ids in answers:
            read = torch.tensor([[*prompt, *ids]])
            known = model.eval()(input_ids=read).logits[0].float().log_softmax(dim=-1)
            places = range(len(prompt) - 1, len(prompt) - 1 + len(ids))
            scores.append(sum(known[at, token] for at, token in zip(places, ids, strict=True)))
        rows.append(torch.stack(scores))
    return torch.stack(rows)


@pytest.mark.parametrize("tokens", [APART, SHARED], ids=["first tokens", "shared beginnings"])
@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("make", [make_decoder, gpt2, lora, mamba])
def test_they_are_those_of_each_answer_by_itself(make, tokens, size, layer):
    """The points are of a layer of choice."""
    model = make().eval()
    # Mamba reads padding on the left; there, texts of one length share a batch.
    batching = Batching(size, padding=make is not mamba)
    answers = Answers.of([str(ids) for ids in tokens], tokens)
    prompts = Tokens([torch.tensor(ids) for ids in PROMPTS], are_prompts=True)
    pooling = LastTokenPooling(layer)
    found = observe(model, prompts, pooling, batching, with_logits=True, head=answers)
    assert torch.allclose(found.logits, one_by_one(model, PROMPTS, tokens), atol=1e-5)
    assert 0 < mass(found.logits) < 1
    alone = observe(model, prompts, pooling, Batching(1)).points
    assert torch.allclose(found.points, alone, atol=1e-5)


def test_the_backbone_reads_the_prompts_once_and_each_shared_beginning_once():
    model, answers = make_decoder(), Answers.of([str(ids) for ids in SHARED], SHARED)
    assert answers.tokens == ((5, 6, 7), (5, 6, 8), (5, 7), (10, 11), (10, 12), (13,))
    assert answers.shared == ((5, 6), (10,))
    read, made = [], []
    model.model.layers[0].register_forward_hook(lambda _, args, out: read.append(args[0].shape))
    model.lm_head.register_forward_hook(lambda _, args, out: made.append(tuple(out.shape[:2])))
    prompts = Tokens([torch.tensor(ids) for ids in PROMPTS], are_prompts=True)
    observe(model, prompts, LastTokenPooling(), with_logits=True, head=answers)
    assert [shape[1] for shape in read] == [7, 2, 1]
    assert made == [(4, 1), (4, 2), (4, 1)]  # no logits of a whole prompt


def test_one_pass_is_enough_where_the_first_tokens_differ():
    model, answers = make_decoder(), Answers.of([str(ids) for ids in APART], APART)
    assert answers.tokens == ((5,), (6,), (9,))
    read = []
    model.model.layers[0].register_forward_hook(lambda *_: read.append(1))
    prompts = Tokens([torch.tensor(ids) for ids in PROMPTS], are_prompts=True)
    observe(model, prompts, LastTokenPooling(), with_logits=True, head=answers)
    assert len(read) == 1


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([(5,)], "expected at least 2 answers, got 1"),
        ([(5,), ()], "the answer 'b' has no tokens"),
        ([(5, 6), (5, 6)], "the answers 'a' and 'b' have the same tokens"),
        ([(5,), (5, 6)], "the answer 'a' is the beginning of 'b', .* set answer_end to"),
    ],
)
def test_answers_that_are_not_told_apart(tokens, said):
    with pytest.raises(ValueError, match=said):
        Answers.of("abc"[: len(tokens)], tokens)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5.0, "expected a list of answers, or their number, got float"),
        (["yes", 3], "all strings, or all lists of token ids"),
        ([[1, 2], [-1]], "all strings, or all lists of token ids"),
        ("nowhere.txt", "no file with answers at nowhere.txt"),
    ],
)
def test_answers_that_can_not_be_read(given, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read_answers(given)


def test_answers_in_files(tmp_path):
    lines = tmp_path / "answers.txt"
    lines.write_text("refund\ncard lost\n\n")
    table = tmp_path / "answers.jsonl"
    table.write_text("".join(json.dumps({"answer": one}) + "\n" for one in ("refund", "card lost")))
    assert read_answers(lines) == read_answers(str(table)) == ["refund", "card lost"]
    assert read_answers([[1, 2], [3]]) == [(1, 2), (3,)]
    other = tmp_path / "other.jsonl"
    other.write_text('{"label": "refund"}\n')
    with pytest.raises(ValueError, match="has no column 'answer'; its columns are label"):
        read_answers(other)


def test_the_end_of_an_answer_tells_it_from_a_longer_one(tokenizer):
    names = [" great", " great film"]
    with pytest.raises(ValueError, match="' great' is the beginning of ' great film'"):
        tokenize_answers(names, "", ["the film"], tokenizer)
    found = tokenize_answers(names, " [SEP]", ["the film"], tokenizer)
    great, film, end = (WORDS.index(word) for word in ("great", "film", "[SEP]"))
    assert found.tokens == ((great, end), (great, film))


class Merging:
    """A tokenizer of characters, where a line break and an "a" are one token."""

    chat_template = None

    def __call__(self, texts, add_special_tokens=True):
        texts = [texts] if isinstance(texts, str) else texts
        return {"input_ids": [[ord(c) for c in text.replace("\na", "§")] for text in texts]}


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (["What?\n", "Who?\n"], "and the answer 'a' share a token; move the white space"),
        (["What?", "Who?\n"], "share a token"),
    ],
)
def test_answers_that_become_one_token_with_the_prompt(prompts, said):
    with pytest.raises(ValueError, match=said):
        tokenize_answers(["a", "b"], "", prompts, Merging())
    assert tokenize_answers(["a", "b"], "", ["What?"], Merging()).tokens == ((97,), (98,))


# In a monitor

ANSWERS = [" great", " lovely", " awful"]


def test_a_model_with_answers_is_scored_as_a_classifier(pool, tokenizer):
    monitor = make_monitor(pool, tokenizer=tokenizer, answers=ANSWERS, num_resamples=3)
    record = monitor.measure(make_decoder(), 1)
    assert monitor.decides == "robust_mi"
    assert all(score.is_finite for score in record.scores.values())
    assert monitor.settings["outputs"] == "classes"
    assert monitor.settings["answers"] == ANSWERS
    assert monitor.settings["pooling"]["name"] == "last"
    seen = monitor.observe(make_decoder())
    assert seen.logits.shape == seen.corrupted_logits.shape == (len(pool), 3)


@pytest.mark.parametrize("step", [0, 5])
def test_answers_that_the_model_never_gives_are_pointed_out(pool, tokenizer, step):
    model = make_decoder()
    monitor = make_monitor(pool, tokenizer=tokenizer, answers=ANSWERS, num_resamples=2)
    model.lm_head = nn.Linear(16, len(WORDS))
    model.lm_head.bias.data[WORDS.index("film")] = 30
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = monitor.observe(model)
        monitor.score(seen, step)  # as `sepstop select` does, and `measure`
    said = [str(one.message) for one in caught if "one of the answers" in str(one.message)]
    assert len(said) == (mass(seen.logits) < 0.01 and step > 0)
    assert all("written as in training" in sentence for sentence in said)
    assert mass(seen.logits) < 0.01


def test_prompts_keep_their_end_and_get_no_closing_token(pool, tokenizer):
    options = {"tokenizer": tokenizer, "answers": ANSWERS, "max_length": 5}
    monitor = make_monitor(pool, **options)
    tokens = monitor.observer.tokens(make_decoder())
    for text, ids in zip(pool, tokens, strict=True):
        assert [WORDS[i] for i in ids] == ["[CLS]", *text.split()[-4:]]
    texts = make_monitor(pool, tokenizer=tokenizer, max_length=5).observer.tokens(make_encoder())
    assert all(ids[-1] == WORDS.index("[SEP]") for ids in texts)


def test_token_ids_of_prompts_and_answers(pool, tokenizer):
    ids = [ids[:-1] for ids in tokenizer(pool)["input_ids"]]
    answers = [tokenizer(one, add_special_tokens=False)["input_ids"] for one in ANSWERS]
    expected = make_monitor(pool, tokenizer=tokenizer, answers=ANSWERS).measure(make_decoder(), 1)
    found = make_monitor(ids, answers=answers).measure(make_decoder(), 1)
    assert found.scores == expected.scores


CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}film {% endif %}"
)


def chat(text):
    return [{"role": "system", "content": "the"}, {"role": "user", "content": text}]


def test_chat_messages_are_read_by_the_template(pool, tokenizer, monkeypatch):
    model, chats = make_decoder(), [chat(text) for text in pool]
    with pytest.raises(ValueError, match="the tokenizer has no chat template; set"):
        make_monitor(chats, tokenizer=tokenizer, answers=ANSWERS).measure(model, 1)
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    monitor = make_monitor(chats, tokenizer=tokenizer, answers=ANSWERS, max_length=30)
    tokens = monitor.observer.tokens(model)
    shown = " ".join(WORDS[i] for i in tokens.ids[0])
    assert shown.endswith(f"{pool[0]} film")
    assert "[CLS]" not in shown  # a chat has its special tokens
    assert all(score.is_finite for score in monitor.measure(model, 1).scores.values())


@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_columns_of_prompts(pool, tokenizer, column, tmp_path):
    import datasets

    rows = {column: pool if column == "prompt" else [chat(text)[1:] for text in pool]}
    table = datasets.Dataset.from_dict(rows | {"completion": ["great"] * len(pool)})
    table.to_json(tmp_path / "pool.jsonl")
    for source in (table, tmp_path / "pool.jsonl"):
        found = Monitor(source, SepStopConfig(tokenizer=tokenizer, answers=ANSWERS)).pool
        assert list(map(str, found.rows)) == pool


def test_conversations_are_no_prompts(pool, tokenizer):
    rows = [[*chat(text), {"role": "assistant", "content": "great"}] for text in pool]
    with pytest.raises(ValueError, match="ends with an answer of the assistant at row 0"):
        make_monitor(rows, tokenizer=tokenizer, answers=ANSWERS)
    with pytest.raises(ValueError, match="expected chat messages with a role and a text"):
        make_monitor([[{"role": "user", "content": [{"type": "image"}]}]] * 4, answers=ANSWERS)


@pytest.mark.parametrize(
    "make",
    [
        make_encoder,
        lambda: BertForMaskedLM(BertConfig(**SIZES, hidden_size=16, num_attention_heads=2)),
        lambda: T5ForConditionalGeneration(
            T5Config(**SIZES, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
    ],
)
def test_answers_are_for_causal_language_models(pool, tokenizer, make):
    monitor = make_monitor(pool, tokenizer=tokenizer, answers=ANSWERS)
    with pytest.raises(ValueError, match="answers= is for causal language models, such as"):
        monitor.measure(make(), 1)


def test_positions_are_left_for_the_answers(tokenizer):
    rows = [[2, *[6 + n] * 61] for n in range(6)]
    answers = [[5, 6, 7], [5, 6, 8]]
    assert make_monitor(rows, answers=answers).measure(gpt2(), 0)
    rows = [[2, *[6 + n] * 62] for n in range(6)]
    with pytest.raises(ValueError, match=r"63 tokens and answers have up to 2, .* max_length=62"):
        make_monitor(rows, answers=answers).measure(gpt2(), 1)


def test_answers_contradict_other_outputs():
    with pytest.raises(ValueError, match="answers are classes, but `outputs` is 'labels'"):
        SepStopConfig(answers=ANSWERS, outputs="labels")
