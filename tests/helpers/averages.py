"""Runs that average weights, without a Trainer."""

import torch
from conftest import WORDS, make_encoder
from torch.distributed.tensor import distribute_tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sepstop.measure.average import RunningAverages


def train_a_bit(model, steps, averages=None, first=1):
    """Stands for training: other weights after each step, whether they are sharded or not."""
    torch.manual_seed(first)
    for step in range(first, first + steps):
        for weight in model.parameters():
            if weight.requires_grad:
                noise = (0.1 * torch.randn(weight.shape)).to(weight.dtype)
                if hasattr(weight, "placements"):
                    noise = distribute_tensor(noise, weight.device_mesh, weight.placements)
                with torch.no_grad():
                    weight += noise
        if averages is not None:
            averages.update(model, step)


def averaged(model, steps=4, **options):
    """The averages of a short run."""
    averages = RunningAverages(model, **options)
    train_a_bit(model, steps, averages)
    return averages


def trained(model):
    """The values of the trained weights, by name."""
    return {
        name: weight.detach().clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def are_equal(first, second):
    """True if both hold the same bits under the same names."""
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) and value.dtype == second[name].dtype
        for name, value in first.items()
    )


def tied_decoder():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def with_lora(model=None, adapter="default", **options):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="SEQ_CLS", r=4, **options)
    return get_peft_model(model or make_encoder(), config, adapter_name=adapter)
