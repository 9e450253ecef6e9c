"""Averages on two processes, sharded and not; they run helpers/averages_run.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_encoder
from helpers.averages import tied_decoder, train_a_bit, with_lora
from peft import PeftModel
from transformers import AutoTokenizer, BertForSequenceClassification, LlamaForCausalLM

from sepstop.measure.average import RunningAverages
from sepstop.runs.average_files import average_folder
from sepstop.runs.average_state import load_state

pytestmark = pytest.mark.training
SCRIPT = Path(__file__).parents[1] / "helpers" / "averages_run.py"
STATE = "sepstop_average_state"
MODELS = ["sharded encoder", "sharded tied", "sharded LoRA", "DDP encoder"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of the runs, and what each rank found."""
    out = tmp_path_factory.mktemp("ranks")
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, str(SCRIPT), str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out, [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_average_as_one(ran, model):
    """A forward pass leaves whole weights on each rank, which must be neither averaged nor kept."""
    for found in ran[1]:
        for what in ("same average", "applied", "restored", "used again", "loaded"):
            assert found[model][what], what


@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_resume(ran, model):
    for found in ran[1]:
        parts = ["-00001-of-00002", "-00002-of-00002"] if "sharded" in model else [""]
        assert found[model]["states"] == [f"{STATE}{part}.safetensors" for part in parts]
        assert found[model]["left over"] == []
        assert found[model]["resumed"]
        assert found[model]["same state"]
        assert not found[model]["resumed broken"]  # one file is damaged
        (warned,) = found[model]["warned"]
        assert "can't be resumed from" in warned


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("sharded encoder", BertForSequenceClassification.from_pretrained),
        ("DDP encoder", BertForSequenceClassification.from_pretrained),
        ("sharded tied", LlamaForCausalLM.from_pretrained),
        ("sharded LoRA", lambda folder: PeftModel.from_pretrained(make_encoder(), folder)),
    ],
)
def test_one_process_loads_what_two_saved(ran, name, load):
    folder = average_folder(ran[0] / name, 3)
    model = {"sharded tied": tied_decoder, "sharded LoRA": with_lora}.get(name, make_encoder)()
    averages = RunningAverages(model)
    train_a_bit(model, 3, averages)
    loaded = load(folder).state_dict()
    with averages.applied(model, "recent"):
        expected = model.state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(values, expected[key]) for key, values in loaded.items())
    assert len(AutoTokenizer.from_pretrained(folder)) == 22
    assert not list(folder.glob("model-*"))


def test_another_number_of_processes_begins_anew(ran):
    model = make_encoder()
    averages = RunningAverages(model)
    checkpoint = ran[0] / "sharded encoder" / "checkpoint-6"
    match = rf"no {STATE}\.safetensors; found {STATE}-00001-of-00002\.safetensors, of another"
    with pytest.warns(UserWarning, match=match):
        assert not load_state(checkpoint, averages, model, step=6)
    assert averages.count == 0
