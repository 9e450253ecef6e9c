"""The processes of test_average_ranks.py: averages of models on two ranks.

torchrun --nproc-per-node 2 tests/helpers/averages_run.py OUT
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from conftest import make_encoder, make_texts, make_tokenizer
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from helpers.averages import are_equal, tied_decoder, train_a_bit, with_lora
from helpers.distributed_run import shard
from sepstop.callbacks.averaged_steps import AveragedSteps
from sepstop.config import SepStopConfig
from sepstop.measure.average import RunningAverages
from sepstop.runs.average_files import average_folder, load_average, save_average
from sepstop.runs.average_state import move_state, read_state, save_state, state_folder
from sepstop.utils.distributed import Ranks


def parts(model: nn.Module) -> dict[str, Tensor]:
    """This rank's part of each weight."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return {
        name.removeprefix("module."): getattr(weight, "_local_tensor", weight).clone()
        for name, weight in weights.items()
    }


def whole(model: nn.Module) -> dict[str, Tensor]:
    state = {name.removeprefix("module."): values for name, values in model.state_dict().items()}
    return {
        name: values.full_tensor() if hasattr(values, "full_tensor") else values
        for name, values in state.items()
    }


def shard_adapted(model: Any) -> None:
    for layer in model.get_base_model().base_model.encoder.layer:
        fully_shard(layer)
    fully_shard(model)


def outputs(model: nn.Module) -> Tensor:
    tokenizer = make_tokenizer()
    rows = tokenizer(make_texts(4)[0], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**rows).logits


def resumed_at(checkpoint: Path, model: nn.Module) -> RunningAverages:
    """The averages of a run that is resumed from a checkpoint at step 6."""
    steps = AveragedSteps(SepStopConfig())
    steps.prepare(model)
    steps.restore(lambda: read_state(checkpoint, model, 6), model, 6)
    assert steps.averages is not None
    return steps.averages


def averaging(
    model: nn.Module, wrap: Callable[[nn.Module], nn.Module | None], run: Path
) -> dict[str, Any]:
    """What holds for the averages of a model on these ranks."""
    alone = copy.deepcopy(model)
    model = wrap(model) or model
    averages, expected = RunningAverages(model), RunningAverages(alone)
    train_a_bit(model, 3, averages)
    train_a_bit(alone, 3, expected)
    trained, scored = parts(model), outputs(model)  # the forward pass leaves whole weights
    with averages.applied(model, "recent"), expected.applied(alone, "recent"):
        found = {
            "same average": are_equal(whole(model), whole(alone)),
            "applied": torch.allclose(outputs(model), outputs(alone), atol=1e-6),
        }
        save_average(
            average_folder(run, 3),
            model,
            make_tokenizer(),
            averages.described("recent"),
            writes=Ranks.of_run().rank == 0,
        )
        outputs(model)
    found["restored"] = are_equal(parts(model), trained)
    found["used again"] = torch.equal(outputs(model), scored)
    train_a_bit(model, 3, averages, first=4)
    save_state(state_folder(run, 6), averages, model, step=6, writes=Ranks.of_run().rank == 0)
    dist.barrier()
    (run / "checkpoint-6").mkdir(exist_ok=True)
    move_state(run, run / "checkpoint-6", step=6)
    dist.barrier()
    found["states"] = sorted(path.name for path in (run / "checkpoint-6").iterdir())
    found["left over"] = [path.name for path in run.iterdir() if path.name.startswith(".")]
    resumed = resumed_at(run / "checkpoint-6", model)
    found["resumed"] = resumed.count == averages.count
    found["same state"] = all(
        are_equal(resumed.state_dict()["averages"][name], tensors)
        for name, tensors in averages.state_dict()["averages"].items()
    )
    dist.barrier()
    broken = run / "checkpoint-6" / found["states"][-1]
    if Ranks.of_run().rank == 0:
        broken.write_bytes(broken.read_bytes()[:-8])
    dist.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found["resumed broken"] = resumed_at(run / "checkpoint-6", model).count > 0
    found["warned"] = [str(one.message) for one in caught]
    load_average(average_folder(run, 3), model)
    with expected.applied(alone, "recent"):
        found["loaded"] = are_equal(whole(model), whole(alone))
    return found


def refused(out: Path) -> dict[str, Any]:
    """What is said of a divided SentenceTransformer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    base = out / "base"
    if dist.get_rank() == 0:
        make_encoder().base_model.save_pretrained(base)
        make_tokenizer().save_pretrained(base)
    dist.barrier()
    parts = [modules.Transformer(str(base)), modules.Pooling(16, "mean")]
    model = SentenceTransformer(modules=parts, device="cpu")
    fully_shard(model)
    try:
        RunningAverages(model)
    except ValueError as error:
        return {"error": str(error)}
    return {}


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    ddp = nn.parallel.DistributedDataParallel
    found = {}
    for name, model, wrap in [
        ("sharded encoder", make_encoder(dropout=0.0), shard),
        ("sharded tied", tied_decoder(), shard),
        ("sharded LoRA", with_lora(make_encoder(dropout=0.0)), shard_adapted),
        ("DDP encoder", make_encoder(dropout=0.0), ddp),
    ]:
        run = out / name
        run.mkdir(exist_ok=True)
        found[name] = averaging(model, wrap, run)
    found["sharded SentenceTransformer"] = refused(out)
    rank = dist.get_rank()
    (out / f"rank{rank}.json").write_text(json.dumps(found))
    while len(list(out.glob("rank*.json"))) < dist.get_world_size():
        time.sleep(0.05)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
