"""A classifier to record: a linear head on the pooled embedding of a backbone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sepstop.bench.learner import Learner, Split, as_tensors, prepare
from sepstop.bench.rows import with_noise
from sepstop.bench.run_settings import RunSettings
from sepstop.measure.embedding import Observation, embed, padded
from sepstop.measure.pooling import POOLINGS
from sepstop.measure.tokens import DROP_RATE, Tokens
from sepstop.types import Pooling
from sepstop.utils.registry import build


class Classifier(Learner):
    """A linear head on the pooled embedding of a backbone."""

    def __init__(self, backbone: nn.Module, pooling: Pooling, classes: int) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self.head = nn.Linear(int(backbone.config.hidden_size), classes)  # type: ignore

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``(b, L)`` token ids and mask -> ``(b, k)`` float32 logits."""
        return self.head(self.pooling(self.backbone, input_ids, attention_mask)).float()

    def loss(self, split: Split, rows: Tensor) -> Tensor:
        """Mean cross-entropy of the rows; see `Learner.loss`."""
        input_ids, mask, _ = padded(split.tokens["train"].at(rows.tolist()), self.backbone)
        logits = self(input_ids, mask)
        y = torch.from_numpy(split.labels["train"])[rows]
        return nn.functional.cross_entropy(logits, y.to(self.device))

    @torch.no_grad()
    def observe(self, tokens: Tokens) -> Observation:
        """See `Learner.observe`."""
        points = embed(self.backbone, tokens, self.pooling)
        return Observation(points, self.head(points.float()).float())


def classifier_and_split(
    rows: dict[str, tuple[list[str], NDArray[np.int64]]],
    settings: RunSettings,
    rng: np.random.Generator,
) -> tuple[Classifier, Split]:
    """The model and the data at the start of a run; the head is random.

    Args:
        rows: from `sepstop.bench.rows.split_rows`.
    """
    from transformers import AutoModel, AutoTokenizer

    split = tokenize(rows, AutoTokenizer.from_pretrained(settings.model), settings, rng)
    backbone = AutoModel.from_pretrained(settings.model, dtype=torch.float32)
    pooling = build("pooling", settings.pooling, POOLINGS)
    return Classifier(prepare(backbone, settings), pooling, split.classes), split


def tokenize(
    rows: dict[str, tuple[list[str], NDArray[np.int64]]],
    tokenizer: Any,
    settings: RunSettings,
    rng: np.random.Generator,
) -> Split:
    """Tokenize the rows of `split_rows` and add noise to the labels of the labeled ones."""
    tokens, labels = {}, {}
    classes = 1 + max(int(y.max()) for _, y in rows.values())
    for part, (texts, y) in rows.items():
        ids = tokenizer(texts, truncation=True, max_length=settings.max_length)["input_ids"]
        tokens[part] = Tokens(as_tensors(ids))
        labels[part] = y
    tokens["corrupted"] = tokens["pool"].corrupted(DROP_RATE, settings.seed)
    labels["train"] = with_noise(labels["train"], classes, settings, rng)
    return Split(tokens, labels, classes)
