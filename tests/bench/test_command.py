"""The command `sepstop bench`."""

import json
import shutil

import pytest
from conftest import make_texts
from helpers.recorded import save_model, toy_run
from typer.testing import CliRunner

from sepstop.bench.judge import CONTENDERS, JUDGED, JUDGED_POLICIES, KNOWN
from sepstop.bench.recorded_run import save_run
from sepstop.cli.main import app
from sepstop.measure.average import AVERAGES


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_record_and_judge(tmp_path, tokenizer):
    model = save_model(tmp_path / "model", tokenizer)
    texts, labels = make_texts(160)
    rows = [json.dumps({"body": t, "topic": y}) for t, y in zip(texts, labels, strict=True)]
    (tmp_path / "toy.jsonl").write_text("\n".join(rows))
    command = ["record", "--data", tmp_path / "toy.jsonl", "--model", model]
    command += ["--text-column", "body", "--label-column", "topic", "--out", tmp_path / "runs"]
    command += ["--labeled-rows", 32, "--learning-rate", 3e-3, "--steps", 16, "--pooling", "cls"]
    command += ["--schedule", "linear"]
    command += ["--evaluate-every", 4, "--pool-rows", 60, "--max-length", 16]
    result = bench(*command)
    assert result.exit_code == 2
    assert "leave" in result.stderr  # validation takes the rest by default
    command += ["--validation-rows", 20]
    result = bench(*command)
    assert result.exit_code == 0
    assert "toy-n32-lr0.003-noise0.0-linear-base-cls-seed0-" in result.stdout.replace("\n", "")
    (path,) = (tmp_path / "runs").iterdir()
    assert bench(*command).stderr == f"{path} is already recorded\n"
    for options, names in (((), CONTENDERS), (("--every-criterion",), JUDGED)):
        answer = json.loads(bench("judge", tmp_path / "runs", "--json", *options).stdout)
        judged = {(row["criterion"], row["policy"], row["candidates"]) for row in answer["rows"]}
        sets = ("checkpoints", *AVERAGES, *(["averages"] if len(AVERAGES) > 1 else []), "all")
        assert {row for row in judged if row[0] in KNOWN and row[1] != "auto"} == {
            (name, policy, candidates)
            for name in names
            for policy in ("hindsight", *JUDGED_POLICIES)
            for candidates in sets
        }
        assert ("EMA 0.99", "hindsight", "plain") in judged
    assert list(answer["strata"]) == ["harsh"]  # a rate of 3e-3


def test_a_recorded_run_is_not_taken_for_one_of_other_data_or_another_model(tmp_path, tokenizer):
    models = [save_model(tmp_path / place / "model", tokenizer) for place in ("one", "two")]
    config = models[1] / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1'))
    texts, labels = make_texts(160)
    rows = [{"text": t, "topic": y, "mood": 1 - y} for t, y in zip(texts, labels, strict=True)]
    for folder, found in (("a", rows), ("b", rows[:-1])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "toy.jsonl").write_text("\n".join(map(json.dumps, found)))
    options = ["--labeled-rows", 32, "--steps", 2, "--evaluate-every", 2, "--pool-rows", 60]
    options += ["--validation-rows", 20, "--max-length", 16, "--out", tmp_path / "runs"]

    def record(folder="a", column="topic", model=models[0]):
        where = ["--data", tmp_path / folder / "toy.jsonl", "--label-column", column]
        return bench("record", *where, "--model", model, *options)

    assert record().exit_code == 0
    (path,) = (tmp_path / "runs").iterdir()
    content = path.read_bytes()
    assert record().exit_code == 0
    for changes, what in (
        ({"column": "mood"}, "other texts or labels"),
        ({"folder": "b"}, "other texts or labels"),
        ({"model": models[1]}, "another model"),
        ({"column": "mood", "model": models[1]}, "other texts or labels and another model"),
    ):
        result = record(**changes)
        assert result.exit_code == 2
        assert result.stderr == (
            f"sepstop: {path} was recorded with {what}; record this run to another folder (--out)\n"
        )
    assert path.read_bytes() == content
    copied = shutil.copytree(models[0], tmp_path / "elsewhere/model")
    assert "is already recorded" in record(model=copied).stderr
    path.write_bytes(b"")
    result = record()
    assert result.exit_code == 2
    assert f"expected an .npz file at {path}" in result.stderr


def test_keys_of_the_answer(tmp_path):
    """Scripts read these; they stay as they are."""
    for name in ("one", "two"):
        save_run(tmp_path, toy_run(name))
    command = ("judge", tmp_path, "--json", "--criterion", "infomax", "--criterion", "rankme")
    result = bench(*command)
    assert result.exit_code == 0
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert list(answer) == ["default", "label_regrets", "rows", "runs", "question", "strata"]
    default = answer["default"]
    assert list(default) == [
        "criterion",
        "policy",
        "candidates",
        "regret_mean",
        "regret_p90",
        "regret_max",
        "regret_stop_mean",
        "steps_saved_mean",
        "label_equivalent",
        "label_equivalent_stop",
    ]
    assert (default["criterion"], default["policy"]) == ("default", "auto")
    rows = {(row["criterion"], row["policy"]): row for row in answer["rows"]}
    assert default["regret_mean"] == rows["default", "hindsight"]["regret_mean"]
    assert default["regret_stop_mean"] == rows["default", "auto"]["regret_mean"]
    assert default["steps_saved_mean"] == rows["default", "auto"]["steps_saved_mean"]
    assert set(answer["label_regrets"]) == {"5", "10", "25"}  # of a pool of 40
    summary = [
        "criterion",
        "policy",
        "candidates",
        "label_free",
        "regret_mean",
        "regret_low",
        "regret_high",
        "regret_median",
        "regret_p90",
        "regret_max",
        "steps_saved_mean",
        "spearman_mean",
        "weighted_spearman_mean",
        "label_equivalent",
    ]
    peer = ["against", "difference_mean", "difference_low", "difference_high"]
    default = ["default_less_mean", "default_less_low", "default_less_high"]
    best = rows["default", "hindsight"]["against"]
    for key, row in rows.items():
        keys = summary + (peer if key != (best, "hindsight") else [])
        assert list(row) == keys + (default if key != ("default", "hindsight") else [])
    assert answer["question"][0].keys() <= {*summary, *peer, *default}
    (stratum,) = answer["strata"].values()
    assert list(stratum) == ["runs", "label_regrets", "question", "rows"]
    assert stratum["question"] == answer["question"]  # all runs are in it
    assert list(answer["runs"]) == ["one", "two"]
    for outcomes in answer["runs"].values():
        assert list(outcomes) == [f"{criterion} / {policy}" for criterion, policy in rows]
        assert list(outcomes["default / auto"]) == [
            "regret",
            "pick",
            "candidate",
            "steps_saved",
        ]


@pytest.mark.parametrize("name", ["infomax", "rankme", "sepstop.bench.criteria:RankMe"])
def test_one_criterion(tmp_path, name):
    save_run(tmp_path, toy_run())
    shown = bench("judge", tmp_path, "--criterion", name, "--cache", tmp_path / "kept")
    assert shown.exit_code == 0
    assert name.rpartition(":")[2].lower() in shown.stdout
    assert "unknown, 1 run" in shown.stdout
    assert "all runs, 1 run" in shown.stdout
    assert "bnm" not in shown.stdout
    assert "picking by validation accuracy on m labels" in shown.stdout
    assert len(list((tmp_path / "kept").iterdir())) == 2  # the default's as well


def test_errors_are_a_sentence_and_status_two(tmp_path):
    result = bench("judge", tmp_path)
    assert result.exit_code == 2
    assert "no recorded runs" in result.stderr
    save_run(tmp_path, toy_run())
    result = bench("judge", tmp_path, "--criterion", "depth")
    assert result.exit_code == 2
    assert "unknown criterion 'depth'" in result.stderr
