"""A tiny classifier as a LightningModule."""

import lightning.pytorch as pl
import torch
from conftest import make_encoder


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_encoder(dropout=0.3)

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
