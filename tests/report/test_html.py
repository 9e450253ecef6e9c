import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_encoder, make_texts
from transformers import Trainer, TrainingArguments
from typer.testing import CliRunner

try:
    from playwright.sync_api import expect
except ImportError:  # then the tests in a browser are skipped
    expect = None

from sepstop import Decision, Patience, Record, SepStopCallback, h0_separability
from sepstop.cli.main import app
from sepstop.measure.pool import read_pool
from sepstop.report.html import write_page
from sepstop.report.html.data import run_data
from sepstop.report.html.frames import Camera, sample
from sepstop.report.html.groups import KINDS, grouping
from sepstop.report.html.labels import accuracy, label_classes, read_labels, separability_of
from sepstop.report.html.maps import MAPS, aligned, check_map, pca, shown_variance
from sepstop.report.html.overview import names_of
from sepstop.report.html.run import Run, look_at
from sepstop.report.html.text import plain, without_folders
from sepstop.runs.history import HISTORY_FILE, RunHistory, read_run, write_history, write_run

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
    callback = SepStopCallback(pool, policy=Patience(patience=2), every_n_steps=4, resamples=5)
    train(folder, tokenizer, train_rows, callback)
    return folder


@pytest.fixture
def run_dir(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / finished.name))


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    """The page of the run, with its texts and labels."""
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    write_page([finished], path, texts=True, labels="topic")
    return path


# Places in the plane


def test_rotated_copies_are_aligned_exactly():
    generator = np.random.default_rng(0)
    before = generator.normal(size=(30, 2))
    turn = np.linalg.qr(generator.normal(size=(2, 2)))[0] @ np.diag([1.0, -1.0])
    found = aligned(before @ turn + [5.0, -3.0], before)
    np.testing.assert_allclose(found, before - before.mean(axis=0), atol=1e-12)


def test_aligning_changes_no_distance():
    generator = np.random.default_rng(1)
    places, before = generator.normal(size=(2, 20, 2))
    found = aligned(places, before)

    def distances(rows):
        return np.linalg.norm(rows[:, None] - rows[None], axis=-1)

    np.testing.assert_allclose(distances(found), distances(places), atol=1e-12)
    assert np.square(found - before).sum() < np.square(places - before).sum()


def test_pca_by_hand():
    points = np.zeros((4, 3))
    points[:, 1] = [-3, 3, 0, 0]
    points[:, 2] = [0, 0, 1, -1]
    places = pca(points)
    np.testing.assert_allclose(np.abs(places), [[3, 0], [3, 0], [0, 1], [0, 1]], atol=1e-12)
    assert shown_variance(points, places) == pytest.approx(1)
    assert pca(np.ones((5, 8))).tolist() == [[0.0, 0.0]] * 5  # collapsed
    assert pca(np.arange(4.0)[:, None]).shape == (4, 2)


def test_maps_that_are_unknown_or_not_installed(monkeypatch):
    with pytest.raises(ValueError, match="unknown map 'tsne'; known: pca, umap, pacmap"):
        check_map("tsne")
    for name, package in (("umap", "umap-learn"), ("pacmap", "pacmap")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=f"pip install {package}"):
            check_map(name)


def test_a_map_begins_at_the_places_of_the_checkpoint_before(monkeypatch):
    given = []
    monkeypatch.setitem(MAPS, "pca", lambda points, before: given.append(before) or pca(points))
    camera = Camera(sample(9), sample(9))
    for step in (1, 2):
        camera(step, _seen(torch.randn(9, 4, generator=torch.Generator().manual_seed(step))))
    assert given[0] is None
    np.testing.assert_array_equal(given[1], camera.frames[0].places)


def _seen(points, logits=None):
    from sepstop.measure.embedding import Observation

    return Observation(points, logits)


def test_embeddings_that_are_not_finite_have_no_frame():
    camera = Camera(sample(9), sample(9))
    camera(3, _seen(torch.full((9, 4), math.nan)))
    assert (camera.frames, camera.blurred) == ([], [3])


def test_a_collapsed_embedding_has_a_frame():
    camera = Camera(sample(9), sample(9))
    camera(3, _seen(torch.ones(9, 4), torch.ones(9, 2)))
    data = run_data(
        _run([Record(3, None, 0.0)], Decision(False, 3, "x", 3), camera.frames), 1, "run"
    )
    assert data["frames"][0]["x"] == [0] * 9
    json.dumps(data, allow_nan=False)


# Words


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
    assert found.names == [*(f"c{i}" for i in range(KINDS)), "other"]
    assert found.at(5)[-1] == KINDS  # once for all frames
    assert found.rest.startswith(f"The {KINDS} largest of 30 groups")


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
    found = separability_of(points, ["a"] * 6 + ["b"] * 6 + ["c"] * 4 + ["", "rare"])
    assert set(found.values()) == {1.0}
    assert separability_of(points, ["a"] * 18) == {}


# A run without pool


HISTORY = [
    Record(10, None, 0.3, 0.2, 0.4, information=0.5),
    Record(20, None, math.nan, information=math.nan),
    Record(30, 1.5, 0.6, 0.5, 0.7, information=0.9),
]


def _run(history, decision, frames=()):
    return Run(
        Path("some/run"), history, decision, True, False, frames=frames, classifies=True, mapped=9
    )


def _write_history(folder, history=HISTORY):
    decisions = [Decision(False, record.step, "improving", record.step) for record in history]
    run = RunHistory(tuple(history), tuple(decisions), decides="separability")
    write_run(folder / HISTORY_FILE, run)


def test_a_history_of_an_earlier_version_shows_no_decision(tmp_path):
    write_history(tmp_path / HISTORY_FILE, HISTORY)
    run = look_at(tmp_path)
    assert not run.monitored
    assert run.marks == {"pick": None, "stop": None}
    data = run_data(run, 1, "run")
    assert (data["summary"], data["reason"]) == (
        "There is no checkpoint to recommend.",
        "the run recorded no decision",
    )
    assert "was written by an earlier version" in data["notes"][-1]
    assert ("decided by", "unknown") in dict(data["settings"])["Decision"]
    assert data["curves"][0]["values"] == [0.3, None, 0.6]


def test_a_history_alone(tmp_path):
    _write_history(tmp_path / "run")
    notes = write_page([tmp_path / "run"], tmp_path / "report.html")
    assert notes == ["no score at step 20: the embeddings could not be scored there"]
    found = (tmp_path / "report.html").read_text()
    assert "With the pool (<code>--pool FILE</code>)" in found
    assert "the checkpoint to keep is that of step 30" in found
    assert 'type="range"' not in found
    assert str(tmp_path) not in found
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [HISTORY_FILE]


def test_gaps_and_marks():
    run = _run(HISTORY, Decision(True, 10, "enough", 30))
    data = run_data(run, 1, "run")
    score, information = data["curves"]
    assert score["values"] == [0.3, None, 0.6]
    assert (score["low"], information["values"]) == ([0.2, None, 0.5], [0.5, None, 0.9])
    assert data["marks"] == {"pick": 10, "stop": 30}
    assert "stopped at step 30; the checkpoint to keep is that of step 10" in data["summary"]
    assert "1 of 3 has no score. The pick is step 10. The stop is step 30." in score["alt"]
    assert [record["what"] for record in data["records"]] == ["pick", "", "stop"]
    json.dumps(data, allow_nan=False)


def test_nothing_scored():
    run = _run([Record(10, None, math.nan)], Decision(False, None, "nothing measured yet", 10))
    data = run_data(run, 1, "run")
    json.dumps(data, allow_nan=False)
    assert data["curves"] == []
    assert data["summary"] == "There is no checkpoint to recommend."


# A real run


def test_frames_of_a_run(run_dir):
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    run = look_at(run_dir, labels="topic")
    after = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    assert after == before  # only the cache is new
    assert run.monitored
    assert run.decision.stop
    assert [frame.step for frame in run.frames] == [record.step for record in run.history]
    assert run.mapped == len(POOL)
    for frame, record in zip(run.frames, run.history, strict=True):
        assert frame.places.shape == (len(POOL), 2)
        empty = 1 - (frame.deaths / frame.deaths[-1]).mean()
        assert empty == pytest.approx(record.resamples[0], abs=1e-5)  # the barcode is the score
        assert 0 <= frame.supervised["the model's own predictions"] <= 1
    assert set(run.others) == {"stable_rank", "infomax"}
    data = run_data(run, 1, "run")
    assert [way["title"][:5] for way in data["ways"]] == ["class", "class", "label"]
    label, first = data["ways"][2], data["ways"][0]
    assert label["names"] == first["names"]  # so they have the same colours
    assert [other["agrees"] for other in data["others"] if other["decided"]] == [True]
    policy = dict(dict(data["settings"])["Decision"])["policy"]
    assert "patience 2" in policy


def test_the_barcode_is_of_the_texts_that_are_scored():
    points = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    camera = Camera(sample(40), torch.arange(20))
    camera(1, _seen(points, points[:, :3]))
    deaths = camera.frames[0].deaths
    assert 1 - (deaths / deaths[-1]).mean() == pytest.approx(float(h0_separability(points[:20])))
    assert camera.frames[0].groups.tolist() == points[:, :3].argmax(dim=-1).tolist()


def test_another_pick_afterwards_is_said(run_dir):
    recorded = read_run(run_dir)
    best = recorded.decision.best_step
    other = 4 if best != 4 else 8
    decision = replace(recorded.decision, best_step=other)
    changed = replace(recorded, decisions=(*recorded.decisions[:-1], decision))
    write_run(run_dir / HISTORY_FILE, changed)
    notes = run_data(look_at(run_dir, criteria=[], ties="best"), 1, "run")["notes"]
    assert f"scored afterwards, the checkpoint of step {best} is the better one" in notes[0]
    assert f"the run itself kept step {other}" in notes[0]


def test_a_checkpoint_that_is_gone_has_no_frame(run_dir):
    shutil.rmtree(run_dir / "checkpoint-8")
    run = look_at(run_dir, criteria=[])
    assert 8 in [record.step for record in run.history]
    assert [frame.step for frame in run.frames] == [
        record.step for record in run.history if record.step != 8
    ]
    assert run_data(run, 1, "run")["others"] == []


def test_a_model_without_predictions_is_coloured_by_components(tmp_path, tokenizer):
    for step in (1, 2):
        make_encoder(seed=step).bert.save_pretrained(tmp_path / f"checkpoint-{step}")
        tokenizer.save_pretrained(tmp_path / f"checkpoint-{step}")
    run = look_at(tmp_path, _pool_file(tmp_path))
    assert not run.monitored
    assert set(run.others) == {"stable_rank"}
    (way,) = run_data(run, 1, "run")["ways"]
    assert way["title"].startswith("component of the embedding at step")
    assert len(way["of"]) == 1


def _pool_file(folder):
    path = folder / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def test_several_runs(run_dir, tmp_path):
    other = tmp_path / "other"
    _write_history(other)
    path = tmp_path / "report.html"
    write_page([run_dir, other], path, criteria=[])
    found = path.read_text()
    assert found.count("<section") == 3
    assert '<a href="#run-2">other</a>' in found
    assert "No run is named the best: not all have a pool" in found
    again = Path(shutil.copytree(run_dir, tmp_path / "again"))
    write_page([run_dir, again], path, criteria=[])
    assert "Of all, keep the checkpoint of step" in path.read_text()
    assert "It is not significantly better than again." in path.read_text()
    (again / "pool.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    write_page([run_dir, again], path, criteria=[])
    assert "on different pools, so their scores do not compare" in path.read_text()


def test_runs_of_the_same_name_are_told_apart():
    decision = Decision(False, 10, "x", 30)
    runs = [replace(_run(HISTORY, decision), folder=Path(f) / "run") for f in ("a", "b")]
    assert names_of(runs) == ["a/run", "b/run"]
    assert names_of([runs[0], runs[0]]) == ["a/run (1)", "a/run (2)"]
    assert names_of(runs[:1]) == ["run"]


def test_a_run_of_which_no_checkpoint_can_be_scored_shows_its_history(run_dir):
    for weights in run_dir.glob("checkpoint-*/model.safetensors"):
        weights.write_bytes(b"")
    run = look_at(run_dir)
    assert len(run.history) == 3
    assert run.frames == ()
    (note,) = run_data(run, 1, "run")["notes"]
    assert note.startswith(f"none of the 3 checkpoints in {run_dir.name} could be scored; ")


def test_texts_only_if_asked_for_and_escaped(finished, page, tmp_path):
    found = page.read_text()
    for raw in ("<script>window", "<img src=x", "<i onmouse", "<b>run", "\u202e", "\x00", "\x1b"):
        assert raw not in found
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in found
    assert "secret_place" not in found
    path = tmp_path / "without.html"
    write_page([finished], path, criteria=[])
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
    options = ["--criteria", "rankme, entropy", "--labels", "topic", "--texts"]
    result, _ = command(run_dir, "-o", out, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}, ")
    assert result.stdout.endswith(" MB\n")
    assert ">rankme<" in out.read_text()
    assert sorted(path.name for path in out.parent.iterdir()) == ["run.html"]


def test_errors_are_a_sentence_and_status_two(run_dir, tmp_path, monkeypatch):
    for arguments, message in (
        ([tmp_path / "nowhere"], "no folder at"),
        ([tmp_path], "no scores in"),
        ([run_dir, "--labels", "none"], "has no column 'none'; its columns are text, topic"),
        ([run_dir, "--pool", tmp_path / "x.txt"], "no pool file at"),
        ([run_dir, "--criteria", "best"], "unknown criterion 'best'"),
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


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    flags = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    flags += "disable-component-update disable-sync"
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=path, args=[f"--{flag}" for flag in flags.split()]
        )
        yield browser
        browser.close()


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
    tab.get_by_role("button", name="Previous checkpoint").press("Enter")
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
    button = tab.get_by_role("button", name="Play")
    button.focus()
    button.press("Space")
    assert tab.get_by_role("slider").input_value() == "0"  # from the start
    expect(tab.get_by_role("slider")).to_have_value("1")
    pause = tab.get_by_role("button", name="Pause")
    assert pause.get_attribute("aria-pressed") == "true"
    pause.press("Space")
    assert tab.get_by_role("button", name="Play").is_visible()


def test_colours_are_chosen_and_groups_singled_out(opened, page):
    tab = opened(page)
    before = data_of(tab, "run-1-map")[0]["marker"]
    tab.get_by_label("Colours:").select_option(label="label that was given")
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
    """WCAG's contrast ratio of two CSS colours, as computed styles have them."""

    def luminance(colour):
        parts = np.array([int(part) for part in colour[4:-1].split(",")]) / 255
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
        _write_history(tmp_path / name, [replace(r, information=math.nan) for r in HISTORY])
    write_page([tmp_path / "one", tmp_path / "two"], tmp_path / "report.html")
    tab = opened(tmp_path / "report.html")
    assert data_of(tab, "compared-plot")[0]["y"] == [0.3, None, 0.6]
    assert len(data_of(tab, "run-2-curve")) == 4  # two pieces of the band, the line, the pick
    assert tab.get_by_role("slider").count() == 0
