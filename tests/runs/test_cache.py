"""Observations of checkpoints on disk: what is new is embedded, and nothing else."""

import functools
import json
import shutil

import pytest
import torch
from conftest import make_encoder, make_monitor
from transformers import BertForSequenceClassification

from sepstop import Monitor, select_checkpoint
from sepstop.measure.embedding import Observation
from sepstop.runs.cache import CACHE_FOLDER, ObservationCache, observation_view
from sepstop.runs.loading import Loading

# Checkpoints by themselves; test_averaging.py is about their averages.
select_checkpoints = functools.partial(select_checkpoint, average=False)

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.* has no trace of the model before training")


@pytest.fixture
def run(tmp_path, tokenizer):
    """Three checkpoints."""
    folder = tmp_path / "run"
    for step in (1, 2, 3):
        make_encoder(seed=step).save_pretrained(folder / f"checkpoint-{step}")
        tokenizer.save_pretrained(folder / f"checkpoint-{step}")
    return folder


@pytest.fixture
def observed(monkeypatch):
    """How many models were observed."""
    seen = []
    observe = Monitor.observe
    monkeypatch.setattr(Monitor, "observe", lambda *args: seen.append(1) or observe(*args))
    return seen


def own_pooling(model, input_ids, attention_mask):
    return model(input_ids, attention_mask, output_hidden_states=True).hidden_states[-1][:, 0]


def numbers(selection):
    return [(record.step, record.scores) for record in selection.records]


def test_a_second_call_embeds_what_is_new(run, pool, observed):
    first = select_checkpoints(run, pool)
    assert len(observed) == 3
    second = select_checkpoints(run, pool)
    assert len(observed) == 3
    assert numbers(second) == numbers(first)
    assert second.decision == first.decision
    make_encoder(seed=9).save_pretrained(run / "checkpoint-2")  # trained anew
    shutil.copytree(run / "checkpoint-1", run / "checkpoint-4")
    third = select_checkpoints(run, pool)
    assert len(observed) == 4  # the fourth is the first once more
    scores = [record.scores["separability"] for record in third.records]
    assert scores[0] == scores[3] == first.records[0].scores["separability"]
    assert scores[1] != first.records[1].scores["separability"]


@pytest.fixture
def passes():
    """The forward passes of whole models, as the batch sizes."""
    sizes = []

    def count(module, args, output):
        if isinstance(module, BertForSequenceClassification):
            sizes.append(len(output.logits))

    # With with_kwargs=True, torch keeps a trace of a removed hook, and torch.compile warns of it.
    handle = torch.nn.modules.module.register_module_forward_hook(count)
    yield sizes
    handle.remove()


def test_any_number_of_criteria_takes_the_passes_of_one(run, pool, passes):
    """Of texts and of their corrupted copies, if one of the criteria looks at those."""
    extra = ["separability", "infomax", "entropy", "sepstop.bench.criteria:StableRank"]
    taken = {}
    for name, also in (("robust_mi", ["consistency", "neighbor_mi"]), ("neighbor_mi", [])):
        passes.clear()
        one = select_checkpoints(run, pool, criterion=name, extra_criteria=(), cache=False)
        alone = list(passes)
        assert [list(record.scores) for record in one.records] == 3 * [[name]]
        passes.clear()
        criteria = [*also, *extra]
        many = select_checkpoints(run, pool, criterion=name, extra_criteria=criteria, cache=False)
        assert passes == alone
        names = [name, *also, "separability", "infomax", "entropy", "stable_rank"]
        assert [list(record.scores) for record in many.records] == 3 * [names]
        for few, more in zip(one.records, many.records, strict=True):
            assert few.scores[name] == more.scores[name]
        taken[name] = sum(alone)
    assert taken["neighbor_mi"] >= 3 * len(pool)
    assert taken["robust_mi"] == taken["neighbor_mi"] + 3 * len(pool)


def test_another_criterion_runs_no_model(run, pool, passes):
    select_checkpoints(run, pool)
    passes.clear()
    found = select_checkpoints(run, pool, criterion="entropy", extra_criteria=["infomax"])
    assert passes == []
    assert (found.decides, len(found.records)) == ("entropy", 3)


def test_another_criterion_embeds_nothing(run, pool, observed):
    select_checkpoints(run, pool)
    found = select_checkpoints(run, pool, criterion="infomax", num_resamples=3)
    assert len(observed) == 3
    uncached = select_checkpoints(run, pool, criterion="infomax", num_resamples=3, cache=False)
    assert len(observed) == 6
    assert numbers(found) == numbers(uncached)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 9},
        {"pooling": "cls"},
        {"padding": False},
    ],
)
def test_what_looks_otherwise_is_observed_again(run, pool, observed, options):
    select_checkpoints(run, pool)
    select_checkpoints(run, pool, **options)
    assert len(observed) == 6
    select_checkpoints(run, pool[1:], **options)
    assert len(observed) == 9


def test_corrupted_texts_are_observed_once_they_are_needed(run, pool, observed):
    predictions = {"criterion": "infomax", "extra_criteria": ()}
    select_checkpoints(run, pool, **predictions)
    assert len(observed) == 3
    found = select_checkpoints(run, pool)
    assert len(observed) == 6
    select_checkpoints(run, pool, criterion="consistency")
    select_checkpoints(run, pool, **predictions)
    assert len(observed) == 6
    assert numbers(found) == numbers(select_checkpoints(run, pool, cache=False))


def test_outputs_may_be_named_anew_after_they_were_cached(run, pool, observed):
    """Labels need no corrupted texts, classes do."""
    for outputs, passes in (("labels", 3), ("none", 3), ("classes", 6), ("labels", 6)):
        found = select_checkpoints(run, pool, outputs=outputs)
        assert len(observed) == passes
        assert all(score.is_finite for score in found.series.scores)


@pytest.mark.parametrize("outputs", ["auto", "classes", "labels", "none"])
def test_the_view_does_not_depend_on_the_models_so_far(pool, tokenizer, encoder, outputs):
    monitor = make_monitor(pool, tokenizer=tokenizer, outputs=outputs)
    before = observation_view(monitor, Loading())
    monitor.measure(encoder, 1)
    assert observation_view(monitor, Loading()) == before
    other = make_monitor(pool, tokenizer=tokenizer, criterion="infomax", extra_criteria=())
    assert observation_view(other, Loading()) == before


def test_an_interrupted_call_goes_on(run, pool, observed, monkeypatch):
    whole = select_checkpoints(run, pool, cache=False)
    observed.clear()
    put = ObservationCache.put

    def interrupted(self, *args):
        put(self, *args)
        if len(observed) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ObservationCache, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        select_checkpoints(run, pool)
    monkeypatch.setattr(ObservationCache, "put", put)
    assert numbers(select_checkpoints(run, pool)) == numbers(whole)
    assert len(observed) == 3


def test_the_cache_may_lie_elsewhere_or_nowhere(run, pool, tmp_path):
    select_checkpoints(run, pool, cache=False)
    assert not (run / CACHE_FOLDER).exists()
    select_checkpoints(run, pool, cache=tmp_path / "there")
    assert not (run / CACHE_FOLDER).exists()
    assert len(list((tmp_path / "there").glob("*.npz"))) == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", "other", "pickle"])
def test_a_broken_file_is_as_good_as_none(run, pool, observed, content):
    import numpy as np

    first = select_checkpoints(run, pool)
    for path in (run / CACHE_FOLDER).iterdir():
        if content == "other":
            np.savez(path, something=np.arange(3))
        elif content == "pickle":
            np.savez(path, points=np.array([print], dtype=object))
        else:
            path.write_bytes(content)
    assert numbers(select_checkpoints(run, pool)) == numbers(first)
    assert len(observed) == 6


def test_a_base_is_a_part_of_its_adapter(tmp_path):
    """Of one with a name of its own too; another base may be named in the recorded one's place."""
    base, checkpoint = tmp_path / "base", tmp_path / "run" / "checkpoint-1"
    for folder, content in ((base, "a"), (tmp_path / "moved", "b"), (tmp_path / "run", "c")):
        folder.mkdir()
        (folder / "model.safetensors").write_text(content)
    (checkpoint / "topics").mkdir(parents=True)
    config = checkpoint / "topics" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(base)}))
    contents = ObservationCache(None).content
    found = {
        contents(checkpoint),
        contents(checkpoint, tmp_path / "moved"),
        contents(checkpoint, tmp_path / "run"),  # as some save their base
        contents(checkpoint, "org/model"),
    }
    (base / "model.safetensors").write_text("changed")
    assert len({*found, ObservationCache(None).content(checkpoint)}) == 5


def test_a_model_class_of_ones_own_is_asked_every_time(run, pool, observed):
    loading = Loading(model_class="transformers:BertForSequenceClassification")
    for _ in range(2):
        select_checkpoints(run, pool, loading=loading)
    assert len(observed) == 6
    assert not (run / CACHE_FOLDER).exists()


def test_a_pooling_of_ones_own_is_asked_every_time(run, pool, observed):
    def local(*inputs):
        return own_pooling(*inputs)

    for _ in range(2):
        select_checkpoints(run, pool, pooling=local)
    named = f"{__name__}:own_pooling"  # its code may change between two calls
    for _ in range(2):
        select_checkpoints(run, pool, pooling=named)
    assert len(observed) == 12
    assert not (run / CACHE_FOLDER).exists()


def test_a_folder_that_can_not_be_written_is_a_warning(run, pool):
    (run / CACHE_FOLDER).write_text("a file where the folder would be")
    with pytest.warns(RuntimeWarning, match="could not write"):
        assert select_checkpoints(run, pool).best_step


def test_what_is_put_comes_back(tmp_path):
    store = ObservationCache(tmp_path / "new")
    assert store.get("a" * 64, CPU) is None
    seen = Observation(torch.randn(4, 3), None, torch.randn(4, 2))
    store.put("a" * 64, seen)
    found = store.get("a" * 64, CPU)
    assert torch.equal(found.points, seen.points)
    assert found.logits is None
    assert torch.equal(found.corrupted_logits, seen.corrupted_logits)
    assert store.get("b" * 64, CPU) is None
