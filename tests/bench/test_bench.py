"""Recorded runs: made, read, judged."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import make_encoder, make_texts
from typer.testing import CliRunner

from sepstop import Monitor
from sepstop.bench.judge import (
    DEFAULT_CRITERION,
    ScoreCache,
    default_history,
    judge,
    label_curve,
    label_equivalent,
    score_run,
    weighted_spearman,
)
from sepstop.bench.record import RunSettings, read_rows, record_run, split_rows, with_noise
from sepstop.bench.recorded_run import Run, find_runs, load_run, save_run
from sepstop.cli.main import app
from sepstop.criteria import ComponentInformation, InfoMax, Information, Separability
from sepstop.criteria.neighbor_mi import neighbor_information
from sepstop.decide.policies import Auto
from sepstop.measure.neighbors import Neighborhoods
from sepstop.measure.resampling import draw_resamples


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A tiny model to start from."""
    folder = tmp_path_factory.mktemp("model")
    make_encoder().bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(folder, **changes):
    options = {
        "data": "toy",
        "labeled_rows": 32,
        "learning_rate": 1e-2,
        "model": str(folder),
        "steps": 44,
        "evaluate_every": 16,
        "max_length": 16,
        "pool_rows": 60,
        "validation_rows": 20,
        "test_rows": 40,
    }
    return RunSettings(**(options | changes))


@pytest.fixture(scope="module")
def run(folder):
    return record_run(*make_texts(160), settings(folder), progress=False)


def toy_run(name="toy", accuracy=(0.1, 0.5, 0.9, 0.7), scores=(0, 1, 2, 3), pool=40):
    """Pool predictions that are right in the share of ``accuracy``; points of any shape."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, pool)
    logits = np.zeros((len(accuracy), pool, 2), np.float32)
    for t, share in enumerate(accuracy):
        right = np.arange(pool) < share * pool
        logits[t, np.arange(pool), np.where(right, y, 1 - y)] = 1 + scores[t]
    arrays = {
        "steps": np.arange(len(accuracy)) * 10,
        "pool_e": rng.normal(size=(len(accuracy), pool, 3)).astype(np.float16),
        "pool_l": logits,
        "y": y,
        "te_acc": np.array(accuracy),
    }
    return Run(name, arrays)


# Recording


def test_a_run_records_what_it_should(run):
    shapes = {key: value.shape for key, value in run.arrays.items()}
    assert shapes == {
        "steps": (4,),
        "pool_e": (4, 60, 16),
        "pool_l": (4, 60, 2),
        "pool_d": (4, 60, 2),
        "train_e": (4, 32, 16),
        "train_l": (4, 32, 2),
        "train_y": (32,),
        "y": (60,),
        **dict.fromkeys(("te_acc", "pool_acc", "va_acc", "va_loss", "tr_loss"), (4,)),
    }
    assert run.steps == [0, 16, 32, 44]
    assert run.test_accuracy[-1] > 0.8  # it has learned
    assert run.arrays["tr_loss"][-1] < run.arrays["tr_loss"][1]
    right = (run.arrays["pool_l"].argmax(-1) == run.arrays["y"]).mean(axis=1)
    assert right == pytest.approx(run.arrays["pool_acc"])


def test_the_same_settings_give_the_same_run(run, folder):
    again = record_run(*make_texts(160), settings(folder), progress=False)
    assert again.name == run.name
    for key, values in run.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], values)
    other = settings(folder, seed=1)
    assert other.name != run.name


def test_the_parts_are_disjoint_and_a_text_is_there_once(folder):
    texts, labels = make_texts(160)
    rows = split_rows(
        texts + texts[:9], labels + labels[:9], settings(folder), np.random.default_rng(0)
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


def test_noise_changes_its_share_of_labels(folder):
    y = np.arange(100) % 5
    for kind in ("uniform", "class"):
        noisy = with_noise(
            y, 5, settings(folder, noise=0.3, noise_kind=kind), np.random.default_rng(0)
        )
        assert (noisy != y).sum() == 30
        assert set(noisy) <= set(range(5))
        shifts = set((noisy - y)[noisy != y] % 5)
        assert shifts == ({1} if kind == "class" else {1, 2, 3, 4})


def test_imbalance(folder):
    texts = [f"text {i}" for i in range(300)]
    rows = split_rows(
        texts,
        [i % 3 for i in range(300)],
        settings(folder, labeled_rows=60, imbalance=16, test_rows=50),
        np.random.default_rng(0),
    )
    counts = sorted(np.bincount(rows["train"][1]))
    assert counts[2] / counts[0] == pytest.approx(16, rel=0.3)
    assert counts[1] / counts[0] == pytest.approx(4, rel=0.3)


@pytest.mark.parametrize("start", ["reset", "head", "lora"])
def test_starts(folder, start):
    if start == "lora":
        pytest.importorskip("peft")
    found = record_run(*make_texts(160), settings(folder, start=start, steps=8), progress=False)
    moved = not np.array_equal(found.arrays["pool_e"][0], found.arrays["pool_e"][-1])
    assert moved == (start != "head")
    if start != "reset":
        base = record_run(*make_texts(160), settings(folder, steps=1), progress=False)
        np.testing.assert_array_equal(found.arrays["pool_e"][0], base.arrays["pool_e"][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "cold"}, "expected `start` base, reset, head or lora, got 'cold'"),
        ({"noise": 1.0}, "expected `noise` from 0 to below 1"),
        ({"noise_kind": "some"}, "expected `noise_kind`"),
        ({"imbalance": 0.5}, "expected `imbalance` >= 1"),
        ({"steps": 0}, "expected `steps` >= 1"),
    ],
)
def test_settings_that_can_not_be(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(folder, **changes)


def test_too_few_rows(folder):
    with pytest.raises(ValueError, match="100 different texts leave 0 rows for validation"):
        record_run(*make_texts(100), settings(folder, pool_rows=90), progress=False)
    with pytest.raises(ValueError, match="at least 2 classes"):
        record_run(["a", "b"], [1, 1], settings(folder), progress=False)


# Files


def test_a_run_comes_back_from_its_file(run, tmp_path):
    path = save_run(tmp_path, run)
    again = load_run(path)
    assert again.name == run.name == path.stem
    assert again.settings == run.settings
    for key, values in run.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("te_acc"), "has no te_acc; it has pool_e, pool_l, steps, y"),
        (lambda a: a.update(te_acc=np.zeros(3)), "te_acc has 3 evaluations, steps 4"),
        (lambda a: a.update(y=np.zeros(7)), r"pool_e of shape \(T, 7, ...\), got \(4, 40, 3\)"),
        (lambda a: a.update(steps=np.array([0, 2, 1, 3])), "steps do not ascend"),
    ],
)
def test_files_that_are_no_runs(tmp_path, change, message):
    run = toy_run()
    change(run.arrays)
    with pytest.raises(ValueError, match=message):
        load_run(save_run(tmp_path, run))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"is no \.npz file"):
        load_run(tmp_path / "text.npz")
    with pytest.raises(FileNotFoundError, match="no recorded runs"):
        find_runs(tmp_path / "nowhere")


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


def test_classes_of_any_name_are_numbered_in_order(tmp_path):
    """Whatever the files' types: 10 and "10" are one class, which comes after 9."""
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


# Judging


def test_a_run_is_scored_as_a_monitor_would(run, folder, tokenizer):
    """The recorded embeddings through score_run, and the model itself through a Monitor."""
    texts, labels = make_texts(160)
    chosen = settings(folder)
    pool = split_rows(texts, labels, chosen, np.random.default_rng(0))["pool"][0]
    monitor = Monitor(pool, tokenizer=tokenizer, max_length=16)
    record = monitor.measure(make_encoder().bert, 0)
    scored = score_run(run, Separability())[0]
    assert scored.resamples == pytest.approx(record.resamples, abs=2e-3)  # kept as float16
    assert (scored.resample_size, scored.pool_size) == (record.resample_size, record.pool_size)


def test_regret_by_hand():
    criteria = {"infomax": InfoMax()}
    policies = {"patience 1": {"name": "patience", "patience": 1}}
    # infomax follows the logits' scale: the last step is the pick, two below the best
    runs = [toy_run(), toy_run("other", scores=(0, 1, 3, 2))]
    found = judge(runs, criteria, policies)
    assert found.find("oracle").regrets == pytest.approx([0, 0])
    assert found.find("last checkpoint").regrets == pytest.approx([0.2, 0.2])
    assert found.find("infomax").picks == [30, 20]
    assert found.find("infomax").regrets == pytest.approx([0.2, 0])
    assert found.find("infomax", "patience 1").picks == [30, 20]
    assert found.find("infomax", "patience 1").saved == pytest.approx([0, 0])
    assert found.find("infomax").spearman == pytest.approx([0.5, 1.0])
    default = found.as_json()["default"]
    assert default["regret_mean"] == found.find("default").regrets.mean()
    assert default["regret_stop_mean"] == found.find("default", "auto").regrets.mean()
    assert default["steps_saved_mean"] == found.find("default", "auto").saved.mean()
    rows = {(row["criterion"], row["policy"]): row for row in found.summaries()}
    assert rows["last checkpoint", "hindsight"]["against"] == "infomax"  # the best peer
    assert rows["last checkpoint", "hindsight"]["difference_mean"] == pytest.approx(0.1)
    assert not rows["oracle", "hindsight"]["label_free"]


def test_stopping_saves_steps_and_may_cost_accuracy():
    accuracy = (0.1, 0.9, 0.8, 0.7, 0.95)
    run = toy_run(accuracy=accuracy, scores=(0, 3, 2, 1, 4))
    policies = {"patience 2": {"name": "patience", "patience": 2}}
    found = judge([run], {"infomax": InfoMax()}, policies)
    stop = found.find("infomax", "patience 2")
    assert (stop.picks, stop.saved) == ([10], pytest.approx([0.25]))
    assert stop.regrets == pytest.approx([0.05])
    assert found.find("infomax").regrets == pytest.approx([0])


def test_more_labels_lose_less():
    curve = label_curve(toy_run(accuracy=(0.1, 0.5, 0.9, 0.7), pool=400))
    assert list(curve) == [5, 10, 25, 50, 100, 200, 400]
    assert curve[5] > curve[50] >= curve[400] == 0
    assert label_curve(Run("x", {"steps": np.arange(2)})) == {}


@pytest.mark.parametrize(
    ("regret", "labels"),
    [(0.5, 0), (0.4, 5), (0.3, math.sqrt(50)), (0.2, 10), (0.0, 20), (-1.0, 20)],
)
def test_label_equivalents_are_read_off_the_curve(regret, labels):
    assert label_equivalent(regret, {5: 0.4, 10: 0.2, 20: 0.1}) == pytest.approx(labels)
    assert math.isnan(label_equivalent(regret, {}))


def test_weighted_spearman():
    accuracy = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert weighted_spearman(accuracy**2, accuracy) == pytest.approx(1)
    assert weighted_spearman(-accuracy, accuracy) == pytest.approx(-1)
    wrong_below = weighted_spearman(np.array([2.0, 1, 3, 4, 5]), accuracy)
    wrong_above = weighted_spearman(np.array([1.0, 2, 3, 5, 4]), accuracy)
    assert wrong_above < wrong_below < 1


def test_a_run_without_logits_is_judged_by_its_embeddings():
    run = toy_run()
    del run.arrays["pool_l"]
    criteria = {"component_information": ComponentInformation(), "infomax": InfoMax()}
    found = judge([run], criteria, {"plateau": {"name": "plateau"}})
    names = {verdict.criterion for verdict in found.verdicts}
    assert names == {"oracle", "last checkpoint", "component_information", "default"}
    for policies in (("hindsight", "hindsight"), ("plateau", "auto")):
        by_score, by_default = (
            found.find("component_information", policies[0]),
            found.find("default", policies[1]),
        )
        assert by_default.picks == by_score.picks
    (of,) = {record.information_of for record in default_history(run, score_run)}
    assert of == "components"
    assert json.dumps(found.as_json(), allow_nan=False)


def test_a_reference_that_a_run_lacks_is_left_out():
    """The others are compared over all runs; a mean over some would stand beside theirs."""
    whole, bare = toy_run("whole"), toy_run("bare")
    whole.arrays["tr_loss"] = np.array([2.0, 1.0, 0.5, 0.4])
    criteria = {"infomax": InfoMax()}
    named = {v.criterion for v in judge([whole], criteria, {}).verdicts}
    found = judge([whole, bare], criteria, {})
    assert named - {v.criterion for v in found.verdicts} == {"training loss"}
    assert json.dumps(found.as_json(), allow_nan=False)


def test_nothing_to_judge():
    with pytest.raises(ValueError, match="at least one recorded run"):
        judge([], {"infomax": InfoMax()}, {})


def test_scores_are_kept_and_belong_to_run_and_settings(tmp_path):
    cache, run = ScoreCache(tmp_path, resamples=3), toy_run()
    first = cache(run, InfoMax())
    (file,) = tmp_path.iterdir()
    lines = file.read_text().replace('"epoch": null', '"epoch": 7.0')
    file.write_text(lines)  # so that a hit can be told from a computation
    assert [record.epoch for record in cache(run, InfoMax())] == [7.0] * 4
    assert first[1].resamples == cache(run, InfoMax())[1].resamples
    changed = toy_run(accuracy=(0.1, 0.5, 0.8, 0.7))
    assert cache(changed, InfoMax())[0].epoch is None
    assert ScoreCache(tmp_path, resamples=4)(run, InfoMax())[0].epoch is None


# The command


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_record_and_judge(folder, tmp_path):
    texts, labels = make_texts(160)
    rows = [json.dumps({"body": t, "topic": y}) for t, y in zip(texts, labels, strict=True)]
    (tmp_path / "toy.jsonl").write_text("\n".join(rows))
    command = ["record", "--data", tmp_path / "toy.jsonl", "--model", folder]
    command += ["--text-column", "body", "--label-column", "topic", "--out", tmp_path / "runs"]
    command += ["--labeled-rows", 32, "--learning-rate", 3e-3, "--steps", 16]
    command += ["--evaluate-every", 4, "--pool-rows", 60, "--max-length", 16]
    result = bench(*command)
    assert result.exit_code == 2
    assert "leave" in result.stderr  # validation takes the rest by default
    command += ["--validation-rows", 20]
    assert bench(*command).exit_code == 0
    assert "recorded already" in bench(*command).stderr
    result = bench("judge", tmp_path / "runs", "--json")
    answer = json.loads(result.stdout)
    assert answer["default"].keys() >= {
        "regret_mean",
        "regret_p90",
        "regret_max",
        "regret_stop_mean",
        "steps_saved_mean",
        "label_equivalent",
        "label_equivalent_stop",
    }
    judged = {(row["criterion"], row["policy"]) for row in answer["rows"]}
    assert {("bnm", "plateau"), ("oracle", "hindsight"), ("rankme", "patience 3")} <= judged
    shown = bench("judge", tmp_path / "runs", "--criterion", "infomax")
    assert "infomax" in shown.stdout
    assert "picking by validation accuracy on m labels" in shown.stdout


def test_errors_are_a_sentence_and_status_two(tmp_path):
    result = bench("judge", tmp_path)
    assert result.exit_code == 2
    assert "no recorded runs" in result.stderr
    save_run(tmp_path, toy_run())
    result = bench("judge", tmp_path, "--criterion", "depth")
    assert result.exit_code == 2
    assert "unknown criterion 'depth'" in result.stderr


def test_the_default_is_the_callbacks(run, folder, tokenizer):
    """With logits it decides by the information, as a Monitor measures it on a classifier."""
    from sepstop import SepStopCallback

    callback = SepStopCallback([f"text {i}" for i in range(9)])
    assert callback.monitor.criterion.name == DEFAULT_CRITERION
    assert callback.policy == Auto()
    found = judge([run], {"information": Information()}, {})
    assert found.find("default").picks == found.find("information").picks
    for name in ("spearman", "weighted_spearman"):
        by_default, by_name = (getattr(found.find(n), name) for n in ("default", "information"))
        np.testing.assert_array_equal(by_default, by_name)
    history = default_history(run, score_run)
    monitor = Monitor(make_texts(40)[0], tokenizer=tokenizer, max_length=16)
    assert (
        0 < max(record.information for record in history) < math.log(2) + 1 / 60
    )  # the correction for 30 texts
    by_monitor = Neighborhoods()
    by_monitor.add(0, torch.from_numpy(run.arrays["pool_e"][0]).float())
    by_monitor.add(1, torch.from_numpy(run.arrays["pool_e"][1]).float())
    logits = torch.from_numpy(run.arrays["pool_l"][1]).float()
    chosen = draw_resamples(len(logits), 20, len(logits) // 2, 0)
    near = logits.argmax(dim=-1)[by_monitor.until(1)]
    expected = neighbor_information(logits[chosen], near[chosen]).mean().item()
    assert history[1].information == pytest.approx(expected)
    assert math.isfinite(monitor.measure(make_encoder(), 1).information)
    monitor.prepare(make_encoder().bert)
    record = monitor.measure(make_encoder().bert, 2)
    assert (record.information_of, math.isfinite(record.information)) == ("components", True)
