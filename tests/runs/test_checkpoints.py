"""Checkpoint discovery."""

import warnings

import pytest
from conftest import make_encoder

from sepstop import select_checkpoint
from sepstop.runs.cache import CACHE_FOLDER
from sepstop.runs.checkpoints import find_run, find_runs


@pytest.fixture
def model(tokenizer):
    def save(folder, seed=0):
        make_encoder(seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def touch(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    return folder


def test_a_trainers_folder_is_a_run(tmp_path):
    touch(tmp_path, "checkpoint-3", "checkpoint-20", "model")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-9").touch()
    (tmp_path / "checkpoint-40").mkdir()  # empty: said when it is scored
    found = find_run(tmp_path)
    assert list(found.checkpoints) == [20, 3, 40]
    assert found.home == tmp_path
    assert found.is_trained
    assert find_runs(tmp_path) == [str(tmp_path)]


def test_models_with_numbers_of_their_own_are_a_run(tmp_path):
    touch(tmp_path, "epoch_1", "epoch_2", "epoch_10")
    assert find_run(tmp_path).checkpoints == {
        number: tmp_path / f"epoch_{number}" for number in (1, 10, 2)
    }
    assert find_runs(tmp_path) == [str(tmp_path)]


def test_averages_that_sepstop_wrote_are_no_checkpoints(tmp_path):
    touch(tmp_path, "epoch_1", "epoch_2", "average-2", "sepstop_average")
    for name in ("average-2", "sepstop_average"):
        (tmp_path / name / "sepstop_average.json").write_text("{}")
    found = find_run(tmp_path)
    assert sorted(found.checkpoints) == [1, 2]
    assert not found.is_one_run
    assert find_run(tmp_path / "average-2").checkpoints == {2: tmp_path / "average-2"}
    touch(tmp_path, "checkpoint-1", "checkpoint-2")
    assert find_run(tmp_path).is_one_run


def test_a_run_that_counts_from_0_is_counted_from_1(tmp_path):
    touch(tmp_path, "epoch-0", "epoch-1")
    assert find_run(tmp_path).checkpoints == {1: tmp_path / "epoch-0", 2: tmp_path / "epoch-1"}


def test_the_model_before_training_is_left_out(tmp_path):
    touch(tmp_path, "checkpoint-0", "checkpoint-10", "checkpoint-20")
    with pytest.warns(UserWarning, match=r"checkpoint-0 in .* left out"):
        assert sorted(find_run(tmp_path).checkpoints) == [10, 20]


def test_models_beside_numbered_ones_are_left_out(tmp_path):
    touch(tmp_path, "epoch-1", "epoch-2", "final")
    assert find_runs(tmp_path) == [str(tmp_path)]
    with pytest.warns(UserWarning, match=r"sepstop: final in .* left out"):
        assert sorted(find_run(tmp_path).checkpoints) == [1, 2]


def test_links_and_copies_of_what_is_there_are_no_models_of_their_own(tmp_path):
    touch(tmp_path, "run/epoch-1", "run/epoch-2", "run/copy", "elsewhere/checkpoint-5")
    (tmp_path / "run" / "copy" / "sepstop_copy.json").write_text("{}")
    (tmp_path / "run" / "best").symlink_to(tmp_path / "run" / "epoch-2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sorted(find_run(tmp_path / "run").checkpoints) == [1, 2]
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "sweep" / "run").symlink_to(tmp_path / "run")
    assert find_runs(tmp_path / "sweep") == [
        str(tmp_path / "sweep" / name) for name in ("linked", "run")
    ]
    (tmp_path / "best").symlink_to(tmp_path / "run" / "epoch-1")
    assert (
        find_runs(tmp_path) == [str(tmp_path / name) for name in ("elsewhere", "run", "sweep")][:2]
    )


@pytest.mark.parametrize("names", [("small", "large"), ("a-1", "b-1"), ("a", "b-2")])
def test_models_without_are_compared_one_by_one(tmp_path, names):
    touch(tmp_path, *names)
    assert find_runs(tmp_path) == [str(tmp_path / name) for name in sorted(names)]


def test_a_folder_of_runs(tmp_path):
    touch(tmp_path, "one/checkpoint-5", "two/checkpoint-5", "three")
    (tmp_path / "logs").mkdir()
    assert find_runs(tmp_path) == [str(tmp_path / name) for name in ("one", "three", "two")]


@pytest.mark.parametrize(
    ("name", "step"), [("checkpoint-70", 70), ("final", 1), ("checkpoint-0", 1)]
)
def test_a_model_by_itself(tmp_path, name, step):
    touch(tmp_path, name)
    found = find_run(tmp_path / name)
    assert found.checkpoints == {step: tmp_path / name}
    assert found.home == tmp_path  # nothing is left in a model's own folder
    assert not found.is_trained


def test_adapters_with_names_are_inside_their_checkpoint(tmp_path):
    def adapter(*names):
        for name in names:
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "adapter_config.json").write_text("{}")

    adapter("run/checkpoint-5/topics", "run/checkpoint-10/topics", "run/checkpoint-10/other")
    (tmp_path / "run" / "checkpoint-5" / "training_args.bin").touch()
    assert list(find_run(tmp_path / "run").checkpoints) == [10, 5]
    assert find_run(tmp_path / "run" / "checkpoint-5").checkpoints == {
        5: tmp_path / "run" / "checkpoint-5"
    }
    assert find_runs(tmp_path / "run" / "checkpoint-5") == [str(tmp_path / "run" / "checkpoint-5")]
    adapter("epochs/epoch_1/topics", "epochs/epoch_2/topics")
    assert find_run(tmp_path / "epochs").checkpoints == {
        number: tmp_path / "epochs" / f"epoch_{number}" for number in (1, 2)
    }
    adapter("side_by_side/first", "side_by_side/second")
    assert find_runs(tmp_path / "side_by_side") == [
        str(tmp_path / "side_by_side" / name) for name in ("first", "second")
    ]
    adapter("sweep/rate_1/epoch_3", "sweep/rate_1/epoch_4", "sweep/rate_2/epoch_3")
    assert find_runs(tmp_path / "sweep") == [
        str(tmp_path / "sweep" / name) for name in ("rate_1", "rate_2")
    ]


def test_a_list_in_a_file(tmp_path):
    touch(tmp_path, "mine/checkpoint-1", "mine/checkpoint-2", "other")
    listed = tmp_path / "models.txt"
    listed.write_text("# to compare\nmine\n\norg/model@v1.0  # from the hub\nother\n")
    assert find_runs(listed) == [str(tmp_path / "mine"), "org/model@v1.0", str(tmp_path / "other")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected one folder or hub name per line in .*, found none"),
        (b"# nothing\n", "expected one folder or hub name per line in .*, found none"),
        (b"\xff\xfe\x00", "expected a folder or a text file that lists models"),
        (b"../elsewhere\n", "which is outside its folder"),
        (b"nobody\n", "neither a folder beside it nor a model's name on the hub"),
        (b"/etc\n", "which is outside its folder"),
    ],
)
def test_a_file_that_is_no_list(tmp_path, content, message):
    touch(tmp_path, "elsewhere", "here")
    (tmp_path / "here" / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        find_runs(tmp_path / "here" / "list.txt")


def test_a_model_of_the_hub(tmp_path, monkeypatch, model, pool):
    """Served from the hub's cache, as without a network."""
    hub = tmp_path / "hub"
    repository = hub / "models--org--model"
    model(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (repository / "refs" / "v2").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    assets = "huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE"
    monkeypatch.setattr(assets, str(tmp_path / "assets"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = find_run("org/model")
    assert found.checkpoints == {1: repository / "snapshots" / "abc"}
    assert find_run("org/model@v2").checkpoints == found.checkpoints
    selection = select_checkpoint("org/model", pool)
    assert selection.best == found.checkpoints[1]
    assert not (repository / "snapshots" / CACHE_FOLDER).exists()
    assert list((tmp_path / "assets").rglob("*.npz"))
    with pytest.raises(FileNotFoundError, match="no folder and no model on the hub at org/none: "):
        find_run("org/none")


def test_a_renamed_checkpoint_has_the_step_that_it_was_saved_at(tmp_path):
    touch(tmp_path, "best-v2")
    assert list(find_run(tmp_path / "best-v2").checkpoints) == [2]
    state = tmp_path / "best-v2" / "trainer_state.json"
    for content, step in (('{"global_step": 40}', 40), ("{", 2), ("[]", 2)):
        state.write_text(content)
        assert list(find_run(tmp_path / "best-v2").checkpoints) == [step]
