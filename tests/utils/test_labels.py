"""A cell means the same in every file type and in datasets."""

import csv
import json
import math

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from sepstop.utils.labels import NO_LABEL, read_labeled, read_labels, sorted_names
from sepstop.utils.tables import open_table

SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")


def save(path, texts, labels):
    """The rows as a file of the kind that the path's suffix says."""
    rows = [{"text": t, "label": label} for t, label in zip(texts, labels, strict=True)]
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def labels_of(source):
    found = read_labeled(source).labels
    return found.values, found.names


NAMES = ["None", "NA", "null", "nan", "NaN", "00", "01", "True", "1e3", "sport"]


@pytest.mark.filterwarnings("ignore:sepstop. 'NaN' and 'nan':UserWarning")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_strings_are_names_of_classes_whatever_they_look_like(tmp_path, suffix):
    path = save(tmp_path / f"rows{suffix}", [f"text {name}" for name in NAMES], NAMES)
    assert labels_of(path) == (NAMES, tuple(sorted(NAMES)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_texts_are_texts_whatever_they_look_like(tmp_path, suffix):
    texts = [*NAMES, "-1", "3.50", 'a "b",\nc', "Grüße 日本 😀", " x "]
    path = save(tmp_path / f"rows{suffix}", texts, ["y"] * len(texts))
    assert read_labeled(path).texts["text"][:] == texts


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_integers_with_gaps_stay_integers(tmp_path, suffix):
    labels = [10, None, 2, 0, None, -3]
    path = save(tmp_path / f"rows{suffix}", list("abcdef"), labels)
    values = ["10", None, "2", "0", None, "-3"]
    assert labels_of(path) == (values, ("-3", "0", "2", "10"))


def test_integers_that_became_floats_are_integers_again(tmp_path):
    frame = pd.DataFrame({"text": list("abc"), "label": [10, None, 2]})
    assert frame["label"].dtype == float
    frame.to_parquet(tmp_path / "rows.parquet")
    rows = Dataset.from_dict({"text": list("abc"), "label": [10.0, math.nan, 2.0]})
    for source in (tmp_path / "rows.parquet", rows, rows.with_format("torch")):
        assert labels_of(source) == (["10", None, "2"], ("2", "10"))


def test_other_floats_are_named_as_they_are_written():
    rows = Dataset.from_dict({"text": list("abc"), "label": [0.5, 1.0, 0.25]})
    assert labels_of(rows) == (["0.5", "1", "0.25"], ("0.25", "0.5", "1"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_booleans_are_two_classes(tmp_path, suffix):
    path = save(tmp_path / f"rows{suffix}", list("abc"), [True, None, False])
    assert labels_of(path) == (["True", None, "False"], ("False", "True"))


def test_types_may_differ_from_row_to_row(tmp_path):
    labels = [1, "1", 1.0, "", None, "b"]
    path = save(tmp_path / "rows.jsonl", list("abcdef"), labels)
    assert labels_of(path) == (["1", "1", "1", None, None, "b"], ("1", "b"))


@pytest.mark.parametrize("as_file", [False, True])
def test_class_labels_keep_their_names_and_order(tmp_path, as_file):
    features = Features(text=Value("string"), label=ClassLabel(names=["z", "a", "m"]))
    rows = Dataset.from_dict({"text": list("abcd"), "label": [2, -1, 0, None]}, features=features)
    if as_file:
        rows.to_parquet(tmp_path / "rows.parquet")
        rows = tmp_path / "rows.parquet"
    found = read_labeled(rows).labels
    assert (found.values, found.names) == (["m", None, "z", None], ("z", "a", "m"))
    assert found.numbered(found.names).tolist() == [2, NO_LABEL, 0, NO_LABEL]


def test_an_order_of_classes():
    assert sorted_names(["10", "9", "-1"]) == ("-1", "9", "10")
    for one in ("09", "+9", "9.0", "-0", "٣"):
        assert sorted_names(["10", one]) == tuple(sorted(["10", one]))


@pytest.mark.parametrize("suffix", [*SUFFIXES, "dataset"])
@pytest.mark.parametrize(("empty", "said"), [([1], "1 empty row"), ([0, 3], "2 empty rows")])
def test_rows_without_text_are_counted_once(tmp_path, recwarn, suffix, empty, said):
    texts = [("", " \n", None)[i % 3] if i in empty else f"text {i}" for i in range(5)]
    if suffix == "dataset":
        source = Dataset.from_dict({"text": texts, "label": list("ababa")})
        name = "the data"
    else:
        source = save(tmp_path / f"rows{suffix}", texts, list("ababa"))
        name = f"the data {source}"
    found = read_labeled(source)
    kept = [i for i in range(5) if i not in empty]
    assert found.texts["text"][:] == [f"text {i}" for i in kept]
    assert found.labels.values == ["ababa"[i] for i in kept]
    messages = [str(warning.message) for warning in recwarn]
    assert [m for m in messages if "empty" in m] == [f"sepstop: {said} left out of {name}"]


def test_labels_of_all_rows_are_read_beside_the_texts(tmp_path):
    path = save(tmp_path / "rows.csv", ["a", "", "c"], ["x", "y", ""])
    assert read_labels(open_table(path), "label").values == ["x", "y", None]


@pytest.mark.parametrize("names", [["a", " a"], ["Spam", "spam", "ham"]])
def test_classes_that_look_alike_are_named(names):
    with pytest.warns(UserWarning, match=f"{min(names)!r} and .* are different classes"):
        found = labels_of(Dataset.from_dict({"text": names, "label": names}))
    assert found[1] == tuple(sorted(names))


def test_suffixes_of_any_case(tmp_path):
    for suffix in SUFFIXES:
        path = save(tmp_path / f"rows{suffix}", ["a", "b"], ["x", "y"])
        assert labels_of(path.rename(tmp_path / f"ROWS{suffix.upper()}"))[0] == ["x", "y"]


def test_labels_of_a_dataset_stay_where_they_are_on_disk(tmp_path):
    Dataset.from_dict({"body": list("abc"), "y": [1, 2, 1]}).save_to_disk(tmp_path / "rows")
    rows = Dataset.load_from_disk(tmp_path / "rows")
    texts = read_labeled(rows, "body", "y").texts
    assert texts.column_names == ["text"]
    assert texts.cache_files == rows.cache_files


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 5, "label": 1}, "expected strings, got int at row 1 of the data .*rows.jsonl"),
        ({"text": "b", "label": [1, 0]}, r"expected one label per row .*, got list at row 1"),
        ({"text": "b\ud83d", "label": 1}, r"the lone surrogate \\ud83d at row 1 .*; repair it"),
        ({"text": "b", "label": "\udc00"}, r"the lone surrogate \\udc00 at row 1"),
    ],
)
def test_cells_that_are_neither_text_nor_label(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a", "label": 1}) + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match=message):
        read_labeled(path)


def test_unusable_sources(tmp_path):
    rows = Dataset.from_dict({"text": ["a"], "label": [1]})
    with pytest.raises(
        ValueError,
        match=r"expected different columns .*, got 'text' for both",
    ):
        read_labeled(rows, label_column="text")
    with pytest.raises(ValueError, match=r"expected one split as the data, .*\['train'\]"):
        read_labeled(DatasetDict(train=rows))
    with pytest.raises(FileNotFoundError, match=r"no data file at nowhere\.csv"):
        read_labeled("nowhere.csv")
    (tmp_path / "rows.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"rows\.txt has no columns, so it has no 'text'"):
        read_labeled(tmp_path / "rows.txt")


def test_labels_that_others_do_not_know():
    labels = read_labeled(Dataset.from_dict({"text": list("abc"), "label": [1, 2, None]})).labels
    assert labels.numbered(["2", "1"]).tolist() == [1, 0, NO_LABEL]
    with pytest.raises(ValueError, match=r"expected labels among '1', got '2' in the data$"):
        labels.numbered(["1"])
