"""The processes of test_distributed.py: each trains and measures, and writes what it found.

torchrun --nproc-per-node 2 tests/helpers/distributed_run.py OUT
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from conftest import make_decoder, make_encoder, make_texts, make_tokenizer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainingArguments

from sepstop import Monitor, SepStopCallback, SepStopConfig
from sepstop.callbacks.overhead import Overhead
from sepstop.criteria import Separability
from sepstop.measure.average import RunningAverages
from sepstop.measure.embedding import TOKENS_IN_A_BATCH
from sepstop.runs.average_state import move_state
from sepstop.runs.history import read_run
from sepstop.runs.saved_weights import weights_that_differ

POOL = 41  # no multiple of the processes


class Broken(Separability):
    """Fails on the last rank once the pool has been scored ``left`` times."""

    left = 1

    def on_resamples(self, points: torch.Tensor, resample_indices: torch.Tensor) -> torch.Tensor:
        Broken.left -= 1
        if Broken.left < 0 and dist.get_rank() == dist.get_world_size() - 1:
            raise ZeroDivisionError("broken on purpose")
        return super().on_resamples(points, resample_indices)


def train(
    out: Path,
    *,
    resume: bool | str = False,
    pool_seed: int = 3,
    arguments: dict[str, Any] | None = None,
    may_fail: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """A run, and what this rank knows of it."""
    tokenizer = make_tokenizer()
    texts, labels = make_texts(64)
    rows = datasets.Dataset.from_dict({"text": texts, "label": labels}).map(
        lambda batch: tokenizer(batch["text"]), batched=True
    )
    args = TrainingArguments(
        output_dir=str(out),
        learning_rate=1e-3,
        max_grad_norm=0,  # Trainer scales the loss by the number of processes; Adam does not mind
        eval_strategy="steps",
        save_steps=3,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,  # none without torchrun
        ddp_timeout=60,
        **({"max_steps": 12, "eval_steps": 3} | (arguments or {})),
    )
    # The same batches whatever the number of processes.
    args.per_device_train_batch_size = 8 // args.world_size
    callback = SepStopCallback(
        make_texts(POOL, seed=pool_seed)[0],
        num_resamples=5,
        max_length=16,
        verbose=False,
        **({"policy": {"name": "patience", "patience": None}} | options),
    )
    trainer = Trainer(
        make_encoder(dropout=0.0),
        args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    failed = None
    try:
        trainer.train(resume_from_checkpoint=resume or None)
    except Exception as error:
        if not may_fail:
            raise  # ends the other ranks, which would wait for this one
        failed = f"{type(error).__name__}: {error}"
    decision = callback.decision and dataclasses.asdict(callback.decision)
    return {
        "failed": failed,
        "steps": trainer.state.global_step,
        "decision": decision,
        "history": [dataclasses.asdict(record) for record in callback.history],
        "best": Path(trainer.state.best_model_checkpoint or "").name,
        "shards": sum(hasattr(one, "full_tensor") for one in trainer.model.parameters()),
        "weights": [one.double().sum().item() for one in whole(trainer.model).values()],
        "differ": differences(trainer),
    }


@contextmanager
def fsdp_on_cpu() -> Iterator[dict[str, Any]]:
    """Arguments of a Trainer with FSDP2 on the CPU, where accelerate does not offer it.

    Checkpoints are sharded; whole ones fail in accelerate without sepstop too (1.15, gloo).
    """
    prepare = AcceleratorState.__init__

    def pretend(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        PartialState().distributed_type = DistributedType.MULTI_GPU
        prepare(self, *args, **kwargs)

    config = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}
    with patch.object(AcceleratorState, "__init__", pretend):
        yield {"fsdp": True, "fsdp_config": config | {"state_dict_type": "SHARDED_STATE_DICT"}}


def broken(out: Path, on_error: str) -> dict[str, Any]:
    Broken.left = 1
    may_fail = on_error == "raise"
    return train(out, may_fail=may_fail, criterion=Broken(), on_error=on_error, average=False)


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights, put together from their shards."""
    return {
        name: (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).detach()
        for name, weight in model.named_parameters()
    }


def differences(trainer: Trainer) -> list[str]:
    """Names of the weights that are not those of the best folder."""
    alone = make_encoder()
    alone.load_state_dict(whole(trainer.model), strict=False)
    return weights_that_differ(alone, trainer.state.best_model_checkpoint or "")


def full(out: Path) -> dict[str, Any]:
    """The last rank has no memory for the copy of its weights beside an average."""
    applied = RunningAverages.applied

    @contextmanager
    def no_memory(self: RunningAverages, model: nn.Module, name: str) -> Iterator[None]:
        if dist.get_rank() == dist.get_world_size() - 1:
            raise torch.OutOfMemoryError("no memory")
        with applied(self, model, name):
            yield

    with patch.object(RunningAverages, "applied", no_memory):
        return train(out)


def slow_first(out: Path) -> dict[str, Any]:
    """The first rank is the last to save: is the checkpoint complete when its state is moved?"""
    save, complete = Trainer.save_model, []

    def slow(self: Trainer, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.3 if dist.get_rank() == 0 else 0)
        save(self, *args, **kwargs)

    def move(run_dir: Path, checkpoint: Path, step: int) -> None:
        complete.append((checkpoint / "trainer_state.json").is_file())
        move_state(run_dir, checkpoint, step)

    with patch.object(Trainer, "save_model", slow):
        with patch("sepstop.callbacks.trainer.move_state", move):
            train(out, arguments={"max_steps": 6})
    return {"complete": complete}


def not_updated(out: Path) -> dict[str, Any]:
    """The last rank can't update its averages: at a step that is saved and not scored."""
    update = RunningAverages.update

    def no_memory(self: RunningAverages, model: nn.Module, step: int) -> None:
        if step == 3 and dist.get_rank() == dist.get_world_size() - 1:
            raise torch.OutOfMemoryError("no memory")
        update(self, model, step)

    with patch.object(RunningAverages, "update", no_memory):
        return train(out, arguments={"eval_steps": 6})


def budget(out: Path) -> dict[str, Any]:
    """The clocks of the ranks differ: by that of the first, every second score is too much."""
    asked: list[Overhead] = []

    def allows(overhead: Overhead) -> bool:
        asked.append(overhead)
        return dist.get_rank() == 0 and len(asked) % 2 == 0

    with patch.object(Overhead, "allows_a_score", allows):
        return train(out, max_overhead=0.1, arguments={"eval_steps": 2})


def measuring(**options: Any) -> SepStopConfig:
    return SepStopConfig(num_resamples=5, tokenizer=make_tokenizer(), **options)


UNKNOWN_ANSWERS = {"answers": 3, "criterion": "entropy", "extra_criteria": ["pool_loss"]}


def measure(
    model: nn.Module, wrap: Callable[[nn.Module], Any] | None = None, **options: Any
) -> dict[str, Any]:
    model = copy.deepcopy(model)
    if wrap is not None:
        wrap(model)
    monitor = Monitor(make_texts(POOL)[0], measuring(**options), distributed=True)
    return dataclasses.asdict(monitor.measure(model, step=1))


def alone(model: nn.Module) -> float:
    """The score of a DDP model that the first rank alone measures, as many loops do."""
    buffered = nn.parallel.DistributedDataParallel(model)
    monitor = Monitor(make_texts(POOL)[0], measuring())
    score = 0.0
    if dist.get_rank() == 0:
        score = monitor.measure(buffered, step=1).scores["separability"].value
    dist.barrier()
    return score


def shard(model: nn.Module) -> None:
    """FSDP2, as accelerate does it: each layer, then what is left."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    body: Any = model.base_model
    for layer in body.encoder.layer if hasattr(body, "encoder") else body.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    found = {
        "run": train(out / "run"),
        "stop": train(out / "stop", policy={"name": "patience", "patience": 1}),
    }
    rank = dist.get_rank() if dist.is_initialized() else 0
    found["stop again"] = train(
        out / "stop", resume=True, policy={"name": "patience", "patience": 1}
    )
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "separability",
        "greater_is_better": True,
    }
    found["averages"] = train(out / "averages", arguments=best)
    checkpoint = str(out / "averages" / "checkpoint-9")
    found["resumed averages"] = train(out / "averages", resume=checkpoint, arguments=best)
    found["encoder"] = measure(make_encoder())
    found["causal"] = measure(make_decoder())
    found["words"] = measure(make_decoder(), **UNKNOWN_ANSWERS)
    if dist.is_initialized():
        found["skip"] = broken(out / "skip", "skip")
        found["raise"] = broken(out / "raise", "raise")
        found["slow first"] = slow_first(out / "slow first")
        found["full"] = full(out / "full")
        found["not updated"] = not_updated(out / "not updated")
        found["budget"] = budget(out / "budget")
        found["other pool"] = train(out / "other", pool_seed=rank, may_fail=True)
        found["ddp on one rank"] = alone(make_encoder())
        found["sharded encoder"] = measure(make_encoder(), shard)
        with patch.dict(TOKENS_IN_A_BATCH, cpu=30):  # a few texts, as many as their lengths allow
            found["sharded encoder in small batches"] = measure(make_encoder(), shard)
        found["sharded causal"] = measure(make_decoder(), shard)
        found["sharded words"] = measure(make_decoder(), shard, **UNKNOWN_ANSWERS)
        with fsdp_on_cpu() as fsdp:
            found["FSDP2"] = train(out / "FSDP2", arguments=best | fsdp)
            checkpoint = str(out / "FSDP2" / "checkpoint-9")
            found["resumed FSDP2"] = train(out / "FSDP2", resume=checkpoint, arguments=best | fsdp)
    if rank == 0:  # which writes the history files
        found["recorded"] = {
            "run": dataclasses.asdict(read_run(out / "run")),
            "stop again": dataclasses.asdict(read_run(out / "stop")),
        }
    (out / f"rank{rank}.json").write_text(json.dumps(found))
    # gloo's threads now and then abort a process that is torn down with many groups behind it.
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    while len(list(out.glob("rank*.json"))) < ranks:
        time.sleep(0.05)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
