import json
import math

import pytest

from sepstop import Record
from sepstop.history import (
    KEY,
    from_dict,
    read_history,
    read_log_history,
    records_in,
    scalars,
    settings_in,
    to_dict,
    write_history,
)

FULL = Record(
    step=30,
    score=0.5,
    epoch=1.5,
    low=0.4,
    high=0.6,
    seconds=2.25,
    criterion="my_score",
    resamples=(0.45, 0.55),
    resample_size=10,
    pool_size=40,
)
RECORDS = [
    FULL,
    Record(10, None, 0.1 + 0.2),
    Record(20, None, math.nan, resamples=(math.nan, 0.5)),
    Record(0, 0.0, 1.0),
]


def rows_of(*records):
    """A log_history with rows of Trainer's own between those of the records."""
    rows = [{"loss": 0.7, "step": 1}]
    for number, record in enumerate(records):
        entry = {"record": to_dict(record), "settings": {"seed": number}}
        rows += [{**scalars(record), "step": record.step, KEY: entry}, {"loss": 0.6}]
    return rows


# NaN is unequal to itself, so records are compared by their repr.


@pytest.mark.parametrize("record", RECORDS, ids=["full", "bare", "not finite", "step 0"])
def test_round_trip_through_json(record):
    line = json.dumps(to_dict(record), allow_nan=False)
    assert repr(from_dict(json.loads(line))) == repr(record)


def test_infinity_comes_back_as_nan():
    record = from_dict(to_dict(Record(1, None, math.inf, low=-math.inf, resamples=(math.inf,))))
    assert all(math.isnan(value) for value in (record.score, record.low, *record.resamples))


def test_unknown_keys_are_ignored():
    assert from_dict({**to_dict(FULL), "invented_later": [1, 2]}) == FULL


@pytest.mark.parametrize(
    "values", [{}, {"score": 0.5}, {"step": "x"}, {"step": 1, "score": "high"}, 5, None, [1]]
)
def test_not_a_record(values):
    with pytest.raises(ValueError, match="expected a sepstop record, got"):
        from_dict(values)


def test_scalars_carry_the_name_of_the_criterion():
    assert scalars(FULL) == {
        "eval_my_score": 0.5,
        "eval_my_score_low": 0.4,
        "eval_my_score_high": 0.6,
    }


def test_records_in_a_log_history_that_went_through_json():
    rows = json.loads(json.dumps(rows_of(*RECORDS)))
    in_order = sorted(RECORDS, key=lambda record: record.step)
    assert repr(records_in(rows)) == repr(in_order)
    assert settings_in(rows) == {"seed": 3}


def test_the_newest_row_of_a_step_counts():
    rows = rows_of(Record(10, None, 0.1), Record(20, None, 0.2), Record(10, None, 0.3))
    assert [(record.step, record.score) for record in records_in(rows)] == [(10, 0.3), (20, 0.2)]


@pytest.mark.parametrize("rows", [[], [{"loss": 0.7}]])
def test_log_history_without_records(rows):
    assert records_in(rows) == []
    assert settings_in(rows) is None


def test_log_history_of_a_checkpoint(tmp_path):
    rows = rows_of(*RECORDS)
    state = {"global_step": 30, "log_history": rows}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert repr(read_log_history(tmp_path)) == repr(rows)


def test_checkpoint_without_trainer_state(tmp_path):
    assert read_log_history(tmp_path) == []
    assert read_log_history(tmp_path / "nowhere") == []


ROWS = [b"null", b"[1]", b'["\xff"]']


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"log_history": [', *(b'{"log_history": %b}' % rows for rows in ROWS)],
)
def test_broken_trainer_state(tmp_path, content):
    path = tmp_path / "trainer_state.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"trainer_state\.json is no trainer state: ."):
        read_log_history(tmp_path)


def test_file_round_trip_leaves_nothing_else_behind(tmp_path):
    path = tmp_path / "history.jsonl"
    write_history(path, [FULL])
    write_history(path, RECORDS)
    assert repr(read_history(path)) == repr(RECORDS)
    assert len(path.read_text().splitlines()) == len(RECORDS)
    assert list(tmp_path.iterdir()) == [path]


def test_empty_history(tmp_path):
    write_history(tmp_path / "history.jsonl", [])
    assert read_history(str(tmp_path / "history.jsonl")) == []


def test_write_that_fails_leaves_the_old_file(tmp_path):
    def interrupted():
        yield Record(10, None, 0.1)
        raise KeyboardInterrupt

    path = tmp_path / "history.jsonl"
    write_history(path, [FULL])
    with pytest.raises(KeyboardInterrupt):
        write_history(path, interrupted())
    assert read_history(path) == [FULL]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 3, "sco', r"history\.jsonl, line 2: Unterminated string"),
        ("", "line 2: Expecting value"),
        ("[]", "line 2: expected a sepstop record, got"),
        ('{"score": 0.5}', "line 2: expected a sepstop record, got {'score': 0.5}"),
    ],
)
def test_broken_line(tmp_path, line, message):
    path = tmp_path / "history.jsonl"
    good = json.dumps(to_dict(FULL))
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=message):
        read_history(path)
