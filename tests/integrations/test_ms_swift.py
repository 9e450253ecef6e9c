"""The plugin for ms-swift, as in docs/usage.md: its checks, and `swift sft` if it is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import make_encoder, make_texts
from helpers.answering import assert_scored, write_answering
from helpers.training import QUIET
from transformers import Trainer, TrainingArguments

from sepstop.integrations.ms_swift import _Attach, register
from sepstop.runs.history import HISTORY_FILE, read_history


@pytest.fixture
def swift_sft(tmp_path):
    """Runs `swift sft` on a file with these changes: ``swift_sft(**changes)``."""
    pytest.importorskip("swift", reason="ms-swift pins its libraries")
    rows = []
    for prompt, answer in write_answering(tmp_path):
        said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        rows.append(json.dumps({"messages": said}))
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "sepstop_plugin.py").write_text(
        "from sepstop.integrations.ms_swift import register\nregister()"
    )
    config = {
        "model": "model",
        "model_type": "llama",
        "template": "dummy",
        "dataset": ["train.jsonl"],
        "external_plugins": ["sepstop_plugin.py"],
        "callbacks": ["sepstop"],
        "tuner_type": "lora",
        "torch_dtype": "float32",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 6,
        "save_steps": 2,
        "eval_strategy": "no",
        "report_to": "tensorboard",
        "output_dir": "out",
        "add_version": False,
        "use_hf": True,
    }

    def run(section, **changes):
        (tmp_path / "sepstop.yaml").write_text(yaml.safe_dump({"sepstop": section}))
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config | changes))
        swift = str(Path(sys.executable).with_name("swift"))
        return subprocess.run(
            [swift, "sft", "run.yaml"],
            cwd=tmp_path, env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=400,
        )  # fmt: skip

    return run


SECTION = {"pool": "pool.txt", "answers": "answers.txt", "every_n_steps": 2}
NAMED = {"SEPSTOP_CONFIG": "sepstop.yaml"}


@pytest.mark.slow
def test_swift_sft(swift_sft, tmp_path):
    done = swift_sft(SECTION, ENV=NAMED)
    assert done.returncode == 0, done.stderr
    assert "the scores go to trainer_state.json but not to" not in done.stderr
    assert_scored(tmp_path, [2, 4, 6])


@pytest.mark.slow
def test_errors_come_before_the_model_is_loaded(swift_sft):
    done = swift_sft(SECTION | {"pol_size": 3}, ENV=NAMED, model="missing")
    assert done.returncode != 0
    assert "pol_size" in done.stderr


def test_what_registering_refuses(tmp_path, monkeypatch):
    monkeypatch.delenv("SEPSTOP_CONFIG", raising=False)
    with pytest.raises(ValueError, match="in the environment variable SEPSTOP_CONFIG"):
        register()
    monkeypatch.setenv("SEPSTOP_CONFIG", str(tmp_path / "sepstop.yaml"))
    (tmp_path / "sepstop.yaml").write_text("sepstop: {every_n_steps: 2}")
    with pytest.raises(ValueError, match="expected a pool of unlabeled texts"):
        register()


def test_a_trainer_gets_the_callback_when_it_is_made(tmp_path, monkeypatch, tokenizer, train_rows):
    class SwiftTrainer(Trainer):
        """Makes its callbacks as that of ms-swift does."""

        def __init__(self, **kwargs):
            super().__init__(callbacks=[_Attach(kwargs["args"], self)], **kwargs)

    (tmp_path / "pool.txt").write_text("\n".join(make_texts(40)[0]))
    section = {"sepstop": {"pool": str(tmp_path / "pool.txt"), "num_resamples": 3}}
    (tmp_path / "sepstop.yaml").write_text(yaml.safe_dump(section))
    monkeypatch.setenv("SEPSTOP_CONFIG", str(tmp_path / "sepstop.yaml"))
    args = TrainingArguments(
        str(tmp_path / "out"), max_steps=2, **QUIET | {"report_to": ["tensorboard"]}
    )
    trainer = SwiftTrainer(
        model=make_encoder(), args=args, train_dataset=train_rows, processing_class=tokenizer
    )
    trainer.train()  # would warn of scores that reach no tracker
    records = read_history(tmp_path / "out" / HISTORY_FILE).records
    assert [record.step for record in records] == [2]
