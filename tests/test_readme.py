"""The Python in the README and in docs/usage.md runs as it stands."""

import re
from pathlib import Path

import pytest
import torch
from conftest import make_encoder
from helpers.lightning_module import Classifier
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- run by [^\n]* -->\n```python\n(.*?)```", re.DOTALL)
README = MARK.findall((ROOT / "README.md").read_text())
USAGE = MARK.findall((ROOT / "docs/usage.md").read_text())


@pytest.fixture
def names(tmp_path, monkeypatch, pool, train_rows, tokenizer):
    """What the examples take for granted."""
    monkeypatch.chdir(tmp_path)
    model = make_encoder()
    columns = ["input_ids", "attention_mask", "labels"]
    rows = train_rows.rename_column("label", "labels").with_format("torch", columns)
    return {
        "model": model,
        "tokenizer": tokenizer,
        "pool": pool,
        "train_rows": train_rows,
        "eval_rows": train_rows.select(range(8)),
        "optimizer": torch.optim.AdamW(model.parameters()),
        "loader": DataLoader(rows, batch_size=2),
    }


def test_all_python_is_run():
    assert len(README) == (ROOT / "README.md").read_text().count("```python") == 1
    assert len(USAGE) == 3


def test_the_readme_is_short_and_its_example_runs(names):
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    exec(README[0], names)
    callback, trainer = names["callback"], names["trainer"]
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{callback.decision.best_step}")


def test_the_example_with_evaluations_runs(names):
    exec(USAGE[0], names)
    assert names["callback"].decision.best_step == names["trainer"].state.best_global_step


def test_the_loop_runs(names):
    exec(USAGE[2], names)
    assert names["records"][0].step == 5


def test_the_lightning_example_runs(tmp_path, monkeypatch, pool, tokenizer, batches):
    monkeypatch.chdir(tmp_path)
    names = {"pool": pool, "tokenizer": tokenizer, "module": Classifier(), "loader": batches}
    exec(USAGE[1], names | {"eval_loader": batches})
