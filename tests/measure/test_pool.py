import csv
import json
import tracemalloc

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from sepstop.measure.pool import Pool, read_pool

TEXTS = ["the first", "a second", "one more", "and another", "the last"]
IDS = [[5, 6, 7], [8], [9, 10], [11, 12, 13]]


def dataset_of(texts=TEXTS, **columns):
    return Dataset.from_dict({"text": texts, **columns})


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(TEXTS, id="list"),
        pytest.param(tuple(TEXTS), id="tuple"),
        pytest.param((text for text in TEXTS), id="generator"),
        pytest.param(dataset_of(), id="Dataset"),
        pytest.param(dataset_of(label=[0, 1, 0, 1, 0], score=[0.5] * 5), id="Dataset with labels"),
        pytest.param(dataset_of().with_format("torch"), id="Dataset of tensors"),
    ],
)
def test_texts(pool):
    pool = read_pool(pool)
    assert pool == Pool(tuple(TEXTS))
    assert len(pool) == 5
    assert not pool.is_tokenized


def test_text_column():
    rows = Dataset.from_dict({"text": ["wrong"] * 5, "body": TEXTS})
    assert read_pool(rows, text_column="body").rows == tuple(TEXTS)


def test_a_pool_is_returned_unchanged():
    pool = Pool(tuple(TEXTS))
    assert read_pool(pool, limit=2) is pool


PADDED = {
    "input_ids": [[5, 6, 7], [0, 0, 8], [9, 10, 0], [11, 12, 13]],
    "attention_mask": [[1, 1, 1], [0, 0, 1], [1, 1, 0], [1, 1, 1]],
}


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(IDS, id="lists"),
        pytest.param(Dataset.from_dict({"input_ids": IDS, "labels": IDS}), id="Dataset"),
        pytest.param(Dataset.from_dict(PADDED), id="padded"),
        pytest.param(Dataset.from_dict(PADDED).with_format("torch"), id="padded tensors"),
        pytest.param(
            Dataset.from_dict({"input_ids": IDS}).with_format("torch"),
            id="tensors",
        ),
    ],
)
def test_token_ids(pool):
    pool = read_pool(pool)
    assert pool.rows == tuple(map(tuple, IDS))
    assert pool.is_tokenized


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([[np.int64(i) for i in row] for row in IDS], id="NumPy integers"),
        pytest.param([np.array(row, np.uint16) for row in IDS], id="arrays"),
        pytest.param([torch.tensor(row) for row in IDS], id="tensors"),
    ],
)
def test_token_ids_of_other_libraries(rows):
    found = read_pool(rows).rows
    assert found == tuple(map(tuple, IDS))
    assert {type(token) for row in found for token in row} == {int}


TYPED = {**PADDED, "label": [1, 0, 1, 0]}
TYPED["token_type_ids"] = [[0, 0, 1], [9, 9, 1], [0, 1, 9], [0, 1, 1]]


@pytest.mark.parametrize("source", ["Dataset", "tensors", ".parquet", ".jsonl", "unmasked"])
def test_padding_is_removed_from_token_type_ids_too(tmp_path, source):
    rows = Dataset.from_dict(TYPED)
    cut = ((0, 0, 1), (1,), (0, 1), (0, 1, 1))
    others = ("label",)
    if source == "tensors":
        rows.set_format("torch")
    elif source == "unmasked":
        rows = Dataset.from_dict({"input_ids": IDS, "token_type_ids": [list(row) for row in cut]})
        others = ()
    elif source != "Dataset":
        path = tmp_path / f"pool{source}"
        (rows.to_parquet if source == ".parquet" else rows.to_json)(path)
        rows = path
    pool = read_pool(rows)
    assert pool.rows == tuple(map(tuple, IDS))
    assert pool.token_type_ids == cut
    assert pool.other_columns == others


def test_token_type_ids_belong_to_the_sampled_rows():
    ids = [[n, n + 1, n + 2] for n in range(40)]
    types = [[n % 2, 0, n % 3] if n % 4 else [0, 0, 0] for n in range(40)]
    pool = read_pool(Dataset.from_dict({"input_ids": ids, "token_type_ids": types}), limit=10)
    assert pool.token_type_ids == tuple(tuple(types[number]) for number in pool.row_numbers)
    assert read_pool(IDS).token_type_ids is None
    assert read_pool(TEXTS).token_type_ids is None


def test_names_of_other_columns(tmp_path):
    rows = Dataset.from_dict({"b": TEXTS, "text": TEXTS, "a": TEXTS})
    assert read_pool(rows).other_columns == ("b", "a")
    rows.to_csv(tmp_path / "pool.csv")
    assert read_pool(tmp_path / "pool.csv").other_columns == ("b", "a")
    lines = "".join(json.dumps({"text": t, f"key {i}": 1}) + "\n" for i, t in enumerate(TEXTS))
    found = read_pool(write(tmp_path / "pool.jsonl", lines)).other_columns
    assert found == tuple(f"key {i}" for i in range(5))
    write(tmp_path / "pool.txt", "\n".join(TEXTS))
    assert read_pool(TEXTS).other_columns == read_pool(tmp_path / "pool.txt").other_columns == ()


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


def csv_of(texts, labels):
    rows = "".join(f"{label},{text}\n" for text, label in zip(texts, labels, strict=True))
    return f"label,text\n{rows}"


def json_lines(texts):
    return "".join(json.dumps({"text": text, "label": 1}) + "\n" for text in texts)


@pytest.mark.parametrize("as_path", [lambda path: path, str], ids=["Path", "str"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".parquet"])
def test_files(tmp_path, suffix, as_path):
    path = tmp_path / f"pool{suffix}"
    if suffix == ".parquet":
        dataset_of(label=[1] * 5).to_parquet(path)
    elif suffix == ".csv":
        write(path, csv_of(TEXTS, "01010"))
    else:
        write(path, "\n".join(TEXTS) if suffix == ".txt" else json_lines(TEXTS))
    assert read_pool(as_path(path)).rows == tuple(TEXTS)


def test_text_column_of_a_file(tmp_path):
    path = write(tmp_path / "pool.csv", csv_of(TEXTS, "abcde"))
    assert read_pool(path, text_column="label").rows == tuple("abcde")


def test_a_file_with_non_ascii_texts(tmp_path):
    texts = ["Grüße", "日本語", "naïve, with a comma", "𝛼𝛽", "ok"]
    assert read_pool(write(tmp_path / "pool.txt", "\n".join(texts))).rows == tuple(texts)
    assert read_pool(write(tmp_path / "pool.jsonl", json_lines(texts))).rows == tuple(texts)


def test_the_label_column_of_a_file_is_not_read(tmp_path):
    texts = [f"text {number}" for number in range(12_000)]
    labels = ["1"] * 11_000 + ["x"] * 1_000
    assert len(read_pool(write(tmp_path / "pool.csv", csv_of(texts, labels)))) == 12_000


def test_a_path_is_not_a_pattern(tmp_path):
    path = write(tmp_path / "pool[1].txt", "\n".join(TEXTS))
    assert read_pool(path).rows == tuple(TEXTS)


def test_empty_rows_are_not_sampled():
    texts = [text for number in range(50) for text in (f"text {number}", "")]
    with pytest.warns(UserWarning, match="50 empty rows"):
        assert len(read_pool(texts, limit=20)) == 20


@pytest.mark.parametrize("limit", [-1, 0, 3])
def test_a_limit_below_4_is_an_error(limit):
    with pytest.raises(ValueError, match=f"expected at least 4 as the pool's size, got {limit}"):
        read_pool(TEXTS, limit=limit)


def test_the_sample_is_reproducible_and_in_order():
    texts = [f"text {number:03}" for number in range(100)]
    sample = read_pool(texts, limit=20, seed=1).rows
    assert len(set(sample)) == 20
    assert list(sample) == sorted(sample)
    assert sample == read_pool(texts, limit=20, seed=1).rows
    assert sample == read_pool(dataset_of(texts), limit=20, seed=1).rows
    assert sample != read_pool(texts, limit=20, seed=2).rows
    assert read_pool(texts, limit=100).rows == read_pool(texts, limit=None).rows == tuple(texts)


def test_sampling_does_not_use_the_global_generator():
    before = torch.random.get_rng_state()
    read_pool(TEXTS, limit=4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_different_pools_have_different_fingerprints():
    assert Pool(("a", "b")).fingerprint == Pool(("a", "b")).fingerprint
    others = [("b", "a"), ("ab",), ("a", "b", "b"), ((1, 2), (3,)), ((1,), (2, 3))]
    assert len({Pool(rows).fingerprint for rows in [("a", "b"), *others]}) == 6
    ids = ((1, 2), (3,))
    typed = [Pool(ids, token_type_ids=types) for types in (((0, 1), (0,)), ((0, 0), (0,)))]
    assert len({pool.fingerprint for pool in (Pool(ids), *typed)}) == 3


def test_fingerprints_are_those_of_recorded_runs():
    assert Pool(tuple(TEXTS)).fingerprint == "c3c53bca21ff299a"
    assert Pool(((5, 6, 7), (8,)), other_columns=("label",)).fingerprint == "34a741a316f16a28"


@pytest.mark.parametrize(
    ("pool", "rows"),
    [
        (["a", "", "b", "  \n", "c", None, "d"], ("a", "b", "c", "d")),
        (["a", float("nan"), "b", "", "c", None, "d"], ("a", "b", "c", "d")),
        ([[1], [], [2], [3], [], [], [4]], ((1,), (2,), (3,), (4,))),
    ],
)
def test_empty_rows_are_left_out_with_a_warning(pool, rows):
    with pytest.warns(UserWarning, match="^sepstop: 3 empty rows left out of the pool$"):
        assert read_pool(pool).rows == rows


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ([], "the pool is empty: none of its 0 rows has any text"),
        (["", " ", None], "the pool is empty: none of its 3 rows has any text"),
        (dataset_of([]), "the pool is empty: none of its 0 rows"),
        (["a"] * 5, "all 5 texts of the pool are equal: 'a'; expected different texts"),
        (["a", "b", "c"], "expected at least 4 texts in the pool, got 3"),
        ([*TEXTS, 3.5], r"expected strings \(or token ids\), got float at row 5 of the pool"),
        ([("a", "b")] * 4, r"expected strings \(or token ids\), got tuple at row 0 of the pool"),
        ([*TEXTS, [1, 2]], "the pool mixes strings, chat messages or token ids; pass one kind"),
        ([5, 6, 7, 8], r"expected strings \(or token ids\), got int at row 0 of the pool"),
        ([*IDS, [3, -100]], r"expected token ids of at least 0, got -100 at row 4 .*input_ids"),
        ([*IDS, [True, False]], r"got list at row 4 of the pool, with True in it"),
        ([np.array([True, False])] * 4, r"got ndarray at row 0 of the pool, with True in it"),
        ([*IDS, torch.tensor([1.5])], r"got Tensor at row 4 of the pool, with 1.5 in it"),
        ([*TEXTS, "a \ud800"], r"the lone surrogate \\ud800 at row 5 of the pool; repair it with"),
        (
            Dataset.from_dict({"input_ids": IDS, "token_type_ids": [[0], [0], [0], [0]]}),
            "expected lists of equal length in the pool's input_ids and token_type_ids",
        ),
        (Dataset.from_dict({"input_ids": TEXTS}), "got str at row 0 of the pool"),
        (5, "expected a list of strings, a datasets.Dataset or a path as the pool, got int"),
        (
            Dataset.from_dict({"body": TEXTS, "label": [0] * 5}),
            r"the pool has no column 'text' \(and no 'input_ids'\); its columns are body, label; "
            "name one with text_column=",
        ),
        (
            DatasetDict(train=dataset_of(), test=dataset_of()),
            r"expected one split as the pool, got a dictionary of \['train', 'test'\]; "
            r"pass one of them, as in pool=splits\['train'\]",
        ),
        ({"text": TEXTS}, r"got a dictionary of \['text'\]"),
        (
            dataset_of().to_iterable_dataset(),
            "a streamed dataset has no fixed rows to compare; take some first",
        ),
        pytest.param(
            *([b"first", b"second", b"third", b"fourth"], "got bytes at row 0"),
        ),
    ],
)
def test_unusable_pools(pool, message):
    with pytest.raises(ValueError, match=message):
        read_pool(pool)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pool.tsv", "a", r"ending in \.txt, \.jsonl, \.json, \.csv, \.parquet, got pool\.tsv"),
        ("pool.txt", "", r"the pool is empty: .*pool\.txt has no bytes"),
        ("pool.txt", "\n\n\n", "the pool is empty: none of its 3 rows has any text"),
        (
            "pool.jsonl",
            '{"text": "a"}\n{"te',
            r"could not read the pool .*pool\.jsonl, line 2: Unterminated",
        ),
        ("pool.parquet", "text", r"could not read the pool .*pool\.parquet: ."),
        ("pool.csv", "body,label\na,1\n", "no column 'text' .* its columns are body, label"),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_pool(write(tmp_path / name, content))


def test_no_such_file(tmp_path):
    message = r"no pool file at .*pool\.txt; to pass one text, pass a list"
    with pytest.raises(FileNotFoundError, match=message):
        read_pool(tmp_path / "pool.txt")
    with pytest.raises(FileNotFoundError, match="no pool file at a text, not a path"):
        read_pool("a text, not a path")
    with pytest.raises(FileNotFoundError, match="no pool file at word word"):
        read_pool("word " * 1000)


def test_a_lone_surrogate_outside_the_sample_is_an_error(tmp_path):
    lines = [json.dumps({"text": f"text {n}" + "\ud83d" * (n == 70)}) for n in range(100)]
    path = write(tmp_path / "pool.jsonl", "\n".join(lines))
    for limit in range(4, 9):
        with pytest.raises(ValueError, match=r"at row 70 of the pool .*pool\.jsonl; repair"):
            read_pool(path, limit=limit)


def test_a_lone_surrogate_is_repaired_as_the_message_says():
    with pytest.raises(ValueError, match=r"repair it with text\.encode") as caught:
        read_pool([*TEXTS, "a \ud800", "\ud83d\ude00"])
    how = str(caught.value).split("repair it with ")[1]
    repaired = [eval(how, {"text": text}) for text in ("a \ud800", "\ud83d\ude00", "é")]
    assert repaired == ["a \ufffd", "\U0001f600", "é"]


def test_csv_texts_stay_texts(tmp_path):
    texts = ["1", "NA", "null", "a, b\nc"]
    path = tmp_path / "pool.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    assert read_pool(path).rows == tuple(texts)


def test_tokenized_rows_of_a_file(tmp_path):
    path = tmp_path / "pool.parquet"
    rows = {"input_ids": [[7, 8, 0], [7, 9, 9], [5, 0, 0], [6, 4, 0]], "label": [0, 1, 1, 0]}
    masks = [[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]
    Dataset.from_dict(rows | {"attention_mask": masks}).to_parquet(path)
    assert read_pool(path).rows == ((7, 8), (7, 9, 9), (5,), (6, 4))


def test_a_file_in_another_encoding_is_an_error(tmp_path):
    path = tmp_path / "pool.txt"
    path.write_bytes("café\n".encode("latin-1") * 5)
    with pytest.raises(ValueError, match="expected UTF-8 text in the pool"):
        read_pool(path)


def test_row_numbers_are_those_of_the_source():
    texts = [text for number in range(50) for text in ("", f"text {number}")]
    with pytest.warns(UserWarning, match="50 empty rows"):
        sample = read_pool(texts, limit=20)
    assert [texts[number] for number in sample.row_numbers] == list(sample.rows)
    assert read_pool(TEXTS).row_numbers == (0, 1, 2, 3, 4)


def large(folder, suffix, texts):
    path = folder / f"pool{suffix}"
    if suffix == ".txt":
        return write(path, "\r\n".join(texts))
    if suffix == ".csv":
        rows = "".join(f'{number},"{text}"\n' for number, text in enumerate(texts))
        return write(path, f"number,text\n{rows}")
    rows = Dataset.from_dict({"text": texts, "number": list(range(len(texts)))})
    if suffix == ".arrow":
        return rows
    (rows.to_parquet if suffix == ".parquet" else rows.to_json)(path)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet", ".arrow"])
def test_large_pools_are_sampled_in_little_memory(tmp_path, suffix):
    texts = [f"text {number} " + "word " * 40 if number % 9 else "" for number in range(60_000)]
    pool = large(tmp_path, suffix, texts)
    with pytest.warns(UserWarning, match="6667 empty rows"):
        expected = read_pool(texts, limit=500, seed=3)
    tracemalloc.start()
    with pytest.warns(UserWarning, match="6667 empty rows"):
        sample = read_pool(pool, limit=500, seed=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sample == expected
    assert sample.row_numbers == expected.row_numbers
    assert peak < sum(map(len, texts)) / 2


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_unusable_json(tmp_path, suffix):
    deep = "[" * 100_000
    with pytest.raises(ValueError, match=r"nested too deep|Expecting value"):
        read_pool(write(tmp_path / f"pool{suffix}", deep))
    with pytest.raises(ValueError, match="expected JSON objects in the pool"):
        read_pool(write(tmp_path / f"pool{suffix}", "3\n4\n"))
    with pytest.raises(ValueError, match=r"expected strings .* got dict at row 0"):
        read_pool(write(tmp_path / f"pool{suffix}", '{"text": {"a": 1}}\n'))
