"""`sepstop run -- llamafactory-cli train`, as in docs/usage.md, if LLaMA-Factory is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.answering import assert_scored, write_answering


@pytest.mark.slow
@pytest.mark.parametrize("env", [{}, {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}])
def test_llamafactory_cli(env, tmp_path):
    pytest.importorskip("llamafactory", reason="LLaMA-Factory pins its libraries")
    rows = [
        {"instruction": prompt, "input": "", "output": answer}
        for prompt, answer in write_answering(tmp_path)
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"own": {"file_name": "train.json"}}))
    (tmp_path / "sepstop.yaml").write_text("sepstop: {every_n_steps: 2}")
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {
                "model_name_or_path": "model",
                "stage": "sft",
                "do_train": True,
                "finetuning_type": "lora",
                "dataset": "own",
                "dataset_dir": ".",
                "template": "empty",
                "output_dir": "out",
                "per_device_train_batch_size": 4,
                "learning_rate": 3e-3,
                "max_steps": 6,
                "save_steps": 2,
                "report_to": "none",
                "use_cpu": True,
            }
        )
    )
    scripts = Path(sys.executable).parent
    own = {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",  # FORCE_TORCHRUN looks for torchrun
        "CUDA_VISIBLE_DEVICES": "",
        "DISABLE_VERSION_CHECK": "1",  # of its dependencies
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sepstop", "run", "--config", "sepstop.yaml"),
            *("--pool", "pool.txt", "--answers", "answers.txt"),
            *("--", "llamafactory-cli", "train", "run.yaml"),
        ],
        cwd=tmp_path, env=os.environ | own | env, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_scored(tmp_path, [2, 4, 6])
