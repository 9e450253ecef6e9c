"""Recording of runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts
from helpers.recorded import save_model, short_settings

from sepstop.bench.record import record_run
from sepstop.bench.rows import read_rows, split_rows, with_noise
from sepstop.bench.run_settings import RunSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    return save_model(tmp_path_factory.mktemp("model"), tokenizer)


@pytest.fixture(scope="module")
def run(model):
    return record_run(*make_texts(160), short_settings(model), progress=False)


def test_a_run_has_the_inputs_of_all_criteria(run):
    shapes = {key: value.shape for key, value in run.arrays.items()}
    assert shapes == {
        "steps": (4,),
        **dict.fromkeys(("pool_e", "cumulative_pool_e", "recent_pool_e"), (4, 60, 16)),
        **dict.fromkeys(("pool_l", "cumulative_pool_l", "recent_pool_l"), (4, 60, 2)),
        **dict.fromkeys(("pool_d", "cumulative_pool_d", "recent_pool_d"), (4, 60, 2)),
        "train_y": (32,),
        "y": (60,),
        **dict.fromkeys(("te_acc", "cumulative_te_acc", "recent_te_acc"), (4,)),
        **dict.fromkeys(("pool_acc", "cumulative_pool_acc", "recent_pool_acc"), (4,)),
        **dict.fromkeys(("va_acc", "va_loss", "tr_loss"), (4,)),
        "plain_te_acc": (6,),
    }
    assert run.steps == [0, 16, 32, 44]
    assert run.test_accuracy[-1] > 0.8  # it has learned
    assert run.arrays["tr_loss"][-1] < run.arrays["tr_loss"][1]
    right = (run.arrays["pool_l"].argmax(-1) == run.arrays["y"]).mean(axis=1)
    assert right == pytest.approx(run.arrays["pool_acc"])


def test_the_same_settings_give_the_same_run(run, model):
    again = record_run(*make_texts(160), short_settings(model), progress=False)
    assert again.name == run.name
    for key, values in run.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], values)
    assert short_settings(model, seed=1).name != run.name


def test_published_runs_keep_their_names():
    """The hash in a run's name is of the earlier names of settings."""
    suites = json.loads((ROOT / "docs/evidence_runs.json").read_text())
    published = {name: run for suite in suites.values() for name, run in suite.items()}
    assert len(published) >= 56
    for name, run in published.items():
        settings = {key: value for key, value in run.items() if key != "sha256"}
        assert RunSettings(**settings).name == name


def test_parts_are_disjoint_and_each_text_occurs_once(model):
    texts, labels = make_texts(160)
    rows = split_rows(
        texts + texts[:9], labels + labels[:9], short_settings(model), np.random.default_rng(0)
    )
    assert {part: len(y) for part, (_, y) in rows.items()} == {
        "train": 32,
        "pool": 60,
        "validation": 20,
        "test": 40,
    }
    found = [text for part, _ in rows.values() for text in part]
    assert len(found) == len(set(found))
    of = dict(zip(texts, labels, strict=True))
    for part, y in rows.values():
        assert [of[text] for text in part] == y.tolist()


@pytest.mark.parametrize(("kind", "shifts"), [("uniform", {1, 2, 3, 4}), ("class", {1})])
def test_noise_changes_its_share_of_labels(kind, shifts):
    y = np.arange(100) % 5
    settings = RunSettings("toy", labeled_rows=100, noise=0.3, noise_kind=kind)
    noisy = with_noise(y, 5, settings, np.random.default_rng(0))
    assert (noisy != y).sum() == 30
    assert set(noisy) <= set(range(5))
    assert set((noisy - y)[noisy != y] % 5) == shifts


def test_imbalance(model):
    texts = [f"text {i}" for i in range(300)]
    rows = split_rows(
        texts,
        [i % 3 for i in range(300)],
        short_settings(model, labeled_rows=60, imbalance=16, test_rows=50),
        np.random.default_rng(0),
    )
    counts = sorted(np.bincount(rows["train"][1]))
    assert counts[2] / counts[0] == pytest.approx(16, rel=0.3)
    assert counts[1] / counts[0] == pytest.approx(4, rel=0.3)


@pytest.mark.parametrize("start", ["reset", "head", "lora"])
def test_starts(model, start):
    if start == "lora":
        pytest.importorskip("peft")
    settings = short_settings(model, start=start, steps=8)
    found = record_run(*make_texts(160), settings, progress=False)
    moved = not np.array_equal(found.arrays["pool_e"][0], found.arrays["pool_e"][-1])
    assert moved == (start != "head")
    if start != "reset":
        base = record_run(*make_texts(160), short_settings(model, steps=1), progress=False)
        np.testing.assert_array_equal(found.arrays["pool_e"][0], base.arrays["pool_e"][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "cold"}, "expected `start` base, reset, head or lora, got 'cold'"),
        ({"noise": 1.0}, "expected `noise` from 0 to below 1, got 1.0"),
        ({"noise_kind": "some"}, "expected `noise_kind` uniform or class, got 'some'"),
        ({"imbalance": 0.5}, "expected `imbalance` >= 1, got 0.5"),
        ({"steps": 0}, "expected `steps` >= 1, got 0"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        RunSettings("toy", **({"labeled_rows": 32} | changes))


def test_too_few_rows(model):
    with pytest.raises(ValueError, match="100 different texts leave 0 rows for validation"):
        record_run(*make_texts(100), short_settings(model, pool_rows=90), progress=False)
    with pytest.raises(ValueError, match=r"expected at least 2 classes, got \['1'\]"):
        record_run(["a", "b"], [1, 1], short_settings(model), progress=False)


def test_rows_are_read_from_files(tmp_path):
    (tmp_path / "a.csv").write_text("body,topic\none,x\ntwo,y\n,x\n")
    (tmp_path / "b.jsonl").write_text('{"body": "three", "topic": "x"}\n')
    files = [tmp_path / "a.csv", tmp_path / "b.jsonl"]
    with pytest.warns(UserWarning, match=r"1 empty row left out of the data .*a\.csv"):
        rows = read_rows(files, "body", "topic")
    assert rows == (["one", "two", "three"], ["x", "y", "x"])
    with pytest.raises(
        ValueError, match=r"a.csv has no column 'text'; its columns are body, topic"
    ):
        read_rows(files)
    with pytest.raises(FileNotFoundError, match="no data file"):
        read_rows([tmp_path / "c.csv"])
    (tmp_path / "d.txt").write_text("x")
    with pytest.raises(ValueError, match=r"d\.txt has no columns, so it has no 'text'"):
        read_rows([tmp_path / "d.txt"])


def test_class_names_of_any_type_are_numbered_in_order(tmp_path):
    """10 and "10" are one class, which comes after 9."""
    lines = [json.dumps({"text": f"text {i}", "label": [10, "9", None][i % 3]}) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    texts, labels = read_rows([tmp_path / "a.jsonl"])
    assert len(texts) == 40
    assert set(labels) == {"9", "10"}
    settings = RunSettings("toy", labeled_rows=10, pool_rows=10, validation_rows=10, test_rows=10)
    for found, y in split_rows(texts, labels, settings, np.random.default_rng(0)).values():
        assert [labels[texts.index(text)] for text in found] == [["9", "10"][c] for c in y]
    (tmp_path / "b.csv").write_text("text,label\na,None\nb,NA\nc,00\nd,\n")
    assert read_rows([tmp_path / "b.csv"]) == (["a", "b", "c"], ["None", "NA", "00"])
