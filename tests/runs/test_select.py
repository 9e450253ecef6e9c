"""Checkpoints on disk, through the function and through the command."""

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import make_decoder, make_encoder, make_wider_decoder
from transformers import (
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
)
from typer.testing import CliRunner

from sepstop import Patience, Plateau, SepStopCallback, select_checkpoint
from sepstop.cli.main import app
from sepstop.measure.neighbors import NEIGHBORS_FILE
from sepstop.report.figures import history_of
from sepstop.runs.cache import STORE
from sepstop.runs.checkpoints import find_checkpoints
from sepstop.runs.history import HISTORY_FILE, SELECTION_FILE, read_history
from sepstop.runs.loading import load_model


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory, pool):
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    rows = ({"text": text, "label": "secret"} for text in pool)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(output_dir, tokenizer, rows, callback, model, **options):
    defaults = {
        "max_steps": 40,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "eval_strategy": "no",
        "save_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(output_dir), **(defaults | options)),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[callback] if callback else None,
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizer, train_rows, pool_file):
    """A run with settings of its own, stopped by its policy; and its callback."""
    callback = SepStopCallback(
        pool_file,
        embedder={"name": "cls", "layer": 1},
        policy=Plateau(window=2, tolerance=0.3, warmup=3),
        every_n_steps=4,
        resamples=7,
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
    selection = select_checkpoint(run, pool_file, progress=False)
    assert selection.best_step == selection.online_best_step == callback.decision.best_step
    assert selection.best == run / f"checkpoint-{callback.decision.best_step}"
    assert [r.step for r in selection.records] == [r.step for r in callback.history]
    for offline, online in zip(selection.records, callback.history, strict=True):
        assert offline.resamples == pytest.approx(online.resamples, abs=1e-6)
        assert offline.epoch == pytest.approx(online.epoch)
    assert repr(read_history(run / SELECTION_FILE)) == repr(list(selection.records))


def test_a_policy_is_replayed(run, pool_file, finished):
    policy = finished[1].policy
    selection = select_checkpoint(run, pool_file, policy=policy, progress=False)
    assert selection.decision.stop
    assert selection.decision.step == finished[1].decision.step
    hasty = Patience(patience=None, warmup=0, target=0.0)
    first = select_checkpoint(run, pool_file, policy=hasty, progress=False)
    assert first.best_step == first.decision.step == 4


def test_ranking_is_from_best_to_worst(run, pool_file):
    selection = select_checkpoint(run, pool_file, progress=False)
    scores = [record.score for record in selection.ranking]
    assert scores == sorted(scores, reverse=True)
    assert selection.ranking[0].step == selection.best_step


def test_settings_given_win_over_the_recorded_ones(run, pool_file):
    selection = select_checkpoint(run, pool_file, resamples=3, embedder="mean", progress=False)
    assert {len(record.resamples) for record in selection.records} == {3}


def test_a_part_of_the_embedder_s_settings_changes_the_recorded_one(run, pool_file, finished):
    given = {"embedder": {"name": "cls", "layer": 2}}
    expected = select_checkpoint(run, pool_file, progress=False, **given)
    part = select_checkpoint(run, pool_file, embedder={"layer": 2}, progress=False)
    assert part.records[0].resamples == expected.records[0].resamples
    assert part.records[0].resamples != finished[1].history[0].resamples


def test_an_embedder_that_settings_can_not_make_again_is_asked_for(
    tmp_path, tokenizer, train_rows, pool_file
):
    def embedder(model, input_ids, attention_mask):
        backbone = getattr(model, "bert", model)
        return backbone(input_ids, attention_mask).last_hidden_state[:, 0]

    callback = SepStopCallback(pool_file, embedder=embedder, every_n_steps=4)
    folder = tmp_path / "run"
    train(folder, tokenizer, train_rows, callback, make_encoder(), max_steps=8)
    with pytest.raises(ValueError, match=r"embedder is its own, .*<locals>.embedder; pass"):
        select_checkpoint(folder, pool_file, progress=False)
    selection = select_checkpoint(folder, pool_file, embedder=embedder, progress=False)
    assert selection.best_step == callback.decision.best_step


def test_the_run_s_own_history_is_left_as_it_is(run, pool_file, finished):
    select_checkpoint(run, pool_file, resamples=3, progress=False)
    assert read_history(run / HISTORY_FILE) == finished[1].history


def test_another_pool_is_pointed_out_and_still_ranks(run, pool):
    with pytest.warns(UserWarning, match="not the pool that the run was monitored with"):
        selection = select_checkpoint(run, pool[:20], progress=False)
    assert {record.resample_size for record in selection.records} == {10}


def test_broken_checkpoints_are_skipped_with_the_reason(run, pool_file):
    weights = run / "checkpoint-8" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (run / "checkpoint-12" / "config.json").write_text("{")
    selection = select_checkpoint(run, pool_file, progress=False)
    assert {path.name for path in selection.skipped} == {"checkpoint-8", "checkpoint-12"}
    assert "Safetensor" in selection.skipped[run / "checkpoint-8"]
    assert 8 not in {record.step for record in selection.records}


def test_missing_weights_are_not_made_up(run, encoder):
    from safetensors.torch import load_file, save_file

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
    with pytest.raises(ValueError, match=r"none of the .* checkpoints .* could be scored"):
        select_checkpoint(run, pool_file, progress=False)
    assert not (run / "boom").exists()


def test_checkpoints_of_nan_rank_last(run, pool_file):
    from safetensors.torch import load_file, save_file

    path = run / "checkpoint-4" / "model.safetensors"
    tensors = {key: torch.full_like(value, math.nan) for key, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.warns(RuntimeWarning, match="embeddings are NaN or infinite at step 4"):
        selection = select_checkpoint(run, pool_file, progress=False)
    assert selection.ranking[-1].step == 4


def test_adapters_are_loaded_onto_their_base(
    tmp_path, tokenizer, train_rows, pool_file, monkeypatch
):
    peft = pytest.importorskip("peft")
    base = tmp_path / "base"
    make_decoder().save_pretrained(base)
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=5, pad_token_id=0)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], r=4)
    callback = SepStopCallback(
        pool_file, embedder="last", policy=Patience(patience=None), every_n_steps=4
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
    selection = select_checkpoint(tmp_path / "run", pool_file, progress=False)
    assert len(loaded) == 1  # the base, for all three
    assert selection.skipped == {}
    for offline, online in zip(selection.records, callback.history, strict=True):
        assert offline.resamples == pytest.approx(online.resamples, abs=1e-5)
    assert selection.best_step == callback.decision.best_step

    make_wider_decoder().save_pretrained(base)
    with pytest.raises(ValueError, match=r"does not fit .*base: .*another shape .*lora_A"):
        load_model(selection.best)


def test_a_classifier_is_ranked_by_its_information_as_during_the_run(
    tmp_path, tokenizer, train_rows, pool_file
):
    callback = SepStopCallback(pool_file, every_n_steps=10)
    options = {"max_steps": 80, "save_steps": 10, "learning_rate": 1e-2}
    train(tmp_path / "run", tokenizer, train_rows, callback, make_encoder(), **options)
    selection = select_checkpoint(tmp_path / "run", pool_file, progress=False)
    assert selection.by_information
    found = {record.step: record.information for record in selection.records}
    online = {record.step: record.information for record in callback.history}
    assert found == pytest.approx({step: online[step] for step in found}, abs=1e-5)
    assert len(set(online.values())) > 1
    assert selection.best_step == callback.decision.best_step == max(online, key=online.get)
    assert selection.ranking[0].step == selection.best_step
    chosen = select_checkpoint(
        tmp_path / "run", pool_file, criterion="separability", progress=False
    )
    assert not chosen.by_information
    assert chosen.best_step == max(chosen.records, key=lambda record: record.score).step


def test_the_model_before_training_can_be_named(
    tmp_path, tokenizer, train_rows, pool_file, monkeypatch
):
    """A run without the callback leaves no neighbours; the base of an adapter is known."""
    callback = SepStopCallback(pool_file, every_n_steps=10)
    options = {"max_steps": 80, "save_steps": 10, "learning_rate": 1e-2}
    model = make_encoder()
    model.save_pretrained(tmp_path / "start")
    train(tmp_path / "run", tokenizer, train_rows, callback, model, **options)
    online = [record.information for record in callback.history]
    (tmp_path / "run" / NEIGHBORS_FILE).unlink()

    def offline(**options):
        found = select_checkpoint(tmp_path / "run", pool_file, progress=False, **options)
        return [record.information for record in found.records]

    assert offline(base_model=tmp_path / "start") == pytest.approx(online, abs=1e-5)
    with pytest.warns(UserWarning, match=r"no trace of the model .* refers to step 10; name"):
        assert offline() != pytest.approx(online, abs=1e-5)
    with pytest.raises(ValueError, match=r"the model before training, .*nowhere"):
        offline(base_model=tmp_path / "nowhere")
    # One that nobody named and that is gone stops nothing.
    without = offline()
    monkeypatch.setattr("sepstop.runs.select._base_of_adapter", lambda checkpoint: "nowhere")
    assert offline() == without


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
    callback = SepStopCallback(
        pool_file, "infomax", Patience(patience=None), "last", every_n_steps=4
    )
    options = {"max_steps": 12 if adapter else 80, "learning_rate": 3e-2 if adapter else 1e-2}
    train(tmp_path / "run", tokenizer, train_rows, callback, model, **options)
    selection = select_checkpoint(tmp_path / "run", pool_file, progress=False)
    assert selection.skipped == {}
    assert selection.records[0].criterion == "infomax"
    for offline, online in zip(selection.records, callback.history, strict=True):
        assert offline.resamples == pytest.approx(online.resamples, abs=1e-5)
    online = [record.information for record in callback.history]
    assert [record.information for record in selection.records] == pytest.approx(online, abs=1e-5)
    (tmp_path / "run" / NEIGHBORS_FILE).unlink()
    without = select_checkpoint(tmp_path / "run", pool_file, progress=False).records
    # The base of an adapter is where it started.
    same = [record.information for record in without] == pytest.approx(online, abs=1e-5)
    assert same == adapter


def test_predictions_of_a_model_without_a_head_are_an_error(
    tmp_path, encoder, pool_file, tokenizer
):
    encoder.bert.save_pretrained(tmp_path / "checkpoint-1")
    tokenizer.save_pretrained(tmp_path / "checkpoint-1")
    with pytest.raises(
        ValueError, match=r"expected logits of shape \(1, k\), got none from BertModel"
    ):
        select_checkpoint(tmp_path, pool_file, criterion="infomax", progress=False)


def test_a_broken_log_is_passed_over(run, pool_file, finished):
    (run / HISTORY_FILE).unlink()
    newest = run / f"checkpoint-{finished[1].history[-1].step}"
    (newest / "trainer_state.json").write_text('{"log_history": [')
    with pytest.warns(UserWarning, match="is no trainer state"):
        selection = select_checkpoint(run, pool_file, progress=False)
    assert {len(record.resamples) for record in selection.records} == {7}  # as recorded


def test_a_run_that_was_never_monitored(tmp_path, tokenizer, train_rows, pool_file):
    train(tmp_path / "run", tokenizer, train_rows, None, make_encoder(), max_steps=8)
    selection = select_checkpoint(tmp_path / "run", pool_file, progress=False)
    assert [record.step for record in selection.records] == [4, 8]
    assert selection.online_best_step is None


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
        select_checkpoint(run.parent / folder, pool_file)


def test_checkpoints_may_be_named_one_by_one(run, pool_file):
    whole = select_checkpoint(run, pool_file, cache=False, progress=False)
    found = select_checkpoint(run / "checkpoint-4", pool_file, progress=False)
    assert found.records[0].resamples == pytest.approx(whole.records[0].resamples)
    assert found.best == run / "checkpoint-4"
    assert not (run / "checkpoint-4" / STORE).exists()
    assert (run / STORE).exists()
    assert (run / SELECTION_FILE).read_text().count("\n") > 1  # that is the whole run's


def test_the_weights_may_be_taken_otherwise(run, pool_file):
    saved = select_checkpoint(run, pool_file, progress=False)
    halved = select_checkpoint(run, pool_file, dtype="float16", progress=False)
    scores = [record.score for record in saved.records]
    assert [record.score for record in halved.records] != scores
    assert [record.score for record in halved.records] == pytest.approx(scores, abs=0.05)
    assert select_checkpoint(run, pool_file, progress=False).records[0].score == scores[0]
    with pytest.raises(ValueError, match=r"expected `dtype` among float32, .* got 'int8'"):
        select_checkpoint(run, pool_file, dtype="int8")


@pytest.mark.parametrize("monitored", [True, False])
def test_ties_are_told_and_the_rule_among_them_can_be_chosen(run, pool_file, monitored):
    settings = {}
    if not monitored:
        for checkpoint in find_checkpoints(run).values():
            (checkpoint / "trainer_state.json").unlink()
        (run / HISTORY_FILE).unlink()
        settings = {"resamples": 7, "resample_size": 25, "criterion": "separability"}

    def select(rule=None, **options):
        return select_checkpoint(run, pool_file, ties=rule, progress=False, **settings, **options)

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
        assert history_of(run).decision.best_step is not None
    assert "of all which the latest is kept, step 999" in found["latest"].decision.reason
    if monitored:
        assert f"the run's own pick is kept, step {best}" in found[None].decision.reason
    replayed = select(policy=Patience(patience=100))
    assert replayed.best_step == 1
    assert replayed.best_step < first
    with pytest.raises(ValueError, match="expected `ties` among best, earliest, latest, got 'any'"):
        select_checkpoint(run, pool_file, ties="any")


# The command


def sepstop(*arguments):
    return CliRunner().invoke(app, ["select", *map(str, arguments)])


def test_the_command_prints_the_ranking_and_the_pick(run, pool_file, finished):
    result = sepstop(run, "--pool", pool_file)
    assert result.exit_code == 0, result.output
    assert f"keep {run / f'checkpoint-{finished[1].decision.best_step}'}" in result.stdout
    assert "the run itself kept the same" in result.stdout
    assert "◀ pick" in result.stdout


def test_the_command_speaks_json(run, pool_file, finished):
    shutil.copy(run / "checkpoint-4" / "config.json", run / "checkpoint-4" / "x")
    (run / "checkpoint-4" / "model.safetensors").write_bytes(b"")
    result = sepstop(run, "--pool", pool_file, "--json", "--embedder", "mean", "--layer", "1")
    answer = json.loads(result.stdout)
    steps = [row["step"] for row in answer["ranking"]]
    assert steps[0] in (answer["best_step"], *answer["ties"])
    kept = answer["ranking"][steps.index(answer["best_step"])]
    assert answer["best_checkpoint"] == kept["checkpoint"]
    assert list(answer["skipped"]) == [str(run / "checkpoint-4")]
    assert "skipped checkpoint-4" in result.stderr


def command(*arguments):
    result = CliRunner().invoke(app, ["select", *map(str, arguments)])
    return result, result.output


def test_several_runs_are_compared_on_one_pool(run, pool_file, tmp_path, tokenizer, train_rows):
    other = tmp_path / "other"
    callback = SepStopCallback(
        pool_file,
        embedder={"name": "cls", "layer": 1},
        policy=Plateau(),
        every_n_steps=4,
        resamples=7,
        resample_size=25,
        seed=3,
        max_length=10,
    )
    train(other, tokenizer, train_rows, callback, make_encoder(seed=5), max_steps=12)
    result, _ = command(run, other, "--pool", pool_file, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    best = [max(r["score"] for r in one["ranking"]) for one in found["runs"]]
    winner = found["runs"][best.index(max(best))]["best_checkpoint"]
    assert found["best_checkpoint"] == winner
    _, said = command(run, other, "--pool", pool_file)
    assert f"of all, keep {winner}" in said


def test_runs_that_may_not_compare_are_said(run, pool_file, tmp_path, tokenizer, train_rows):
    other = tmp_path / "other"
    callback = SepStopCallback(pool_file, policy=Plateau(), every_n_steps=4, resamples=7)
    train(other, tokenizer, train_rows, callback, make_encoder(seed=5), max_steps=8)
    result, _ = command(run, other, "--pool", pool_file)
    assert "the runs have another embedder, so their scores may not compare" in " ".join(
        result.stderr.split()
    )
    informed = SepStopCallback(pool_file, every_n_steps=4)
    train(other, tokenizer, train_rows, informed, make_encoder(seed=5), max_steps=8)
    result, _ = command(run, other, "--pool", pool_file)
    assert result.exit_code == 2
    assert "decided by different scores, information of classes and separability" in " ".join(
        result.stderr.split()
    )
    traceless = Path(shutil.copytree(other, tmp_path / "traceless"))
    (traceless / NEIGHBORS_FILE).unlink()
    result, _ = command(traceless, other, "--pool", pool_file)
    assert result.exit_code == 0
    assert "the runs have other first neighbors to refer to" in " ".join(result.stderr.split())


def test_more_criteria_and_fewer_rows(run, pool_file):
    options = ["--pool", pool_file, "--criteria", "infomax, total_persistence", "--top", "2"]
    result, _ = command(run, *options, "--no-cache", "--json")
    assert result.exit_code == 0, result.output
    assert not (run / "sepstop_cache").exists()
    found = json.loads(result.stdout)
    assert len(found["ranking"]) == 2
    alone = select_checkpoint(run, pool_file, criterion="total_persistence")
    other = found["also"]["total_persistence"]
    assert other["best_step"] == alone.best_step
    assert not other["higher_is_better"]
    assert list(other["scores"].values()) == [record.score for record in alone.records]
    _, said = command(run, *options)
    assert "infomax" in said
    assert (run / "sepstop_cache").is_dir()


def test_a_link_to_the_checkpoint_to_keep(run, pool_file, tmp_path):
    link = tmp_path / "new" / "best"
    for _ in range(2):  # the second takes the first one's place
        result, _ = command(run, "--pool", pool_file, "--link", link)
        assert result.exit_code == 0, result.output
        assert link.resolve() == select_checkpoint(run, pool_file).best.resolve()
    link.unlink()
    link.mkdir()
    result, _ = command(run, "--pool", pool_file, "--link", link)
    assert result.exit_code == 2
    assert "is there already and no link" in " ".join(result.stderr.split())


def test_a_section_for_the_model_card(run, finished, tmp_path, encoder):
    result = CliRunner().invoke(app, ["card", str(run)])
    assert result.exit_code == 0, result.output
    callback = finished[1]
    best = next(r for r in callback.history if r.step == callback.decision.best_step)
    assert f"those of step {best.step}, of {callback.history[-1].step} that were" in result.output
    assert f"| {best.score:.4f} [{best.low:.4f}, {best.high:.4f}] |" in result.output
    assert callback.decision.reason in result.output
    assert "(cls, layer 1)" in result.output
    assert "The policy (plateau, " in result.output
    figure = tmp_path / "card" / "scores.svg"
    figure.parent.mkdir()
    result = CliRunner().invoke(app, ["card", str(run), "--figure", str(figure)])
    assert "](scores.svg)" in result.output
    assert "<svg" in figure.read_text()
    encoder.save_pretrained(tmp_path / "plain" / "checkpoint-1")
    for folder in (tmp_path / "plain", tmp_path / "none"):
        result = CliRunner().invoke(app, ["card", str(folder)])
        assert result.exit_code == 2
        assert result.stderr.startswith("sepstop: no ")


@pytest.mark.parametrize("options", [{}, {"criterion": "total_persistence"}])
def test_what_was_chosen_afterwards_is_told_alike(
    tmp_path, tokenizer, train_rows, pool_file, options
):
    run = tmp_path / "run"
    train(run, tokenizer, train_rows, None, make_encoder(), max_steps=16)
    selection = select_checkpoint(run, pool_file, progress=False, **options)
    shown, decision = history_of(run), selection.decision
    assert repr(shown.records) == repr(selection.records)
    assert shown.decision == decision
    assert shown.by_information == selection.by_information
    assert shown.settings == selection.settings
    said = CliRunner().invoke(app, ["card", str(run)]).output
    assert f"The choice: {decision.reason}" in " ".join(said.split())
    assert f"those of step {selection.best_step}, of 16" in said


def test_a_picture_of_a_run(run, finished, tmp_path):
    shown = history_of(run)
    assert not shown.by_information
    assert list(shown.records) == finished[1].history
    assert shown.decision == finished[1].decision
    picture = tmp_path / "run.png"
    result = CliRunner().invoke(app, ["plot", str(run), "-o", str(picture)])
    assert result.exit_code == 0, result.output
    assert picture.stat().st_size > 5000
    for checkpoint in find_checkpoints(run).values():
        shutil.rmtree(checkpoint)
    assert history_of(run) == shown
    result = CliRunner().invoke(app, ["plot", str(tmp_path)])
    assert result.exit_code == 2
    assert "no scores in" in result.stderr


def test_errors_are_a_sentence_and_status_two(run, pool_file):
    result = sepstop(run, "--pool", pool_file, "--text-column", "body")
    assert result.exit_code == 2
    assert "no column 'body'" in " ".join(result.stderr.split())
    assert "text, label" in result.stderr
    assert "Traceback" not in result.output
    assert sepstop(run.parent / "none", "--pool", pool_file).exit_code == 2
    assert sepstop(run, "--pool", pool_file, "--ties", "first").exit_code == 2
    assert sepstop(run, "--pool", run / "none.txt").exit_code == 2
    result = sepstop(run, "--pool", pool_file, "--device", "gpu")
    assert result.exit_code == 2
    assert "no device gpu" in result.stderr
    (run / "tokenizer.json").write_text("{")
    (run / "tokenizer_config.json").write_text("{}")
    result = sepstop(run, "--pool", pool_file, "--tokenizer", run)
    assert result.exit_code == 2
    assert "no tokenizer loads from" in " ".join(result.stderr.split())


def test_an_adapter_a_moved_base_and_a_class_are_named(tmp_path, tokenizer, pool_file):
    peft = pytest.importorskip("peft")
    make_encoder().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=4)
    model = peft.get_peft_model(base, config, adapter_name="topics")
    model.add_adapter("other", config)
    for step in (1, 2):
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
        tokenizer.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    (tmp_path / "base").rename(tmp_path / "moved")
    arguments = [tmp_path / "run", "--pool", pool_file]
    result, said = command(*arguments)
    assert result.exit_code == 2
    assert "2 adapters, other, topics, and does not say" in " ".join(said.split())
    result, said = command(*arguments, "--adapter", "topics")
    assert result.exit_code == 2
    assert "can't be read; if it is somewhere else" in " ".join(said.split())
    named = ["--adapter", "topics", "--base-model", tmp_path / "moved"]
    result, said = command(*arguments, *named)
    assert result.exit_code == 0, said
    result, said = command(*arguments, *named, "--model-class", "transformers:BertModel")
    assert result.exit_code == 2
    assert "MisfitError: the adapter does not fit BertModel" in " ".join(said.split())


def test_the_exit_status_tells_of_skipped_checkpoints_if_asked(run, pool_file):
    (run / "checkpoint-4" / "model.safetensors").write_bytes(b"torn")
    assert sepstop(run, "--pool", pool_file).exit_code == 0
    result = sepstop(run, "--pool", pool_file, "--strict")
    assert result.exit_code == 3
    assert "skipped checkpoint-4" in result.stderr


def test_an_interrupted_command_says_that_it_goes_on(run, pool_file, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sepstop.runs.select.choose", interrupted)
    result = sepstop(run, "--pool", pool_file)
    assert result.exit_code == 130
    assert "what was embedded is kept" in " ".join(result.stderr.split())


def test_models_by_themselves_share_a_table(run, pool_file, tmp_path):
    names = [run / "checkpoint-4", run / "checkpoint-8"]
    result = sepstop(*names, "--pool", pool_file, "--criteria", "stable_rank")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("95 % interval") == 1
    assert "◀ best" in result.stdout
    listed = tmp_path / "models.txt"
    listed.write_text("run/checkpoint-4\nrun/checkpoint-8\n")
    again = json.loads(sepstop(listed, "--pool", pool_file, "--json").stdout)
    assert again["best_checkpoint"].endswith(("checkpoint-4", "checkpoint-8"))
    assert len(again["runs"]) == 2


def test_processes_divide_the_checkpoints(run, pool_file):
    """As one process, also without a cache that outlives the call, and with a broken checkpoint."""
    (run / "checkpoint-8" / "model.safetensors").write_bytes(b"torn")
    one = json.loads(sepstop(run, "--pool", pool_file, "--no-cache", "--json").stdout)
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    options = ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    command = ["-m", "sepstop", "select", str(run), "--pool", str(pool_file), "--json"]
    for more in ([], ["--no-cache"]):
        done = subprocess.run(
            [sys.executable, "-m", *launch, *options, *command, *more],
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        two = json.loads(done.stdout)
        assert two["best_step"] == one["best_step"]
        assert list(two["skipped"]) == [str(run / "checkpoint-8")]
        scores = [[row["score"] for row in found["ranking"]] for found in (one, two)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert (run / STORE).exists()


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout.startswith("sepstop 0.")


def test_offline_scores_have_the_precision_of_the_run(train_rows, tokenizer, pool, tmp_path):
    from transformers import Trainer, TrainingArguments

    callback = SepStopCallback(pool, policy=Patience(None), every_n_steps=2, verbose=False)
    args = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=4,
        save_steps=2,
        learning_rate=1e-2,
        bf16=True,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = {"train_dataset": train_rows, "processing_class": tokenizer}
    Trainer(make_encoder(), args, **rows, callbacks=[callback]).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="sepstop")
        chosen = select_checkpoint(tmp_path / "run", pool)
    assert [r.score for r in chosen.records] == [r.score for r in callback.history]
    assert chosen.settings["precision"] == "bf16"
    with pytest.warns(UserWarning, match="read in precision 'no', but the run read it in 'bf16'"):
        other = select_checkpoint(tmp_path / "run", pool, precision="no")
    assert [r.score for r in other.records] != [r.score for r in callback.history]
    with pytest.warns(UserWarning, match="weights cast to bfloat16 are not those that the run"):
        select_checkpoint(tmp_path / "run", pool, dtype="bfloat16")
