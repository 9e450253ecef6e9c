"""`sepstop select --prune`."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_encoder
from helpers.scores import NEVER, StopAt
from helpers.walks import walk
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification
from typer.testing import CliRunner

from sepstop import SepStopCallback
from sepstop.cli.main import app
from sepstop.report.scored_run import read_scored_run
from sepstop.runs.average_files import AVERAGE_FILE
from sepstop.runs.checkpoints import find_run, find_runs
from sepstop.runs.history import SELECTION_FILE
from sepstop.runs.pruned import PRUNED_FILE

OPTIONS = ["--criterion", "separability", "--num-resamples", "5", "--batch-size", "16"]
AVERAGE = ["--ties", "latest"]
"""All steps of a walk are tied, and the last one has averages only."""


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory, pool):
    path = tmp_path_factory.mktemp("pool") / "pool.txt"
    path.write_text("\n".join(pool))
    return path


@pytest.fixture
def run(tmp_path, tokenizer):
    """A run that nobody watched, with its final model at the top and other files of its own."""
    model = make_encoder()
    folder = walk(tmp_path / "run", model, tokenizer, count=6)
    for path in folder.glob("checkpoint-*"):
        save_state(path, step=int(path.name.split("-")[1]), max_steps=60)
        (path / "optimizer.pt").write_bytes(b"o" * 1000)
    model.save_pretrained(folder)
    (folder / "average-30").mkdir()
    (folder / "average-30" / AVERAGE_FILE).write_text("{}")
    (folder / "checkpoint-notes").mkdir()
    return folder


def save_state(folder, step, max_steps, **values):
    log = [{"step": at, "loss": 1 / at} for at in range(5, step + 1, 5)]
    state = {"global_step": step, "max_steps": max_steps, "log_history": log, **values}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def select(run, pool_file, *arguments):
    options = ["--pool", pool_file, *OPTIONS, *arguments]
    return CliRunner().invoke(app, ["select", *map(str, [run, *options])])


def answer(run, pool_file, *arguments):
    result = select(run, pool_file, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), " ".join(result.stderr.split())


def inside(folder):
    return sorted(path.name for path in folder.iterdir())


def checkpoints(*steps):
    return {f"checkpoint-{step}" for step in steps}


OTHERS = {"average-30", "checkpoint-notes", "config.json", "model.safetensors"}
WRITTEN = {PRUNED_FILE, SELECTION_FILE, "sepstop_cache"}


def test_all_checkpoints_but_the_one_to_keep_are_deleted(run, pool_file):
    before, _ = answer(run, pool_file, "--no-average")
    best = Path(before["best_checkpoint"])
    weights = (best / "model.safetensors").read_bytes()
    found, said = answer(run, pool_file, "--no-average", "--prune", "--yes")
    assert set(inside(run)) == {best.name} | OTHERS | WRITTEN
    assert (best / "model.safetensors").read_bytes() == weights
    gone = checkpoints(10, 20, 30, 40, 50, 60) - {best.name}
    assert {Path(path).name for path in found["pruned"]["deleted"]} == gone
    assert found["pruned"]["kept"] == str(best)
    assert found["pruned"]["bytes"] > 5 * 1000
    assert f"leave {best}, as it is kept" in said
    assert f"deleted 5 folders, {found['pruned']['bytes'] / 1000:.1f} kB; kept {best}" in said
    ranked = (run / SELECTION_FILE).read_bytes()
    again, said = answer(run, pool_file, "--no-average")
    assert again["best_checkpoint"] == str(best)
    assert "has only what was kept when its checkpoints were deleted" in said
    assert (run / SELECTION_FILE).read_bytes() == ranked  # the scores of all
    assert len(read_scored_run(run).records) == 6
    assert select(run, pool_file, "--no-average", "--prune", "--yes").exit_code == 0
    assert set(inside(run)) == {best.name} | OTHERS | WRITTEN


def test_an_average_is_written_before_its_checkpoints_are_deleted(run, pool_file):
    dry, _ = answer(run, pool_file, *AVERAGE)
    assert (dry["output"], dry["pruned"], dry["failed"]) == (None, None, {})
    found, said = answer(run, pool_file, *AVERAGE, "--prune", "--yes")
    average = found["best_average"]
    name = f"sepstop_average-{average['name']}-{average['first_step']}-{average['last_step']}"
    assert set(inside(run)) == {name} | OTHERS | WRITTEN
    assert found["output"] == found["pruned"]["kept"] == str(run / name)
    assert f"write {run / name} first" in said
    assert AutoModelForSequenceClassification.from_pretrained(run / name).num_labels == 2
    again, said = answer(run, pool_file)
    assert (again["best_step"], again["best_checkpoint"]) == (60, str(run / name))
    row, before = again["ranking"][0], next(one for one in dry["ranking"] if one["step"] == 60)
    value = before["scores"]["separability"]["value"]
    assert row["scores"]["separability"]["value"] == pytest.approx(value, abs=1e-6)
    assert find_runs(run.parent) == find_runs(run) == [str(run)]
    (run / name).rename(run / "moved")
    result = select(run, pool_file)
    assert result.exit_code == 2
    assert "what was kept is no longer at" in result.stderr


def test_a_run_that_goes_on_after_pruning_is_ranked_anew(run, pool_file, tokenizer):
    answer(run, pool_file, *AVERAGE, "--prune", "--yes")
    shutil.move(walk(run.parent / "more", make_encoder(), count=1) / "checkpoint-10", run)
    (run / "checkpoint-10").rename(run / "checkpoint-70")
    assert sorted(find_run(run).checkpoints) == [70]


@pytest.mark.parametrize(
    ("state", "stays"),
    [
        ({"max_steps": 90}, True),
        ({"max_steps": 60}, False),
    ],
)
def test_the_newest_checkpoint_stays_if_the_run_is_not_finished(run, pool_file, state, stays):
    save_state(run / "checkpoint-60", step=60, **state)
    found, said = answer(run, pool_file, *AVERAGE, "--prune", "--yes")
    assert (run / "checkpoint-60").is_dir() == stays
    assert ("checkpoint-60, as the run is not finished and resumes from it" in said) == stays
    again, _ = answer(run, pool_file)  # not the newest, which was no match
    assert again["best_checkpoint"] == found["output"]


def test_without_a_log_a_state_to_resume_from_stays(run, pool_file):
    for path in run.glob("checkpoint-*/trainer_state.json"):
        path.unlink()
    answer(run, pool_file, *AVERAGE, "--prune", "--yes")
    assert {path.name for path in run.glob("checkpoint-?0")} == checkpoints(60)


def test_what_was_not_ranked_stays(run, pool_file, tmp_path, tokenizer):
    (run / "checkpoint-20" / "model.safetensors").write_bytes(b"torn")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run / "checkpoint-30", elsewhere)
    (run / "checkpoint-30").symlink_to(elsewhere)
    (run / "last").symlink_to(run / "checkpoint-40")
    (run / "checkpoint-40" / "shared").symlink_to(tmp_path / "shared", target_is_directory=True)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").touch()
    found, said = answer(run, pool_file, *AVERAGE, "--prune", "--yes")
    left = {path.name for path in run.glob("checkpoint-?0")}
    assert left == checkpoints(20, 30)
    assert (elsewhere / "model.safetensors").is_file()
    assert (tmp_path / "shared" / "file").is_file()
    assert "checkpoint-20, as it was skipped" in said
    assert "checkpoint-30, as it is a link" in said
    assert f"{run / 'last'} will lead nowhere" in said
    assert answer(run, pool_file)[0]["best_checkpoint"] == found["output"]


def test_checkpoints_of_an_older_run_stay(run, pool_file):
    for step in (50, 60):
        state = run / f"checkpoint-{step}" / "trainer_state.json"
        state.write_text(json.dumps({"global_step": step, "log_history": [{"step": 1, "loss": 9}]}))
        os.utime(state, (1, 1))
    found, said = answer(run, pool_file, "--prune", "--yes", "--ties", "latest")
    assert "checkpoint-50, checkpoint-60 in" in said
    assert {path.name for path in run.glob("checkpoint-?0")} >= checkpoints(50, 60)
    assert found["pruned"]["deleted"]
    assert answer(run, pool_file)[0]["best_step"] == found["best_step"]


def test_another_model_stays(run, pool_file, tokenizer):
    """It has no log that would tell that it is of another run."""
    other = run / "checkpoint-20"
    shutil.rmtree(other)
    config = make_encoder().config
    config.intermediate_size *= 2
    BertForSequenceClassification(config).save_pretrained(other)
    tokenizer.save_pretrained(other)
    _, said = answer(run, pool_file, *AVERAGE, "--prune", "--yes")
    assert other.is_dir()
    why = "it may be of another run: intermediate_size in config.json is not that of the newest"
    assert f"checkpoint-20, as {why}" in said


def test_the_base_of_what_is_kept_stays(tmp_path, tokenizer, pool_file):
    """An adapter that was trained on a checkpoint of the run in whose folder it is."""
    peft = pytest.importorskip("peft")
    run = tmp_path / "run"
    make_encoder().save_pretrained(run / "checkpoint-10")
    tokenizer.save_pretrained(run / "checkpoint-10")
    for step in (20, 30):
        config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=4)
        base = AutoModelForSequenceClassification.from_pretrained(run / "checkpoint-10")
        peft.get_peft_model(base, config).save_pretrained(run / f"checkpoint-{step}")
    arguments = ["--no-average", "--prune", "--yes", "--ties", "latest"]
    found, said = answer(run, pool_file, *arguments)
    if found["best_step"] == 10:
        pytest.fail("the test needs an adapter to be kept")
    assert "checkpoint-10, as it is the base of what is kept" in said
    assert found["pruned"]["deleted"] == [str(run / "checkpoint-20")]
    assert (run / "checkpoint-10").is_dir()


def test_nothing_is_deleted_if_what_to_keep_does_not_load(run, pool_file, monkeypatch):
    from sepstop.runs import pruning

    before = inside(run)

    def torn(folder, loading):
        (folder / "model.safetensors").write_bytes(b"torn")
        return original(folder, loading)

    original = pruning.load_model
    monkeypatch.setattr(pruning, "load_model", torn)
    result = select(run, pool_file, "--prune", "--yes")
    assert result.exit_code == 2
    assert "can't be loaded, so nothing was deleted" in " ".join(result.stderr.split())
    assert set(before) <= set(inside(run))


def test_a_failure_gives_the_folders_their_names_back(run, pool_file, monkeypatch):
    def full(home, kept):
        assert not (run / "checkpoint-50").exists()
        raise OSError("No space left on device")

    monkeypatch.setattr("sepstop.runs.pruning.write_kept", full)
    result = select(run, pool_file, *AVERAGE, "--prune", "--yes")
    assert result.exit_code == 2
    assert {path.name for path in run.glob("checkpoint-?0")} == checkpoints(10, 20, 30, 40, 50, 60)
    assert not list(run.glob(".checkpoint*"))


def test_a_kill_leaves_no_half_of_a_checkpoint(run, pool_file):
    """The process dies while it deletes the first folder; the next call removes the rest."""
    program = (
        "import os, shutil, sys\n"
        "from sepstop.cli.main import app\n"
        "def dies(path):\n"
        "    os.remove(os.path.join(path, 'config.json'))\n"
        "    os._exit(9)\n"
        "shutil.rmtree = dies if sys.argv.pop(1) == 'dies' else shutil.rmtree\n"
        "app()\n"
    )
    options = ["select", str(run), "--pool", str(pool_file), *OPTIONS, "--no-average"]
    command = [sys.executable, "-c", program, "dies", *options, "--prune", "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 9, done.stderr
    assert len(list(run.glob(".checkpoint-*"))) == 5
    assert len(list(run.glob("checkpoint-?0"))) == 1
    assert answer(run, pool_file, "--no-average")[0]["skipped"] == {}
    found, _ = answer(run, pool_file, "--no-average", "--prune", "--yes")
    assert len(found["pruned"]["deleted"]) == 5
    assert set(inside(run)) == {Path(found["best_checkpoint"]).name} | OTHERS | WRITTEN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prune"], "--prune can't ask without a terminal; --yes deletes without"),
        (["checkpoint-10", "--prune", "--yes"], "--prune deletes the checkpoints of one run"),
        (["--prune", "--yes", "--output", "checkpoint-10/best"], "inside a checkpoint"),
        (["--prune", "--yes", "--base-model", "checkpoint-10"], "inside a checkpoint"),
        (["--prune", "--yes", "--tokenizer", "checkpoint-10"], "inside a checkpoint"),
        (["--prune", "--yes", "--labels", "checkpoint-10/labels.csv"], "inside a checkpoint"),
        (["--prune", "--yes", "--ask", "9"], "--ask writes texts whose labels would tell"),
    ],
)
def test_what_is_refused_before_anything_is_scored(run, pool_file, arguments, message):
    resolved = [run / one if str(one).startswith("checkpoint") else one for one in arguments]
    before = inside(run)
    result = select(run, pool_file, *resolved)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert inside(run) == before


def test_what_is_no_run_is_refused(run, pool_file, tmp_path, monkeypatch):
    def refused(folder, why):
        result = select(folder, pool_file, "--prune", "--yes")
        assert result.exit_code == 2
        assert why in " ".join(result.stderr.split())

    refused(run / "checkpoint-10", "is a single model")
    for step in (10, 20):
        shutil.copytree(run / f"checkpoint-{step}", tmp_path / "models" / f"llama-{step}")
    refused(tmp_path / "models", "may hold models of several runs")
    snapshot = tmp_path / "hub" / "models--org--run" / "snapshots" / "abc"
    shutil.move(run, snapshot)
    refused(snapshot, "is a copy in the cache of the hub")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("org/run", "is a copy in the cache of the hub")
    assert len(list(snapshot.glob("checkpoint-?0"))) == 6


def test_a_condition_that_holds_keeps_everything(run, pool_file):
    (run / "checkpoint-20" / "model.safetensors").write_bytes(b"torn")
    result = select(run, pool_file, "--prune", "--yes", "--fail-on", "skipped")
    assert result.exit_code == 3
    assert "nothing is pruned, as a condition holds" in result.stderr
    assert len(list(run.glob("checkpoint-?0"))) == 6


def test_the_question(run, pool_file):
    """At a terminal, answered with no by default, then with yes."""
    program = (
        "import glob, sys\n"
        "from sepstop.cli.main import app\n"
        "for _ in range(2):\n"
        "    app(sys.argv[1:], standalone_mode=False)\n"
        "    print('left:', len(glob.glob(f'{sys.argv[2]}/checkpoint-?0')))\n"
    )
    options = ["--pool", pool_file, *OPTIONS, "--no-average", "--prune"]
    command = [sys.executable, "-c", program, "select", *map(str, [run, *options])]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        os.write(ours, b"\ny\n")
        output, messages = process.communicate(timeout=300)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0, messages
    assert [line.strip() for line in output.splitlines() if "left:" in line] == [
        "left: 6",
        "left: 1",
    ]
    assert messages.count("Delete 5 folders, ") == messages.count("[y/N]") == 2
    assert messages.index("nothing was deleted") < messages.index("sepstop: deleted 5 folders")


@pytest.mark.parametrize("policy", [StopAt(6), NEVER])
def test_a_monitored_run(tmp_path, make_trainer, pool, pool_file, policy):
    """Its own average stays, and what is kept later is compared with no log of other weights."""
    callback = SepStopCallback(
        pool, policy=policy, every_n_steps=2, num_resamples=5, criterion="separability"
    )
    make_trainer(callback, max_steps=12).train()
    run = tmp_path / "run"
    own = [path.name for path in run.glob("average-*")]
    assert own
    newest = max(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*"))
    state = run / f"checkpoint-{newest}" / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"max_steps": 20}))
    arguments = ["select", str(run), "--pool", str(pool_file), "--json", "--ties", "earliest"]
    result = CliRunner().invoke(app, [*arguments, "--prune", "--yes"])
    assert result.exit_code == 0, result.output
    assert [path.name for path in run.glob("average-*")] == own
    found = json.loads(result.stdout)
    assert found["best_step"] < newest
    assert (run / f"checkpoint-{newest}").exists() == (policy is NEVER)  # it may go on
    again = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert (again["best_step"], again["differences"]) == (found["best_step"], {})
    assert again["decides"] == "separability"
