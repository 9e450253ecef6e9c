"""Runs that are killed at a moment and resumed, each in a process of its own.

python tests/helpers/killed_run.py OUT SCHEDULE MOMENT
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import torch
from conftest import make_encoder, make_texts, make_tokenizer
from transformers.trainer_utils import get_last_checkpoint

from helpers.training import BEST, TrainerCallback, trainer_of
from sepstop import Patience, SepStopCallback
from sepstop.callbacks import best_weights, trainer
from sepstop.runs.history import read_history

SCHEDULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "evaluations": ({}, BEST | {"metric_for_best_model": "confidence", "greater_is_better": False}),
    "own": (
        {"every_n_steps": 2, "load_best_model_at_end": True},
        {"eval_strategy": "no", "save_steps": 4},
    ),
    "epochs": ({"load_best_model_at_end": True}, {"eval_strategy": "no", "save_steps": 8}),
    # An epoch has 8 steps: its evaluation comes after the save of its last step.
    "evaluated epochs": (
        {},
        {
            "eval_strategy": "epoch",
            "save_steps": 8,
            "metric_for_best_model": "confidence",
            "greater_is_better": False,
        },
    ),
}
KILLED_AT = 16


class Confidence:
    """Mean probability of the predicted class, which falls while this model trains."""

    name, higher_is_better, needs = "confidence", False, ("logits",)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=-1).amax(dim=-1).mean(dim=-1)


def kill(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Kills(TrainerCallback):
    """Kills the process at an event, before or after the callback."""

    def __init__(self, event: str) -> None:
        setattr(self, event, self._kill)

    def _kill(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == KILLED_AT:
            kill()


def at_step(module: Any, name: str, when: str) -> None:
    """Kill the process before or after a function of a module is called at the step."""
    function = getattr(module, name)

    def killed(*args: Any, **options: Any) -> Any:
        # A folder by its own name: one above it may hold the number by chance.
        is_due = any(
            one == KILLED_AT if isinstance(one, int) else one.name.endswith(f"-{KILLED_AT}")
            for one in args
            if isinstance(one, Path | int)
        )
        if is_due and when == "before":
            kill()
        result = function(*args, **options)
        if is_due:
            kill()
        return result

    setattr(module, name, killed)


def train(out: Path, schedule: str, moment: str = "") -> None:
    """Train, from the newest checkpoint if there is one; killed at a moment, such as
    "before on_save" or "after save_average"."""
    config, options = SCHEDULES[schedule]
    tokenizer, (texts, labels) = make_tokenizer(), make_texts(64, seed=2)
    rows = datasets.Dataset.from_dict({"text": texts, "label": labels})
    rows = rows.map(lambda batch: tokenizer(batch["text"]), batched=True)
    pool, never = make_texts(41, seed=1)[0], Patience(patience=None)
    config = config | {"policy": never, "num_resamples": 5, "verbose": False}
    callback = SepStopCallback(pool, criterion=Confidence(), extra_criteria=["auto"], **config)
    made = trainer_of(
        tokenizer, rows, out, None, make_encoder(dropout=0.1), max_steps=24, **options
    )
    when, _, what = moment.partition(" ")
    if what.startswith("on_") and when == "before":
        made.add_callback(Kills(what))
    made.add_callback(callback)
    if what.startswith("on_") and when == "after":
        made.add_callback(Kills(what))
    for module in (best_weights, trainer):
        if hasattr(module, what):
            at_step(module, what, when)
    out.mkdir(exist_ok=True)
    last = get_last_checkpoint(str(out))
    made.train(resume_from_checkpoint=last)
    averages = callback.session.averages
    assert averages is not None
    state = averages.state_dict()
    found = {
        "history": [repr((r.step, r.scores, r.average)) for r in callback.history],
        "best": Path(str(made.state.best_model_checkpoint)).name,
        "weights": digest(made.model.state_dict()),
        "averages": {name: digest(one) for name, one in state.pop("averages").items()},
        "state": state,
        "kept": hashlib.sha256(
            Path(str(made.state.best_model_checkpoint), "model.safetensors").read_bytes()
        ).hexdigest(),
        "files": sorted(
            path.relative_to(out).as_posix() for path in out.glob("*") if path.name != "found.json"
        ),
        "resumed from": last and Path(last).name,
        "written": len(read_history(out / "sepstop_history.jsonl").records),
    }
    (out / "found.json").write_text(json.dumps(found))


def digest(tensors: dict[str, torch.Tensor]) -> str:
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode() + tensors[name].cpu().numpy().tobytes())
    return whole.hexdigest()


def in_a_process(*args: Any) -> int:
    """The exit status of `train` in a forked process: imports are not repeated."""
    child = os.fork()
    if not child:
        status = 1
        try:
            warnings.simplefilter("ignore")
            torch.set_num_threads(1)
            train(*args)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def main(out: Path, schedule: str, moments: list[str]) -> None:
    assert in_a_process(out / "whole", schedule) == 0
    for moment in moments:
        folder = out / moment.replace(" ", "-")
        assert in_a_process(folder, schedule, moment) == signal.SIGKILL, moment
        assert in_a_process(folder, schedule) == 0, moment


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
