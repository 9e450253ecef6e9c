"""Recorded runs: hand-made ones, and settings of a tiny real one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from conftest import make_encoder

from sepstop.bench.recorded_run import RecordedRun
from sepstop.bench.run_settings import RunSettings


def toy_run(
    name: str = "toy",
    accuracy: Sequence[float] = (0.1, 0.5, 0.9, 0.7),
    scores: Sequence[float] = (0, 1, 2, 3),
    pool: int = 40,
) -> RecordedRun:
    """A run of two classes, evaluated every 10 steps. A fifth of the corrupted texts change class.

    Args:
        accuracy: of the predictions on the test set and on the pool, by evaluation.
        scores: scale of the logits less 1, which `infomax` follows.
        pool: number of texts; their embeddings are random.
    """
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, pool)
    logits = np.zeros((len(accuracy), pool, 2), np.float32)
    for t, share in enumerate(accuracy):
        right = np.arange(pool) < share * pool
        logits[t, np.arange(pool), np.where(right, y, 1 - y)] = 1 + scores[t]
    arrays = {
        "steps": np.arange(len(accuracy)) * 10,
        "pool_e": rng.normal(size=(len(accuracy), pool, 3)).astype(np.float16),
        "pool_l": logits,
        "pool_d": np.where(np.arange(pool)[:, None] % 5 == 0, logits[..., ::-1], logits),
        "y": y,
        "te_acc": np.array(accuracy),
    }
    return RecordedRun(name, arrays)


def with_average(
    run: RecordedRun, name: str, accuracy: Sequence[float], scores: Sequence[float] = (0, 1, 2, 3)
) -> RecordedRun:
    """``run`` with an average; its first evaluation is the model's own.

    Args:
        accuracy, scores: as in `toy_run`; the first of each is that of ``run``.
    """
    texts = run.pool_size
    other = toy_run(accuracy=accuracy, scores=scores, pool=texts).arrays
    rng = np.random.default_rng(sum(map(ord, name)))
    points = run.arrays["pool_e"] + rng.normal(0, 0.1, (len(accuracy), texts, 3))
    arrays = {
        "pool_e": points.astype(np.float16),
        "pool_l": other["pool_l"],
        "pool_d": other["pool_d"],
        "te_acc": other["te_acc"],
    }
    for key in arrays:
        arrays[key][0] = run.arrays[key][0]
    added = {f"{name}_{key}": array for key, array in arrays.items()}
    return RecordedRun(run.name, run.arrays | added, run.settings)


def without_logits(run: RecordedRun) -> RecordedRun:
    parts = ("pool_l", "pool_d")
    arrays = {key: array for key, array in run.arrays.items() if not key.endswith(parts)}
    return RecordedRun(run.name, arrays, run.settings)


def without_copies(run: RecordedRun) -> RecordedRun:
    """``run`` without the corrupted texts' logits, as earlier versions recorded runs."""
    arrays = {key: array for key, array in run.arrays.items() if not key.endswith("pool_d")}
    return RecordedRun(run.name, arrays, run.settings)


def save_model(folder: Path, tokenizer) -> Path:
    """A tiny pretrained model."""
    make_encoder().bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def short_settings(model: Path, **changes) -> RunSettings:
    """A run that takes about a second; it needs 152 texts."""
    options = {
        "data": "toy",
        "labeled_rows": 32,
        "learning_rate": 1e-2,
        "model": str(model),
        "steps": 44,
        "evaluate_every": 16,
        "max_length": 16,
        "pool_rows": 60,
        "validation_rows": 20,
        "test_rows": 40,
    }
    return RunSettings(**(options | changes))
