"""The plugin for axolotl: its checks, a Trainer, and `axolotl train` where that is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import make_texts
from helpers.answering import assert_scored, write_answering
from helpers.training import steps
from pydantic import ValidationError

from sepstop import SepStopCallback
from sepstop.integrations.axolotl import SepStopArgs, SepStopPlugin


class Section(dict):
    """As of axolotl's configuration."""

    def to_dict(self):
        return dict(self)


@pytest.fixture
def pool_file(tmp_path):
    path = tmp_path / "pool.txt"
    path.write_text("\n".join(make_texts(40)[0]))
    return str(path)


def test_a_wrong_section_is_an_error(pool_file):
    with pytest.raises(ValidationError, match="expected a section `sepstop:` with settings"):
        SepStopArgs()
    with pytest.raises(ValidationError, match="expected a pool of unlabeled texts"):
        SepStopArgs(sepstop={"every_n_steps": 2})
    with pytest.raises(ValidationError, match="pol_size"):
        SepStopArgs(sepstop={"pool": pool_file, "pol_size": 3})
    with pytest.raises(FileNotFoundError, match="no pool file"):
        SepStopArgs(sepstop={"pool": "missing.txt"})
    section = {"pool": pool_file, "pool_size": None, "policy": {"name": "patience"}}
    assert SepStopArgs(sepstop=section).model_dump(exclude_none=True) == {"sepstop": section}


def test_a_trainer_gets_the_callback(pool_file, make_trainer):
    trainer = make_trainer(None, report_to=["tensorboard"])
    section = Section(pool=pool_file, extra_criteria=["entropy"], num_resamples=3)
    SepStopPlugin().post_trainer_create(SimpleNamespace(sepstop=section), trainer)
    (callback,) = (
        one for one in trainer.callback_handler.callbacks if isinstance(one, SepStopCallback)
    )
    trainer.train()  # would warn of scores that reach no tracker
    assert steps(callback) == [2, 4, 6, 8, 10, 12]
    assert "entropy" in callback.history[-1].scores


@pytest.mark.slow
def test_axolotl_train(tmp_path):
    pytest.importorskip("axolotl", reason="axolotl pins its libraries")
    rows = [
        json.dumps({"prompt": prompt, "completion": answer})
        for prompt, answer in write_answering(tmp_path)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    section = {
        "pool": "pool.txt",
        "answers": "answers.txt",
        "every_n_steps": 2,
        "policy": {"name": "patience", "stopping_threshold": 0.0, "warmup": 2},
    }
    config = {
        "base_model": "model",
        "plugins": ["sepstop.integrations.axolotl.SepStopPlugin"],
        "sepstop": section,
        "datasets": [
            {
                "path": "train.jsonl",
                "ds_type": "json",
                "type": {
                    "field_instruction": "prompt",
                    "field_output": "completion",
                    "format": "{instruction}",
                    "no_input_format": "{instruction}",
                },
            }
        ],
        "dataset_prepared_path": "prepared",
        "val_set_size": 0,
        "sequence_len": 64,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 8,
        "save_steps": 2,
        "learning_rate": 3e-3,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "output_dir": "out",
        "bf16": False,
        "tf32": False,
        "attn_implementation": "eager",
    }

    def train(**changes):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config | changes))
        command = [str(Path(sys.executable).with_name("axolotl")), "train", "run.yaml"]
        env = {"CUDA_VISIBLE_DEVICES": "", "AXOLOTL_DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, "--launcher", "python"],
            cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, timeout=400,
        )  # fmt: skip

    for wrong, message in (
        (None, "expected a section `sepstop:`"),
        (section | {"pol_size": 3}, "pol_size"),
    ):
        done = train(sepstop=wrong)
        assert done.returncode != 0
        assert message in done.stderr
        assert not (tmp_path / "prepared").exists()  # neither data nor model were loaded

    done = train()
    assert done.returncode == 0, done.stderr
    history = assert_scored(tmp_path, [2, 4, 6])
    assert history.decisions[-1].stop
