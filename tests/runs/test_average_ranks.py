"""Averages on several processes, sharded and not; they run helpers/averages_run.py."""

import json

import pytest
import torch
from conftest import make_encoder
from helpers.averages import tied_decoder, train_a_bit, with_lora
from helpers.launch import TESTS, torchrun
from peft import PeftModel
from transformers import AutoTokenizer, BertForSequenceClassification, LlamaForCausalLM

from sepstop.measure.average import RunningAverages
from sepstop.runs.average_files import average_folder
from sepstop.runs.average_state import read_state

pytestmark = pytest.mark.training
SCRIPT = TESTS / "helpers" / "averages_run.py"
STATE = "sepstop_average_state"
MODELS = ["sharded encoder", "sharded tied", "sharded LoRA", "DDP encoder"]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ran(tmp_path_factory, request):
    """The folder of the runs, and what each rank found."""
    out, ranks = tmp_path_factory.mktemp("ranks"), request.param
    torchrun(SCRIPT, out, processes=ranks)
    return out, [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("model", MODELS)
def test_ranks_average_as_one(ran, model):
    """A forward pass leaves whole weights on each rank, which must be neither averaged nor kept."""
    for found in ran[1]:
        for what in ("same average", "applied", "restored", "used again", "loaded"):
            assert found[model][what], what


@pytest.mark.parametrize("model", MODELS)
def test_ranks_resume(ran, model):
    ranks = len(ran[1])
    for found in ran[1]:
        files = [f"-{1 + rank:05}-of-{ranks:05}" for rank in range(ranks)]
        parts = files if "sharded" in model else [""]
        assert found[model]["states"] == [f"{STATE}{part}.safetensors" for part in parts]
        assert found[model]["left over"] == []
        assert found[model]["resumed"]
        assert found[model]["same state"]
        assert not found[model]["resumed broken"]  # one file is damaged
        (warned,) = found[model]["warned"]
        assert "can't be resumed (" in warned


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("sharded encoder", BertForSequenceClassification.from_pretrained),
        ("DDP encoder", BertForSequenceClassification.from_pretrained),
        ("sharded tied", LlamaForCausalLM.from_pretrained),
        ("sharded LoRA", lambda folder: PeftModel.from_pretrained(make_encoder(), folder)),
    ],
)
def test_one_process_loads_what_several_saved(ran, name, load):
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
    checkpoint = ran[0] / "sharded encoder" / "checkpoint-6"
    match = (
        rf"no {STATE}\.safetensors in .*; found {STATE}-00001-of-0000\d\.safetensors, of another"
    )
    with pytest.raises(FileNotFoundError, match=match):
        read_state(checkpoint, make_encoder(), 6)


def test_a_divided_sentence_transformer_is_refused(ran):
    for found in ran[1]:
        said = found["sharded SentenceTransformer"]["error"]
        assert said.endswith("SentenceTransformer can't be saved as an average; set average=False")
