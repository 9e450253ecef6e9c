"""Averages as folders that the libraries load."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import WORDS, make_decoder_classifier, make_encoder, make_tokenizer
from helpers.averages import are_equal, averaged, tied_decoder, train_a_bit, trained, with_lora
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
)

from sepstop.runs.average_files import (
    AVERAGE_FILE,
    average_folder,
    find_averages,
    load_average,
    prune_averages,
    read_average,
    save_average,
)
from sepstop.runs.saved_weights import weights_that_differ
from sepstop.types import Average

OF_FOUR = Average("recent", 1, 4, 4)


def save(run, model, tokenizer=None, step=4):
    """Save the recent average of a short run of ``model``; its folder, and what it holds."""
    averages = averaged(model)
    folder = average_folder(run, step)
    with averages.applied(model, "recent"):
        save_average(folder, model, tokenizer, averages.described("recent"))
        expected = trained(model)
    return folder, expected


def holds(model, expected):
    """True if the model's weights are the expected ones, frozen or not."""
    weights = dict(model.named_parameters())
    return are_equal({name: weights[name] for name in expected}, expected)


# Kinds of models: how they are made, and how a user loads them


def frozen_encoder():
    model = make_encoder()
    model.bert.embeddings.requires_grad_(False)
    return model


def experts():
    """Saved one by one, and held as one tensor."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    return MixtralForCausalLM(config)


def adapter_inside():
    from peft import LoraConfig

    model = make_encoder()
    model.add_adapter(LoraConfig(r=4))
    return model


def prompts():
    from peft import PromptTuningConfig, get_peft_model

    return get_peft_model(
        make_decoder_classifier(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    )


def adapter_of(folder, base, name="default"):
    from peft import PeftModel

    return PeftModel.from_pretrained(base, folder, adapter_name=name)


def with_adapter_inside(folder):
    model = make_encoder()
    model.load_adapter(str(folder))
    return model


def sentences(tmp_path, kind):
    import sentence_transformers
    from sentence_transformers.sentence_transformer import modules

    model = make_encoder() if kind == "CrossEncoder" else make_encoder().base_model
    model.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    if kind == "CrossEncoder":
        return sentence_transformers.CrossEncoder(str(tmp_path / "base"), device="cpu")
    parts = [modules.Transformer(str(tmp_path / "base"))]
    parts += [modules.Pooling(16, "mean"), modules.Dense(16, 8)]
    return sentence_transformers.SentenceTransformer(modules=parts, device="cpu")


class Plain(nn.Module):
    """Of no library, with a tied weight."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(8, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 8, bias=False)
        self.out.weight = self.embed.weight

    @classmethod
    def from_pretrained(cls, folder):
        model = cls()
        model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
        return model


ENCODER, DECODER = BertForSequenceClassification, LlamaForCausalLM
KINDS = {
    "encoder": (make_encoder, ENCODER.from_pretrained),
    "bf16": (lambda: make_encoder().bfloat16(), ENCODER.from_pretrained),
    "frozen": (frozen_encoder, ENCODER.from_pretrained),
    "tied": (tied_decoder, DECODER.from_pretrained),
    "experts": (experts, MixtralForCausalLM.from_pretrained),
    "plain": (Plain, Plain.from_pretrained),
    "LoRA": (with_lora, lambda folder: adapter_of(folder, make_encoder())),
    "LoRA with embeddings": (
        lambda: with_lora(modules_to_save=["word_embeddings"]),
        lambda folder: adapter_of(folder, make_encoder()),
    ),
    "LoRA of another name": (
        lambda: with_lora(adapter="task"),
        lambda folder: adapter_of(folder / "task", make_encoder(), "task"),
    ),
    "LoRA inside": (adapter_inside, with_adapter_inside),
    "prompts": (prompts, lambda folder: adapter_of(folder, make_decoder_classifier())),
}
EVERY_KIND = pytest.mark.parametrize(("make", "by_user"), KINDS.values(), ids=KINDS)


@EVERY_KIND
def test_a_user_loads_what_was_saved(tmp_path, make, by_user):
    model = make()
    folder, expected = save(tmp_path, model)
    assert holds(by_user(folder), expected)
    assert weights_that_differ(model, folder)  # it is not the last step
    assert read_average(folder) == OF_FOUR
    assert [path.name for path in tmp_path.iterdir()] == ["average-4"]


@EVERY_KIND
def test_it_is_loaded_in_place(tmp_path, make, by_user):
    model = make()
    folder, expected = save(tmp_path, model)
    train_a_bit(model, 2, first=5)
    weights = dict(model.named_parameters())
    load_average(folder, model)
    assert are_equal(trained(model), expected)
    assert weights_that_differ(model, folder) == []
    now = dict(model.named_parameters())
    assert all(now[name] is weight for name, weight in weights.items())  # the optimizer's


@pytest.mark.parametrize("kind", ["SentenceTransformer", "CrossEncoder"])
def test_sentence_transformers(tmp_path, kind):
    import sentence_transformers

    model = sentences(tmp_path, kind)
    folder, expected = save(tmp_path, model, model.tokenizer)
    assert holds(getattr(sentence_transformers, kind)(str(folder), device="cpu"), expected)
    train_a_bit(model, 2, first=5)
    load_average(folder, model)
    assert are_equal(trained(model), expected)
    assert weights_that_differ(model, folder) == []


@pytest.mark.parametrize("bits", [4, 8])
def test_of_a_quantized_base_only_the_adapter_is_saved(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    make_decoder_classifier(hidden_size=64).save_pretrained(tmp_path / "base")
    load = functools.partial(
        LlamaForSequenceClassification.from_pretrained,
        tmp_path / "base",
        quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}),
        device_map="cpu",
    )
    model = with_lora(prepare_model_for_kbit_training(load()))
    folder, expected = save(tmp_path / "run", model)
    assert not list(folder.glob("model*"))
    assert holds(adapter_of(folder, load()), expected)
    train_a_bit(model, 2, first=5)
    load_average(folder, model)
    assert are_equal(trained(model), expected)


def test_what_is_in_a_folder(tmp_path, tokenizer):
    folder, expected = save(tmp_path, tied_decoder(), tokenizer)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    assert json.loads((folder / AVERAGE_FILE).read_text()) == asdict(OF_FOUR)
    assert load_file(folder / "model.safetensors").keys() == expected.keys()  # tied weights once
    assert read_average(tmp_path) is None
    (folder / AVERAGE_FILE).write_text('{"name": 1')
    assert read_average(folder) is None


def test_a_compiled_model_is_saved_as_the_model_inside(tmp_path):
    model = make_encoder()
    compiled = torch.compile(model, backend="eager")
    folder, _ = save(tmp_path, compiled)
    expected = trained(ENCODER.from_pretrained(folder))
    load_average(folder, compiled)
    assert are_equal(trained(model), expected)


# Errors


def test_weights_that_the_folder_lacks_are_named(tmp_path):
    model = make_encoder()
    folder, _ = save(tmp_path, model)
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.bias"]
    tensors["classifier.weight"] = torch.ones(3, 16)
    tensors["other"] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not fit BertForSequenceClassification") as raised:
        load_average(folder, model)
    assert "not in the folder: classifier.bias, classifier.weight;" in str(raised.value)
    assert "lacks or has in another shape: classifier.weight, other" in str(raised.value)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_average(folder, model)


def test_a_frozen_weight_may_be_missing(tmp_path):
    model = Plain()
    model.hidden.bias.requires_grad_(False)
    folder, expected = save(tmp_path, model)
    tensors = load_file(folder / "model.safetensors")
    del tensors["hidden.bias"]
    save_file(tensors, folder / "model.safetensors")
    load_average(folder, model)
    assert are_equal(trained(model), expected)


# Crashes


class Failing:
    """A tokenizer that can't be written."""

    def save_pretrained(self, folder):
        Path(folder, "tokenizer.json").write_text("{")
        raise OSError("no space left on device")


def test_a_failed_write_leaves_the_earlier_folder(tmp_path):
    model = make_encoder()
    folder, expected = save(tmp_path, model)
    train_a_bit(model, 1, first=9)
    for step in (4, 5):
        with pytest.raises(OSError, match="no space left"):
            save_average(average_folder(tmp_path, step), model, Failing(), OF_FOUR)
    assert holds(ENCODER.from_pretrained(folder), expected)
    assert list(find_averages(tmp_path)) == [4]
    save_average(folder, model, None, Average("recent", 1, 9, 5))
    assert weights_that_differ(model, folder) == []  # replaced
    assert read_average(folder).last_step == 9
    assert [path.name for path in tmp_path.iterdir()] == ["average-4"]


KILLED = """
import os
import signal
import sys
import time

import torch
from conftest import make_encoder
from safetensors.torch import load_file

from sepstop.runs.average_files import average_folder, find_averages, read_average, save_average
from sepstop.types import Average


def save_again_and_again(run, count):
    model, parent = make_encoder(), os.getppid()
    while os.getppid() == parent:
        count += 1
        torch.nn.init.constant_(model.classifier.weight, count)
        folder = average_folder(run, 1 + count % 2)
        save_average(folder, model, None, Average("recent", 1, count, count))


run, unfinished, count = sys.argv[1], 0, 0
for attempt in range(20):
    child = os.fork()
    if child == 0:
        save_again_and_again(run, count)
    while not find_averages(run):
        time.sleep(0.01)
    time.sleep(0.1 + 0.0017 * attempt)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    unfinished += any(name.startswith(".") for name in os.listdir(run))
    found = find_averages(run)
    assert found, os.listdir(run)
    for folder in found.values():
        count = max(count, read_average(folder).count)
        assert (folder / "config.json").is_file()
        tensors = load_file(folder / "model.safetensors")
        assert (tensors["classifier.weight"] == read_average(folder).count).all()
assert unfinished
"""


def test_a_killed_process_leaves_whole_folders(tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    save(tmp_path, make_encoder())
    assert not list(tmp_path.glob(".*"))  # what was left unfinished


# Pruning


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [
        (None, 8, [4, 8, 12, 100]),
        (0, 8, [4, 8, 12, 100]),
        (9, 8, [4, 8, 12, 100]),
        (2, 100, [12, 100]),
        (2, 4, [4, 100]),
        (1, 8, [8]),
        (1, None, [100]),
        (1, 50, [100]),
    ],
)
def test_older_averages_are_removed_and_never_the_best(tmp_path, keep, best, kept):
    others = ["average-last", "checkpoint-4", "my-average-3"]
    for name in [*others, "average-100", "average-4", "average-12", "average-8"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    prune_averages(tmp_path, keep, best)
    assert list(find_averages(tmp_path)) == kept
    names = {f"average-{step}" for step in kept} | set(others)
    assert {path.name for path in tmp_path.iterdir()} == names
