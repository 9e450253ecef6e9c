import json
import math
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_encoder, make_texts
from helpers.averaged import averaged_run
from helpers.walks import walk
from transformers import Trainer, TrainingArguments
from typer.testing import CliRunner

try:
    from playwright.sync_api import expect
except ImportError:  # then the tests in a browser are skipped
    expect = None

from sepstop import Decision, Patience, Record, SepStopCallback, h0_separability
from sepstop.cli.main import app
from sepstop.decide.selection import Selection
from sepstop.measure.embedding import Observation
from sepstop.measure.pool import read_pool
from sepstop.report.html import write_page
from sepstop.report.html.collect import collect
from sepstop.report.html.comparison import compare_runs, page_names
from sepstop.report.html.descriptions import describe_frames, describe_shown_weights, number
from sepstop.report.html.frames import FrameRecorder, sample
from sepstop.report.html.groups import MAX_GROUPS, grouping
from sepstop.report.html.labels import accuracy, label_classes, label_separability, read_labels
from sepstop.report.html.maps import MAPS, align, check_map, explained_variance, pca
from sepstop.report.html.page_data import page_data
from sepstop.report.html.report_data import ReportData
from sepstop.report.html.sanitize import plain, without_folders
from sepstop.runs.history import HISTORY_FILE, read_run, write_history
from sepstop.runs.records import RunHistory
from sepstop.types import Score

HOSTILE = [
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> good film",
    "</script><!--<script>\"'`&lt;b&gt; {{ 7 * 7 }} ${7 * 7} %{x} bad film",
    "\x00\x1b[31m\u202e\u2066 was and </td></table><a href='javascript:alert(1)'>dull</a> \u2028",
]
CLASS = "<i onmouseover='window.hacked = 1'>gl\u202ead"
TEXTS, TOPICS = make_texts(77, seed=1)
POOL = [*HOSTILE, *TEXTS]
LABELS = [CLASS, "bad", "bad", *((("bad", CLASS)[topic]) for topic in TOPICS)]


def train(output_dir, tokenizer, rows, callback, **options):
    model = make_encoder()
    model.config.id2label = {0: "bad", 1: CLASS}
    model.config.label2id = {"bad": 0, CLASS: 1}
    arguments = TrainingArguments(
        str(output_dir),
        max_steps=16,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        eval_strategy="no",
        save_steps=4,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )
    Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[callback],
    ).train()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizer, train_rows):
    """A monitored run with its pool beside it, of a name that is no good HTML."""
    folder = tmp_path_factory.mktemp("secret_place") / "a <b>run & \"more'"
    folder.mkdir()
    rows = [{"text": t, "topic": label} for t, label in zip(POOL, LABELS, strict=True)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = [row["text"] for row in rows]
    callback = SepStopCallback(
        pool,
        average=False,  # so that the checkpoints are what was scored
        policy=Patience(patience=2),
        criterion="separability",
        extra_criteria=["auto"],
        every_n_steps=4,
        num_resamples=5,
    )
    train(folder, tokenizer, train_rows, callback)
    return folder


@pytest.fixture
def run_dir(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / finished.name))


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    """The page of the run, with its texts and labels."""
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    write_page([finished], path, texts=True, labels="topic", average=False)
    return path


# Maps


def test_rotated_copies_are_aligned_exactly():
    generator = np.random.default_rng(0)
    before = generator.normal(size=(30, 2))
    turn = np.linalg.qr(generator.normal(size=(2, 2)))[0] @ np.diag([1.0, -1.0])
    found = align(before @ turn + [5.0, -3.0], before)
    np.testing.assert_allclose(found, before - before.mean(axis=0), atol=1e-12)


def test_alignment_changes_no_distance():
    generator = np.random.default_rng(1)
    positions, before = generator.normal(size=(2, 20, 2))
    found = align(positions, before)

    def distances(rows):
        return np.linalg.norm(rows[:, None] - rows[None], axis=-1)

    np.testing.assert_allclose(distances(found), distances(positions), atol=1e-12)
    assert np.square(found - before).sum() < np.square(positions - before).sum()


def test_pca_by_hand():
    points = np.zeros((4, 3))
    points[:, 1] = [-3, 3, 0, 0]
    points[:, 2] = [0, 0, 1, -1]
    positions = pca(points)
    np.testing.assert_allclose(np.abs(positions), [[3, 0], [3, 0], [0, 1], [0, 1]], atol=1e-12)
    assert explained_variance(points, positions) == pytest.approx(1)
    assert pca(np.ones((5, 8))).tolist() == [[0.0, 0.0]] * 5  # collapsed
    assert pca(np.arange(4.0)[:, None]).shape == (4, 2)


def test_maps_that_are_unknown_or_not_installed(monkeypatch):
    with pytest.raises(ValueError, match="unknown map 'tsne'; known: pca, umap, pacmap"):
        check_map("tsne")
    for name, package in (("umap", "umap-learn"), ("pacmap", "pacmap")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=f"pip install {package}"):
            check_map(name)


def test_a_map_begins_at_the_positions_of_the_checkpoint_before(monkeypatch):
    given = []
    monkeypatch.setitem(MAPS, "pca", lambda points, before: given.append(before) or pca(points))
    recorder = FrameRecorder(sample(9), sample(9))
    for step in (1, 2):
        recorder(step, _seen(torch.randn(9, 4, generator=torch.Generator().manual_seed(step))))
    assert given[0] is None
    np.testing.assert_array_equal(given[1], recorder.frames[0].positions)


def _seen(points, logits=None):
    return Observation(points, logits)


def test_embeddings_that_are_not_finite_have_no_frame():
    recorder = FrameRecorder(sample(9), sample(9))
    recorder(3, _seen(torch.full((9, 4), math.nan)))
    assert (recorder.frames, recorder.nonfinite_steps) == ([], [3])


def test_a_collapsed_embedding_has_a_frame():
    recorder = FrameRecorder(sample(9), sample(9))
    recorder(3, _seen(torch.ones(9, 4), torch.ones(9, 2)))
    records = [Record(3, None, {"separability": Score(0.0)})]
    data = page_data(_run(records, Decision(False, 3, "x", 3), recorder.frames), 1, "run")
    assert data["frames"][0]["x"] == [0] * 9
    json.dumps(data, allow_nan=False)


# Text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb\r\n c", "a b c"),
        ("\x00x\x1b[0m\x7f", "\ufffdx\ufffd[0m\ufffd"),
        ("\u202eevil\u2066\u200f", "\ufffdevil\ufffd\ufffd"),
        ("lone \ud800", "lone \ufffd"),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469"),
        ("<b>&", "<b>&"),  # escaping is the page's business
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_plain_text(text, expected):
    assert plain(text) == expected
    plain(text).encode()


def test_folders_of_the_machine_are_left_out(tmp_path):
    said = f"OSError: no file at {tmp_path}/checkpoint-4/x.json, nor '/opt/models/bert', 3/4, n / m"
    assert without_folders(said, tmp_path) == (
        f"OSError: no file at {tmp_path.name}/checkpoint-4/x.json, nor 'bert', 3/4, n / m"
    )
    assert without_folders(r"in C:\Users\me\run", tmp_path) == "in run"


def test_many_groups_share_the_last_name():
    names = [f"c{i}" for i in range(30) for _ in range(30 - i)]
    found = grouping("classes", [names])
    assert found.names == [*(f"c{i}" for i in range(MAX_GROUPS)), "other"]
    assert found.at(5)[-1] == MAX_GROUPS  # once for all frames
    assert found.note.startswith(f"The {MAX_GROUPS} largest of 30 groups")


# Labels


def test_labels_of_every_kind_of_file(tmp_path):
    import pandas as pd

    table = pd.DataFrame({"text": [f'text {i}, "x"\nline' for i in range(6)], "y": list("abcabc")})
    table.to_csv(tmp_path / "pool.csv", index=False)
    table.to_parquet(tmp_path / "pool.parquet")
    table.to_json(tmp_path / "pool.jsonl", orient="records", lines=True)
    table.to_json(tmp_path / "pool.json", orient="records")
    for path in sorted(tmp_path.iterdir()):
        pool = read_pool(path)
        assert read_labels(path, "y", pool) == tuple("abcabc"), path
        with pytest.raises(ValueError, match="has no column 'z'; its columns are text, y"):
            read_labels(path, "z", pool)
    (tmp_path / "pool.txt").write_text("a\nb")
    with pytest.raises(ValueError, match="has no columns"):
        read_labels(tmp_path / "pool.txt", "y", pool)


def test_labels_mean_what_they_mean_in_training(tmp_path):
    import pandas as pd

    table = pd.DataFrame({"text": list("abcd"), "y": ["None", "NA", "00", ""]})
    table.to_csv(tmp_path / "pool.csv", index=False)
    table.assign(y=[10, 2, None, 0]).to_parquet(tmp_path / "pool.parquet")
    for name, labels in (("pool.csv", ("None", "NA", "00", "")), ("pool.parquet", "10 2  0")):
        expected = tuple(labels.split(" ")) if isinstance(labels, str) else labels
        assert read_labels(tmp_path / name, "y", read_pool(tmp_path / name)) == expected


def test_labels_belong_to_the_rows_that_were_kept(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "y": y}) + "\n" for y in (1, 0, None)))

    class Kept(tuple):
        row_numbers = (2, 0)

    assert read_labels(path, "y", Kept(("a", "b"))) == ("", "1")
    with pytest.raises(ValueError, match=r"a label for each of the 2 texts .* 3 rows"):
        read_labels(path, "y", ("a", "b"))  # of which rows nothing says


def test_labels_and_classes():
    names = {0: "bad", 1: "good"}
    assert label_classes(["good", "", "bad"], names, 2).tolist() == [1, -1, 0]
    assert label_classes(["1", "0"], names, 2).tolist() == [1, 0]
    assert label_classes(["great"], names, 2) is None
    assert label_classes(["2"], {}, 2) is None
    assert accuracy(np.array([1, 1, 0]), np.array([1, -1, 1])) == 0.5
    assert math.isnan(accuracy(np.array([1]), np.array([-1])))


def test_what_labels_say_of_embeddings():
    points = np.repeat(np.eye(3), 6, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(18, 3))
    found = label_separability(points, ["a"] * 6 + ["b"] * 6 + ["c"] * 4 + ["", "rare"])
    assert set(found.values()) == {1.0}
    assert label_separability(points, ["a"] * 18) == {}


# A run without pool


RECORDS = [
    Record(10, None, {"neighbor_mi": Score(0.5, 0.4, 0.6), "separability": Score(0.3, 0.2, 0.4)}),
    Record(20, None, {"neighbor_mi": Score(math.nan), "separability": Score(math.nan)}),
    Record(30, 1.5, {"neighbor_mi": Score(0.9, 0.8, 1.0), "separability": Score(0.6, 0.5, 0.7)}),
]
DIRECTIONS = {"separability": True, "neighbor_mi": True, "churn": False}


def _history(records, decision, decides="separability"):
    return RunHistory(
        tuple(records),
        (*[None] * (len(records) - 1), decision),
        decides=decides,
        higher_is_better=DIRECTIONS,
    )


def _run(records, decision, frames=(), decides="separability"):
    history = _history(records, decision, decides)
    return ReportData(
        Path("some/run"),
        history,
        selection=_selection(history) if frames else None,
        frames=frames,
        has_classes=True,
        num_mapped=9,
    )


def _write_history(folder, records=RECORDS, decides="separability"):
    decision = Decision(False, 30, "improving", 30)
    write_history(folder / HISTORY_FILE, _history(records, decision, decides))


def test_a_run_without_a_decision(tmp_path):
    write_history(tmp_path / HISTORY_FILE, _history(RECORDS, None))
    run = collect(tmp_path)
    assert not run.is_monitored
    assert run.marks == {"pick": None, "stop": None}
    data = page_data(run, 1, "run")
    assert (data["summary"], data["reason"]) == (
        "There is no checkpoint to recommend.",
        "the run recorded no decision",
    )
    assert ("decided by", "unknown") in dict(data["settings"])["Decision"]
    assert data["curves"][0]["values"] == [0.3, None, 0.6]


def test_a_history_of_a_development_version_is_an_error(tmp_path):
    (tmp_path / HISTORY_FILE).write_text('{"sepstop": {"schema": 1, "count": 0}}\n')
    with pytest.raises(ValueError, match="line 1: written by an earlier development version"):
        collect(tmp_path)


def test_a_history_alone(tmp_path):
    _write_history(tmp_path / "run")
    notes = write_page([tmp_path / "run"], tmp_path / "report.html")
    assert notes == ["no separability at step 20: the pool could not be scored"]
    found = (tmp_path / "report.html").read_text()
    assert "Pass the pool (<code>--pool FILE</code>)" in found
    assert "Keep the checkpoint of step 30." in found
    assert 'type="range"' not in found
    assert str(tmp_path) not in found
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [HISTORY_FILE]


def test_gaps_and_marks():
    data = page_data(_run(RECORDS, Decision(True, 10, "enough", 30)), 1, "run")
    score, information = data["curves"]
    assert (score["name"], score["decides"]) == ("separability", True)
    assert (information["name"], information["decides"]) == ("neighbor_mi", False)
    assert score["values"] == [0.3, None, 0.6]
    assert (score["low"], information["values"]) == ([0.2, None, 0.5], [0.5, None, 0.9])
    assert data["marks"] == {"pick": 10, "stop": 30}
    assert data["summary"] == "The run was stopped at step 30. Keep the checkpoint of step 10."
    assert "1 of 3 steps has no score. The pick is step 10. The stop is step 30." in score["alt"]
    assert [record["marks"] for record in data["records"]] == ["pick", "", "stop"]
    assert data["score_names"] == ["separability", "neighbor_mi"]
    assert data["records"][0]["scores"] == ["0.3 [0.2, 0.4]", "0.5 [0.4, 0.6]"]
    assert data["records"][1]["scores"] == ["no score", "no score"]
    json.dumps(data, allow_nan=False)


def test_all_scores_of_a_run_and_their_picks():
    records = [
        Record(step, None, {"churn": Score(churn), "neighbor_mi": Score(mi), "lost": Score(lost)})
        for step, churn, mi, lost in ((10, 0.3, 0.1, math.nan), (20, 0.2, 0.3, math.nan))
    ]
    run = _run(records, Decision(False, 10, "so", 20), decides="neighbor_mi")
    data = page_data(run, 1, "run")
    rows = [
        (one["name"], one["decides"], one["pick"], one["higher_is_better"], one["agrees"])
        for one in data["criteria"]
    ]
    assert rows == [("neighbor_mi", True, 10, True, True), ("churn", False, 20, False, False)]
    assert "low" not in data["curves"][0]  # of a single resample
    alone = [replace(record, scores={"churn": record.scores["churn"]}) for record in records]
    data = page_data(_run(alone, Decision(False, 20, "so", 20), decides="churn"), 1, "run")
    assert data["criteria"] == []
    assert [curve["name"] for curve in data["curves"]] == ["churn"]


def test_candidates_of_a_run():
    data = page_data(ReportData(Path("run"), averaged_run()), 1, "run")
    mi = data["curves"][0]
    assert mi["values"] == [0.2, 0.4, 0.5, 0.7, 0.65]  # of the best candidates
    assert {line["name"]: line["values"] for line in mi["others"]} == {
        "checkpoint": [0.2, 0.3, 0.25, 0.35, 0.15],
        "cumulative average": [None, 0.25, 0.45, 0.7, 0.65],
        "recent average": [None, 0.4, 0.5, 0.6, 0.55],
    }
    assert mi["weights"][0] == "checkpoint of step 10"
    assert mi["weights"][3] == data["kept"] == "cumulative average of steps 11 to 40"
    assert "checkpoint, neighbor_mi from step 10 to 50: first 0.2, last 0.15" in mi["alt"]
    assert data["lines"][1:] == [line["name"] for line in mi["others"]]
    assert [row["average"] for row in data["records"]][:2] == ["", "11 to 20, recent"]
    assert len(data["candidates"]) == 8
    assert data["candidates"][0] == {
        "step": "20",
        "candidate": "checkpoint",
        "scores": ["0.3 [0.25, 0.35]", "-0.3"],
    }
    weights = dict(dict(data["settings"])["Decision"])["weights to keep"]
    assert weights == "cumulative average of steps 11 to 40, 30 steps in it"
    json.dumps(data, allow_nan=False)


def test_a_page_without_averages_does_not_speak_of_them(tmp_path):
    _write_history(tmp_path / "run")
    write_page([tmp_path / "run"], tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    body = page[page.index("<body>") : page.index('<script type="application/json"')]
    for word in ("average", "candidate", "which weights"):
        assert word not in body
    assert "which checkpoint to keep" in body


def test_the_pick_of_compared_runs_may_be_an_average():
    runs = [ReportData(Path(name), averaged_run()) for name in ("a", "b")]
    lines = compare_runs(runs)["lines"]
    assert [line["average"] for line in lines] == ["cumulative average of steps 11 to 40"] * 2
    runs = [replace(run, selection=_selection(run.history)) for run in runs]
    best = compare_runs(runs)["best"]
    assert best.startswith("Of all runs, keep the cumulative average of steps 11 to 40 of a.")


def _selection(run):
    return Selection(run.decision, run.decides, run.higher_is_better, run.records, {})


def _with_frames(history, selection, steps):
    recorder = FrameRecorder(sample(9), sample(9))
    points = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    for step in steps:
        recorder(step, _seen(points))
    frames = recorder.frames
    return ReportData(Path("run"), history, selection=selection, frames=frames, num_mapped=9)


def test_the_slider_shows_the_weights_and_the_score_of_the_map():
    history = averaged_run()
    run = _with_frames(history, _selection(history), (10, 40))
    data = page_data(run, 1, "run")
    assert [frame["value"] for frame in data["frames"]] == [
        "step 10, checkpoint, neighbor_mi 0.2",
        "step 40, cumulative average of 30 checkpoints, neighbor_mi 0.7, the pick",
    ]
    assert data["frames"][1]["map_alt"].startswith(
        "Map of 9 texts at step 40, cumulative average of 30 checkpoints. It shows"
    )
    assert "at step 10, checkpoint: the median is" in data["frames"][0]["bars_alt"]


def test_the_pick_may_be_other_weights_than_those_of_the_map():
    history = averaged_run()
    record = history.records[3]
    average = replace(record.average, count=2)  # of checkpoints, not of all steps
    scores = {"neighbor_mi": Score(0.6)}
    selection = replace(
        _selection(history), records=(replace(record, average=average, scores=scores),)
    )
    data = page_data(_with_frames(history, selection, (40,)), 1, "run")
    assert data["frames"][0]["value"] == (
        "step 40, cumulative average of 2 checkpoints, neighbor_mi 0.6, the step of the pick"
    )


@pytest.mark.parametrize(
    ("shows_averages", "is_monitored", "has_averages", "expected"),
    [
        (False, True, False, ""),
        (False, False, False, ""),
        (False, True, True, "those of its checkpoint, not of the averages that the run scored."),
        (True, False, True, "best candidate: its checkpoint or an average of checkpoints."),
        (True, True, True, "The run's own scores are of averages made during training, so they"),
        (True, True, False, "The run's own scores are of its checkpoints, so they differ"),
    ],
)
def test_the_page_says_what_the_map_is_of(shows_averages, is_monitored, has_averages, expected):
    said = describe_frames(shows_averages, is_monitored, has_averages)
    assert expected in said
    assert bool(said) == bool(expected)


def test_nothing_scored():
    records = [Record(10, None, {"separability": Score(math.nan)})]
    data = page_data(_run(records, Decision(False, None, "nothing measured yet", 10)), 1, "run")
    json.dumps(data, allow_nan=False)
    assert data["curves"] == []
    assert data["summary"] == "There is no checkpoint to recommend."


# A real run


def test_frames_of_a_run(run_dir):
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    run = collect(run_dir, labels="topic", average=False)
    after = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    assert after == before  # only the cache is new
    assert run.is_monitored
    assert run.decision.stop
    records = run.history.records
    assert [frame.step for frame in run.frames] == [record.step for record in records]
    assert run.num_mapped == len(POOL)
    for frame, record in zip(run.frames, records, strict=True):
        assert frame.positions.shape == (len(POOL), 2)
        empty = 1 - (frame.deaths / frame.deaths[-1]).mean()
        own = record.scores["separability"].resample_values[0]
        assert empty == pytest.approx(own, abs=1e-5)  # the barcode is the score
        assert 0 <= frame.supervised["accuracy of the model"] <= 1
    data = page_data(run, 1, "run")
    assert [curve["name"] for curve in data["curves"]] == ["separability", "robust_mi"]
    names = [one["name"] for one in data["criteria"]]
    assert names == ["separability", "robust_mi", "infomax"]  # the last was not recorded
    assert [way["title"][:5] for way in data["groupings"]] == ["class", "class", "given"]
    label, first = data["groupings"][2], data["groupings"][0]
    assert label["names"] == first["names"]  # so they have the same colors
    assert [one["agrees"] for one in data["criteria"] if one["decides"]] == [True]
    policy = dict(dict(data["settings"])["Decision"])["policy"]
    assert "patience 2" in policy


def test_frames_of_averages(tmp_path, tokenizer):
    """Map, barcode and score of a step are of the same weights, and the page says of which."""
    run_dir = walk(tmp_path / "run", make_encoder(), tokenizer, count=6)
    rows = [{"text": t, "topic": str(y)} for t, y in zip(TEXTS, TOPICS, strict=True)]
    (run_dir / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = collect(run_dir, criterion="separability")
    for frame, record in zip(run.frames, run.frame_records, strict=True):
        empty = 1 - (frame.deaths / frame.deaths[-1]).mean()
        own = record.scores["separability"].resample_values[0]
        assert empty == pytest.approx(own, abs=1e-5)
    assert run.frame_records[0].average is None  # an average would hold the first one alone
    assert run.frame_records[-1].average is not None
    page = tmp_path / "report.html"
    write_page([run_dir], page, labels="topic", criterion="separability")
    found = " ".join(page.read_text().split())
    assert "are those of its best candidate: its checkpoint or an average of checkpoints." in found
    assert "The weights of a step are those of its map." in found
    (data,) = json.loads(found.split('id="data">')[1].split("</script>")[0])["runs"]
    for frame, record in zip(data["frames"], run.frame_records, strict=True):
        score = number(record.scores["separability"].value)
        weights = describe_shown_weights(record)
        assert frame["value"].startswith(f"step {record.step}, {weights}, separability {score}")


def test_all_criteria_take_one_observation(run_dir, monkeypatch):
    from sepstop.measure.monitor import Monitor

    passes, observe = [], Monitor.observe
    monkeypatch.setattr(
        Monitor, "observe", lambda self, model: passes.append(1) or observe(self, model)
    )
    names = ["infomax", "entropy", "sepstop.bench.criteria:RankMe"]
    run = collect(run_dir, extra_criteria=names, cache=False, average=False)
    assert len(passes) == len(run.frames) == 3
    assert not (run_dir / "sepstop_cache").exists()
    shown = [one["name"] for one in page_data(run, 1, "run")["criteria"]]
    assert shown == ["separability", "robust_mi", "infomax", "entropy", "rankme"]


def test_the_barcode_is_of_the_texts_that_are_scored():
    points = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    recorder = FrameRecorder(sample(40), torch.arange(20))
    recorder(1, _seen(points, points[:, :3]))
    deaths = recorder.frames[0].deaths
    assert 1 - (deaths / deaths[-1]).mean() == pytest.approx(float(h0_separability(points[:20])))
    assert recorder.frames[0].groups.tolist() == points[:, :3].argmax(dim=-1).tolist()


def test_another_pick_afterwards_is_noted(run_dir):
    recorded = read_run(run_dir)
    best = recorded.decision.best_step
    other = 4 if best != 4 else 8
    decision = replace(recorded.decision, best_step=other)
    changed = replace(recorded, decisions=(*recorded.decisions[:-1], decision))
    write_history(run_dir / HISTORY_FILE, changed)
    found = collect(run_dir, extra_criteria=[], ties="best", average=False)
    notes = page_data(found, 1, "run")["notes"]
    assert f"scored now, the pick is the checkpoint of step {best}" in notes[0]
    assert f"the run itself kept step {other}" in notes[0]


def test_a_checkpoint_that_is_gone_has_no_frame(run_dir):
    shutil.rmtree(run_dir / "checkpoint-8")
    run = collect(run_dir, extra_criteria=[])
    steps = [record.step for record in run.history.records]
    assert 8 in steps
    assert [frame.step for frame in run.frames] == [step for step in steps if step != 8]
    names = [one["name"] for one in page_data(run, 1, "run")["criteria"]]
    assert names == ["separability", "robust_mi"]  # those recorded


def test_a_model_without_predictions_is_colored_by_components(tmp_path, tokenizer):
    for step in (1, 2):
        make_encoder(seed=step).bert.save_pretrained(tmp_path / f"checkpoint-{step}")
        tokenizer.save_pretrained(tmp_path / f"checkpoint-{step}")
    run = collect(tmp_path, _pool_file(tmp_path))
    assert not run.is_monitored
    assert run.history.decides == "component_mi"
    assert run.decision == run.selection.decision
    data = page_data(run, 1, "run")
    assert [one["name"] for one in data["criteria"]] == ["component_mi", "separability"]
    (way,) = data["groupings"]
    assert way["title"].startswith("component of the embeddings at step")
    assert len(way["indices"]) == 1


def _pool_file(folder):
    path = folder / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def test_several_runs(run_dir, tmp_path):
    other = tmp_path / "other"
    _write_history(other)
    path = tmp_path / "report.html"
    write_page([run_dir, other], path, extra_criteria=[])
    found = path.read_text()
    assert found.count("<section") == 3
    assert '<a href="#run-2">other</a>' in found
    assert "No run is named the best: not all have a pool" in found
    again = Path(shutil.copytree(run_dir, tmp_path / "again"))
    write_page([run_dir, again], path, extra_criteria=[])
    assert "Of all runs, keep the checkpoint of step" in path.read_text()
    assert "It is not significantly better than again." in path.read_text()
    (again / "pool.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    write_page([run_dir, again], path, extra_criteria=[])
    assert "on different pools, so their scores do not compare" in path.read_text()


def test_runs_are_compared_by_a_score_that_all_have():
    decision = Decision(False, 30, "x", 30)
    by_mi = _run(RECORDS, decision, decides="neighbor_mi")
    by_separability = _run(RECORDS, decision, decides="separability")
    own = [Record(10, None, {"churn": Score(0.5)}), Record(30, None, {"churn": Score(0.4)})]
    by_churn = _run(own, decision, decides="churn")
    for runs, name, values in (
        ([by_mi, by_mi], "neighbor_mi", [0.5, None, 0.9]),
        ([by_separability, by_mi], "separability", [0.3, None, 0.6]),
        ([by_mi, by_churn], "churn or neighbor_mi", [0.5, None, 0.9]),
    ):
        found = compare_runs(runs)
        assert found["score_name"] == name
        assert found["lines"][0]["values"] == values
    assert found["lines"][1]["values"] == [0.5, 0.4]
    assert compare_runs([by_mi]) is None


def test_runs_of_the_same_name_are_told_apart():
    decision = Decision(False, 10, "x", 30)
    runs = [replace(_run(RECORDS, decision), folder=Path(f) / "run") for f in ("a", "b")]
    assert page_names(runs) == ["a/run", "b/run"]
    assert page_names([runs[0], runs[0]]) == ["a/run (1)", "a/run (2)"]
    assert page_names(runs[:1]) == ["run"]


def test_a_run_of_which_no_checkpoint_can_be_scored_shows_its_history(run_dir):
    for weights in run_dir.glob("checkpoint-*/model.safetensors"):
        weights.write_bytes(b"")
    run = collect(run_dir)
    assert len(run.history.records) == 3
    assert run.frames == ()
    (note,) = page_data(run, 1, "run")["notes"]
    assert note.startswith(f"none of the 3 checkpoints in {run_dir.name} could be scored; ")


def test_texts_only_if_asked_for_and_escaped(finished, page, tmp_path):
    found = page.read_text()
    for raw in ("<script>window", "<img src=x", "<i onmouse", "<b>run", "\u202e", "\x00", "\x1b"):
        assert raw not in found
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in found
    assert "secret_place" not in found
    path = tmp_path / "without.html"
    write_page([finished], path, extra_criteria=[])
    without = path.read_text()
    assert "window.hacked = 1&lt;/script" not in without
    assert TEXTS[0] not in without
    assert TEXTS[0] in found


# The command


def command(*arguments):
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    return result, " ".join(result.stderr.split())


def test_the_command(run_dir, tmp_path):
    out = tmp_path / "deep" / "er" / "run.html"
    options = ["--extra-criteria", "infomax, entropy", "--labels", "topic", "--texts"]
    result, _ = command(run_dir, "-o", out, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}, ")
    assert result.stdout.endswith(" MB\n")
    assert ">entropy<" in out.read_text()
    assert sorted(path.name for path in out.parent.iterdir()) == ["run.html"]


def test_errors_are_a_sentence_and_status_two(run_dir, tmp_path, monkeypatch):
    for arguments, message in (
        ([tmp_path / "nowhere"], "no folder at"),
        ([tmp_path], "no scores in"),
        ([run_dir, "--labels", "none"], "has no column 'none'; its columns are text, topic"),
        ([run_dir, "--pool", tmp_path / "x.txt"], "no pool file at"),
        ([run_dir, "--extra-criteria", "best"], "unknown criterion 'best'"),
        ([run_dir, "--map", "tsne"], "unknown map 'tsne'"),
    ):
        result, said = command(*arguments, "-o", tmp_path / "x.html")
        assert result.exit_code == 2, arguments
        assert message in said
        assert not (tmp_path / "x.html").exists()
    (run_dir / "pool.jsonl").unlink()
    result, said = command(run_dir, "--labels", "topic")
    assert "labels are a column of the pool's file" in said
    monkeypatch.setitem(sys.modules, "plotly", None)
    result, said = command(run_dir)
    assert result.exit_code == 2
    assert "a report needs plotly: pip install 'sepstop[report]'" in said


# In a browser


@pytest.fixture
def opened(chromium):
    """Opens a page in a fresh context; nothing may be complained of or asked for by the end."""
    contexts, seen = [], []

    def opens(path, **options):
        context = chromium.new_context(
            viewport={"width": 1200, "height": 900} | options.pop("size", {}), **options
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: seen.append(f"error: {error}"))
        tab.on("request", lambda request: seen.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]")
        assert seen.pop(0) == path.as_uri()
        return tab

    yield opens
    for context in contexts:
        context.close()
    assert [url for url in seen if not url.startswith(("data:", "blob:"))] == []


def data_of(tab, plot):
    return tab.evaluate("id => document.getElementById(id).data", plot)


def test_the_slider_moves_the_pictures_by_keyboard(opened, page):
    tab = opened(page, reduced_motion="reduce")
    assert tab.evaluate("window.hacked") is None
    slider = tab.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    first_map, first_bars = data_of(tab, "run-1-map")[0], data_of(tab, "run-1-bars")[0]
    assert slider.get_attribute("aria-valuetext").startswith("step 4, ")
    line = "document.getElementById('run-1-curve').layout.shapes.at(-1).x0"
    assert tab.evaluate(line) == 4
    said = tab.locator("#run-1-map").get_attribute("aria-label")
    assert said.startswith("Map of 80 texts at step 4.")
    slider.press("ArrowRight")
    second_map, second_bars = data_of(tab, "run-1-map")[0], data_of(tab, "run-1-bars")[0]
    assert second_map["x"] != first_map["x"]
    assert second_map["y"] != first_map["y"]
    assert second_bars["x"] != first_bars["x"]
    assert tab.evaluate(line) == 8
    assert slider.get_attribute("aria-valuetext").startswith("step 8, ")
    assert tab.locator("#run-1-value").inner_text().startswith("step 8, ")
    tab.get_by_role("button", name="Previous step").press("Enter")
    assert data_of(tab, "run-1-map")[0]["x"] == first_map["x"]


def test_points_are_drawn_where_the_data_says(opened, page):
    tab = opened(page)
    where = "() => document.querySelector('#run-1-map .point').getAttribute('transform')"
    tab.wait_for_timeout(500)
    before = tab.evaluate(where)
    slider = tab.get_by_role("slider")
    slider.focus()
    slider.press("End")
    tab.wait_for_timeout(700)  # the points have moved there
    assert tab.evaluate(where) != before


def test_it_plays_and_pauses(opened, page):
    tab = opened(page)
    tab.clock.install()  # time goes on as told, however slow the machine is
    button = tab.get_by_role("button", name="Play")
    button.focus()
    button.press("Space")
    assert tab.get_by_role("slider").input_value() == "0"  # from the start
    tab.clock.run_for(1000)  # a checkpoint takes 900 ms
    expect(tab.get_by_role("slider")).to_have_value("1")
    pause = tab.get_by_role("button", name="Pause")
    assert pause.get_attribute("aria-pressed") == "true"
    pause.press("Space")
    assert tab.get_by_role("button", name="Play").is_visible()


def test_colors_are_chosen_and_groups_highlighted(opened, page):
    tab = opened(page)
    before = data_of(tab, "run-1-map")[0]["marker"]
    tab.get_by_label("Colors:").select_option(label="given label")
    after = data_of(tab, "run-1-map")[0]["marker"]
    assert after["color"] != before["color"]
    bad = tab.locator("#run-1-legend button", has_text="bad")
    bad.press("Enter")
    assert bad.get_attribute("aria-pressed") == "true"
    assert set(data_of(tab, "run-1-map")[0]["marker"]["opacity"]) == {0.85, 0.08}


def test_a_hostile_text_stays_text(opened, page):
    tab = opened(page)
    cells = tab.locator("#run-1-texts td.text").all_text_contents()
    assert cells == [plain(text) for text in POOL]
    for place in range(len(HOSTILE)):
        tab.evaluate(
            "i => Plotly.Fx.hover('run-1-map', [{ curveNumber: 0, pointNumber: i }])", place
        )
        tab.wait_for_timeout(100)  # plotly takes its time
        shown = "".join(tab.locator("#run-1-map .hovertext").text_content().split())
        assert "".join(plain(HOSTILE[place]).split()) in shown
    assert tab.locator("main script, main img, main a[href^=javascript], main i").count() == 0
    assert tab.evaluate("window.hacked") is None
    assert "a <b>run & \"more'" in tab.title()


def test_a_script_that_came_in_would_not_run(chromium, page):
    tab = chromium.new_page()
    tab.goto(page.as_uri())
    refused = []
    tab.on("console", lambda message: refused.append(message.text))
    tab.evaluate(
        """() => {
            const script = document.createElement("script"), image = document.createElement("img");
            script.textContent = "window.hacked = 1";
            image.src = "http://127.0.0.1:9/pixel.png";
            document.body.append(script, image);
        }"""
    )
    tab.wait_for_timeout(200)
    assert tab.evaluate("window.hacked") is None
    assert len([text for text in refused if "Content Security Policy" in text]) == 2
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(opened, page, scheme):
    tab = opened(page, color_scheme=scheme)
    ink, back = tab.evaluate(
        "() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; }"
    )
    assert contrast(ink, back) > 12
    plotted = tab.evaluate("document.getElementById('run-1-curve').layout.font.color")
    assert plotted == {"light": "#1b1f24", "dark": "#e8ecf1"}[scheme]
    for part in ("figcaption", "header p", "nav a", "dt"):
        assert (
            contrast(tab.locator(part).first.evaluate("e => getComputedStyle(e).color"), back) > 4.5
        )
    tab.emulate_media(color_scheme={"light": "dark", "dark": "light"}[scheme])
    tab.wait_for_timeout(500)
    assert tab.evaluate("document.getElementById('run-1-curve').layout.font.color") != plotted


def contrast(one, other):
    """WCAG's contrast ratio of two CSS colors, as computed styles have them."""

    def luminance(color):
        parts = np.array([int(part) for part in color[4:-1].split(",")]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [360, 390])
def test_on_a_phone_nothing_is_wider_than_the_screen(opened, page, width):
    tab = opened(page, size={"width": width, "height": 800}, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    box = tab.locator("#run-1-map .main-svg").first.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


def test_the_marks_tell_the_reason(opened, page):
    tab = opened(page)
    marks = {trace["name"]: trace for trace in data_of(tab, "run-1-curve") if "name" in trace}
    assert marks["the pick, step 4"]["x"] == [4]
    assert "no improvement on step 4 in 2 evaluations" in " ".join(
        marks["the stop, step 12"]["hovertext"][0].split("<br>")
    )


def test_everything_has_a_name_and_the_tables_unfold(opened, page):
    tab = opened(page)
    for plot in tab.locator(".plot").all():
        assert plot.get_attribute("role") == "img"
        assert len(plot.get_attribute("aria-label").strip()) > 20
        assert plot.locator(".main-svg").count() > 0
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the content"
    tab.get_by_role("link", name="The numbers").press("Enter")
    expect(tab.locator("#run-1-records table")).to_be_visible()


def test_a_history_alone_and_several_runs_in_a_browser(opened, finished, tmp_path):
    for name in ("one", "two"):
        _write_history(tmp_path / name, [_only_separability(r) for r in RECORDS])
    write_page([tmp_path / "one", tmp_path / "two"], tmp_path / "report.html")
    tab = opened(tmp_path / "report.html")
    assert data_of(tab, "compared-plot")[0]["y"] == [0.3, None, 0.6]
    assert len(data_of(tab, "run-2-curve")) == 4  # two pieces of the band, the line, the pick
    assert tab.get_by_role("slider").count() == 0


def _only_separability(record):
    return replace(record, scores={"separability": record.scores["separability"]})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_candidates_have_thin_lines_and_a_legend(opened, tmp_path, scheme):
    name = "<img src=x onerror='window.hacked = 1'>"
    write_history(tmp_path / HISTORY_FILE, averaged_run(("cumulative", name)))
    write_page([tmp_path], tmp_path / "report.html")
    size = {"width": 360, "height": 800}
    tab = opened(tmp_path / "report.html", size=size, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    traces = [trace for trace in data_of(tab, "run-1-curve") if trace.get("text")]
    on_top = [trace for trace in traces if trace["yaxis"] == "y"]
    *thin, best = on_top
    assert best["y"] == [0.2, 0.4, 0.5, 0.7, 0.65]
    assert best["text"][3] == "cumulative average of steps 11 to 40"
    assert [trace["y"][1] for trace in thin] == [0.3, 0.25, 0.4]
    assert all(trace["line"]["width"] < best["line"]["width"] for trace in thin)
    labels = tab.locator("#run-1 .lines li")
    names = ["checkpoint", "cumulative average", f"{name[:39]} average"]
    assert labels.all_inner_texts()[1:] == names
    shown = [
        label.locator("svg").evaluate("e => getComputedStyle(e).stroke") for label in labels.all()
    ]
    drawn = [trace["line"]["color"] for trace in [best, *thin]]
    assert shown == [_rgb(color) for color in drawn]
    assert len(set(shown)) == 4
    marks = [trace["name"] for trace in data_of(tab, "run-1-curve") if "hovertext" in trace]
    assert "the pick, step 40, an average" in marks
    tab.evaluate("Plotly.Fx.hover('run-1-curve', [{ curveNumber: 3, pointNumber: 2 }])")
    tab.wait_for_timeout(100)
    assert "<img src=x" in tab.locator("#run-1-curve .hovertext").text_content()
    assert tab.evaluate("window.hacked") is None
    table = tab.locator("#run-1-candidates")
    expect(table.locator("table")).to_be_hidden()
    table.locator("summary").press("Enter")
    expect(table.locator("table")).to_be_visible()


def _rgb(color):
    return f"rgb({', '.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_each_recorded_score_has_a_panel(opened, tmp_path):
    records = [
        replace(record, scores={**record.scores, "entropy": Score(-0.1 * record.step)})
        for record in RECORDS
    ]
    _write_history(tmp_path / "run", records, decides="neighbor_mi")
    write_page([tmp_path / "run"], tmp_path / "report.html")
    tab = opened(tmp_path / "report.html")
    layout = tab.evaluate("document.getElementById('run-1-curve').layout")
    titles = [title["text"] for title in layout["annotations"]]
    assert titles == [
        "<b>neighbor_mi</b> (decides), 95 % interval",
        "<b>separability</b>, 95 % interval",
        "<b>entropy</b>",
    ]
    domains = [layout[f"yaxis{i}"]["domain"] for i in ("", 2, 3)]
    assert domains == sorted(domains, reverse=True)
    assert all(above[0] > below[1] for above, below in pairwise(domains))
    heading = tab.locator("#run-1-records thead").text_content().split("\n")
    assert [name.strip() for name in heading if "decides" in name] == ["neighbor_mi (decides)"]
