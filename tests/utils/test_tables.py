"""One meaning of a cell, whatever file or dataset it comes from."""

import csv
import json
import math

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from sepstop.utils.tables import NO_LABEL, open_table, ordered, read_labelled, read_labels, text_of

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
    found = read_labelled(source).labels
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
    assert read_labelled(path).texts["text"][:] == texts


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
    found = read_labelled(rows).labels
    assert (found.values, found.names) == (["m", None, "z", None], ("z", "a", "m"))
    assert found.numbered(found.names).tolist() == [2, NO_LABEL, 0, NO_LABEL]


def test_an_order_of_classes():
    assert ordered(["10", "9", "-1"]) == ("-1", "9", "10")
    for one in ("09", "+9", "9.0", "-0", "٣"):
        assert ordered(["10", one]) == tuple(sorted(["10", one]))


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
    found = read_labelled(source)
    kept = [i for i in range(5) if i not in empty]
    assert found.texts["text"][:] == [f"text {i}" for i in kept]
    assert found.labels.values == ["ababa"[i] for i in kept]
    messages = [str(warning.message) for warning in recwarn]
    assert [m for m in messages if "empty" in m] == [f"sepstop: {said} left out of {name}"]


def test_labels_of_all_rows_are_read_beside_the_texts(tmp_path):
    path = save(tmp_path / "rows.csv", ["a", "", "c"], ["x", "y", ""])
    assert read_labels(open_table(path), "label").values == ["x", "y", None]


def test_csv_as_spreadsheets_write_it(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufefftext,label\r\n"one, ""two""\r\nthree",x\r\n\r\nfour,y\r\n'.encode())
    found = read_labelled(path)
    assert found.texts["text"][:] == ['one, "two"\r\nthree', "four"]
    assert found.labels.values == ["x", "y"]


@pytest.mark.parametrize("columns", [("label", "text"), ("text", "label", "note")])
def test_a_quote_that_is_never_closed_does_not_swallow_the_rest_of_a_file(tmp_path, columns):
    path = tmp_path / "rows.csv"
    rest = "".join(f"x,{i}\n" * (len(columns) == 2) or f"t{i},x,n\n" for i in range(9))
    opened = 'y,"she said\n' if len(columns) == 2 else 't,y,"she said\n'
    path.write_text(",".join(columns) + "\n" + opened + rest)
    with pytest.raises(ValueError, match=r"the quote before 'she said\\n.* never closed"):
        read_labelled(path)
    path.write_text(",".join(columns) + "\n" + rest + opened.replace("\n", '\n"\n\n'))
    assert len(read_labelled(path).texts) == 10


def test_lines_before_the_names_of_columns_may_be_blank(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\n\ntext,label\na,x\nb,y\n")
    assert labels_of(path)[0] == ["x", "y"]


def test_a_missing_text_of_pandas_is_no_text(recwarn):
    texts = pd.Series(["a", None, "b"], dtype="string")
    assert [text_of(cell, 0, "it") for cell in texts] == ["a", None, "b"]


@pytest.mark.parametrize("names", [["a", " a"], ["Spam", "spam", "ham"]])
def test_classes_that_look_alike_are_named(names):
    with pytest.warns(UserWarning, match=f"{min(names)!r} and .* are different classes"):
        found = labels_of(Dataset.from_dict({"text": names, "label": names}))
    assert found[1] == tuple(sorted(names))


def test_suffixes_of_any_case(tmp_path):
    for suffix in SUFFIXES:
        path = save(tmp_path / f"rows{suffix}", ["a", "b"], ["x", "y"])
        assert labels_of(path.rename(tmp_path / f"ROWS{suffix.upper()}"))[0] == ["x", "y"]


def test_a_key_may_come_late_in_a_json_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n' * 5000 + '{"text": "b", "label": 1}\n')
    found = read_labelled(path).labels
    assert found.values == [None] * 5000 + ["1"]
    with pytest.raises(ValueError, match="has no column 'topic'; its columns are text, label"):
        read_labelled(path, label_column="topic")


def test_labels_of_a_dataset_stay_where_they_are_on_disk(tmp_path):
    Dataset.from_dict({"body": list("abc"), "y": [1, 2, 1]}).save_to_disk(tmp_path / "rows")
    rows = Dataset.load_from_disk(tmp_path / "rows")
    texts = read_labelled(rows, "body", "y").texts
    assert texts.column_names == ["text"]
    assert texts.cache_files == rows.cache_files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\n", "the data .*rows.csv is empty: none of its 0 rows has any text"),
        ("text,label\n ,1\n", "is empty: none of its 1 rows has any text"),
        ("\n\n", "rows.csv is empty: it has no row of column names"),
        ("text;label\na;1\n", "has no column 'text'; its columns are text;label"),
        ("text,text,label\na,b,1\n", "rows.csv has 2 columns 'text'"),
        ("text,label\na,1\nb\n", "could not read the data .*: CSV parse error: Row #3: Expected 2"),
    ],
)
def test_unusable_csv(tmp_path, content, message):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_labelled(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 5, "label": 1}, "expected strings, got int at row 1 of the data .*rows.jsonl"),
        ({"text": "b", "label": [1, 0]}, r"expected one label a row .*, got list at row 1"),
        ({"text": "b\ud83d", "label": 1}, r"the lone surrogate \\ud83d at row 1 .*; repair it"),
        ({"text": "b", "label": "\udc00"}, r"the lone surrogate \\udc00 at row 1"),
    ],
)
def test_cells_that_are_neither_text_nor_label(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a", "label": 1}) + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match=message):
        read_labelled(path)


def test_a_number_of_too_many_digits_is_found(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": ' + "1" * 5000 + "}\n")
    with pytest.raises(ValueError, match=r"could not read the data .*, line 2: Exceeds the limit"):
        read_labelled(path)


def test_unusable_sources(tmp_path):
    rows = Dataset.from_dict({"text": ["a"], "label": [1]})
    with pytest.raises(ValueError, match="'text' can't be both texts and labels"):
        read_labelled(rows, label_column="text")
    with pytest.raises(ValueError, match=r"expected one split as the data, .*\['train'\]"):
        read_labelled(DatasetDict(train=rows))
    with pytest.raises(FileNotFoundError, match=r"no data file at nowhere\.csv"):
        read_labelled("nowhere.csv")
    (tmp_path / "rows.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"rows\.txt has no columns, so it has no 'text'"):
        read_labelled(tmp_path / "rows.txt")


def test_labels_that_others_do_not_know():
    labels = read_labelled(Dataset.from_dict({"text": list("abc"), "label": [1, 2, None]})).labels
    assert labels.numbered(["2", "1"]).tolist() == [1, 0, NO_LABEL]
    with pytest.raises(ValueError, match=r"the data has a label '2' .* none of the classes '1'$"):
        labels.numbered(["1"])
