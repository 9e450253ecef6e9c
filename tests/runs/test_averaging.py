"""Averages of checkpoints on disk: what they are, what is refused, and what is picked."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_decoder, make_encoder, make_monitor
from helpers.walks import mean_of_files, walk
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
)

from sepstop import Monitor, select_checkpoint
from sepstop.runs import candidates as candidates_module
from sepstop.runs.average_files import read_average
from sepstop.runs.averaging import (
    CannotAverageError,
    CheckpointAverages,
    averaged_model,
    averages_of,
    without_misfits,
)
from sepstop.runs.cache import ObservationCache
from sepstop.runs.checkpoints import find_run
from sepstop.runs.loading import load_model
from sepstop.types import CHECKPOINT, Average

pytestmark = pytest.mark.filterwarnings("ignore:.* has no trace of the model before training")

STEPS = [10, 20, 30, 40, 50, 60]

SIZES = {
    1: {},
    2: {"cumulative": 2},
    3: {"cumulative": 3},
    4: {"cumulative": 4},
    5: {"cumulative": 5, "recent": 2},
    6: {"cumulative": 6, "recent": 2},
    7: {"cumulative": 7, "recent": 2},
    8: {"cumulative": 8, "recent": 2},
    9: {"cumulative": 9, "recent": 3},
    10: {"cumulative": 10, "recent": 3},
    11: {"cumulative": 11, "recent": 3},
    12: {"cumulative": 12, "recent": 3},
    13: {"cumulative": 13, "recent": 4},
}
"""Checkpoints so far -> checkpoints in each average: all, and the last quarter, rounded up."""


def paths_of(run):
    return [path for _, path in sorted(find_run(run).checkpoints.items())]


@pytest.fixture(scope="module")
def walked(tmp_path_factory, tokenizer):
    return walk(tmp_path_factory.mktemp("walked") / "run", make_encoder(), tokenizer, count=6)


@pytest.fixture
def run(walked, tmp_path):
    return shutil.copytree(walked, tmp_path / "run")


def select(run, pool, **options):
    return select_checkpoint(run, pool, progress=False, **options)


def numbers(selection):
    return [(record.step, record.scores, record.average) for record in selection.records]


# The weights


def lora(base, **options):
    peft = pytest.importorskip("peft")
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=5, pad_token_id=0)
    settings = {"task_type": "SEQ_CLS", "target_modules": ["q_proj", "v_proj"], "r": 4} | options
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def adapters(tmp_path, **options):
    make_decoder().save_pretrained(tmp_path / "base")
    return walk(tmp_path / "run", lora(tmp_path / "base", **options), count=6)


def biased(tmp_path, bias):
    """Adapters that train biases of the base too."""
    peft = pytest.importorskip("peft")
    make_encoder().save_pretrained(tmp_path / "base")
    base = type(make_encoder()).from_pretrained(tmp_path / "base")
    settings = {"task_type": "SEQ_CLS", "target_modules": ["query"], "r": 4, "bias": bias}
    model = peft.get_peft_model(base, peft.LoraConfig(**settings))
    return walk(tmp_path / "run", model, count=6)


def pickles(tmp_path):
    run = walk(tmp_path / "run", make_encoder(), count=6)
    for path in paths_of(run):
        torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    return run


def tied(tmp_path):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 18}
    model = BertForMaskedLM(BertConfig(intermediate_size=32, **size))
    return walk(tmp_path / "run", model, count=6)


def sentence_transformer(tmp_path, tokenizer):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    make_encoder().base_model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    body = Transformer(str(tmp_path / "bert"))
    model = SentenceTransformer(modules=[body, Pooling(16), Dense(16, 8)], device="cpu")
    return walk(tmp_path / "run", model, count=6)


MAKERS = {
    "whole": lambda path, tokenizer: walk(path, make_encoder(), count=6),
    "sharded": lambda path, tokenizer: walk(path, make_encoder(), count=6, max_shard_size="9KB"),
    "pickles": lambda path, tokenizer: pickles(path),
    "bfloat16": lambda path, tokenizer: walk(path, make_encoder().to(torch.bfloat16), count=6),
    "tied": lambda path, tokenizer: tied(path),
    "adapters": lambda path, tokenizer: adapters(path),
    "biases": lambda path, tokenizer: biased(path, "lora_only"),
    "all biases": lambda path, tokenizer: biased(path, "all"),
    "sentence_transformer": sentence_transformer,
}


@pytest.mark.parametrize("count", SIZES)
def test_the_checkpoints_in_an_average(count):
    paths = [Path(f"checkpoint-{step}") for step in range(1, count + 1)]
    assert averages_of(paths) == {
        name: tuple(paths[count - size :]) for name, size in SIZES[count].items()
    }


@pytest.mark.parametrize("kind", MAKERS)
def test_averages_are_the_means_of_the_files(tmp_path, tokenizer, kind):
    paths = paths_of(MAKERS[kind](tmp_path, tokenizer))
    averages = CheckpointAverages(load_model)
    for count in range(1, 7):
        newest, among = paths[count - 1], {CHECKPOINT: paths[count - 1 : count]}
        among |= {name: paths[count - size : count] for name, size in SIZES[count].items()}
        for name, model in averages.models(newest, among):
            model.save_pretrained(tmp_path / "saved" / f"{count}-{name}")
            files = "*.bin" if kind == "pickles" else "*.safetensors"
            expected = mean_of_files(among.pop(name), files)
            found = mean_of_files([tmp_path / "saved" / f"{count}-{name}"])
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert not among


def test_a_base_is_not_averaged(tmp_path):
    run = adapters(tmp_path)
    before = load_file(tmp_path / "base" / "model.safetensors")
    model = averaged_model(paths_of(run), load_model).unload()
    state = model.state_dict()
    assert all(torch.equal(state[key], before[key]) for key in before if key in state)


def test_an_average_does_not_depend_on_the_way_to_it(tmp_path):
    """At the tenth checkpoint, the sum of the last three goes on without the seventh."""
    paths, passing, jumping = paths_of(walk(tmp_path, make_encoder(), count=10)), [], []
    averages = CheckpointAverages(load_model)
    for count in range(2, 11):
        for _, model in averages.models(paths[count - 1], averages_of(paths[:count])):
            passing.append(nn.utils.parameters_to_vector(model.parameters()).clone())
    for count in range(10, 1, -1):
        for _, model in CheckpointAverages(load_model).models(
            paths[count - 1], averages_of(paths[:count])
        ):
            jumping.append(nn.utils.parameters_to_vector(model.parameters()).clone())
    assert len(passing) == 9 + 6  # cumulative and recent ones
    found = {tuple(weights.tolist()) for weights in passing}
    assert len(found) == 15
    assert found == {tuple(weights.tolist()) for weights in jumping}


def test_a_pass_reads_each_checkpoint_once_and_some_again(tmp_path):
    """One that leaves the last quarter, or that a sum from zero begins with."""
    paths, loaded = paths_of(walk(tmp_path, make_encoder(), count=12)), []

    def load(path):
        loaded.append(path)
        return load_model(path)

    averages, again = CheckpointAverages(load), {2: 1, 5: 4, 6: 5, 7: 6, 8: 7, 10: 7, 11: 8, 12: 9}
    for count in range(1, 13):
        wanted = averages_of(paths[:count]) or {CHECKPOINT: paths[:1]}
        assert [name for name, _ in averages.models(paths[count - 1], wanted)] == [*wanted]
        twice = [paths[again[count] - 1]] if count in again else []
        assert loaded == [*twice, paths[count - 1]]
        loaded.clear()


# What does not belong together


class Normed(nn.Module):
    """A model of the user's own, with statistics."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.norm.running_mean.add_(1), r"norm.running_mean differs from earlier"),
        (lambda model: model.norm.num_batches_tracked.add_(1), "norm.num_batches_tracked differs"),
        (lambda model: model.norm.weight.data.fill_(math.nan), "norm.weight is not finite"),
        (
            lambda model: setattr(model, "norm", nn.BatchNorm1d(3)),
            r"norm.weight has shape \(3,\), in earlier checkpoints \(2,\)",
        ),
        (lambda model: setattr(model, "head", nn.Linear(1, 1)), "head.weight is not in all check"),
        (lambda model: delattr(model, "norm"), "norm.weight is not in all checkpoints"),
    ],
)
def test_weights_that_can_not_be_averaged(tmp_path, change, message):
    models = {tmp_path / "a": Normed(), tmp_path / "b": Normed()}
    models[tmp_path / "a"].norm.weight.data.fill_(3.0)
    [[_, model]] = CheckpointAverages(models.get).models(tmp_path / "b", {"any": [*models]})
    assert model.norm.weight.tolist() == [2.0, 2.0]
    model.norm.weight.data.fill_(1.0)
    change(model)
    with pytest.raises(CannotAverageError, match=message) as caught:
        averaged_model([*models], models.get)
    assert caught.value.checkpoint == tmp_path / "b"


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": 99}, "lora_alpha in adapter_config.json is not that of the newest"),
        ({"base_model_name_or_path": "x/y"}, "base_model_name_or_path in adapter_config.json is"),
        ({"r": 2}, "r in adapter_config.json is not that of the newest checkpoint"),
        ({"target_modules": ["q_proj"]}, "target_modules in adapter_config.json is not that"),
    ],
)
def test_other_adapters_are_in_no_average(tmp_path, changes, message):
    paths = paths_of(adapters(tmp_path))
    edit(paths[0] / "adapter_config.json", target_modules=["v_proj", "q_proj"], peft_version="1")
    assert without_misfits(paths) == (paths, {})
    edit(paths[1] / "adapter_config.json", **changes)
    kept, misfits = without_misfits(paths)
    assert kept == [paths[0], *paths[2:]]
    assert [*misfits] == [paths[1]]
    assert misfits[paths[1]].startswith(message)


def test_the_newest_checkpoint_says_which_model_is_averaged(tmp_path):
    walk(tmp_path, make_encoder(), count=3)
    paths = paths_of(tmp_path)
    make_decoder().save_pretrained(paths[0])  # another architecture
    shutil.copy(paths[1] / "config.json", paths[1] / "adapter_config.json")  # merged or foreign
    paths += [tmp_path / "checkpoint-40", tmp_path / "checkpoint-50"]
    for path in paths[3:]:
        path.mkdir()
    (paths[4] / "config.json").write_text("{")
    assert without_misfits(paths) == (
        [paths[2]],
        {
            paths[3]: "architectures in config.json is not that of the newest checkpoint",
            paths[4]: "its configuration can't be read",
            paths[0]: "architectures in config.json is not that of the newest checkpoint",
            paths[1]: "architectures in adapter_config.json is not that of the newest checkpoint",
        },
    )


def test_a_setting_of_none_is_not_a_missing_one(tmp_path):
    paths = paths_of(walk(tmp_path, make_encoder(), count=4))
    edit(paths[0] / "config.json", of_ones_own=None)
    (paths[1] / "modules.json").write_text("null")
    (paths[3] / "modules.json").write_text("[]")
    (paths[2] / "modules.json").write_text("[]")
    assert without_misfits(paths) == (
        paths[2:],
        {
            paths[0]: "modules.json is not that of the newest checkpoint",
            paths[1]: "modules.json is not that of the newest checkpoint",
        },
    )
    for path in paths[1:]:
        (path / "modules.json").unlink()
    assert without_misfits(paths) == (
        paths[1:],
        {paths[0]: "of_ones_own in config.json is not that of the newest checkpoint"},
    )


# The selection


def test_at_each_step_the_best_candidate_is_picked(run, pool):
    """A checkpoint is one where an average would hold it alone."""
    found = select(run, pool, criterion="separability")
    candidates = {
        10: {CHECKPOINT: None},
        20: {"cumulative": Average("cumulative", 10, 20, 2), CHECKPOINT: None},
        30: {"cumulative": Average("cumulative", 10, 30, 3), CHECKPOINT: None},
        40: {"cumulative": Average("cumulative", 10, 40, 4), CHECKPOINT: None},
        50: {
            "cumulative": Average("cumulative", 10, 50, 5),
            "recent": Average("recent", 40, 50, 2),
        },
        60: {
            "cumulative": Average("cumulative", 10, 60, 6),
            "recent": Average("recent", 50, 60, 2),
        },
    }
    assert [record.step for record in found.records] == [*candidates]
    for record in found.records:
        expected = candidates[record.step]
        assert record.candidates.keys() == expected.keys()
        best = max(
            record.candidates, key=lambda name: record.candidates[name]["separability"].value
        )
        assert record.average == expected[best]
        assert record.scores == record.candidates[best]
        first = record.step if record.average is None else record.average.first_step
        assert [path.name for path in found.sources[record.step]] == [
            f"checkpoint-{step}" for step in range(first, record.step + 1, 10)
        ]
    assert found.decision.reason.startswith("best separability of 6 steps")


def test_of_averages_the_best_is_kept_and_of_checkpoints_the_earliest_tie(run, pool):
    found = select(run, pool, criterion="separability")
    assert found.best_step == found.series.best_step > min(found.ties)
    assert "is kept" not in found.decision.reason
    earliest = select(run, pool, criterion="separability", ties="earliest")
    assert earliest.best_step == min(found.ties)
    alone = select(run, pool, criterion="separability", average=False)
    assert alone.best_step < min(alone.series.best_step, *alone.ties)
    assert alone.decision.reason.endswith(f"the earliest is kept, step {alone.best_step}")


def test_checkpoints_may_be_candidates_too(run, pool):
    alone = select(run, pool, average=False, criterion="separability")
    both = select(run, pool, score_checkpoints=True, criterion="separability")
    for record, checkpoint in zip(both.records, alone.records, strict=True):
        assert record.candidates[CHECKPOINT]["separability"] == checkpoint.scores["separability"]
        values = {name: s["separability"].value for name, s in record.candidates.items()}
        assert max(values.values()) == next(iter(values.values()))
    assert len({name for record in both.records for name in record.candidates}) == 3
    assert all(record.average is None and not record.others for record in alone.records)


def test_the_scores_are_those_of_the_averaged_weights(run, pool, tokenizer):
    found = select(run, pool, criterion="separability", ties="latest")
    for record in found.records[1:]:
        weights = mean_of_files(found.sources[record.step])
        model = AutoModelForSequenceClassification.from_pretrained(found.paths[record.step])
        model.load_state_dict(weights, strict=False)
        monitor = make_monitor(pool, criterion="separability", tokenizer=tokenizer)
        assert monitor.measure(model, record.step).scores["separability"].value == pytest.approx(
            record.scores["separability"].value, abs=1e-6
        )


def test_a_broken_checkpoint_is_in_no_average(run, pool):
    whole = select(run, pool, cache=False)
    (run / "checkpoint-30" / "model.safetensors").write_bytes(b"torn")
    found = select(run, pool)
    assert [path.name for path in found.skipped] == ["checkpoint-30"]
    assert [record.step for record in found.records] == [10, 20, 40, 50, 60]
    assert numbers(found)[:2] == numbers(whole)[:2]
    sources = {
        "cumulative": [f"checkpoint-{step}" for step in (10, 20, 40, 50, 60)],
        "recent": ["checkpoint-50", "checkpoint-60"],
    }
    last = found.records[-1]
    assert last.candidates.keys() == sources.keys()
    assert [path.name for path in found.sources[60]] == sources[last.average.name]
    assert last.average.count == len(found.sources[60])
    assert numbers(select(run, pool)) == numbers(found)


def test_weights_that_are_not_finite_are_in_no_average(run, pool):
    path = run / "checkpoint-20" / "model.safetensors"
    tensors = {key: torch.full_like(value, math.nan) for key, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with (
        pytest.warns(RuntimeWarning, match="embeddings are NaN or infinite at step 20"),
        pytest.warns(UserWarning, match="checkpoint-20: in no average, as .* is not finite"),
    ):
        found = select(run, pool)
    assert found.records[1].average is None
    assert all(run / "checkpoint-20" not in found.sources[step] for step in (30, 40, 50, 60))
    assert found.ranking[-1].step == 20


def test_another_architecture_in_the_folder_is_in_no_average(run, pool, tokenizer):
    edit(run / "checkpoint-20" / "config.json", attention_probs_dropout_prob=0.5)
    with pytest.warns(UserWarning, match="checkpoint-20: in no average, as attention_probs_dropou"):
        found = select(run, pool)
    assert found.records[1].average is None
    assert found.records[-1].average.count in (2, 5)


def test_checkpoints_without_an_average_are_chosen_as_checkpoints(run, pool):
    for path in paths_of(run)[:-1]:
        edit(path / "config.json", attention_probs_dropout_prob=0.5)
    with pytest.warns(UserWarning, match="checkpoint-10, .*, checkpoint-50: in no average"):
        found = select(run, pool, criterion="separability")
    alone = select(run, pool, criterion="separability", average=False)
    assert numbers(found) == numbers(alone)
    assert found.decision == alone.decision
    assert found.decision.reason.startswith("best separability of 6 checkpoints")


def test_models_that_may_be_unrelated_are_averaged_only_if_asked(run, pool):
    other = run.parent / "other"
    for path in paths_of(run):
        shutil.copytree(path, other / path.name.replace("checkpoint-", "seed_"))
    with pytest.warns(UserWarning, match="may be of several runs, so they are scored one by one"):
        found = select(other, pool)
    assert all(record.average is None for record in found.records)
    asked = select(other, pool, average=True)
    assert numbers(asked) == numbers(select(run, pool))


@pytest.mark.filterwarnings("ignore:.* has checkpoints of several runs")
def test_checkpoints_of_several_runs_are_not_averaged(run, pool):
    for number, path in enumerate(paths_of(run)):
        rows = {"log_history": [{"step": 1, "loss": number % 2}], "global_step": 10}
        (path / "trainer_state.json").write_text(json.dumps(rows))
        # Written at the same time, so nothing tells which run is newer.
        os.utime(path / "trainer_state.json", ns=(10**18, 10**18))
    with pytest.warns(UserWarning, match="may be of several runs, so they are scored one by one"):
        found = select(run, pool)
    assert all(record.average is None for record in found.records)


def test_a_single_model_has_no_average(run, pool):
    assert select(run / "checkpoint-20", pool).best == run / "checkpoint-20"


# The cache


@pytest.fixture
def loads(monkeypatch):
    """The checkpoints that were loaded."""
    found, load = [], candidates_module.load_model
    monkeypatch.setattr(
        candidates_module, "load_model", lambda path, *more: found.append(path) or load(path, *more)
    )
    return found


def test_a_second_call_loads_nothing(run, pool, loads):
    first = select(run, pool)
    assert loads
    loads.clear()
    again = select(run, pool, num_resamples=7)
    assert loads == []
    assert [record.step for record in again.records] == STEPS
    assert numbers(select(run, pool)) == numbers(first)
    assert loads == []


@pytest.mark.parametrize("stop", [1, 2, 3, 6, 8, 9, 10])
def test_an_interrupted_call_goes_on(run, pool, monkeypatch, stop):
    whole, put, observed = select(run, pool, cache=False), ObservationCache.put, []
    observe = Monitor.observe
    monkeypatch.setattr(Monitor, "observe", lambda *args: observed.append(1) or observe(*args))

    def interrupted(self, *args):
        put(self, *args)
        if len(observed) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(ObservationCache, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        select(run, pool)
    monkeypatch.setattr(ObservationCache, "put", put)
    assert numbers(select(run, pool)) == numbers(whole)
    assert len(observed) == 11


def test_a_run_that_goes_on_observes_only_what_is_new(run, pool, tmp_path, monkeypatch):
    shutil.move(run / "checkpoint-60", tmp_path / "later")
    select(run, pool)
    shutil.move(tmp_path / "later", run / "checkpoint-60")
    observed, observe = [], Monitor.observe
    monkeypatch.setattr(Monitor, "observe", lambda *args: observed.append(1) or observe(*args))
    found = select(run, pool)
    assert len(observed) == 2
    assert numbers(found) == numbers(select(run, pool, cache=False))


def test_files_of_sepstop_in_a_checkpoint_change_nothing(run, pool, loads):
    select(run, pool)
    loads.clear()
    (run / "checkpoint-20" / "sepstop_average_state.safetensors").write_bytes(b"state")
    select(run, pool)
    assert loads == []


# The winner as a folder


def test_the_winner_is_written_as_a_model(run, pool, tmp_path, tokenizer):
    found = select(run, pool, ties="latest")
    assert found.best_record.average is not None
    message = (
        r"the weights to keep, the \w+ average of steps \d+ to \d+, are in no folder yet; write"
    )
    with pytest.raises(ValueError, match=message):
        found.best  # noqa: B018
    written = select(run, pool, ties="latest", output=tmp_path / "new" / "best")
    assert written.best == tmp_path / "new" / "best"
    assert numbers(written) == numbers(found)
    model = AutoModelForSequenceClassification.from_pretrained(written.best)
    expected = mean_of_files(written.sources[written.best_step])
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())
    assert read_average(written.best) == written.best_record.average
    assert AutoTokenizer.from_pretrained(written.best).get_vocab() == tokenizer.get_vocab()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["best"]
    with pytest.raises(ValueError, match="best exists and is not empty; name another folder or"):
        select(run, pool, output=tmp_path / "new" / "best")
    alone = select(written.best, pool, criterion="separability")
    beside = written.series_of("separability").score_at(written.best_step)
    assert alone.pick.value == pytest.approx(beside.value, abs=1e-6)


TRAINING_STATE = (
    "optimizer.pt",
    "optimizer.bin",
    "optimizer_0/__0_0.distcp",
    "pytorch_model_fsdp_0/.metadata",
    "global_step4/zero_pp_rank_0.pt",
    "latest",
    "random_states_0.pkl",
    "rng_state.pth",
    "sepstop_average_state.safetensors",
)


def test_a_checkpoint_is_written_without_the_state_of_the_training(run, pool, tmp_path):
    for path in paths_of(run):
        for name in TRAINING_STATE:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(b"state")
        (path / "trainer_state.json").write_text('{"log_history": []}')
    found = select(run, pool, average=False, output=tmp_path / "best")
    checkpoint = found.paths[found.best_step]
    names = {path.name for path in found.best.iterdir()}
    names.remove("sepstop_copy.json")
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for name in names:
        assert (found.best / name).read_bytes() == (checkpoint / name).read_bytes()


def test_an_average_of_adapters_is_written_as_an_adapter(tmp_path, tokenizer, pool):
    peft = pytest.importorskip("peft")
    make_decoder().save_pretrained(tmp_path / "base")
    run = walk(tmp_path / "run", lora(tmp_path / "base"), tokenizer, count=4)
    found = select(run, pool, ties="latest", output=tmp_path / "best", criterion="consistency")
    assert found.best_record.average is not None
    assert {path.name for path in found.best.glob("*.safetensors")} == {"adapter_model.safetensors"}
    base = LlamaForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=5, pad_token_id=0
    )
    model = peft.PeftModel.from_pretrained(base, found.best)
    held = peft.get_peft_model_state_dict(model)
    expected = mean_of_files(found.sources[found.best_step])
    assert all(torch.equal(held[key], value) for key, value in expected.items())
