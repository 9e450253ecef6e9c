"""Tables in files."""

import pandas as pd
import pytest

from sepstop.utils.labels import read_labeled
from sepstop.utils.tables import text_of


def test_csv_as_spreadsheets_write_it(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufefftext,label\r\n"one, ""two""\r\nthree",x\r\n\r\nfour,y\r\n'.encode())
    found = read_labeled(path)
    assert found.texts["text"][:] == ['one, "two"\r\nthree', "four"]
    assert found.labels.values == ["x", "y"]


@pytest.mark.parametrize("columns", [("label", "text"), ("text", "label", "note")])
def test_a_quote_that_is_never_closed_does_not_swallow_the_rest_of_a_file(tmp_path, columns):
    path = tmp_path / "rows.csv"
    rest = "".join(f"x,{i}\n" * (len(columns) == 2) or f"t{i},x,n\n" for i in range(9))
    opened = 'y,"she said\n' if len(columns) == 2 else 't,y,"she said\n'
    path.write_text(",".join(columns) + "\n" + opened + rest)
    with pytest.raises(ValueError, match=r"the quote before 'she said\\n.* never closed"):
        read_labeled(path)
    path.write_text(",".join(columns) + "\n" + rest + opened.replace("\n", '\n"\n\n'))
    assert len(read_labeled(path).texts) == 10


def test_lines_before_the_names_of_columns_may_be_blank(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\n\ntext,label\na,x\nb,y\n")
    assert read_labeled(path).labels.values == ["x", "y"]


def test_a_missing_text_of_pandas_is_no_text(recwarn):
    texts = pd.Series(["a", None, "b"], dtype="string")
    assert [text_of(cell, 0, "it") for cell in texts] == ["a", None, "b"]


def test_a_key_may_come_late_in_a_json_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n' * 5000 + '{"text": "b", "label": 1}\n')
    found = read_labeled(path).labels
    assert found.values == [None] * 5000 + ["1"]
    with pytest.raises(ValueError, match="has no column 'topic'; its columns are text, label"):
        read_labeled(path, label_column="topic")


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
        read_labeled(path)


def test_a_number_of_too_many_digits_is_found(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": ' + "1" * 5000 + "}\n")
    with pytest.raises(ValueError, match=r"could not read the data .*, line 2: Exceeds the limit"):
        read_labeled(path)
