"""`sepstop select`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_decoder, make_encoder
from helpers.training import TRAINS_AGAIN, train
from helpers.walks import walk
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from sepstop import Plateau, SepStopCallback, select_checkpoint
from sepstop.cli.main import app
from sepstop.measure.neighbors import NEIGHBORS_FILE
from sepstop.runs.average_files import read_average
from sepstop.runs.cache import CACHE_FOLDER
from sepstop.types import Average

SETTINGS = {
    "criterion": "separability",
    "extra_criteria": ["neighbor_mi"],
    "pooling": {"name": "cls", "layer": 1},
    "every_n_steps": 4,
    "num_resamples": 7,
    "resample_size": 25,
    "seed": 3,
    "max_length": 10,
    "average": False,
}


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory, pool):
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    rows = ({"text": text, "label": "secret"} for text in pool)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizer, train_rows, pool_file):
    """A run with settings of its own, stopped by its policy; and its callback."""
    policy = Plateau(window=2, tolerance=0.3, warmup=3)
    callback = SepStopCallback(pool_file, policy=policy, **SETTINGS)
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder, tokenizer, train_rows, callback, make_encoder())
    assert callback.decision.stop
    return folder, callback


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def sepstop(*arguments):
    """`sepstop select` of checkpoints by themselves."""
    return sepstop_select(*arguments, "--no-average")


def sepstop_select(*arguments):
    return CliRunner().invoke(app, ["select", *map(str, arguments)])


def on_one_line(text):
    return " ".join(text.split())


def test_the_ranking_and_the_pick_are_printed(run, pool_file, finished):
    result = sepstop(run, "--pool", pool_file)
    assert result.exit_code == 0, result.output
    assert "separability decides, higher is better, with 95 % interval" in result.stdout
    assert "neighbor_mi" in result.stdout  # recorded beside it
    assert f"keep {run / f'checkpoint-{finished[1].decision.best_step}'}" in result.stdout
    assert "the run itself kept the same checkpoint" in result.stdout
    assert "◀ pick" in result.stdout


def test_json(run, pool_file, finished):
    shutil.copy(run / "checkpoint-4" / "config.json", run / "checkpoint-4" / "x")
    (run / "checkpoint-4" / "model.safetensors").write_bytes(b"")
    result = sepstop(run, "--pool", pool_file, "--json", "--pooling", "mean", "--layer", "1")
    answer = json.loads(result.stdout)
    assert answer["decides"] == "separability"
    assert answer["higher_is_better"] == {"separability": True, "neighbor_mi": True}
    assert answer["online_best_step"] == finished[1].decision.best_step
    steps = [row["step"] for row in answer["ranking"]]
    assert steps[0] in (answer["best_step"], *answer["ties"])
    kept = answer["ranking"][steps.index(answer["best_step"])]
    assert answer["best_checkpoint"] == kept["checkpoint"]
    assert kept["scores"].keys() == {"separability", "neighbor_mi"}
    score = kept["scores"]["separability"]
    assert score["low"] < score["value"] < score["high"]
    assert len(score["resample_values"]) == 7
    values = {row["step"]: row["scores"]["neighbor_mi"]["value"] for row in answer["ranking"]}
    assert answer["best_steps"]["separability"] == steps[0]
    best = max(values, key=lambda step: (values[step], -step))
    assert answer["best_steps"]["neighbor_mi"] == best
    assert list(answer["skipped"]) == [str(run / "checkpoint-4")]
    assert answer["differences"] == {}
    assert "skipped checkpoint-4" in result.stderr


def test_several_runs_are_compared_on_one_pool(run, pool_file, tmp_path, tokenizer, train_rows):
    other = tmp_path / "other"
    callback = SepStopCallback(pool_file, policy=Plateau(), **SETTINGS)
    train(other, tokenizer, train_rows, callback, make_encoder(seed=5), max_steps=12)
    result = sepstop(run, other, "--pool", pool_file, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    best = [
        max(row["scores"]["separability"]["value"] for row in one["ranking"])
        for one in found["runs"]
    ]
    winner = found["runs"][best.index(max(best))]["best_checkpoint"]
    assert found["best_checkpoint"] == winner
    result = sepstop(run, other, "--pool", pool_file)
    assert f"of all, keep {winner}" in result.output


@TRAINS_AGAIN
def test_a_warning_says_why_runs_may_not_compare(run, pool_file, tmp_path, tokenizer, train_rows):
    other = tmp_path / "other"
    options = {"every_n_steps": 4, "num_resamples": 7, "average": False}
    callback = SepStopCallback(pool_file, criterion="separability", **options)
    train(other, tokenizer, train_rows, callback, make_encoder(seed=5), max_steps=8)
    result = sepstop(run, other, "--pool", pool_file)
    assert "the runs have different pooling, so their scores may not compare" in on_one_line(
        result.stderr
    )
    by_mi = SepStopCallback(pool_file, **options)
    train(other, tokenizer, train_rows, by_mi, make_encoder(seed=5), max_steps=8)
    result = sepstop(run, other, "--pool", pool_file)
    assert result.exit_code == 2
    assert "decided by different scores, robust_mi and separability" in on_one_line(result.stderr)
    traceless = Path(shutil.copytree(other, tmp_path / "traceless"))
    (traceless / NEIGHBORS_FILE).unlink()
    result = sepstop(traceless, other, "--pool", pool_file)
    assert result.exit_code == 0
    assert "the runs have different reference neighbors" in on_one_line(result.stderr)


def test_more_scores_and_fewer_rows(run, pool_file):
    persistence = "sepstop.bench.criteria:TotalPersistence"
    listed = ["--extra-criteria", f"infomax, {persistence}"]
    options = ["--pool", pool_file, *listed, "--top", "2"]
    result = sepstop(run, *options, "--no-cache", "--json")
    assert result.exit_code == 0, result.output
    assert not (run / CACHE_FOLDER).exists()
    found = json.loads(result.stdout)
    assert len(found["ranking"]) == 2
    assert found["higher_is_better"] == {
        "separability": True,
        "infomax": True,
        "total_persistence": False,
    }
    alone = select_checkpoint(run, pool_file, average=False, criterion=persistence, progress=False)
    assert found["best_steps"]["total_persistence"] == alone.series.best_step
    for row in found["ranking"]:
        value = row["scores"]["total_persistence"]["value"]
        assert value == alone.series.score_at(row["step"]).value
    result = sepstop(run, *options)
    assert "infomax" in result.output
    assert (run / CACHE_FOLDER).is_dir()


def test_the_criterion_can_be_named(run, pool_file):
    result = sepstop(run, "--pool", pool_file, "--criterion", "neighbor_mi", "--json")
    assert json.loads(result.stdout)["decides"] == "neighbor_mi"
    result = sepstop(run, "--pool", pool_file, "--criterion", "rankme")
    assert result.exit_code == 2
    assert "sepstop.bench.criteria:RankMe" in on_one_line(result.stderr)


def test_one_forward_pass_per_checkpoint(run, pool_file, finished, monkeypatch):
    from sepstop.measure.monitor import Monitor

    passes, observe = [], Monitor.observe
    monkeypatch.setattr(
        Monitor, "observe", lambda self, model: passes.append(1) or observe(self, model)
    )
    names = "neighbor_mi,infomax,entropy"
    result = sepstop(run, "--pool", pool_file, "--extra-criteria", names, "--no-cache")
    assert result.exit_code == 0, result.output
    assert len(passes) == len(list(run.glob("checkpoint-*")))


def test_a_link_to_the_checkpoint_to_keep(run, pool_file, tmp_path):
    link = tmp_path / "new" / "best"
    for _ in range(2):  # the second takes the first one's place
        result = sepstop(run, "--pool", pool_file, "--link", link)
        assert result.exit_code == 0, result.output
        assert link.resolve() == select_checkpoint(run, pool_file, average=False).best.resolve()
    link.unlink()
    link.mkdir()
    result = sepstop(run, "--pool", pool_file, "--link", link)
    assert result.exit_code == 2
    assert "exists and is not a link" in on_one_line(result.stderr)


def test_errors_are_one_line_and_status_two(run, pool_file):
    result = sepstop(run, "--pool", pool_file, "--text-column", "body")
    assert result.exit_code == 2
    assert "no column 'body'" in on_one_line(result.stderr)
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
    assert "no tokenizer loads from" in on_one_line(result.stderr)


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
    result = sepstop(*arguments)
    assert result.exit_code == 2
    assert "expected one adapter in the checkpoint, found 2: other, topics" in on_one_line(
        result.output
    )
    result = sepstop(*arguments, "--adapter", "topics")
    assert result.exit_code == 2
    assert "can't be read. If it was moved" in on_one_line(result.output)
    named = ["--adapter", "topics", "--base-model", tmp_path / "moved"]
    result = sepstop(*arguments, *named)
    assert result.exit_code == 0, result.output
    result = sepstop(*arguments, *named, "--model-class", "transformers:BertModel")
    assert result.exit_code == 2
    assert "MisfitError: the adapter does not fit BertModel" in on_one_line(result.output)


def test_the_exit_status_tells_of_skipped_checkpoints_if_asked(run, pool_file):
    (run / "checkpoint-4" / "model.safetensors").write_bytes(b"torn")
    assert sepstop(run, "--pool", pool_file).exit_code == 0
    result = sepstop(run, "--pool", pool_file, "--fail-on", "skipped")
    assert result.exit_code == 3
    assert "skipped checkpoint-4" in result.stderr


def test_an_interrupted_command_says_that_it_can_continue(run, pool_file, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sepstop.runs.select.choose", interrupted)
    result = sepstop(run, "--pool", pool_file)
    assert result.exit_code == 130
    assert "interrupted; embeddings are cached" in on_one_line(result.stderr)


def test_models_by_themselves_share_a_table(run, pool_file, tmp_path):
    names = [run / "checkpoint-4", run / "checkpoint-8"]
    result = sepstop(*names, "--pool", pool_file, "--extra-criteria", "entropy")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("95 % interval") == 1
    assert "◀ best" in result.stdout
    listed = tmp_path / "models.txt"
    listed.write_text("run/checkpoint-4\nrun/checkpoint-8\n")
    again = json.loads(sepstop(listed, "--pool", pool_file, "--json").stdout)
    assert again["best_checkpoint"].endswith(("checkpoint-4", "checkpoint-8"))
    assert len(again["runs"]) == 2


LATEST = ["--average", "--ties", "latest"]


def averaged(run, pool_file, *arguments):
    """What `--json` says of averages of a run's checkpoints.

    The latest of tied steps is an average: after five checkpoints, all candidates are.
    """
    result = sepstop_select(run, "--pool", pool_file, "--json", *LATEST, *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def kept_row(found):
    """The row of the step to keep."""
    return next(row for row in found["ranking"] if row["step"] == found["best_step"])


def test_an_average_is_named_and_not_called_a_folder(run, pool_file, finished):
    found = averaged(run, pool_file)
    best = kept_row(found)
    assert found["best_average"] == best["average"]
    assert (found["best_checkpoint"], best["checkpoint"], found["output"]) == (None, None, None)
    assert found["best_sources"] == best["sources"]
    assert len(best["sources"]) == best["average"]["count"] > 1
    first = next(row for row in found["ranking"] if row["step"] == 4)
    assert (first["checkpoint"], first["average"]) == (str(run / "checkpoint-4"), None)
    assert found["online_best_step"] == finished[1].decision.best_step
    result = sepstop_select(run, "--pool", pool_file, *LATEST)
    average = Average(**best["average"])
    assert f"keep the {average} of {run}, which --output FOLDER writes" in result.stdout
    assert (
        f"the run itself kept the checkpoint of step {found['online_best_step']}" in result.stdout
    )
    assert f"of {len(found['ranking'])} steps" in result.stdout
    (run / "checkpoint-8" / "model.safetensors").write_bytes(b"torn")
    result = sepstop_select(run, "--pool", pool_file, "--average")
    assert "averages are made without what was skipped" in on_one_line(result.stderr)


def test_the_run_s_own_average_is_named(run, pool_file):
    found = averaged(run, pool_file)
    step, kind = found["best_step"], found["best_average"]["name"]
    own = {"name": kind, "first_step": 1, "last_step": step, "count": step}
    path = run / "sepstop_history.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[1:]:
        row["decision"]["best_step"] = step
        row["average"] = own if row["step"] == step else row.get("average")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert averaged(run, pool_file)["online_average"] == own
    result = sepstop_select(run, "--pool", pool_file, *LATEST)
    kept = f"the run itself kept the {Average(**own)}"
    like = "the same kind at the same step, but of all steps"
    assert f"{kept}, which is not on disk: {like}" in result.stdout
    (run / f"average-{step}").mkdir()
    alone = sepstop(run, "--pool", pool_file)  # of checkpoints
    assert f"{kept}, in average-{step}\n" in alone.stdout
    assert "≠ log" not in result.stdout + alone.stdout


def test_an_average_is_written_and_linked(run, pool_file, tmp_path):
    link = tmp_path / "links" / "best"
    for _ in range(2):  # the second replaces the first
        found = averaged(run, pool_file, "--link", link)
        average = Average(**found["best_average"])
        name = f"sepstop_average-{average.name}-{average.first_step}-{average.last_step}"
        assert link.resolve() == (run / name).resolve()
        assert found["output"] == str(run / name)
    assert read_average(link) == Average(**found["best_average"])
    assert AutoModelForSequenceClassification.from_pretrained(link).num_labels == 2
    output = tmp_path / "best"
    found = averaged(run, pool_file, "--link", link, "--output", output)
    assert (found["output"], link.resolve()) == (str(output), output.resolve())
    result = sepstop_select(run, "--pool", pool_file, "--output", output)
    assert result.exit_code == 2
    assert "best exists and is not empty" in on_one_line(result.stderr)
    result = sepstop_select(run, "--pool", pool_file, *LATEST, "--output", tmp_path / "other")
    assert f"of {run}, in {tmp_path / 'other'}" in result.stdout
    result = sepstop(run, "--pool", pool_file, "--output", tmp_path / "copy")
    assert f"copied to {tmp_path / 'copy'}" in result.stdout


def test_each_linked_average_has_a_folder_of_its_own(run, pool_file, tmp_path):
    first = averaged(run, pool_file, "--link", tmp_path / "first")
    other = "latest" if first["best_step"] != 8 else "best"
    options = ["--criterion", "entropy", "--link", tmp_path / "second"]
    result = sepstop_select(run, "--pool", pool_file, "--average", f"--ties={other}", *options)
    assert result.exit_code == 0, result.output
    assert read_average(tmp_path / "first") == Average(**first["best_average"])
    # The links are no runs, and the second call does not lead one to itself.
    for name in ("first", "second"):
        (run / name).symlink_to((tmp_path / name).resolve())
    again = averaged(run, pool_file, "--link", run / "first")
    assert read_average(run / "first") == Average(**again["best_average"])


def test_a_link_among_runs_is_no_further_run(run, pool_file):
    link = run.parent / "best"
    sepstop(run, "--pool", pool_file, "--link", link)
    result = sepstop(run.parent, "--pool", pool_file, "--link", link, "--json")
    assert "runs" not in json.loads(result.stdout)
    assert link.is_dir()


def test_what_can_not_be_written_is_said_before_anything_is_scored(run, pool_file, tmp_path):
    same = tmp_path / "same"
    (tmp_path / "link").symlink_to(tmp_path)
    for options, said in [
        (["--output", same, "--link", same], "--output and --link are both"),
        (["--output", tmp_path / "link"], "is a link; name the folder itself"),
    ]:
        result = sepstop_select(run, "--pool", pool_file, *options)
        assert result.exit_code == 2
        assert said in on_one_line(result.stderr)
    assert not (run / CACHE_FOLDER).exists()


def test_a_broken_model_does_not_end_the_comparison(run, pool_file, tmp_path):
    models = tmp_path / "models"
    for name, step in (("small", 4), ("large", 8), ("torn", 12)):
        shutil.copytree(run / f"checkpoint-{step}", models / name)
    (models / "torn" / "model.safetensors").write_bytes(b"torn")
    result = sepstop(models, "--pool", pool_file, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found["runs"]) == 2
    assert list(found["skipped"]) == [str(models / "torn")]
    assert "skipped" in result.stderr
    shutil.rmtree(models / "large")
    result = sepstop(models, "--pool", pool_file)
    assert "of all, keep" in result.stdout
    assert sepstop(models, "--pool", pool_file, "--fail-on", "skipped").exit_code == 3
    shutil.rmtree(models / "small")
    assert sepstop(models, "--pool", pool_file).exit_code == 2


def test_the_best_average_of_several_runs(run, pool_file, tmp_path):
    other = walk(tmp_path / "other", make_encoder(seed=5), count=3)
    options = ["--tokenizer", run / "checkpoint-4", "--criterion", "separability"]
    options += ["--num-resamples", "7", "--resample-size", "25", "--max-length", "10"]
    options += ["--pooling", "cls", "--layer", "1", "--seed", "3", "--extra-criteria", "entropy"]
    output = tmp_path / "best"
    arguments = [run, other, "--pool", pool_file, *options, "--json", "--output", output]
    result = sepstop_select(*arguments, *LATEST)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    winner = max(found["runs"], key=lambda one: kept_row(one)["scores"]["separability"]["value"])
    assert found["best_average"] == winner["best_average"] == kept_row(winner)["average"]
    assert found["best_average"]["count"] > 1
    assert found["output"] == winner["output"] == str(output)
    assert AutoModelForSequenceClassification.from_pretrained(output)


def test_a_language_model_is_scored_by_its_answers(pool_file, tmp_path, tokenizer):
    run = walk(tmp_path / "run", make_decoder(), tokenizer, count=3)
    answers = tmp_path / "answers.txt"
    answers.write_text(" great\n awful\n")
    options = ["--pool", pool_file, "--criterion", "infomax", "--json"]
    found = json.loads(sepstop(run, *options, "--answers", answers).stdout)
    assert found["decides"] == "infomax"
    answers.write_text(" great\n great film\n")
    result = sepstop(run, *options, "--answers", answers)
    assert result.exit_code == 2
    assert "' great' is the beginning of ' great film'" in on_one_line(result.stderr)
    result = sepstop(run, *options, "--answers", answers, "--answer-end", " [SEP]")
    assert result.exit_code == 0, result.output


def test_processes_divide_the_checkpoints(run, pool_file, tmp_path):
    """As one process, also without a cache that outlives the call, and with a broken checkpoint.

    The first process alone deletes.
    """
    (run / "checkpoint-8" / "model.safetensors").write_bytes(b"torn")
    one = json.loads(sepstop(run, "--pool", pool_file, "--no-cache", "--json").stdout)
    averages = averaged(run, pool_file, "--no-cache", "--ties=best")
    prunes = ["--no-average", "--prune", "--yes"]
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    options = ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    command = tmp_path / "command.py"  # one launch for both: starting takes longer than they do
    command.write_text(
        "import os, sys\n"
        "from sepstop.cli.main import app\n"
        f"for more in (['--no-average'], ['--no-average', '--no-cache'], ['--average'], {prunes}):"
        "\n"
        "    app([*sys.argv[1:], *more], standalone_mode=False)\n"
        "    if os.environ['RANK'] == '0':\n"
        "        print('---', flush=True)\n"
    )
    arguments = [str(command), "select", str(run), "--pool", str(pool_file), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *options, *arguments],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *outputs, rest = done.stdout.split("---\n")
    assert (len(outputs), rest) == (4, "")
    for output, alone in zip(outputs, (one, one, averages, one), strict=True):
        two = json.loads(output)
        assert two["best_step"] == alone["best_step"]
        assert list(two["skipped"]) == [str(run / "checkpoint-8")]
        scores = [
            [row["scores"]["separability"]["value"] for row in found["ranking"]]
            for found in (alone, two)
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-6)
        kinds = [[row["average"] for row in found["ranking"]] for found in (alone, two)]
        assert kinds[0] == kinds[1]
    assert (run / CACHE_FOLDER).exists()
    left = {str(path) for path in run.glob("checkpoint-*")}
    assert left == {one["best_checkpoint"], str(run / "checkpoint-8")}
