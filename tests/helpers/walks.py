"""Checkpoints whose weights take random steps, as quick to make as to save."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def walk(folder, model, tokenizer=None, count=5, **saving):
    """Save ``checkpoint-10``, ``checkpoint-20``, ... of ``model``; its trainable weights move."""
    generator = torch.Generator().manual_seed(count)
    for step in range(10, 10 * count + 1, 10):
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    noise = torch.randn(weight.shape, generator=generator)
                    weight += 0.1 * noise.to(weight.dtype)
        path = Path(folder) / f"checkpoint-{step}"
        model.save_pretrained(path, **saving)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
    return Path(folder)


def mean_of_files(paths, pattern="*.safetensors"):
    """Mean of each tensor over the files of some checkpoints, in the tensor's dtype."""
    read = torch.load if pattern.endswith(".bin") else load_file
    states = []
    for path in paths:
        files = sorted(Path(path).rglob(pattern))
        states.append({key: value for file in files for key, value in read(file).items()})
    assert all(state.keys() == states[0].keys() for state in states)
    return {
        key: torch.stack([state[key].double() for state in states]).mean(dim=0).to(value.dtype)
        for key, value in states[0].items()
    }
