"""The README's Python runs as it stands, one block after the other."""

import re
from pathlib import Path

import pytest
import torch
from conftest import make_encoder
from lightning_module import Classifier
from torch.utils.data import DataLoader

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"<!-- run by [^\n]* -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_all_python_is_run():
    assert len(BLOCKS) == README.read_text().count("```python") == 4


@pytest.mark.filterwarnings("error:sepstop")
def test_the_examples_run(tmp_path, monkeypatch, pool, train_rows, tokenizer):
    monkeypatch.chdir(tmp_path)
    model = make_encoder()
    columns = ["input_ids", "attention_mask", "labels"]
    rows = train_rows.rename_column("label", "labels").with_format("torch", columns)
    names = {
        "model": model,
        "tokenizer": tokenizer,
        "pool": pool,
        "train_rows": train_rows,
        "eval_rows": train_rows.select(range(8)),
        "optimizer": torch.optim.AdamW(model.parameters()),
        "loader": DataLoader(rows, batch_size=2),
    }
    exec(BLOCKS[0], names)
    assert names["callback"].decision.best_step == names["trainer"].state.best_global_step
    exec(BLOCKS[1], names)
    assert names["callback"].history
    assert names["trainer"].state.best_model_checkpoint
    exec(BLOCKS[2], names)
    assert names["history"][0].step == 5


@pytest.mark.filterwarnings("ignore")  # of Lightning: few workers, few batches
def test_the_lightning_example_runs(tmp_path, monkeypatch, pool, tokenizer, batches):
    monkeypatch.chdir(tmp_path)
    names = {"pool": pool, "tokenizer": tokenizer, "module": Classifier(), "loader": batches}
    exec(BLOCKS[3], names | {"eval_loader": batches})
