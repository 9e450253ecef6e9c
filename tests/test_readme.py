"""What the examples for Trainer, Lightning and a loop of your own keep is what they say."""

import math
from pathlib import Path

import pytest
import torch
from conftest import make_encoder
from helpers.lightning_module import Classifier
from helpers.pages import PAGES, pieces_of
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification

from sepstop.measure.average import AVERAGES
from sepstop.runs.average_files import read_average

MARK = "run by tests/test_readme.py"
README, CLASSIFIER, USAGE = (
    [piece.code for piece in pieces_of(page) if piece.mark.startswith(MARK)]
    for page in ("README.md", "docs/how-to/classifier.md", "docs/usage.md")
)


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


def assert_holds(model, folder, step):
    """``model`` has the weights of an average of this step, which ``folder`` holds."""
    saved = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in model.state_dict().items())
    assert read_average(folder).last_step == step


def test_the_readme_is_short_and_its_example_runs(names):
    assert len(PAGES["README.md"].splitlines()) <= 150
    exec(README[0], names)
    kept, step = names["trainer"].state.best_model_checkpoint, names["callback"].decision.best_step
    assert Path(kept) == Path("run") / f"average-{step}"
    assert_holds(names["trainer"].model, kept, step)


def test_the_example_with_evaluations_runs(names):
    exec(CLASSIFIER[0], names)
    state, step = names["trainer"].state, names["callback"].decision.best_step
    assert state.best_global_step == step
    assert Path(state.best_model_checkpoint) == Path("run") / f"average-{step}"
    assert_holds(names["trainer"].model, state.best_model_checkpoint, step)


def test_the_loop_runs(names):
    weights, model = [], names["model"]
    names["optimizer"].register_step_post_hook(
        lambda *_: weights.append(parameters_to_vector(model.parameters()).detach().double())
    )
    exec(USAGE[1], names)
    step = names["decision"].best_step
    assert names["records"][0].step == 5
    (kept,) = (record.average for record in names["records"] if record.step == step)
    decay = AVERAGES[kept.name]
    shares = torch.tensor([math.prod(range(n, n + decay)) for n in range(1, step + 1)]).double()
    mean = shares / shares.sum() @ torch.stack(weights[:step])
    saved = AutoModelForSequenceClassification.from_pretrained("best")
    assert_close(parameters_to_vector(saved.parameters()).double(), mean, atol=1e-6, rtol=0)
    assert not torch.allclose(mean, weights[step - 1], atol=1e-4)


def test_the_lightning_example_runs(tmp_path, monkeypatch, pool, tokenizer, batches):
    monkeypatch.chdir(tmp_path)
    names = {"pool": pool, "tokenizer": tokenizer, "module": Classifier(), "loader": batches}
    names |= {"eval_loader": batches}
    exec(USAGE[0], names)
    step = names["callback"].decision.best_step
    assert [path.name for path in tmp_path.glob("average-*")] == [f"average-{step}"]
    assert_holds(names["module"].net, tmp_path / f"average-{step}", step)
