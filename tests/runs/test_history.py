import json
import math
import os
import warnings
from dataclasses import replace

import pytest

from sepstop import Decision, Record
from sepstop.runs.history import (
    HISTORY_FILE,
    KEY,
    SELECTION_FILE,
    RunHistory,
    continuation,
    from_dict,
    from_log,
    from_state,
    read_history,
    read_log_history,
    read_online,
    read_run,
    records_in,
    scalars,
    to_dict,
    to_state,
    write_history,
    write_run,
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
    "values",
    [
        {},
        {"score": 0.5},
        {"step": "x"},
        {"step": 1, "score": "high"},
        {"step": -1, "score": 0.5},
        {"step": 10**400, "score": 0.5},
        5,
        None,
        [1],
    ],
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
    assert from_log(rows).settings == {"seed": 3}


def test_the_newest_row_of_a_step_counts():
    rows = rows_of(Record(10, None, 0.1), Record(20, None, 0.2), Record(10, None, 0.3))
    assert [(record.step, record.score) for record in records_in(rows)] == [(10, 0.3), (20, 0.2)]


@pytest.mark.parametrize("rows", [[], [{"loss": 0.7}]])
def test_log_history_without_records(rows):
    assert records_in(rows) == []
    assert from_log(rows) == RunHistory()


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


# The history of a run

RUN = RunHistory(
    records=(Record(10, 0.5, 0.2), Record(20, 1.0, math.nan), Record(30, 1.5, 0.4)),
    decisions=(
        Decision(False, 10, "improving", 10),
        Decision(True, 10, "nothing to hope for", 20),
        Decision(False, 30, "told to go on", 30),
    ),
    settings={"criterion": {"name": "separability"}, "seed": 3, "pool": "abc"},
    settings_since=15,
    policy={"custom": "script:my_policy"},
    decides="separability",
)
ROWS_OF_RUN = [
    {
        KEY: {
            "record": to_dict(record),
            "settings": RUN.settings,
            "policy": {"name": "auto"},
            "decision": {"stop": decision.stop, "best_step": 10, "reason": "by the copy"},
        }
    }
    for record, decision in zip(RUN.records[:2], RUN.decisions, strict=False)
]


def save_rows(folder, rows, step=20):
    (folder / f"checkpoint-{step}").mkdir()
    state = {"log_history": rows}
    (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("ended", [None, 30])
def test_what_was_decided_comes_back_as_it_was_written(tmp_path, ended):
    run = replace(RUN, ended=ended)
    write_run(tmp_path / HISTORY_FILE, run)
    assert repr(read_run(tmp_path)) == repr(read_online(tmp_path)) == repr(run)
    assert read_run(tmp_path).decision == RUN.decisions[2]
    assert repr(read_history(tmp_path / HISTORY_FILE)) == repr(list(RUN.records))
    assert repr(from_state(json.loads(json.dumps(to_state(run))))) == repr(run)
    header = json.loads((tmp_path / HISTORY_FILE).read_text().splitlines()[0])[KEY]
    assert header["schema"] == 1
    assert list(tmp_path.iterdir()) == [tmp_path / HISTORY_FILE]


def test_the_state_of_an_earlier_version_has_no_decisions():
    state = {"history": [to_dict(record) for record in RUN.records], "settings": RUN.settings}
    run = from_state(state)
    assert repr(run.records) == repr(RUN.records)
    assert (run.decisions, run.settings) == ((None, None, None), RUN.settings)
    for broken in ({"history": [5]}, {"history": 5}, {"settings": 5}, {"policy": "auto"}, 5):
        with pytest.raises(ValueError, match="expected a sepstop"):
            from_state(broken)


def test_a_run_that_was_not_scored_yet(tmp_path):
    run = replace(RUN, records=(), decisions=())
    write_run(tmp_path / HISTORY_FILE, run)
    save_rows(tmp_path, ROWS_OF_RUN)  # of an earlier run in the folder
    assert read_run(tmp_path) == run
    assert read_run(tmp_path).decision is None


@pytest.mark.parametrize(
    ("decides", "criterion", "by_information"),
    [
        ("information", "separability", True),
        ("separability", "separability", False),
        ("information", "information", False),  # which is the criterion's own score
    ],
)
def test_what_decides(tmp_path, decides, criterion, by_information):
    records = tuple(replace(record, criterion=criterion) for record in RUN.records)
    write_run(tmp_path / HISTORY_FILE, replace(RUN, records=records, decides=decides))
    assert read_run(tmp_path).by_information is by_information


def test_the_history_file_comes_before_its_copies_and_they_before_a_selection(tmp_path):
    write_run(tmp_path / SELECTION_FILE, replace(RUN, policy={}))
    chosen = read_run(tmp_path)
    assert (chosen.is_online, chosen.decision) == (False, RUN.decision)
    assert read_online(tmp_path) is None

    save_rows(tmp_path, ROWS_OF_RUN)
    copies = read_run(tmp_path)
    assert copies.decision == Decision(True, 10, "by the copy", 20)  # its step was not recorded
    assert [record.step for record in copies.records] == [10, 20]
    assert (copies.is_online, copies.ended, copies.decides) == (True, 20, "separability")

    write_run(tmp_path / HISTORY_FILE, RUN)
    assert repr(read_run(tmp_path)) == repr(RUN)


def test_rows_of_earlier_versions_tell_by_the_policy_what_decided():
    rows = json.loads(json.dumps(ROWS_OF_RUN))
    rows[0][KEY]["record"]["information"] = 0.7
    assert from_log(rows).by_information
    rows[1][KEY]["policy"] = {"name": "patience"}
    assert from_log(rows).decides == "separability"
    rows[1][KEY]["decides"] = "information"
    assert from_log(rows).by_information


def test_a_selection_is_of_the_run_before_if_one_has_begun_since(tmp_path):
    write_run(tmp_path / SELECTION_FILE, RUN)
    begun = replace(RUN, records=(), decisions=())
    write_run(tmp_path / HISTORY_FILE, begun)
    for name, time in ((SELECTION_FILE, 10), (HISTORY_FILE, 20)):
        os.utime(tmp_path / name, (time, time))
    assert read_run(tmp_path) == begun
    os.utime(tmp_path / SELECTION_FILE, (30, 30))
    assert read_run(tmp_path).decision == RUN.decision


def test_a_file_of_an_earlier_version_has_scores_and_no_decision(tmp_path):
    write_history(tmp_path / HISTORY_FILE, RUN.records)
    with pytest.warns(UserWarning, match=r"jsonl was written by an earlier version, .* without a"):
        run = read_run(tmp_path)
    assert repr(run.records) == repr(RUN.records)
    assert run.decisions == (None, None, None)
    assert (run.decision, run.settings, run.by_information) == (None, {}, False)
    assert run.measured_alike == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_rows(tmp_path, ROWS_OF_RUN)  # which know more
        assert read_run(tmp_path).decision.reason == "by the copy"
    write_run(tmp_path / SELECTION_FILE, RUN)
    (tmp_path / "checkpoint-20" / "trainer_state.json").unlink()
    with pytest.warns(UserWarning, match="was written by an earlier version"):
        assert not read_run(tmp_path).is_online


def test_no_scores(tmp_path):
    with pytest.raises(FileNotFoundError, match="a run with the callback leaves sepstop_h"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder at"):
        read_run(tmp_path / "org" / "model")
    write_history(tmp_path / SELECTION_FILE, RUN.records)
    with pytest.raises(ValueError, match="does not say which checkpoint to keep"):
        read_run(tmp_path)


HEADER = {"schema": 1, "settings": {}, "policy": {}, "decides": "separability"}


def test_unknown_keys_of_a_header_are_ignored(tmp_path):
    lines = [{KEY: {**HEADER, "invented_later": 1}}, {**to_dict(FULL), "invented_later": 2}]
    (tmp_path / HISTORY_FILE).write_text("\n".join(map(json.dumps, lines)))
    assert read_run(tmp_path).records == (FULL,)


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        (
            {**HEADER, "schema": 2},
            {},
            "line 1: schema 2 of a newer version of sepstop, exp",
        ),
        ({**HEADER, "schema": "1"}, {}, "line 1: expected a header of sepstop, got"),
        ({**HEADER, "settings": []}, {}, "line 1: expected a header of sepstop, got"),
        ({**HEADER, "ended": "now"}, {}, "line 1: expected a header of sepstop, got"),
        ({**HEADER, "settings": {"seed": -1}}, {}, "line 1: expected a header of sepstop, got"),
        ({"schema": 1}, {}, "line 1: expected a header of sepstop, got"),
        ([], {}, "line 1: expected a header of sepstop, got"),
        (HEADER, {"stop": "no"}, "line 2: expected a decision, got {'stop': 'no'}"),
        (HEADER, {"stop": True, "step": 1.5}, "line 2: expected a decision, got"),
        (HEADER, [True], "line 2: expected a decision, got"),
    ],
    ids=str,
)
def test_broken_headers_and_decisions(tmp_path, header, line, message):
    lines = [{KEY: header}, {**to_dict(FULL), "decision": line}]
    (tmp_path / HISTORY_FILE).write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=rf"{HISTORY_FILE}, {message}"):
        read_run(tmp_path)


def test_a_history_goes_on_from_what_a_checkpoint_knows(tmp_path):
    path = tmp_path / HISTORY_FILE
    known = replace(RUN, records=RUN.records[:2], decisions=RUN.decisions[:2])
    assert continuation(path, known) == known
    write_run(path, RUN)
    assert repr(continuation(path, known)) == repr(RUN)
    other = replace(known, records=(Record(10, 0.5, 0.3), RUN.records[1]))
    assert continuation(path, other) == other
    path.write_text(path.read_text()[:-10])
    with pytest.warns(UserWarning, match="jsonl, line 4: .*; the run goes on from what its check"):
        assert continuation(path, known) == known


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            lambda lines: lines[:-1],
            "is cut short or was changed: .* got 2, at steps .10, 20.$",
        ),
        (lambda lines: lines[:1], "expected 3 .* got 0, at steps ..$"),
        (lambda lines: lines + lines[1:], "got 6, at steps .10, 20, 30, 10,"),
        (lambda lines: [lines[0], *lines[:0:-1]], "got 3, at steps .30, 20, 10.$"),
    ],
)
def test_a_file_that_lost_lines_or_got_some_is_broken(tmp_path, changed, message):
    path = tmp_path / HISTORY_FILE
    write_run(path, RUN)
    path.write_text("".join(changed(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


def test_a_history_that_is_cut(tmp_path):
    short = RUN.where(lambda record: record.step != 20)
    assert [record.step for record in short.records] == [10, 30]
    assert [decision.step for decision in short.decisions] == [10, 30]
    assert RUN.where(lambda record: False).decision is None
