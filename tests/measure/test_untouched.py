"""Models with a state of their own, in real Trainer runs."""

import random
import re
from collections import defaultdict, deque

import datasets
import numpy as np
import pytest
import torch
from conftest import WORDS, make_encoder, make_texts
from torch import nn
from transformers import (
    BertModel,
    BigBirdConfig,
    BigBirdForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RwkvConfig,
    RwkvForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sepstop import Patience, SepStopCallback
from sepstop.measure.untouched import same_randomness, untouched

SMALL = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 2,
    "pad_token_id": 0,
}


def big_bird():
    """A model that switches to full attention for good after one short batch."""
    sparse = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}
    return BigBirdForSequenceClassification(
        BigBirdConfig(**SMALL, **sparse, max_position_embeddings=64)
    )


def dynamic_llama():
    """A model that scales its frequencies by the longest text so far."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10.0}
    return LlamaForSequenceClassification(
        LlamaConfig(**SMALL, rope_parameters=rope, max_position_embeddings=8)
    )


class Cache:
    def __init__(self):
        self.texts, self.lengths = 0, []


class Counting(type(make_encoder())):
    """A loss that depends on all earlier calls, kept in buffers, lists, flags and an object."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("calls", torch.zeros(()))
        self.recent, self.lengths, self.first = deque(maxlen=3), {}, True
        self.cached, self.cache = torch.zeros(1), Cache()

    def forward(self, input_ids=None, **kwargs):
        self.calls += 1
        self.cache.texts += len(input_ids)
        self.cache.lengths.append(input_ids.shape[1])
        self.recent.append(float(input_ids.float().mean()))
        self.lengths[input_ids.shape[1]] = self.calls.clone()
        self.cached += input_ids.shape[1]
        self.scale = 1 + 0.1 * float(self.calls) + sum(self.recent) + float(self.cached) / 1000
        self.first = False
        output = super().forward(input_ids=input_ids, **kwargs)
        if output.loss is not None:
            seen = len(self.lengths) + self.cache.texts / 100 + sum(self.cache.lengths) / 1000
            output.loss = output.loss * (self.scale + seen)
        return output


def counting():
    return Counting(make_encoder().config)


class Drawing(type(make_encoder())):
    """A loss that depends on generators of its own, nested containers and arrays."""

    def __init__(self, config):
        super().__init__(config)
        self.generators = [torch.Generator().manual_seed(0), random.Random(0)]
        self.noise, self.old = np.random.default_rng(0), np.random.RandomState(0)
        self.lengths, self.calls = {"all": defaultdict(list)}, np.zeros(1)

    def forward(self, input_ids=None, **kwargs):
        self.lengths["all"]["seen"].append(input_ids.shape[1])
        self.calls += 1
        drawn = float(torch.rand((), generator=self.generators[0])) + self.generators[1].random()
        drawn += self.noise.random() + self.old.random()
        output = super().forward(input_ids=input_ids, **kwargs)
        if output.loss is not None:
            output.loss = output.loss * (drawn + float(self.calls[0]))
            output.loss = output.loss * len(self.lengths["all"]["seen"])
        return output


def drawing():
    return Drawing(make_encoder().config)


class Merging(nn.Linear):
    """An adapter that evaluation mode merges into the weight, as in loralib."""

    merged = False

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features)
        self.change = nn.Parameter(torch.randn_like(self.weight) / 10)

    def train(self, mode=True):
        super().train(mode)
        if self.merged is mode:
            self.weight.data += -self.change if mode else self.change
            self.merged = not mode
        return self

    def forward(self, x):
        extra = 0 if self.merged else nn.functional.linear(x, self.change)
        return super().forward(x) + extra


def merging():
    model = make_encoder()
    for layer in model.bert.encoder.layer:
        layer.intermediate.dense = Merging(layer.intermediate.dense)
    return model


class Growing(type(make_encoder())):
    """A model that replaces its table of positions for texts of another length, as FSMT does."""

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(48, 16)

    def forward(self, input_ids=None, **kwargs):
        length = input_ids.shape[1]
        if length != len(self.table.weight):
            self.table.weight = nn.Parameter(torch.zeros(length, 16), requires_grad=False)
        output = super().forward(input_ids=input_ids, **kwargs)
        if output.loss is not None:
            output.loss = output.loss + self.table.weight[:length].square().sum()
        return output


def growing():
    return Growing(make_encoder().config)


STATEFUL = [big_bird, dynamic_llama, counting, drawing, merging, growing]


@pytest.fixture
def long_rows(tokenizer):
    """Texts longer than those of the pool, so that a pass over the pool changes the model."""
    texts, labels = make_texts(64, seed=2)
    long = [" ".join(texts[i : i + 8]) for i in range(0, 32)]
    rows = datasets.Dataset.from_dict({"text": long, "label": labels[:32]})
    return rows.map(
        lambda batch: tokenizer(
            batch["text"], padding="max_length", max_length=48, truncation=True
        ),
        batched=True,
        remove_columns=["text"],
    )


def trained(make, rows, tokenizer, folder, callbacks):
    torch.manual_seed(0)
    model = make()
    args = TrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    Trainer(
        model, args, train_dataset=rows, processing_class=tokenizer, callbacks=callbacks
    ).train()
    return model


@pytest.mark.parametrize("make", STATEFUL)
def test_measuring_a_stateful_model_changes_nothing(make, long_rows, tokenizer, tmp_path, pool):
    plain = trained(make, long_rows, tokenizer, tmp_path, [])
    # Shorter and longer texts than those of training: either can change a model.
    texts = [*pool, " ".join(pool[:7])]
    callback = SepStopCallback(
        texts, policy=Patience(None), every_n_steps=1, verbose=False, max_length=64
    )
    watched = trained(make, long_rows, tokenizer, tmp_path, [callback])
    assert len(callback.history) == 4
    for (name, a), (_, b) in zip(
        plain.state_dict().items(), watched.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


class Careless(TrainerCallback):
    """A pass over a short and a long text after each step, without `untouched`."""

    def on_step_end(self, args, state, control, model=None, **_):
        ids = torch.arange(60)[None] % len(WORDS)
        model.eval()
        with torch.no_grad(), same_randomness(ids.device):
            model(ids[:, :6]), model(ids)
        model.train()


@pytest.mark.parametrize("make", STATEFUL)
def test_an_unguarded_pass_changes_these_models(make, long_rows, tokenizer, tmp_path):
    """Otherwise the test above could not fail."""
    plain = trained(make, long_rows, tokenizer, tmp_path, [])
    watched = trained(make, long_rows, tokenizer, tmp_path, [Careless()])
    assert any(
        not torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True)
    )


def test_attributes_containers_and_the_configuration_are_restored_in_place():
    model = make_encoder()
    body: BertModel = model.bert
    body.seen, body.notes, body.names, body.flag = [1], {"a": 1}, {"x"}, False
    held = body.seen, body.notes, body.names
    with untouched(model):
        body.seen.append(2)
        body.notes.update(b=2)
        body.names.clear()
        body.flag, body.new, model.config.problem_type = True, 1, "changed"
        body.pooler = nn.Identity()
        del body.notes["a"]
    assert (body.seen, body.notes, body.names, body.flag) == ([1], {"a": 1}, {"x"}, False)
    assert all(a is b for a, b in zip(held, (body.seen, body.notes, body.names), strict=True))
    assert not hasattr(body, "new")
    assert model.config.problem_type is None
    assert not isinstance(body.pooler, nn.Identity)


def test_the_size_of_a_buffer_is_restored():
    """Observers of quantization-aware training resize their buffers."""
    model = make_encoder()
    model.register_buffer("minimum", torch.zeros(0))
    held = model.minimum
    with untouched(model):
        model.minimum.resize_(5).fill_(1)
    assert model.minimum is held
    assert held.shape == (0,)


def test_hooks_are_removed_together_with_their_flag():
    """transformers installs hooks at the first pass with hidden states, and sets a flag."""
    model = make_encoder()
    ids = torch.arange(6)[None]
    for _ in range(3):
        with untouched(model):
            states = model(ids, output_hidden_states=True).hidden_states
        assert len(states) == 3


def test_writing_into_quantized_weights_is_an_error():
    model = make_encoder()
    model.register_buffer("codes", torch.zeros(300, 300, dtype=torch.int32))
    with untouched(model):
        model.codes[0]
    message = re.escape("writes into codes, which is too large to restore")
    with pytest.raises(RuntimeError, match=message), untouched(model):
        model.codes += 1


def test_four_bit_weights_are_not_repacked():
    """bitsandbytes repacks them in evaluation mode on a CPU with AVX512-BF16."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32)
    if not layer.support_avx512bf16_for_cpu:
        pytest.skip("needs a CPU with AVX512-BF16")
    model = nn.Sequential(nn.Linear(4, 64), layer).to("cpu")
    scales = layer.weight.quant_state.absmax.clone()
    with untouched(model):
        model(torch.ones(1, 4))
    assert torch.equal(layer.state_dict()["weight.absmax"], scales)


def test_a_model_that_rescales_its_weights_in_evaluation_is_an_error(tokenizer, pool):
    """RWKV rescales them exactly and undoes it in training, but only by a flag of its own."""
    small = {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2}
    config = RwkvConfig(vocab_size=len(WORDS), rescale_every=1, **small)
    ours = SepStopCallback(pool, tokenizer=tokenizer, verbose=False)
    message = "writes into rwkv.blocks.0.attention.output.weight, which is too large to restore"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        ours.monitor.prepare(RwkvForCausalLM(config))


def test_weights_cast_without_gradients_are_not_cached_by_the_callers_autocast():
    """A cached cast would leave the weight without a gradient."""
    layer = nn.Linear(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with untouched(layer):
            layer(torch.ones(2, 4))
        layer(torch.ones(2, 4)).sum().backward()
    assert layer.weight.grad is not None


def test_modes_and_random_states_are_restored():
    model = make_encoder().train()
    model.bert.embeddings.eval()  # a user froze this one
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with untouched(model):
        assert not any(module.training for module in model.modules())
        torch.rand(3)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(KeyError), untouched(model):
        raise KeyError
    assert [module.training for module in model.modules()] == modes
