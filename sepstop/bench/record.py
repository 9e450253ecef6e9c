"""Recording of runs: fine-tuning on classes, with the inputs of all criteria kept.

The model is a transformers backbone with a linear head on its pooled embedding, or a language model
that answers prompts with the names of the classes. AdamW trains it, with 20 steps of warm-up. Each
evaluation records the model and the running averages of its weights; the end of the run also
records averages that need no pool, to compare with.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from sepstop.bench.answerer import answerer_and_split
from sepstop.bench.classifier import classifier_and_split
from sepstop.bench.learner import Learner, Split
from sepstop.bench.plain_averages import PlainAverages
from sepstop.bench.recorded_run import RecordedRun, load_run
from sepstop.bench.rows import class_names, split_rows
from sepstop.bench.run_settings import RunSettings
from sepstop.measure.average import RunningAverages
from sepstop.measure.embedding import Observation
from sepstop.runs.cache import ObservationCache

SOURCES = "sources"
"""Setting of a recorded run: fingerprints of its data and model, which names do not tell apart."""

_WARMUP = 20
_FILES = ObservationCache(None)  # remembers the hashes of files


def record_run(
    texts: Sequence[str],
    labels: Sequence[Any],
    settings: RunSettings,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> RecordedRun:
    """Train as ``settings`` say and record each evaluation, step 0 included.

    Args:
        texts, labels: all rows, of equal length; the seed splits them.
        device: of the training.
        progress: show a progress bar.

    Raises:
        ValueError: too few rows or classes for the settings.
    """
    model, split = learner_and_split(texts, labels, settings, device)
    arrays, plain = _record(model, split, settings, progress)
    arrays |= {"y": split.labels["pool"], "train_y": split.labels["train"]}
    arrays["plain_te_acc"] = np.array(list(plain.values()))
    described = settings.described() | {"plain": list(plain)}
    described[SOURCES] = sources_of(texts, labels, settings)
    return RecordedRun(settings.name, arrays, described)


def is_recorded(
    path: Path, texts: Sequence[str], labels: Sequence[Any], settings: RunSettings
) -> bool:
    """True if the run is in a file.

    A file without fingerprints of its data and model is taken for the run that its name says.

    Raises:
        ValueError: the file is no recorded run, or one of other data or another model.
    """
    if not path.exists():
        return False
    recorded = load_run(path).settings.get(SOURCES, {})
    differing = [
        name
        for name, found in sources_of(texts, labels, settings).items()
        if recorded.get(name, found) != found
    ]
    if differing:
        other = {"data": "other texts or labels", "model": "another model"}
        raise ValueError(
            f"{path} was recorded with {' and '.join(other[name] for name in differing)}; record "
            "this run to another folder (--out)"
        )
    return True


def sources_of(
    texts: Sequence[str], labels: Sequence[Any], settings: RunSettings
) -> dict[str, str]:
    """Fingerprints of the data and of the model; the name of a model on the hub is its own."""
    rows = json.dumps([list(texts), [str(label) for label in labels]])
    model = Path(settings.model)
    return {
        "data": hashlib.sha256(rows.encode()).hexdigest(),
        "model": _FILES.content(model) if model.is_dir() else settings.model,
    }


def learner_and_split(
    texts: Sequence[str],
    labels: Sequence[Any],
    settings: RunSettings,
    device: str | torch.device = "cpu",
) -> tuple[Learner, Split]:
    """The model and the data at the start of a run; the seed settles both.

    Raises:
        ValueError: too few rows or classes for the settings.
    """
    rng = np.random.default_rng(settings.seed)
    rows = split_rows(texts, labels, settings, rng)
    torch.manual_seed(settings.seed)
    model: Learner
    if settings.prompt:
        model, split = answerer_and_split(rows, class_names(labels), settings, rng)
    else:
        model, split = classifier_and_split(rows, settings, rng)
    return model.to(device), split


def _record(
    model: Learner, split: Split, settings: RunSettings, progress: bool
) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Train; return the arrays of all evaluations, and the accuracy of `PlainAverages` at the end.

    Averages begin at the end of the warm-up.
    """
    averages, plain = RunningAverages(model), PlainAverages(model)
    recorded: dict[str, list[Any]] = {}
    losses: list[float] = []
    training = train(model, split, settings)
    steps = tqdm(total=settings.steps, desc=settings.name, disable=not progress)
    precision = torch.autocast(model.device.type, torch.bfloat16, settings.bf16)
    with steps:
        for step in range(settings.steps + 1):
            if step % settings.evaluate_every == 0 or step == settings.steps:
                with precision:
                    values = evaluate(model, split)
                    values |= _of_averages(model, split, averages, values)
                values |= {"steps": step, "tr_loss": np.mean(losses) if losses else math.nan}
                losses.clear()
                for key, value in values.items():
                    recorded.setdefault(key, []).append(value)
                steps.set_postfix(accuracy=f"{values['te_acc']:.3f}")
                if step > 0:
                    plain.add_checkpoint()
            if step < settings.steps:
                losses.append(next(training))
                plain.update()
                if step + 1 >= min(_WARMUP, settings.steps):
                    averages.update(model, step + 1)
                steps.update()
        with precision:
            plain_results = dict(plain.results(lambda: test_accuracy(model, split)))
    arrays = {key: np.stack(values) for key, values in recorded.items()}
    arrays["steps"] = arrays["steps"].astype(np.int64)
    return arrays, plain_results


def _of_averages(
    model: Learner, split: Split, averages: RunningAverages, own: dict[str, Any]
) -> dict[str, Any]:
    """The arrays of one evaluation of each average, by name.

    Args:
        own: those of the model itself, which stand for the averages before the first.
    """
    found: dict[str, Any] = {}
    for name in averages.decays:
        values = {key: own[key] for key in own if key not in ("va_acc", "va_loss")}
        if averages.count:
            with averages.applied(model, name):
                values = evaluate(model, split, ("pool", "corrupted", "test"))
        found |= {f"{name}_{key}": value for key, value in values.items()}
    return found


def train(model: Learner, split: Split, settings: RunSettings) -> Iterator[float]:
    """Take optimizer steps without end; yield the loss of each."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: rate_factor(n, settings))
    generator = torch.Generator().manual_seed(settings.seed)
    count = len(split.labels["train"])
    while True:
        for rows in torch.randperm(count, generator=generator).split(settings.batch_size):
            model.train()
            with torch.autocast(model.device.type, torch.bfloat16, settings.bf16):
                loss = model.loss(split, rows)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
            yield float(loss.detach())


def rate_factor(step: int, settings: RunSettings) -> float:
    """The learning rate of a step, from 0 on, in units of the settings' rate."""
    if step < _WARMUP or settings.schedule == "constant":
        return min(1.0, (step + 1) / _WARMUP)
    left = max(0.0, (settings.steps - step) / (settings.steps - _WARMUP))
    return left if settings.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def evaluate(
    model: Learner,
    split: Split,
    parts: Sequence[str] = ("pool", "corrupted", "validation", "test"),
) -> dict[str, Any]:
    """The arrays of one evaluation, by name: see `RecordedRun.arrays`.

    Args:
        parts: of the split; pool, corrupted and test at least.
    """
    seen = {part: model.observe(split.tokens[part]) for part in parts}
    logits = {part: _logits(one, split) for part, one in seen.items()}

    def accuracy(part: str) -> float:
        return float((logits[part].argmax(-1).numpy() == split.labels[part]).mean())

    values = {
        "pool_e": seen["pool"].points.half().cpu().numpy(),
        "pool_l": logits["pool"].numpy().astype(np.float32),
        "pool_d": logits["corrupted"].numpy().astype(np.float32),
        "te_acc": accuracy("test"),
        "pool_acc": accuracy("pool"),
    }
    if "validation" in parts:
        y = torch.from_numpy(split.labels["validation"])
        values["va_acc"] = accuracy("validation")
        values["va_loss"] = float(nn.functional.cross_entropy(logits["validation"], y))
    return values | model.more_arrays(split, seen)


def test_accuracy(model: Learner, split: Split) -> float:
    """Share of the test texts that the model classifies right."""
    logits = _logits(model.observe(split.tokens["test"]), split)
    return float((logits.argmax(-1).numpy() == split.labels["test"]).mean())


def _logits(seen: Observation, split: Split) -> Tensor:
    """``(N, k)`` float32 logits of the classes, on the CPU."""
    assert seen.logits is not None
    return seen.logits[:, : split.classes].float().cpu()
