"""Tiny classifiers as LightningModules."""

import lightning.pytorch as pl
import torch
from conftest import make_encoder


class Classifier(pl.LightningModule):
    def __init__(self, dropout=0.3):
        super().__init__()
        self.net = make_encoder(dropout=dropout)

    def loss(self, batch):
        return self.net(
            **{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        ).loss

    def training_step(self, batch, _):
        return self.loss(batch)

    def validation_step(self, batch, _):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Headed(Classifier):
    """Trains a head outside of the scored model."""

    def __init__(self, **options):
        super().__init__(**options)
        self.head = torch.nn.Linear(2, 2)

    def loss(self, batch):
        logits = self.net(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(self.head(logits), batch["labels"])
