"""Averages of LoRA's factors beside averages of their products, on runs of a suite.

    python scripts/bench_lora_average.py SUITE DATA_DIR

An average of adapters can be that of the factors A and B, which is what sepstop keeps, or that of
the products BA, which is what the model adds to its weights. The product's average has a higher
rank; it is cut to the rank of the adapters again by a singular value decomposition. The table shows
test accuracy at the end of the runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record_suite import runs_of
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm.auto import tqdm

from sepstop.bench.record import learner_and_split, test_accuracy, train
from sepstop.bench.run_settings import RunSettings
from sepstop.measure.average import AVERAGES

WARMUP = 20
KINDS = ("factors", "products", "products cut")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suite", type=Path, help="of runs with adapters, see configs/bench")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--model", help="default: all-MiniLM-L6-v2 from its package")
    parser.add_argument("--runs", type=int, default=12, help="at most so many")
    options = parser.parse_args()
    table = Table(title="test accuracy")
    columns = ["last", *(f"{name}, {kind}" for name in AVERAGES for kind in KINDS)]
    for column in ("run", *columns):
        table.add_column(column, justify="left" if column == "run" else "right")
    found = []
    runs = runs_of(options.suite, options.data_dir, options.model)
    for settings, texts, labels in islice(runs, options.runs):
        found.append(accuracies(texts, labels, settings))
        name = settings.name.rsplit("-", 1)[0]
        table.add_row(name, *(f"{found[-1][column]:.3f}" for column in columns))
    means = [np.mean([one[column] for one in found]) for column in columns]
    table.add_row("mean", *(f"{mean:.4f}" for mean in means))
    Console(width=160).print(table)


def accuracies(texts: list[str], labels: list[Any], settings: RunSettings) -> dict[str, float]:
    """Test accuracy of the last weights and of each average, by column."""
    model, split = learner_and_split(texts, labels, settings)
    layers = list(adapted(model))
    sums = {name: Sums(model, layers) for name in AVERAGES}
    training = train(model, split, settings)
    for step in tqdm(range(1, settings.steps + 1), desc=settings.name, leave=False):
        next(training)
        if step >= WARMUP:
            for name, decay in AVERAGES.items():
                sums[name].add((decay + 1) / (decay + 1 + step - WARMUP))
    found = {"last": test_accuracy(model, split)}
    for name, one in sums.items():
        one.put_factors()
        found[f"{name}, factors"] = test_accuracy(model, split)
        for kind, rank in (("products", None), ("products cut", rank_of(layers))):
            one.put_products(rank)
            found[f"{name}, {kind}"] = test_accuracy(model, split)
            one.take_products()
    return found


def adapted(model: nn.Module) -> Iterator[Any]:
    """The layers with adapters."""
    return (module for module in model.modules() if hasattr(module, "lora_A"))


def rank_of(layers: list[Any]) -> int:
    return int(layers[0].r["default"])


class Sums:
    """Running averages of a model's trained weights and of its adapters' products."""

    def __init__(self, model: nn.Module, layers: list[Any]) -> None:
        self.layers = layers
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.factors = [torch.zeros_like(weight) for weight in self.weights]
        self.products = [torch.zeros_like(layer.base_layer.weight) for layer in layers]
        self.bases: list[Tensor] = []

    @torch.no_grad()
    def add(self, share: float) -> None:
        """Add the weights of a step; ``share`` is theirs in the average."""
        torch._foreach_lerp_(self.factors, self.weights, share)
        for average, layer in zip(self.products, self.layers, strict=True):
            average.lerp_(layer.get_delta_weight("default"), share)

    @torch.no_grad()
    def put_factors(self) -> None:
        for weight, average in zip(self.weights, self.factors, strict=True):
            weight.copy_(average)

    @torch.no_grad()
    def put_products(self, rank: int | None) -> None:
        """Add the averages of the products to the base, at most of a rank, and switch adapters off.

        The other trained weights, those of the head, stay the averages.
        """
        self.bases = [layer.base_layer.weight.clone() for layer in self.layers]
        for layer, product in zip(self.layers, self.products, strict=True):
            if rank is not None:
                left, values, right = torch.linalg.svd(product, full_matrices=False)
                product = (left[:, :rank] * values[:rank]) @ right[:rank]
            layer.base_layer.weight.add_(product)
            layer.enable_adapters(False)

    @torch.no_grad()
    def take_products(self) -> None:
        for layer, base in zip(self.layers, self.bases, strict=True):
            layer.base_layer.weight.copy_(base)
            layer.enable_adapters(True)


if __name__ == "__main__":
    main()
