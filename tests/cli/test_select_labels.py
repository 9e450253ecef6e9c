"""`sepstop select --labels` and `--ask`, as in docs/few_labels.md, on runs whose score is wrong."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import make_decoder, make_encoder, make_texts
from helpers.training import train
from helpers.walks import walk
from typer.testing import CliRunner

from sepstop import select_checkpoint
from sepstop.cli.main import app
from sepstop.decide.few_labels import LabelChoice
from sepstop.runs.few_labels import ASK_FILE

NAMES = ("bad", "good")


class Undecided:
    """A criterion that prefers the model that has learned least."""

    name = "undecided"
    higher_is_better = False
    needs = ("logits",)

    def __call__(self, logits):
        return logits.softmax(dim=-1).amax(dim=-1).mean(dim=-1)


OPTIONS = ["--criterion", "test_select_labels:Undecided", "--no-average"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizer, train_rows):
    """A run that learns: accuracy rises from a half to 1."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    model = make_encoder()
    model.config.id2label = dict(enumerate(NAMES))
    options = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_steps": 100}
    train(folder, tokenizer, train_rows, None, model, save_steps=10, **options)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def truth():
    return dict(zip(*make_texts(100), strict=True))


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory, truth):
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in truth))
    return path


def select(run, pool_file, *arguments):
    command = ["select", run, "--pool", pool_file, *OPTIONS, *arguments]
    return CliRunner().invoke(app, list(map(str, command)))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_texts_that_were_asked_for_are_labeled_and_decide(run, pool_file, truth):
    asked = select(run, pool_file, "--ask", 12, "--json")
    assert asked.exit_code == 0, asked.output
    before = json.loads(asked.stdout)
    assert (before["asked"], before["label_choice"]) == (str(run / ASK_FILE), None)
    rows = read(run / ASK_FILE)
    assert len(rows) == 12
    for row in rows:
        assert row["label"] is None
        assert row["text"] in truth
        assert sum(row["predicted"].values()) == 5  # the five best of ten checkpoints
        assert set(row["predicted"]) == set(NAMES)  # they disagree

    file = write(run / ASK_FILE, [row | {"label": NAMES[truth[row["text"]]]} for row in rows])
    decided = json.loads(select(run, pool_file, "--labels", file, "--json").stdout)
    choice = decided["label_choice"]
    assert choice["proposed"] == choice["rival"] == before["best_step"]
    assert decided["best_step"] == choice["kept"] > before["best_step"]
    assert decided["best_checkpoint"] == str(run / f"checkpoint-{choice['kept']}")
    assert choice["num_labels"] == 12
    assert choice["wins"] >= choice["losses"] + 3
    assert decided["ties"] == []

    printed = select(run, pool_file, "--labels", file).stdout
    assert f"keep {run / 'checkpoint-'}{choice['kept']}" in printed
    assert (
        f"but by 12 labels step {choice['kept']} is better than step {choice['proposed']}, which "
        "the score alone would keep, with probability"
    ) in printed


def test_the_right_pick_stays(run, pool_file, truth, tmp_path):
    labels = [{"text": text, "label": NAMES[label]} for text, label in list(truth.items())[:30]]
    file = write(tmp_path / "few.jsonl", labels)
    options = ["--labels", file, "--criterion", "infomax"]
    result = select(run, pool_file, *options)
    assert result.exit_code == 0, result.output
    assert "30 labels do not clearly contradict it: step" in result.stdout
    alone = json.loads(select(run, pool_file, "--criterion", "infomax", "--json").stdout)
    assert (
        json.loads(select(run, pool_file, *options, "--json").stdout)["best_step"]
        == (alone["best_step"])
    )


@pytest.mark.parametrize("average", [False, True])
def test_labeled_texts_in_the_pool_and_outside_count_alike(run, truth, tmp_path, average):
    texts = list(truth)
    labels = write(
        tmp_path / "few.jsonl",
        [{"body": text, "topic": str(truth[text])} for text in texts[:15]],  # by number
    )
    pools = {"inside": texts, "outside": texts[15:], "partly": texts[7:]}
    options = {"labels": labels, "label_column": "topic", "text_column": "body"}

    def chosen(name):
        pool = write(tmp_path / f"{name}.jsonl", [{"body": text} for text in pools[name]])
        return select_checkpoint(
            run, pool, criterion=Undecided(), average=average, progress=False, **options
        ).label_choice

    inside, outside, partly = map(chosen, pools)
    assert isinstance(inside, LabelChoice)
    assert inside == outside == partly
    assert inside.num_labels == 15
    assert inside.wins + inside.losses > 0  # steps are compared that differ on the labeled texts


def test_few_texts_outside_the_pool(run, pool_file, tmp_path):
    rows = [{"text": f"the film felt {word}", "label": "good"} for word in ("warm", "fine", "good")]
    result = select(run, pool_file, "--labels", write(tmp_path / "few.jsonl", rows), "--json")
    assert json.loads(result.stdout)["label_choice"]["num_labels"] == 3


def test_more_texts_are_other_texts(run, pool_file, truth, tmp_path):
    select(run, pool_file, "--ask", 5)
    first = read(run / ASK_FILE)
    labels = write(
        tmp_path / "few.jsonl", [row | {"label": NAMES[truth[row["text"]]]} for row in first]
    )
    arguments = ["--labels", labels, "--ask", 5, "--ask-output", tmp_path / "more.jsonl"]
    result = select(run, pool_file, *arguments)
    assert f"texts to label are in {tmp_path / 'more.jsonl'}; fill them in" in result.stdout
    more = {row["text"] for row in read(tmp_path / "more.jsonl")}
    assert len(more) == 5
    assert more.isdisjoint(row["text"] for row in first)


def test_fewer_texts_than_were_asked_for(run, pool_file):
    result = select(run, pool_file, "--ask", 5000)
    found = len(read(run / ASK_FILE))
    assert 0 < found < 100
    said = f"sepstop: {found} of the 5000 texts to label that were asked for: the candidates agree"
    assert said in " ".join(result.output.split())


def test_a_single_model_has_nothing_to_tell_apart(run, pool_file, tmp_path):
    labels = [{"text": f"its {word} story", "label": "good"} for word in ("warm", "fine", "great")]
    labels = ["--labels", write(tmp_path / "few.jsonl", labels)]
    result = select(run / "checkpoint-50", pool_file, *labels, "--ask", 3)
    assert result.exit_code == 0, result.output
    assert "the 3 labels have no other candidate to choose" in result.output
    assert "none of the 3 texts to label that were asked for" in result.output
    assert not (run / ASK_FILE).exists()


def error_of(run, pool_file, *arguments):
    result = select(run, pool_file, *arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_errors(run, pool_file, tmp_path):
    def labels(*values):
        rows = [{"text": f"film {i}", "label": value} for i, value in enumerate(values)]
        return ["--labels", write(tmp_path / "few.jsonl", rows)]

    said = error_of(run, pool_file, *labels("good", "bad", "awful"))
    assert "expected labels among 'bad', 'good', got 'awful'" in said
    said = error_of(run, pool_file, *labels("0", "1", "2"))
    assert "expected labels among 'bad', 'good', got '0'" in said
    said = error_of(run, pool_file, *labels("good", "bad", None, ""))
    assert "expected at least 3 labels in the labels" in said
    assert "got 2: fewer can't outweigh the score" in said
    said = error_of(run, pool_file, *labels("good"), "--label-column", "topic")
    assert "has no column 'topic'" in said
    (tmp_path / "filled.jsonl").write_text("the user's labels")
    said = error_of(run, pool_file, "--ask", 3, "--ask-output", tmp_path / "filled.jsonl")
    assert "exists and may hold labels; pass it as labels= (--labels)" in said
    assert (tmp_path / "filled.jsonl").read_text() == "the user's labels"


def test_several_runs_and_models_without_classes(run, pool_file, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    said = error_of(run, pool_file, other, "--ask", 3)
    assert "--labels and --ask are for one run, got 2 runs; name one" in said
    command = ["select", run, "--pool", pool_file, "--ask", 3, "--outputs", "none"]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 2
    assert "compare predicted classes; these models predict none" in result.output


def test_answers_of_a_language_model_are_its_classes(pool_file, tokenizer, tmp_path):
    run = walk(tmp_path / "run", make_decoder(), tokenizer, count=4)
    answers = tmp_path / "answers.txt"
    answers.write_text(" great\n awful\n")
    command = ["select", run, "--pool", pool_file, "--criterion", "infomax", "--no-average"]
    options = ["--answers", answers, "--ask", 3]
    result = CliRunner().invoke(app, list(map(str, [*command, *options])))
    assert result.exit_code == 0, result.output
    rows = read(run / ASK_FILE)
    assert all(set(row["predicted"]) == {"great", "awful"} for row in rows)
    # Two of the pool's texts and one that is not in it.
    rows = [*rows[:2], {"text": "its story was warm"}]
    labels = write(tmp_path / "few.jsonl", [row | {"label": "great"} for row in rows])
    options = ["--answers", answers, "--labels", labels, "--json"]
    result = CliRunner().invoke(app, list(map(str, [*command, *options])))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["label_choice"]["num_labels"] == 3
    (run / ASK_FILE).unlink()
    result = CliRunner().invoke(app, list(map(str, [*command, "--answers", 4, "--ask", 3])))
    assert result.exit_code == 2
    assert "need the answers by name, not their number" in " ".join(result.output.split())


def test_names_of_classes_that_checkpoints_lack(run, pool_file, tmp_path):
    for file in run.glob("*/config.json"):
        config = json.loads(file.read_text())
        placeholders = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {}}
        file.write_text(json.dumps(config | placeholders))
    assert select(run, pool_file, "--ask", 2).exit_code == 0
    assert all(set(row["predicted"]) == {"0", "1"} for row in read(run / ASK_FILE))
    (run / "classes.json").write_text(json.dumps(["awful", "lovely"]))  # as finetune.py leaves them
    file = tmp_path / "ask.jsonl"
    assert select(run, pool_file, "--ask", 2, "--ask-output", file).exit_code == 0
    assert all(set(row["predicted"]) == {"awful", "lovely"} for row in read(file))
    (run / "classes.json").write_text(json.dumps(["awful", "lovely", "fine"]))
    said = error_of(run, pool_file, "--ask", 2, "--ask-output", tmp_path / "more.jsonl")
    assert "names 3 classes, but the models have 2" in said
