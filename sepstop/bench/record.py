"""Recording of runs: fine-tuning of a classifier, with the inputs of all criteria kept.

The classifier is a transformers backbone with a linear head on its pooled embedding. AdamW trains
it, with 20 steps of warm-up. Each evaluation records the model and the running averages of its
weights; the end of the run also records averages that need no pool, to compare with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from sepstop.bench.plain_averages import PlainAverages
from sepstop.bench.recorded_run import RecordedRun, load_run
from sepstop.measure.average import RunningAverages
from sepstop.measure.embedding import embed
from sepstop.measure.pooling import POOLINGS
from sepstop.measure.tokens import DROP_RATE, drop_tokens
from sepstop.runs.cache import ObservationCache
from sepstop.types import Pooling
from sepstop.utils.labels import read_labeled, sorted_names
from sepstop.utils.registry import build

SOURCES = "sources"
"""Setting of a recorded run: fingerprints of its data and model, which names do not tell apart."""

_WARMUP = 20
_RESET_LAYERS = 2
_FILES = ObservationCache(None)  # remembers the hashes of files


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
        settings["embedder"] = settings.pop("pooling")  # as in the names of runs recorded earlier
        digest = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:6]
        return "-".join([*parts, self.start, self.pooling, f"seed{self.seed}", digest])

    def described(self) -> dict[str, Any]:
        """The settings by name, ready for JSON; the model without its folder."""
        return dataclasses.asdict(self) | {"model": Path(self.model).name}


@dataclass(frozen=True)
class Split:
    """Token ids and labels of disjoint rows, by part.

    Attributes:
        tokens: a ``(length,)`` int64 tensor per text of "train", "pool", "validation", "test" and
            "corrupted", the pool's texts without 30 % of their tokens.
        labels: ``(rows,)`` of the first four; those of "train" have the run's noise.
        classes: number k of classes.
    """

    tokens: dict[str, list[Tensor]]
    labels: dict[str, NDArray[np.int64]]
    classes: int


class Classifier(nn.Module):
    """A linear head on the pooled embedding of a backbone."""

    def __init__(self, backbone: nn.Module, pooling: Pooling, classes: int) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self.head = nn.Linear(int(backbone.config.hidden_size), classes)  # type: ignore

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``(b, L)`` token ids and mask -> ``(b, k)`` float32 logits."""
        return self.head(self.pooling(self.backbone, input_ids, attention_mask)).float()


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
    model, split = classifier_and_split(texts, labels, settings, device)
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


def classifier_and_split(
    texts: Sequence[str],
    labels: Sequence[Any],
    settings: RunSettings,
    device: str | torch.device = "cpu",
) -> tuple[Classifier, Split]:
    """The model and the data at the start of a run; the seed settles both.

    Raises:
        ValueError: too few rows or classes for the settings.
    """
    from transformers import AutoModel, AutoTokenizer

    rng = np.random.default_rng(settings.seed)
    rows = split_rows(texts, labels, settings, rng)
    split = tokenize(rows, AutoTokenizer.from_pretrained(settings.model), settings, rng)
    torch.manual_seed(settings.seed)
    backbone = AutoModel.from_pretrained(settings.model, dtype=torch.float32)
    pooling = build("pooling", settings.pooling, POOLINGS)
    return Classifier(prepare(backbone, settings), pooling, split.classes).to(device), split


def _record(
    model: Classifier, split: Split, settings: RunSettings, progress: bool
) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Train; return the arrays of all evaluations, and the accuracy of `PlainAverages` at the end.

    Averages begin at the end of the warm-up.
    """
    averages, plain = RunningAverages(model), PlainAverages(model)
    recorded: dict[str, list[Any]] = {}
    losses: list[float] = []
    training = train(model, split, settings)
    steps = tqdm(total=settings.steps, desc=settings.name, disable=not progress)
    device = model.head.weight.device.type
    precision = torch.autocast(device, torch.bfloat16, settings.bf16)
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
    model: Classifier, split: Split, averages: RunningAverages, own: dict[str, Any]
) -> dict[str, Any]:
    """The arrays of one evaluation of each average, by name.

    Args:
        own: those of the model itself, which stand for the averages before the first.
    """
    found: dict[str, Any] = {}
    for name in averages.decays:
        values = {key: own[key] for key in ("pool_e", "pool_l", "pool_d", "te_acc", "pool_acc")}
        if averages.count:
            with averages.applied(model, name):
                values = evaluate(model, split, ("pool", "corrupted", "test"))
        found |= {f"{name}_{key}": value for key, value in values.items()}
    return found


def read_rows(
    files: Sequence[str | Path], text_column: str = "text", label_column: str = "label"
) -> tuple[list[str], list[str]]:
    """Texts and class names of the rows that have both.

    Args:
        files: tables, see `sepstop.utils.labels`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a table, or no such column.

    Warns:
        UserWarning: rows without a text are left out.
    """
    texts: list[str] = []
    labels: list[str] = []
    for file in files:
        table = read_labeled(file, text_column, label_column)
        for text, label in zip(table.texts["text"], table.labels.values, strict=True):
            if label is not None:
                texts.append(text)
                labels.append(label)
    return texts, labels


def split_rows(
    texts: Sequence[str], labels: Sequence[Any], settings: RunSettings, rng: np.random.Generator
) -> dict[str, tuple[list[str], NDArray[np.int64]]]:
    """Disjoint rows for "train", "pool", "validation" and "test"; each text occurs once.

    Returns:
        By part, the texts and the ``(rows,)`` numbers of their classes.

    Raises:
        ValueError: too few rows or classes.
    """
    first = dict(zip(reversed(texts), reversed(labels), strict=True))
    names = sorted_names(map(str, first.values()))
    if len(names) < 2:
        raise ValueError(f"expected at least 2 classes, got {list(names)}")
    numbers = {name: number for number, name in enumerate(names)}
    unique = list(first)
    y = np.array([numbers[str(first[text])] for text in unique])
    order = rng.permutation(len(unique))
    labeled = _labeled(y[order], settings, rng)
    rest = np.setdiff1d(np.arange(len(order)), labeled)
    found: dict[str, tuple[list[str], NDArray[np.int64]]] = {}
    for part, rows in (
        ("train", labeled),
        ("pool", rest[: settings.pool_rows]),
        ("validation", rest[settings.pool_rows :][: settings.validation_rows]),
        ("test", rest[settings.pool_rows + settings.validation_rows :][: settings.test_rows]),
    ):
        if len(rows) < 4:
            raise ValueError(
                f"{len(unique)} different texts leave {len(rows)} rows for {part}: lower "
                "labeled_rows, pool_rows or validation_rows"
            )
        found[part] = [unique[i] for i in order[rows]], y[order[rows]]
    return found


def _labeled(
    y: NDArray[np.int64], settings: RunSettings, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Indices of the rows to train on; with imbalance, class sizes fall geometrically."""
    if settings.imbalance == 1:
        return np.arange(min(settings.labeled_rows, len(y)))
    classes = rng.permutation(int(y.max()) + 1)
    sizes = settings.imbalance ** -np.linspace(0, 1, len(classes))
    sizes = np.maximum(1, np.round(settings.labeled_rows * sizes / sizes.sum())).astype(int)
    rows = [np.flatnonzero(y == c)[:size] for c, size in zip(classes, sizes, strict=True)]
    return np.sort(np.concatenate(rows))


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
        tokens[part] = [torch.tensor(row) for row in ids]
        labels[part] = y
    tokens["corrupted"] = drop_tokens(tokens["pool"], DROP_RATE, settings.seed)
    labels["train"] = with_noise(labels["train"], classes, settings, rng)
    return Split(tokens, labels, classes)


def with_noise(
    y: NDArray[np.int64], classes: int, settings: RunSettings, rng: np.random.Generator
) -> NDArray[np.int64]:
    """A copy of ``y`` with a share of ``settings.noise`` changed to another class."""
    wrong = rng.permutation(len(y))[: round(settings.noise * len(y))]
    shift = 1 if settings.noise_kind == "class" else rng.integers(1, classes, len(wrong))
    y = y.copy()
    y[wrong] = (y[wrong] + shift) % classes
    return y


def prepare(backbone: Any, settings: RunSettings) -> nn.Module:
    """The backbone at the start of the run."""
    if settings.start == "head":
        backbone.requires_grad_(False)
    if settings.start == "reset":
        lists = [list(m) for m in backbone.modules() if isinstance(m, nn.ModuleList)]
        for layer in max(lists, key=len)[-_RESET_LAYERS:]:
            layer.apply(_reset)
    if settings.start == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")
        return get_peft_model(backbone, lora)
    return backbone


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()


def train(model: Classifier, split: Split, settings: RunSettings) -> Iterator[float]:
    """Take optimizer steps without end; yield the loss of each."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: rate_factor(n, settings))
    device = model.head.weight.device
    y = torch.from_numpy(split.labels["train"])
    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        for rows in torch.randperm(len(y), generator=generator).split(settings.batch_size):
            batch = [split.tokens["train"][int(row)] for row in rows]
            input_ids = pad_sequence(batch, batch_first=True)
            lengths = torch.tensor([len(ids) for ids in batch])
            mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
            model.train()
            with torch.autocast(device.type, torch.bfloat16, settings.bf16):
                logits = model(input_ids.to(device), mask.to(device))
            loss = nn.functional.cross_entropy(logits, y[rows].to(device))
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
    model: Classifier,
    split: Split,
    parts: Sequence[str] = ("pool", "corrupted", "validation", "test"),
) -> dict[str, Any]:
    """The arrays of one evaluation, by name: see `RecordedRun.arrays`.

    Args:
        parts: of the split; pool, corrupted and test at least.
    """
    points = {part: embed(model.backbone, split.tokens[part], model.pooling) for part in parts}
    with torch.no_grad():
        logits = {part: model.head(cloud.float()).float().cpu() for part, cloud in points.items()}

    def accuracy(part: str) -> float:
        return float((logits[part].argmax(-1).numpy() == split.labels[part]).mean())

    values = {
        "pool_e": points["pool"].half().cpu().numpy(),
        "pool_l": logits["pool"].numpy().astype(np.float32),
        "pool_d": logits["corrupted"].numpy().astype(np.float32),
        "te_acc": accuracy("test"),
        "pool_acc": accuracy("pool"),
    }
    if "validation" in parts:
        y = torch.from_numpy(split.labels["validation"])
        values["va_acc"] = accuracy("validation")
        values["va_loss"] = float(nn.functional.cross_entropy(logits["validation"], y))
    return values


def test_accuracy(model: Classifier, split: Split) -> float:
    """Share of the test texts that the model classifies right."""
    points = embed(model.backbone, split.tokens["test"], model.pooling)
    with torch.no_grad():
        classes = model.head(points.float()).argmax(-1).cpu().numpy()
    return float((classes == split.labels["test"]).mean())
