"""Real models and a real tokenizer, tiny and made on the spot, so that no test needs a network."""

from __future__ import annotations

import csv
import functools
import gc
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from sepstop import Monitor, Record, Score, SepStopConfig

GOOD = ["good", "great", "fine", "lovely", "warm"]
BAD = ["bad", "poor", "dull", "awful", "cold"]
OTHER = ["the", "film", "was", "and", "its", "story", "felt", "really"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *OTHER]


def make_texts(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Distinct texts of two topics and their labels."""
    generator = torch.Generator().manual_seed(seed)

    def word(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=generator))]

    texts: dict[str, int] = {}
    while len(texts) < count:
        label = len(texts) % 2
        length = int(torch.randint(3, 10, (1,), generator=generator))
        words = [word(OTHER) for _ in range(length)]
        words[int(torch.randint(length, (1,), generator=generator))] = word((BAD, GOOD)[label])
        texts.setdefault(" ".join(words), label)
    return list(texts), list(texts.values())


def make_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


# What makes a `training` test: a fixture with rows to train on, or its folder or file. Any other
# test is a `unit` test, unless it is marked `training` or `slow` where it stands.
TRAINING_ROWS = {"train_rows", "long_rows", "multi_rows"}
TRAINING_FOLDERS = [
    "bench/test_command.py",
    "bench/test_record.py",
    "callbacks",
    "finetune/test_finetune_answers.py",
    "finetune/test_finetune_resume.py",
    "finetune/test_finetune_runs.py",
    "scripts",
    "utils/test_distributed.py",
]
# No training, but not fast: models on disk, many examples, a wheel.
NEITHER = (
    "homology/test_h0_engines.py",
    "measure/test_monitor.py",
    "measure/test_observer.py",
    "measure/test_outputs.py",
    "measure/test_pool.py::test_large_pools",
    "report/test_figures.py",
    "report/test_html.py",
    "runs/test_average_files.py",
    "runs/test_cache.py",
    "runs/test_loading.py",
    "test_fuzz.py",
    "test_site.py",
    "test_wheel.py",
)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test as `unit` or `training`; pyproject.toml describes the markers."""
    folder = Path(__file__).parent
    training = [folder / name for name in TRAINING_FOLDERS]
    for item in items:
        trains = not TRAINING_ROWS.isdisjoint(getattr(item, "fixturenames", ()))
        if trains or any(item.path.is_relative_to(path) for path in training):
            item.add_marker("training")
        marked = {mark.name for mark in item.iter_markers()}
        inside = item.path.is_relative_to(folder)
        place = f"{item.path.relative_to(folder)}::{item.name}" if inside else ""
        if not marked & {"training", "slow"} and not place.startswith(NEITHER):
            item.add_marker("unit")


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> None:
    """Takes what is imported so far out of the garbage collector's way.

    Accelerate collects at the end of each training, which took longer than the training itself.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def bare_tokenizer() -> PreTrainedTokenizerFast:
    """Without a padding token, as many decoders have it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer().backend_tokenizer, unk_token="[UNK]", eos_token="[SEP]"
    )


def make_encoder(seed: int = 0, dropout: float = 0.1) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            num_labels=2,
        )
    )


def _llama_config(hidden_size: int = 16) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=64,
        num_labels=2,
        pad_token_id=0,
    )


def make_decoder(seed: int = 0, hidden_size: int = 16) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(_llama_config(hidden_size))


def make_decoder_classifier(seed: int = 0, hidden_size: int = 16) -> LlamaForSequenceClassification:
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(_llama_config(hidden_size))


def make_monitor(pool: Any, **config: Any) -> Monitor:
    """A Monitor with these fields of its configuration."""
    return Monitor(pool, SepStopConfig(**config))


def deciding(record: Record) -> Score:
    """The score that decides, the first of a record."""
    return next(iter(record.scores.values()))


@pytest.fixture
def encoder() -> BertForSequenceClassification:
    return make_encoder()


@pytest.fixture(scope="session")
def pool() -> list[str]:
    return make_texts(80, seed=1)[0]


@pytest.fixture(scope="session")
def train_rows(tokenizer: PreTrainedTokenizerFast) -> datasets.Dataset:
    texts, labels = make_texts(64, seed=2)
    rows = datasets.Dataset.from_dict({"text": texts, "label": labels})
    return rows.map(
        lambda batch: tokenizer(batch["text"], padding="max_length", max_length=12),
        batched=True,
    )


@pytest.fixture
def batches(train_rows: datasets.Dataset) -> torch.utils.data.DataLoader:
    rows = train_rows.rename_column("label", "labels").with_format(
        "torch", columns=["input_ids", "attention_mask", "labels"]
    )
    return torch.utils.data.DataLoader(rows, batch_size=8)  # 8 steps an epoch


@pytest.fixture
def make_trainer(tmp_path, tokenizer, train_rows):
    """Makes a Trainer: ``make_trainer(callback, model=None, **arguments)``."""
    from helpers.training import trainer_of

    return functools.partial(trainer_of, tokenizer, train_rows, tmp_path / "run")


@pytest.fixture
def settings(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A YAML file for `sepstop finetune`, with a tiny model and 140 rows of data."""
    make_encoder().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts, labels = make_texts(140)
    with (tmp_path / "rows.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "topic"])
        writer.writerows(zip(texts, (("bad", "good")[label] for label in labels), strict=True))
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"""
model: {{name: {tmp_path}/model}}
data:
  train: {tmp_path}/rows.csv
  text_column: body
  label_column: topic
  labeled_rows: 40
  max_length: 16
sepstop: {{every_n_steps: 5, policy: {{name: plateau, window: 1, tolerance: 0.9, warmup: 3}}}}
training:
  output_dir: {tmp_path}/run
  max_steps: 60
  learning_rate: 3e-3
  eval_strategy: "no"
  save_steps: 5
  report_to: none
  use_cpu: true
  disable_tqdm: true
"""
    )
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """Development data beside the project; tests on it are skipped where it is missing."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the development data in ../shared")
    return folder


@pytest.fixture(scope="module")
def chromium():
    """A browser, for tests of pages; they are skipped without one."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    flags = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    flags += "disable-component-update disable-sync"
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=path, args=[f"--{flag}" for flag in flags.split()]
        )
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Nothing that a test loads stays in the user's cache."""
    cache = tmp_path_factory.getbasetemp() / "datasets"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
