"""The processes of test_lightning.py: a Lightning run with averages, and its second half again.

torchrun --nproc-per-node 2 tests/helpers/lightning_run.py OUT
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning.pytorch as pl
import torch
from conftest import make_texts, make_tokenizer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from helpers.lightning_module import Headed
from sepstop.callbacks.lightning import SepStopCallback


def train(out: Path, ckpt_path: Path | None = None) -> tuple[SepStopCallback, Headed]:
    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    texts, labels = make_texts(64)
    tokens = tokenizer(texts, padding="max_length", max_length=12)
    columns = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    values = zip(*(columns | {"labels": labels}).values(), strict=True)
    rows = [dict(zip([*columns, "labels"], map(torch.tensor, row), strict=True)) for row in values]
    rows = rows[:16] * 4  # all batches are alike: Lightning does not resume within an epoch's data
    callback = SepStopCallback(
        make_texts(41, seed=3)[0],
        policy={"name": "patience", "patience": None},
        num_resamples=3,
        tokenizer=tokenizer,
        verbose=False,
    )
    module = Headed(dropout=0.0)
    trainer = pl.Trainer(
        default_root_dir=out,
        callbacks=[callback, ModelCheckpoint(save_top_k=-1, every_n_train_steps=3)],
        max_epochs=2,
        val_check_interval=2,
        strategy="ddp",
        devices=2,
        use_distributed_sampler=False,  # Lightning's own shuffles
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rank = int(os.environ["RANK"])
    parts = DistributedSampler(rows, num_replicas=2, rank=rank, shuffle=False)
    loaders = [DataLoader(rows, batch_size=size, sampler=parts) for size in (8, 32)]
    trainer.fit(module, *loaders, ckpt_path=ckpt_path)
    return callback, module


def history(callback: SepStopCallback) -> list[dict[str, Any]]:
    return [dataclasses.asdict(dataclasses.replace(one, seconds=0.0)) for one in callback.history]


def averages(callback: SepStopCallback) -> dict[str, torch.Tensor]:
    kept: Any = callback.session.averages
    state = kept.state_dict()["averages"]
    return {f"{name}/{key}": one for name, part in state.items() for key, one in part.items()}


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    callback, module = train(out / "run")
    found = {
        "history": history(callback),
        "averages": averages(callback),
        "best": dataclasses.asdict(callback.load_best(module)),
        "loaded": {name: one.detach() for name, one in module.named_parameters()},
    }
    (middle,) = (out / "run" / "checkpoints").glob("*step=3.ckpt")
    callback, _ = train(out / "run", middle)
    found["resumed history"] = history(callback)
    found["resumed averages"] = averages(callback)
    torch.save(found, out / f"rank{os.environ['RANK']}.part")
    (out / f"rank{os.environ['RANK']}.part").rename(out / f"rank{os.environ['RANK']}.pt")
    # gloo's threads now and then abort a process that is torn down with many groups behind it.
    while len(list(out.glob("rank*.pt"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.05)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
