"""Folders and repositories of runs as other tools write them."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from conftest import make_decoder, make_encoder
from helpers.walks import walk

from sepstop import Loading, select_checkpoint
from sepstop.measure.neighbors import NEIGHBORS_FILE
from sepstop.runs.cache import CACHE_FOLDER
from sepstop.runs.checkpoints import find_run, find_runs
from sepstop.runs.history import SELECTION_FILE

pytestmark = pytest.mark.filterwarnings("ignore:.* has no trace of the model before training")

STEPS = [10, 20, 30]
ASSETS = "huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE"


@pytest.fixture
def base(tmp_path):
    make_encoder().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def lora(base):
    """A model with a fresh adapter."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=4)
    return peft.get_peft_model(model, config)


def log(run, max_steps=30):
    """What Trainer's state says, and the files of its training state."""
    rows = [{"step": step, "loss": 1 / step} for step in range(5, max_steps + 1, 5)]
    for path in run.glob("checkpoint-*"):
        step = int(path.name.split("-")[1])
        known = [row for row in rows if row["step"] <= step]
        state = {"global_step": step, "max_steps": max_steps, "log_history": known}
        (path / "trainer_state.json").write_text(json.dumps(state))
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            (path / name).write_bytes(b"state")
    return run


def silently(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


def assert_ranked(run, pool, **options):
    found = select_checkpoint(run, pool, progress=False, **options)
    assert [record.step for record in found.records] == STEPS
    assert (found.skipped, found.records[-1].has_average_candidates) == ({}, True)
    return found


def axolotl(folder, base, tokenizer):
    """The configurations at the start, checkpoints, then the final adapter and its card."""
    model = lora(base)
    log(walk(folder, model, tokenizer, count=3))
    for path in folder.glob("checkpoint-*"):
        (path / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    tokenizer.save_pretrained(folder)
    model.base_model.model.config.save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    (folder / "debug.log").touch()
    (folder / "runs" / "Jan01_host").mkdir(parents=True)
    return folder


def llama_factory(folder, base, tokenizer):
    """Checkpoints, then the final adapter and what `save_state` and `save_metrics` write."""
    model = lora(base)
    log(walk(folder, model, tokenizer, count=3))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(folder / "checkpoint-30" / "trainer_state.json", folder)
    shutil.copy(folder / "checkpoint-30" / "training_args.bin", folder)
    for name in ("all_results.json", "train_results.json"):
        (folder / name).write_text('{"epoch": 3.0}')
    (folder / "trainer_log.jsonl").write_text('{"current_steps": 5}\n')
    return folder


def ms_swift(folder, base, tokenizer):
    """Checkpoints alone, a merged one, and links to the best and the last of them."""
    log(walk(folder, lora(base), tokenizer, count=3))
    for path in (folder, *folder.glob("checkpoint-*")):
        (path / "args.json").write_text('{"model": "base"}')
    make_encoder().save_pretrained(folder / "checkpoint-30-merged")
    (folder / "best").symlink_to((folder / "checkpoint-20").resolve())
    (folder / "last").symlink_to((folder / "checkpoint-30").resolve())
    (folder / "logging.jsonl").touch()
    (folder / "images").mkdir()
    return folder


@pytest.mark.parametrize("write", [axolotl, llama_factory, ms_swift])
def test_a_run_of_adapters(tmp_path, base, tokenizer, pool, write):
    run = write(tmp_path / "run", base, tokenizer)
    found = silently(lambda: find_run(run))
    assert (sorted(found.checkpoints), found.is_one_run, found.is_trained) == (STEPS, True, True)
    assert find_runs(run) == [str(run)]
    assert_ranked(run, pool)


@pytest.mark.parametrize("write", [axolotl, llama_factory])
def test_runs_with_final_models_are_no_checkpoints_of_one(tmp_path, base, tokenizer, write):
    """Although their names end in numbers."""
    first = write(tmp_path / "runs" / "lr-1", base, tokenizer)
    shutil.copytree(first, tmp_path / "runs" / "lr-2")
    shutil.copytree(first / "checkpoint-30", tmp_path / "runs" / "plain")
    names = ["lr-1", "lr-2", "plain"]
    assert find_runs(tmp_path / "runs") == [str(tmp_path / "runs" / name) for name in names]


def test_the_versions_of_ms_swift_are_runs(tmp_path, base, tokenizer):
    output = tmp_path / "output"
    first = ms_swift(output / "Qwen" / "v0-20250101-120000", base, tokenizer)
    second = ms_swift(output / "Qwen" / "v1-20250102-120000", base, tokenizer)
    for folder in (output, output / "Qwen"):
        assert find_runs(folder) == [str(first), str(second)]


def test_a_run_of_language_models(tmp_path, tokenizer, pool):
    """As TRL's SFTTrainer writes it: a whole model at the top too."""
    model = make_decoder()
    run = log(walk(tmp_path / "run", model, tokenizer, count=3))
    model.save_pretrained(run)
    tokenizer.save_pretrained(run)
    assert_ranked(run, pool, answers=[" great", " awful"])


def test_the_reference_adapter_of_dpo_is_not_the_trained_one(tmp_path, base, tokenizer, pool):
    """TRL's DPOTrainer saves a copy of the adapter that training began with as "ref"."""
    model = lora(base)
    model.add_adapter("ref", model.peft_config["default"])
    model.set_adapter("default")
    run = walk(tmp_path / "run", model, tokenizer, count=3)
    assert (run / "checkpoint-10" / "ref" / "adapter_config.json").is_file()
    found = select_checkpoint(run, pool, progress=False, loading=Loading(adapter="default"))
    assert len(found.records) == 3
    with pytest.raises(ValueError, match=r"found 2: default, ref\. Name the trained one"):
        select_checkpoint(run, pool, progress=False)


# Repositories on the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache without a network; returns a function that puts a folder into it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets")
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(name, folder, revision="main"):
        """As the hub's library lays a snapshot out: links to blobs."""
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / f"of-{revision}"
        for number, path in enumerate(sorted(folder.rglob("*"), reverse=True)):
            if path.is_file():
                blob = repository / "blobs" / f"{revision}-{number}"
                blob.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, blob)
                place = snapshot / path.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(blob)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(snapshot.name)
        return snapshot

    return put


@pytest.mark.parametrize("write", [axolotl, llama_factory])
def test_all_checkpoints_in_a_repository_are_a_run(tmp_path, base, tokenizer, pool, hub, write):
    """With `hub_strategy="all_checkpoints"`."""
    snapshot = hub("org/run", write(tmp_path / "run", base, tokenizer))
    found = silently(lambda: find_run("org/run"))
    assert (sorted(found.checkpoints), found.is_one_run) == (STEPS, True)
    before = sorted(snapshot.rglob("*"))
    selection = assert_ranked("org/run", pool, num_resamples=5)
    assert sorted(snapshot.rglob("*")) == before
    assert list((tmp_path / "assets").rglob("*.npz"))
    local = assert_ranked(tmp_path / "run", pool, num_resamples=5)
    assert [record.scores for record in selection.records] == [
        record.scores for record in local.records
    ]


def test_a_repository_may_have_no_logs(tmp_path, tokenizer, hub):
    """The times of a download do not tell the order of its checkpoints."""
    run = walk(tmp_path / "run", make_encoder(), tokenizer, count=3)
    hub("org/run", run)
    assert find_run("org/run").is_one_run


def test_what_a_monitored_run_pushed_is_read(tmp_path, make_trainer, pool, hub):
    """Its settings and neighbors; nothing is written into the cache of the hub."""
    from sepstop import SepStopCallback

    callback = SepStopCallback(
        pool, criterion="neighbor_mi", average=False, num_resamples=5, every_n_steps=2
    )
    make_trainer(callback, max_steps=6).train()
    snapshot = hub("org/run", tmp_path / "run")
    assert (snapshot / NEIGHBORS_FILE).is_file()
    found = select_checkpoint("org/run", pool, progress=False)
    online = {record.step: record.scores for record in callback.history}
    assert {record.step: record.scores for record in found.records} == online
    for name in (SELECTION_FILE, CACHE_FOLDER):
        assert not (snapshot / name).exists()


def test_the_last_checkpoint_is_no_model_of_its_own(tmp_path, base, tokenizer, pool, hub):
    """With `hub_strategy="checkpoint"`, beside the adapter at the top."""
    run = axolotl(tmp_path / "run", base, tokenizer)
    (run / "checkpoint-30").rename(run / "last-checkpoint")
    for step in (10, 20):
        shutil.rmtree(run / f"checkpoint-{step}")
    snapshot = hub("org/model", run)
    for name, folder in (("org/model", snapshot), (str(run), run)):
        selection = select_checkpoint(name, pool, progress=False)
        assert (selection.best, selection.skipped) == (folder, {})


def test_revisions_are_models_to_compare(tmp_path, tokenizer, hub):
    """As Pythia's and OLMo's."""
    run = walk(tmp_path / "run", make_encoder(), tokenizer, count=2)
    names = ["step1000", "stage1-step2000-tokens9B"]
    for name, step in zip(names, (10, 20), strict=True):
        hub("org/model", run / f"checkpoint-{step}", name)
    listed = tmp_path / "revisions.txt"
    listed.write_text("".join(f"org/model@{name}\n" for name in names))
    assert find_runs(listed) == [f"org/model@{name}" for name in names]
    folders = [find_run(name).checkpoints[1] for name in find_runs(listed)]
    assert [folder.name for folder in folders] == [f"of-{name}" for name in names]


FILES = {
    "README.md": False,
    "adapter_config.json": True,
    "adapter_model.safetensors": False,
    "sepstop_history.jsonl": True,
    "checkpoint-10/adapter_config.json": True,
    "checkpoint-10/adapter_model.safetensors": True,
    "checkpoint-10/topics/adapter_model.safetensors": True,
    "checkpoint-10/1_Pooling/config.json": True,
    "checkpoint-10/trainer_state.json": True,
    "checkpoint-10/tokenizer.json": True,
    "checkpoint-10/optimizer.pt": False,
    "checkpoint-10/rng_state_0.pth": False,
    "checkpoint-10/global_step10/mp_rank_00_model_states.pt": False,
    "checkpoint-10/optimizer_0/__0_0.distcp": False,
    "checkpoint-10/openvino/openvino_model.bin": False,
    "checkpoint-10-merged/model.safetensors": False,
    "last-checkpoint/model.safetensors": False,
}


def test_only_what_is_needed_is_downloaded(tmp_path, monkeypatch):
    """The patterns are applied as the hub's library applies them, to a listing of a repository."""
    from huggingface_hub.utils import filter_repo_objects

    asked = []

    def snapshot_download(repository, revision, allow_patterns, ignore_patterns):
        asked.append((repository, revision))
        patterns = {"allow_patterns": allow_patterns, "ignore_patterns": ignore_patterns}
        for name in filter_repo_objects(FILES, **patterns):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(
        "huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets")
    )
    assert list(find_run("org/run@v2").checkpoints) == [10]
    assert asked == [("org/run", "v2")]
    downloaded = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert downloaded == {name for name, needed in FILES.items() if needed}
    shutil.rmtree(tmp_path / "checkpoint-10")
    model = {name for name in FILES if not name.startswith("checkpoint-")}
    monkeypatch.setattr(__name__ + ".FILES", dict.fromkeys(model))
    assert find_run("org/run").checkpoints == {1: Path(tmp_path)}
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "last-checkpoint").exists()
