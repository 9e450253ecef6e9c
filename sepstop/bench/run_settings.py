"""Settings of a recorded run, and the name that they give it."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class RunSettings:
    """One run of the benchmark.

    Attributes:
        data: name of the data; part of the run's name.
        labeled_rows: rows to train on.
        learning_rate: of AdamW, for all trained weights, after the warm-up.
        schedule: of the learning rate after the warm-up: "constant", or "linear" or "cosine" to 0.
        noise: share of the labeled rows with a wrong label.
        noise_kind: wrong labels are any other class ("uniform") or always the next one ("class").
        imbalance: ratio of the most frequent class to the rarest among the labeled rows, as far as
            the data allow; 1 keeps the classes as they come.
        start: "base" (pretrained), "reset" (top two layers re-initialized), "head" (backbone
            frozen) or "lora" (adapters on all linear layers of the backbone).
        seed: of the split, the noise, the initialization and the batches.
        model: folder or hub name.
        pooling: "mean", "cls" or "last": the embedding that the head reads.
        steps: optimizer steps.
        evaluate_every: steps between evaluations.
        batch_size: labeled rows in an optimizer step.
        max_length: truncate texts to this many tokens.
        prompt: with ``{text}`` in it. A causal language model learns to answer it with the name of
            the class, see `sepstop.bench.answerer`. Default: a head is trained.
        bf16: forward passes in bfloat16 autocast, as with Trainer's argument of that name.
        pool_rows, validation_rows, test_rows: at most this many rows; disjoint, drawn in this
            order after the labeled ones.

    Raises:
        ValueError: a value out of range.
    """

    data: str
    labeled_rows: int
    learning_rate: float = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    noise: float = 0.0
    noise_kind: Literal["uniform", "class"] = "uniform"
    imbalance: float = 1.0
    start: Literal["base", "reset", "head", "lora"] = "base"
    seed: int = 0
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    pooling: str = "mean"
    steps: int = 300
    evaluate_every: int = 20
    batch_size: int = 16
    max_length: int = 40
    bf16: bool = False
    prompt: str = ""
    pool_rows: int = 1000
    validation_rows: int = 400
    test_rows: int = 2000

    def __post_init__(self) -> None:
        if self.start not in ("base", "reset", "head", "lora"):
            raise ValueError(f"expected `start` base, reset, head or lora, got {self.start!r}")
        if self.noise_kind not in ("uniform", "class"):
            raise ValueError(f"expected `noise_kind` uniform or class, got {self.noise_kind!r}")
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(
                f"expected `schedule` constant, linear or cosine, got {self.schedule!r}"
            )
        if not 0 <= self.noise < 1:
            raise ValueError(f"expected `noise` from 0 to below 1, got {self.noise}")
        if self.imbalance < 1:
            raise ValueError(f"expected `imbalance` >= 1, got {self.imbalance}")
        if self.prompt and "{text}" not in self.prompt:
            raise ValueError(f"expected {{text}} in `prompt`, got {self.prompt!r}")
        for name in ("labeled_rows", "steps", "evaluate_every", "batch_size", "pool_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected `{name}` >= 1, got {getattr(self, name)}")

    @property
    def name(self) -> str:
        """The main settings, then a hash of all."""
        parts = [self.data, f"n{self.labeled_rows}", f"lr{self.learning_rate:g}"]
        parts.append(f"noise{self.noise}" + ("class" if self.noise_kind == "class" else ""))
        if self.imbalance > 1:
            parts.append(f"imbalance{self.imbalance:g}")
        if self.schedule != "constant":
            parts.append(self.schedule)
        settings = self.described()
        if self.schedule == "constant":
            del settings["schedule"]  # added later; constant runs keep their names
        if not self.prompt:
            del settings["prompt"]  # added later too
        settings["embedder"] = settings.pop("pooling")  # as in the names of runs recorded earlier
        digest = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:6]
        if self.prompt:
            parts.append("words")
        return "-".join([*parts, self.start, self.pooling, f"seed{self.seed}", digest])

    def described(self) -> dict[str, Any]:
        """The settings by name, ready for JSON; the model without its folder."""
        return dataclasses.asdict(self) | {"model": Path(self.model).name}
