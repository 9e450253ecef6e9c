"""Checkpoints on disk, scored and chosen as the run would have chosen them."""

import functools
import json
import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from conftest import deciding, make_decoder, make_encoder
from helpers.training import train
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
)

from sepstop import Patience, Plateau, SepStopCallback, select_checkpoint
from sepstop.measure.neighbors import NEIGHBORS_FILE
from sepstop.runs.cache import CACHE_FOLDER, ObservationCache
from sepstop.runs.candidates import Candidates
from sepstop.runs.checkpoints import find_checkpoints, find_run
from sepstop.runs.history import HISTORY_FILE, SELECTION_FILE, read_history, read_run
from sepstop.runs.loading import Loading, load_model
from sepstop.runs.plan import resolve
from sepstop.runs.saved_weights import BaseName
from sepstop.runs.select import NothingScoredError

# Checkpoints by themselves; test_averaging.py is about their averages.
select_checkpoints = functools.partial(select_checkpoint, average=False)
OfCheckpoints = functools.partial(SepStopCallback, average=False)

LEARNS = {"max_steps": 80, "learning_rate": 1e-2}


class Norm:
    """A criterion of the user's own."""

    name = "norm"
    higher_is_better = False

    def __repr__(self):
        return "Norm()"  # pytest-xdist needs the same test names in all processes

    def __call__(self, points):
        return points.norm(dim=-1).mean(dim=-1)


def values(records, name):
    return [record.scores[name].value for record in records]


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory, pool):
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    rows = ({"text": text, "label": "secret"} for text in pool)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizer, train_rows, pool_file):
    """A run with settings of its own, stopped by its policy; and its callback."""
    callback = OfCheckpoints(
        pool_file,
        pooling={"name": "cls", "layer": 1},
        policy=Plateau(window=2, tolerance=0.3, warmup=3),
        criterion="separability",
        extra_criteria=["auto"],
        every_n_steps=4,
        num_resamples=7,
        resample_size=25,
        seed=3,
        max_length=10,
    )
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder, tokenizer, train_rows, callback, make_encoder())
    assert callback.decision.stop
    return folder, callback


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def test_the_offline_pick_and_scores_are_the_online_ones(run, finished, pool_file):
    callback = finished[1]
    selection = select_checkpoints(run, pool_file, progress=False)
    assert selection.best_step == selection.online_best_step == callback.decision.best_step
    assert selection.best == run / f"checkpoint-{callback.decision.best_step}"
    assert [r.step for r in selection.records] == [r.step for r in callback.history]
    for offline, online in zip(selection.records, callback.history, strict=True):
        assert offline.scores == online.scores  # to the bit
        assert offline.epoch == pytest.approx(online.epoch)
    assert selection.differences == {}
    left = read_history(run / SELECTION_FILE)
    assert left.records == selection.records
    assert (left.decides, left.decision) == ("separability", selection.decision)


@pytest.mark.parametrize(
    ("online", "decides", "given"),
    [
        ({}, "robust_mi", {}),
        ({"policy": Patience(9)}, "robust_mi", {}),
        ({"criterion": "neighbor_mi"}, "neighbor_mi", {}),
        ({"criterion": "infomax"}, "infomax", {}),
        ({"criterion": {"name": "separability", "normalize": False}}, "separability", {}),
        ({"outputs": "none"}, "component_mi", {}),
        ({"extra_criteria": []}, "robust_mi", {}),
        ({"criterion": Norm()}, "norm", {"criterion": Norm()}),
    ],
    ids=str,
)
def test_what_decided_online_decides_offline(
    tmp_path, tokenizer, train_rows, pool_file, online, decides, given
):
    callback = OfCheckpoints(pool_file, every_n_steps=4, **online)
    options = LEARNS | {"max_steps": 16}
    train(tmp_path, tokenizer, train_rows, callback, make_encoder(), **options)
    assert callback.session.decides == decides
    selection = select_checkpoints(tmp_path, pool_file, progress=False, **given)
    assert selection.decides == read_run(tmp_path).decides == decides
    assert selection.higher_is_better == callback.monitor.higher_is_better
    assert repr([r.scores for r in selection.records]) == repr([r.scores for r in callback.history])
    assert selection.best_step == selection.online_best_step == callback.decision.best_step
    assert selection.differences == {}


def test_what_metric_for_best_model_names_decides_offline_too(tmp_path, make_trainer, pool):
    callback = OfCheckpoints(pool, extra_criteria=["auto", "entropy"])
    names = {"metric_for_best_model": "entropy", "greater_is_better": True}
    make_trainer(callback, load_best_model_at_end=True, **names).train()
    selection = select_checkpoints(tmp_path / "run", pool, progress=False)
    assert selection.decides == callback.session.decides == "entropy"
    assert list(selection.higher_is_better) == ["entropy", "robust_mi"]
    assert [r.scores for r in selection.records] == [r.scores for r in callback.history]
    assert selection.best_step == callback.decision.best_step


# What the user gives wins over what the run recorded


def test_a_policy_is_replayed(run, pool_file, finished):
    policy = finished[1].session.policy
    selection = select_checkpoints(run, pool_file, policy=policy, progress=False)
    assert selection.decision.stop
    assert selection.decision.step == finished[1].decision.step
    hasty = Patience(patience=None, warmup=0, stopping_threshold=0.0)
    first = select_checkpoints(run, pool_file, policy=hasty, progress=False)
    assert first.best_step == first.decision.step == 4


def test_settings_given_win_over_the_recorded_ones(run, pool_file):
    given = {"num_resamples": 3, "pooling": "mean", "extra_criteria": ()}
    selection = select_checkpoints(run, pool_file, progress=False, **given)
    assert {len(deciding(record).resample_values) for record in selection.records} == {3}
    assert selection.settings["pooling"] == {"name": "mean", "layer": -1}
    assert list(selection.higher_is_better) == ["separability"]


def test_a_part_of_the_recorded_settings_can_be_changed(run, pool_file, finished):
    given = {"pooling": {"name": "cls", "layer": 2}}
    expected = select_checkpoints(run, pool_file, progress=False, **given)
    part = select_checkpoints(run, pool_file, pooling={"layer": 2}, progress=False)
    assert part.records[0].scores == expected.records[0].scores
    assert part.records[0].scores != finished[1].history[0].scores
    part = select_checkpoints(run, pool_file, criterion={"normalize": False}, progress=False)
    assert part.settings["criterion"] == {"name": "separability", "normalize": False}
    assert deciding(part.records[0]) != deciding(expected.records[0])


def test_a_criterion_given_decides_beside_the_one_of_the_run(run, pool_file, finished):
    selection = select_checkpoints(run, pool_file, criterion="entropy", progress=False)
    assert selection.decides == "entropy"
    assert list(selection.higher_is_better) == ["entropy", "separability", "robust_mi"]
    entropy = values(selection.records, "entropy")
    assert selection.best_step == selection.series.best_step
    assert selection.series.score_at(selection.best_step).value == max(entropy)
    assert selection.online_best_step == finished[1].decision.best_step
    for offline, online in zip(selection.records, finished[1].history, strict=True):
        assert {name: offline.scores[name] for name in online.scores} == online.scores
    left = read_history(run / SELECTION_FILE)
    assert (left.decides, left.records) == ("entropy", selection.records)


def test_extra_criteria_given_take_the_place_of_the_recorded_ones(run, pool_file):
    extra = ["infomax", "sepstop.bench.criteria:TotalPersistence", Norm]
    selection = select_checkpoints(run, pool_file, extra_criteria=extra, progress=False)
    assert selection.decides == "separability"
    assert selection.higher_is_better == {
        "separability": True,
        "infomax": True,
        "total_persistence": False,
        "norm": False,
    }
    alone = select_checkpoints(run, pool_file, criterion=Norm(), extra_criteria=(), progress=False)
    assert values(alone.records, "norm") == values(selection.records, "norm")
    assert alone.best_step == selection.series_of("norm").best_step


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"criterion": "rankme"}, ValueError, "unknown criterion 'rankme'; .*criteria:RankMe"),
        ({"criterion": {"base": 2}}, ValueError, "'separability' does not take these settings"),
        ({"extra_criteria": "infomax"}, ValueError, "expected a list of criteria"),
        ({"policy": "past"}, ValueError, "unknown policy 'past'"),
        ({"policy": "past_peak", "criterion": Norm}, ValueError, "needs a score that is better wh"),
        ({"resamples": 3}, TypeError, "unexpected keyword argument 'resamples'"),
    ],
    ids=str,
)
def test_what_is_given_wrongly(run, pool_file, given, error, message):
    with pytest.raises(error, match=message):
        select_checkpoints(run, pool_file, progress=False, **given)


# What a run's file names is never imported


def edit_header(run, **settings):
    """Change the settings in a run's history file."""
    path = run / HISTORY_FILE
    header, rest = path.read_text().split("\n", 1)
    values = json.loads(header)
    values["sepstop"]["settings"] |= settings
    path.write_text(json.dumps(values) + "\n" + rest)


@pytest.fixture
def bomb(tmp_path, monkeypatch):
    """A module that leaves a file when it is imported."""
    (tmp_path / "sepstop_bomb.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'boom')!r}).touch()\nArmed = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "boom"


@pytest.mark.parametrize("kind", ["criterion", "pooling"])
def test_a_name_in_a_file_imports_nothing(run, pool_file, bomb, kind):
    edit_header(run, **{kind: {"name": "sepstop_bomb:Armed"}})
    message = f"the run's {kind} is its own, sepstop_bomb:Armed; pass {kind}=, for instance as"
    with pytest.raises(ValueError, match=message):
        select_checkpoints(run, pool_file, progress=False)
    with pytest.raises(ValueError, match=message):  # nor with parameters of the user's
        select_checkpoints(run, pool_file, progress=False, **{kind: {"layer": 2}})
    assert not bomb.exists()


def test_extra_criteria_in_a_file_import_nothing(run, pool_file, bomb):
    edit_header(
        run, extra_criteria=[{"name": "sepstop_bomb:Armed"}, {"custom": "x:y"}, {"name": "infomax"}]
    )
    message = "criteria of its own, which are left out: sepstop_bomb:Armed, x:y; pass extra_crit"
    with pytest.warns(UserWarning, match=message) as caught:
        selection = select_checkpoints(run, pool_file, progress=False)
    assert caught[0].filename == __file__
    assert list(selection.higher_is_better) == ["separability", "infomax"]
    edit_header(run, criterion={"name": "sepstop_bomb:Armed"})
    with pytest.warns(UserWarning, match="are left out: sepstop_bomb:Armed, sepstop_bomb:Armed, x"):
        select_checkpoints(run, pool_file, criterion="separability", progress=False)
    assert not bomb.exists()


def test_a_criterion_and_a_pooling_of_the_user_s_own_are_asked_for(
    tmp_path, tokenizer, train_rows, pool_file
):
    def pooling(model, input_ids, attention_mask):
        backbone = getattr(model, "bert", model)
        return backbone(input_ids, attention_mask).last_hidden_state[:, 0]

    own = {"pooling": pooling, "criterion": Norm()}
    callback = OfCheckpoints(pool_file, **own, every_n_steps=4)
    train(tmp_path, tokenizer, train_rows, callback, make_encoder(), max_steps=8)
    with pytest.raises(ValueError, match=r"criterion is its own, \S*test_select:Norm; pass"):
        select_checkpoints(tmp_path, pool_file, progress=False)
    with pytest.raises(ValueError, match=r"pooling is its own, .*<locals>.pooling; pass"):
        select_checkpoints(tmp_path, pool_file, criterion=Norm(), progress=False)
    with pytest.warns(UserWarning, match="are left out: .*test_select:Norm; pass"):
        other = select_checkpoints(
            tmp_path, pool_file, pooling=pooling, criterion="entropy", progress=False
        )
    assert list(other.higher_is_better) == ["entropy", "separability"]
    selection = select_checkpoints(tmp_path, pool_file, progress=False, **own)
    assert [r.scores for r in selection.records] == [r.scores for r in callback.history]
    assert selection.best_step == callback.decision.best_step


def test_processes_can_not_exchange_what_a_pooling_of_the_user_s_own_gives(run, pool_file):
    given = {"pooling": lambda model, input_ids, attention_mask: model(input_ids).logits}
    plan = resolve(find_run(run), pool_file, Loading(), given, distributed=False)
    with pytest.raises(ValueError, match="of your own can't be divided over processes, which exch"):
        Candidates(plan, ObservationCache(None)).observe_share()


# The folder of a run


def test_the_run_s_own_history_is_left_as_it_is(run, pool_file):
    before = (run / HISTORY_FILE).read_bytes()
    select_checkpoints(run, pool_file, num_resamples=3, progress=False)
    assert (run / HISTORY_FILE).read_bytes() == before
    (run / SELECTION_FILE).unlink()
    select_checkpoints(run, pool_file, write_history=False, progress=False)
    assert not (run / SELECTION_FILE).exists()


def test_another_pool_is_pointed_out_and_still_ranks(run, pool):
    message = "not the pool that the run was monitored with"
    with pytest.warns(UserWarning, match=message) as caught:
        selection = select_checkpoints(run, pool[:20], progress=False)
    assert caught[0].filename == __file__
    assert {record.resample_size for record in selection.records} == {10}


def test_broken_checkpoints_are_skipped_with_the_reason(run, pool_file):
    weights = run / "checkpoint-8" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (run / "checkpoint-12" / "config.json").write_text("{")
    selection = select_checkpoints(run, pool_file, progress=False)
    assert {path.name for path in selection.skipped} == {"checkpoint-8", "checkpoint-12"}
    assert "Safetensor" in selection.skipped[run / "checkpoint-8"]
    assert 8 not in {record.step for record in selection.records}


def test_missing_weights_are_not_made_up(run, encoder):
    path = run / "checkpoint-4" / "model.safetensors"
    tensors = load_file(path)
    del tensors["bert.encoder.layer.0.output.dense.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"missing there, .* bert\.encoder\.layer\.0\.output\.dense\.weight"
    ):
        load_model(path.parent)


def test_pickled_code_is_not_run(run, pool_file):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (run / "boom",))

    for folder in find_checkpoints(run).values():
        (folder / "model.safetensors").unlink()
        torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(NothingScoredError, match=r"none of the .* checkpoints .* could be scored"):
        select_checkpoints(run, pool_file, progress=False)
    assert not (run / "boom").exists()


@pytest.mark.filterwarnings("ignore:sepstop. checkpoint-4. separability nan, in the run's log")
def test_checkpoints_of_nan_rank_last(run, pool_file):
    path = run / "checkpoint-4" / "model.safetensors"
    tensors = {key: torch.full_like(value, math.nan) for key, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.warns(RuntimeWarning, match="embeddings are NaN or infinite at step 4"):
        selection = select_checkpoints(run, pool_file, progress=False)
    assert selection.ranking[-1].step == 4


def test_adapters_are_loaded_onto_their_base(
    tmp_path, tokenizer, train_rows, pool_file, monkeypatch
):
    peft = pytest.importorskip("peft")
    base = tmp_path / "base"
    make_decoder().save_pretrained(base)
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=5, pad_token_id=0)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], r=4)
    callback = OfCheckpoints(
        pool_file, pooling="last", policy=Patience(patience=None), every_n_steps=4
    )
    model = peft.get_peft_model(model, config)
    options = {"max_steps": 12, "learning_rate": 3e-2}
    train(tmp_path / "run", tokenizer, train_rows, callback, model, **options)
    loaded = []
    load = AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(
        AutoModelForSequenceClassification,
        "from_pretrained",
        lambda *args, **kwargs: loaded.append(args) or load(*args, **kwargs),
    )
    selection = select_checkpoints(tmp_path / "run", pool_file, progress=False)
    assert len(loaded) == 1  # the base, for all three
    assert selection.skipped == {}
    for offline, online in zip(selection.records, callback.history, strict=True):
        assert offline.scores.keys() == online.scores.keys()
        for name, score in online.scores.items():
            assert offline.scores[name].resample_values == pytest.approx(
                score.resample_values, abs=1e-5
            )
    assert selection.best_step == callback.decision.best_step

    make_decoder(hidden_size=32).save_pretrained(base)
    with pytest.raises(ValueError, match=r"does not fit .*base: .*another shape .*lora_A"):
        load_model(selection.best)


def test_a_classifier_is_ranked_by_its_mutual_information_as_during_the_run(
    tmp_path, tokenizer, train_rows, pool_file
):
    callback = OfCheckpoints(pool_file, every_n_steps=10)
    options = LEARNS | {"save_steps": 10}
    train(tmp_path, tokenizer, train_rows, callback, make_encoder(), **options)
    selection = select_checkpoints(tmp_path, pool_file, progress=False)
    assert selection.decides == "robust_mi"
    assert selection.reference_step == 0
    online = {record.step: record.scores for record in callback.history}
    assert {record.step: record.scores for record in selection.records} == online
    by_step = {step: scores["robust_mi"].value for step, scores in online.items()}
    assert len(set(by_step.values())) > 2
    assert selection.best_step == callback.decision.best_step == max(by_step, key=by_step.get)
    assert selection.ranking[0].step == selection.best_step
    chosen = select_checkpoints(tmp_path, pool_file, criterion="separability", progress=False)
    assert (chosen.decides, chosen.reference_step) == ("separability", None)
    assert chosen.best_step == chosen.series_of("separability").best_step
    assert values(chosen.records, "robust_mi") == list(by_step.values())


@pytest.mark.filterwarnings("ignore:.* has no trace of the model before training")
def test_the_model_before_training_can_be_named(
    tmp_path, tokenizer, train_rows, pool_file, monkeypatch
):
    """A run without the callback leaves no neighbors; the base of an adapter is known."""
    callback = OfCheckpoints(pool_file, every_n_steps=10)
    options = LEARNS | {"save_steps": 10}
    model = make_encoder()
    model.save_pretrained(tmp_path / "start")
    train(tmp_path / "run", tokenizer, train_rows, callback, model, **options)
    online = values(callback.history, "robust_mi")
    (tmp_path / "run" / NEIGHBORS_FILE).unlink()

    def offline(base_model=None):
        loading = Loading(base_model=base_model)
        found = select_checkpoints(tmp_path / "run", pool_file, loading=loading, progress=False)
        return values(found.records, "robust_mi")

    assert offline(tmp_path / "start") == online
    with pytest.warns(UserWarning, match=r"no trace of the model .* refers to step 10; name"):
        assert offline() != online
    with pytest.raises(ValueError, match=r"the model before training, .*nowhere"):
        offline(tmp_path / "nowhere")
    # One that nobody named and that is gone stops nothing.
    without = offline()
    gone = BaseName("nowhere")
    monkeypatch.setattr("sepstop.runs.select.base_of_adapter", lambda checkpoint: gone)
    assert offline() == without


@pytest.mark.filterwarnings("ignore:.* has no trace of the model before training")
def test_damaged_neighbors_are_no_difference_of_the_models(
    tmp_path, tokenizer, train_rows, pool_file
):
    callback = OfCheckpoints(pool_file, every_n_steps=10)
    options = LEARNS | {"save_steps": 10}
    train(tmp_path, tokenizer, train_rows, callback, make_encoder(), **options)
    (tmp_path / NEIGHBORS_FILE).write_bytes(b"no archive")
    with pytest.warns(UserWarning, match=rf"{NEIGHBORS_FILE} is damaged or of another version"):
        found = select_checkpoints(tmp_path, pool_file, progress=False)
    assert values(found.records, "robust_mi") != values(callback.history, "robust_mi")
    assert found.differences == {}


@pytest.mark.parametrize("adapter", [False, True])
def test_predictions_are_scored_as_during_the_run(
    tmp_path, tokenizer, train_rows, pool_file, adapter
):
    """The head comes along, an adapter's too, which has five classes on a base of two."""
    if adapter:
        peft = pytest.importorskip("peft")
        make_decoder().save_pretrained(tmp_path / "base")
        model = LlamaForSequenceClassification.from_pretrained(
            tmp_path / "base", num_labels=5, pad_token_id=0
        )
        config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=4)
        model = peft.get_peft_model(model, config)
    else:
        model = make_encoder()
    callback = OfCheckpoints(
        pool_file,
        criterion="infomax",
        extra_criteria=["auto", "separability"],
        policy=Patience(None),
        pooling="last",
        every_n_steps=4,
    )
    options = {"max_steps": 12, "learning_rate": 3e-2} if adapter else LEARNS
    train(tmp_path / "run", tokenizer, train_rows, callback, model, **options)
    selection = select_checkpoints(tmp_path / "run", pool_file, progress=False)
    assert selection.skipped == {}
    assert selection.decides == "infomax"
    for offline, online in zip(selection.records, callback.history, strict=True):
        assert offline.scores.keys() == online.scores.keys()
        for name, score in online.scores.items():
            assert offline.scores[name].resample_values == pytest.approx(
                score.resample_values, abs=1e-5
            )
    online = values(callback.history, "robust_mi")
    (tmp_path / "run" / NEIGHBORS_FILE).unlink()
    without = select_checkpoints(tmp_path / "run", pool_file, progress=False).records
    # The base of an adapter is where it started.
    same = values(without, "robust_mi") == pytest.approx(online, abs=1e-5)
    assert same == adapter


def test_predictions_of_a_model_without_a_head_are_an_error(
    tmp_path, encoder, pool_file, tokenizer
):
    encoder.bert.save_pretrained(tmp_path / "checkpoint-1")
    tokenizer.save_pretrained(tmp_path / "checkpoint-1")
    with pytest.raises(
        ValueError, match=r"expected logits of shape \(1, k\), got none from BertModel"
    ):
        select_checkpoints(tmp_path, pool_file, criterion="infomax", progress=False)


def test_a_broken_log_is_passed_over(run, pool_file, finished):
    (run / HISTORY_FILE).unlink()
    newest = run / f"checkpoint-{finished[1].history[-1].step}"
    (newest / "trainer_state.json").write_text('{"log_history": [')
    with pytest.warns(UserWarning, match="is not a trainer state"):
        selection = select_checkpoints(run, pool_file, progress=False)
    assert {len(deciding(record).resample_values) for record in selection.records} == {
        7
    }  # as recorded


@pytest.mark.filterwarnings("ignore:.* has no trace of the model before training")
def test_a_run_that_was_never_monitored(tmp_path, tokenizer, train_rows, pool_file):
    train(tmp_path / "run", tokenizer, train_rows, None, make_encoder(), max_steps=8)
    selection = select_checkpoints(tmp_path / "run", pool_file, progress=False)
    assert [record.step for record in selection.records] == [4, 8]
    assert selection.online_best_step is None
    with pytest.raises(ValueError, match="expected a `name` in the settings of the criterion"):
        select_checkpoints(
            tmp_path / "run", pool_file, criterion={"normalize": False}, progress=False
        )


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "no folder at"),
        ("empty", "expected folders named checkpoint-<step> in .* found nothing"),
        ("file", "no folder at"),
    ],
)
def test_folders_without_checkpoints(run, pool_file, folder, message):
    (run.parent / "empty").mkdir()
    (run.parent / "file").touch()
    with pytest.raises(FileNotFoundError, match=message):
        select_checkpoints(run.parent / folder, pool_file)


def test_checkpoints_may_be_named_one_by_one(run, pool_file):
    whole = select_checkpoints(run, pool_file, cache=False, progress=False)
    found = select_checkpoints(run / "checkpoint-4", pool_file, progress=False)
    assert found.decides == whole.decides == "separability"
    for name, score in whole.records[0].scores.items():
        found_values = found.records[0].scores[name].resample_values
        assert found_values == pytest.approx(score.resample_values)
    assert found.best == run / "checkpoint-4"
    assert not (run / "checkpoint-4" / CACHE_FOLDER).exists()
    assert (run / CACHE_FOLDER).exists()
    assert (run / SELECTION_FILE).read_text().count("\n") > 1  # that is the whole run's


def test_the_weights_can_be_cast(run, pool_file):
    saved = select_checkpoints(run, pool_file, progress=False)
    half = Loading(dtype="float16")
    with (
        pytest.warns(UserWarning, match="weights cast to float16 are not those"),
        pytest.warns(UserWarning, match=r"checkpoint-\d+: separability .* in the run's log"),
    ):
        halved = select_checkpoints(run, pool_file, loading=half, progress=False)
    scores = values(saved.records, "separability")
    assert values(halved.records, "separability") != scores
    assert values(halved.records, "separability") == pytest.approx(scores, abs=0.05)
    again = select_checkpoints(run, pool_file, progress=False)  # the cache tells them apart
    assert values(again.records, "separability") == scores
    with pytest.raises(ValueError, match=r"expected `dtype` among float32, .* got 'int8'"):
        Loading(dtype="int8")


@pytest.mark.parametrize("monitored", [True, False])
def test_the_kept_one_of_tied_checkpoints_can_be_chosen(run, pool_file, monitored):
    settings = {}
    if not monitored:
        for checkpoint in find_checkpoints(run).values():
            (checkpoint / "trainer_state.json").unlink()
        (run / HISTORY_FILE).unlink()
        settings = {"num_resamples": 7, "resample_size": 25, "criterion": "separability"}

    def select(rule=None, **options):
        return select_checkpoints(run, pool_file, ties=rule, progress=False, **settings, **options)

    own = select().online_best_step
    first = min(find_checkpoints(run))
    best = select("best").best_step
    assert own == (best if monitored else None)
    shutil.copytree(run / f"checkpoint-{best}", run / "checkpoint-1")
    shutil.copytree(run / f"checkpoint-{best}", run / "checkpoint-999")
    found = {rule: select(rule) for rule in ("best", "earliest", "latest", None)}
    assert [one.best_step for one in found.values()] == [1, 1, 999, best if monitored else 1]
    for one in found.values():
        assert {1, best, 999} <= {one.best_step, *one.ties}
        assert one.best_step not in one.ties
        assert read_run(run).decision.best_step is not None
    assert "of these the latest is kept, step 999" in found["latest"].decision.reason
    if monitored:
        assert f"the run's own pick is kept, step {best}" in found[None].decision.reason
    replayed = select(policy=Patience(patience=100))
    assert replayed.best_step == 1
    assert replayed.best_step < first
    with pytest.raises(ValueError, match="expected `ties` among best, earliest, latest, got 'any'"):
        select_checkpoints(run, pool_file, ties="any")


def test_offline_scores_have_the_precision_of_the_run(tmp_path, make_trainer, pool):
    callback = OfCheckpoints(pool, policy=Patience(None))
    make_trainer(callback, max_steps=4, learning_rate=1e-2, bf16=True).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="sepstop")
        chosen = select_checkpoints(tmp_path / "run", pool)
    assert [r.scores for r in chosen.records] == [r.scores for r in callback.history]
    assert chosen.settings["precision"] == "bf16"
    with pytest.warns(UserWarning, match="read in precision 'no', but the run read it in 'bf16'"):
        other = select_checkpoints(tmp_path / "run", pool, precision="no")
    assert [r.scores for r in other.records] != [r.scores for r in callback.history]
    with pytest.warns(UserWarning, match="weights cast to bfloat16 are not those that the run"):
        select_checkpoints(tmp_path / "run", pool, loading=Loading(dtype="bfloat16"))
