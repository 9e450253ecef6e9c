"""Losses of a language model on texts, in whatever way a batch is made."""

import pytest
import torch
from conftest import WORDS, make_decoder, make_encoder, make_monitor
from helpers.scores import values
from transformers import GPT2Config, GPT2LMHeadModel

from sepstop import SepStopConfig
from sepstop.decide.policies import Patience, default_policy
from sepstop.measure import language_model
from sepstop.measure.embedding import Batching, observe
from sepstop.measure.monitor import Monitor
from sepstop.measure.pooling import MeanPooling
from sepstop.measure.tokens import Tokens

TEXTS = [[2, 5, 9, 12], [2, 7], [2, 15, 16, 17, 8, 6, 9], [2, 10, 11]]


def gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, n_positions=64))


@torch.no_grad()
def one_by_one(model):
    """Sum and number, by the loss of transformers itself."""
    rows = []
    for ids in TEXTS:
        read = torch.tensor([ids])
        loss = model.eval()(input_ids=read, labels=read).loss
        rows.append([float(loss) * (len(ids) - 1), len(ids) - 1])
    return torch.tensor(rows)


@pytest.mark.parametrize("positions", [1, 6, 512])
@pytest.mark.parametrize("are_prompts", [False, True])
@pytest.mark.parametrize("make", [make_decoder, gpt2])
def test_they_are_those_of_each_text_by_itself(make, are_prompts, positions, monkeypatch):
    monkeypatch.setattr(language_model, "_POSITIONS", positions)
    model = make()
    texts = Tokens([torch.tensor(ids) for ids in TEXTS], are_prompts=are_prompts)
    seen = observe(model, texts, MeanPooling(), Batching(3), with_losses=True)
    assert torch.allclose(seen.token_losses, one_by_one(model), atol=1e-4)
    assert seen.logits is None


def test_the_backbone_reads_a_batch_once_and_few_positions_have_logits_at_a_time(monkeypatch):
    monkeypatch.setattr(language_model, "_POSITIONS", 8)
    model, read, made = make_decoder(), [], []
    model.model.layers[0].register_forward_hook(lambda *_: read.append(1))
    model.lm_head.register_forward_hook(lambda _, args, out: made.append(out.shape[:2].numel()))
    texts = Tokens([torch.tensor(ids) for ids in TEXTS])
    observe(model, texts, MeanPooling(), with_losses=True)
    assert len(read) == 1
    assert made == [8, 8, 8]


def test_the_pools_loss_decides(pool, tokenizer):
    """It falls while a model learns texts of the pool's kind."""
    model = make_decoder()
    monitor = make_monitor(pool, tokenizer=tokenizer, criterion="pool_loss", num_resamples=3)
    records = [monitor.measure(model, 0)]
    texts = tokenizer(pool, padding=True, return_tensors="pt")
    labels = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(1, 13):
        loss = model(**texts, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 4 == 0:
            records.append(monitor.measure(model, step))
    found = values(records, "pool_loss")
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(torch.tensor(len(WORDS)).log().item(), rel=0.1)
    assert monitor.decides == "pool_loss"
    assert monitor.series(records).best_step == 12
    assert default_policy("pool_loss") == Patience()


def test_beside_answers(pool, tokenizer):
    monitor = make_monitor(
        pool, tokenizer=tokenizer, answers=[" great", " awful"], extra_criteria=["pool_loss"]
    )
    record = monitor.measure(make_decoder(), 1)
    assert {name for name, score in record.scores.items() if score.is_finite} == {
        "robust_mi",
        "pool_loss",
    }


@pytest.mark.parametrize("options", [{"criterion": "pool_loss"}, {"extra_criteria": ["pool_loss"]}])
def test_it_is_of_causal_language_models(pool, tokenizer, options):
    monitor = Monitor(pool, SepStopConfig(tokenizer=tokenizer, **options))
    with pytest.raises(ValueError, match="the criterion 'pool_loss' is for causal language models"):
        monitor.prepare(make_encoder())
