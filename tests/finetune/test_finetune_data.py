"""The data of a run: labeled rows, classes, validation rows and pool."""

import csv
import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from sepstop.finetune.data import load_data
from sepstop.finetune.settings import build_parser


def load(settings, *options):
    parser = build_parser()
    config = parser.parse_args([f"--config={settings}", *options])
    return load_data(parser.instantiate(config).data)


def test_labeled_rows_and_pool_are_disjoint(settings):
    data = load(settings)
    assert not set(data.train["text"]) & set(data.pool["text"])
    assert data.pool.column_names == ["text"]
    assert data.names == ["bad", "good"]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([2, 10, 1, 10], ["1", "2", "10"]),
        (["b", "a", "c", "a"], ["a", "b", "c"]),
        ([True, False, True, True], ["False", "True"]),
    ],
)
def test_classes_are_in_order_and_validation_is_numbered_by_them(settings, tmp_path, labels, names):
    """Also where the columns are named the other way round, and validation lacks a class."""
    rows = [{"label": f"text {i}", "text": labels[i % 4]} for i in range(40)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    validation = write_rows(tmp_path / "validation.jsonl", rows[1::2])
    data = load(
        settings,
        f"--data.train={train}",
        f"--data.validation={validation}",
        "--data.text_column=label",
        "--data.label_column=text",
        "--data.labeled_rows=20",
    )
    assert data.names == names
    numbers = {row["label"]: names.index(str(row["text"])) for row in rows}
    for split in (data.train, data.validation):
        assert [numbers[text] for text in split["text"]] == list(split["label"])
    assert len(data.validation) == 20


def test_rows_without_a_label_are_pool(settings, tmp_path):
    rows = [{"body": f"text {i}", "topic": ["a", "b", None][i % 3]} for i in range(60)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    data = load(settings, f"--data.train={train}", "--data.labeled_rows=null")
    assert len(data.train) == 40
    assert sorted(data.pool["text"]) == sorted(r["body"] for r in rows if r["topic"] is None)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("c", "expected labels among 'bad', 'good', got 'c' in the data"),
        (None, "rows without a label"),
    ],
)
def test_validation_labels_must_be_known(settings, tmp_path, label, message):
    rows = [{"body": f"text {i}", "topic": "bad"} for i in range(5)]
    file = write_rows(tmp_path / "odd.jsonl", [*rows, {"body": "text", "topic": label}])
    with pytest.raises(ValueError, match=message):
        load(settings, f"--data.validation={file}")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["None", "NA", "null"], ["NA", "None", "null"]),
        (["00", "01", "02"], ["00", "01", "02"]),
        ([10, 9, ""], ["9", "10"]),
        ([True, False, ""], ["False", "True"]),
    ],
)
def test_classes_of_csv_files_are_as_they_stand(settings, tmp_path, labels, names):
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["body", "topic"])
        csv.writer(file).writerows((f"text {i}", labels[i % 3]) for i in range(60))
    data = load(settings, f"--data.train={tmp_path}/train.csv", "--data.labeled_rows=30")
    assert data.names == names
    for text, label in zip(data.train["text"], data.train["label"], strict=True):
        assert names[label] == str(labels[int(text.split()[1]) % 3])


def test_rows_without_text_are_in_no_part(settings, tmp_path, recwarn):
    rows = [{"body": f"text {i}" if i % 10 else "", "topic": "ab"[i % 2]} for i in range(60)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    validation = write_rows(tmp_path / "validation.jsonl", rows[:10])
    data = load(settings, f"--data.train={train}", f"--data.validation={validation}")
    assert sorted([*data.train["text"], *data.pool["text"]]) == sorted(
        row["body"] for row in rows if row["body"]
    )
    assert "" not in data.validation["text"]
    said = [str(warning.message) for warning in recwarn if "empty" in str(warning.message)]
    assert said == [
        f"sepstop: 6 empty rows left out of the data {train}",
        f"sepstop: 1 empty row left out of the data {validation}",
    ]


@pytest.mark.parametrize(("train", "validation"), [([1, 0], ["1", "0"]), (["1", "0"], [1.0, 0.0])])
def test_validation_labels_may_be_of_another_type(settings, tmp_path, train, validation):
    files = [
        write_rows(
            tmp_path / f"{i}.jsonl",
            [{"body": f"text {n}", "topic": labels[n % 2]} for n in range(50)],
        )
        for i, labels in enumerate((train, validation))
    ]
    data = load(settings, f"--data.train={files[0]}", f"--data.validation={files[1]}")
    assert data.names == ["0", "1"]
    assert list(data.validation["label"]) == [1, 0] * 25


@pytest.mark.filterwarnings("ignore:sepstop. none of the 40 labeled rows")
def test_scores_as_labels_are_classes_with_a_warning(settings, tmp_path):
    rows = [{"body": f"text {i}", "topic": i / 4 + 0.1} for i in range(50)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    with pytest.warns(UserWarning, match=r"numbers such as 0\.1; each of the 50 becomes a class"):
        load(settings, f"--data.train={train}")


def test_classes_without_a_labeled_row_are_named(settings, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text(rows.read_text() + "a film that was odd,odd\n")
    with pytest.warns(UserWarning, match="none of the 4 labeled rows is of the class .*odd"):
        load(settings, "--data.labeled_rows=4")


def test_one_class_is_none(settings, tmp_path):
    train = write_rows(
        tmp_path / "train.jsonl", [{"body": f"text {i}", "topic": "a"} for i in "ab"]
    )
    with pytest.raises(ValueError, match="expected at least 2 classes in the data "):
        load(settings, f"--data.train={train}")


@pytest.mark.filterwarnings("ignore:sepstop. none of the 39 labeled rows")
@pytest.mark.filterwarnings("ignore:sepstop. 1 empty row left out of .* split validation")
def test_splits_of_a_data_set(settings, tmp_path):
    """From a folder, which `datasets` reads as it does one of the hub."""
    features = Features(text=Value("string"), label=ClassLabel(names=["z", "a", "m"]))
    folder = tmp_path / "data"
    folder.mkdir()
    for split, rows in (("train", 60), ("validation", 20)):
        texts = [f"{split} {i}" if i else " " for i in range(rows)]
        labels = [(2, 0, -1 if split == "train" else 1)[i % 3] for i in range(rows)]
        table = Dataset.from_dict({"text": texts, "label": labels}, features=features)
        table.to_parquet(folder / f"{split}.parquet")
    with pytest.warns(UserWarning, match=r"1 empty row left out of the data .*, split train"):
        data = load(
            settings,
            f"--data.train={folder}",
            "--data.validation=validation",
            "--data.text_column=text",
            "--data.label_column=label",
            "--data.labeled_rows=null",
        )
    assert data.names == ["z", "a", "m"]
    assert (len(data.train), len(data.pool), len(data.validation)) == (39, 20, 19)
    for split, expected in ((data.train, (2, 0)), (data.validation, (2, 0, 1))):
        for text, label in zip(split["text"], split["label"], strict=True):
            assert label == expected[int(text.split()[1]) % 3]
