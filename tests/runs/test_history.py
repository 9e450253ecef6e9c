"""The files of a run: what was scored and decided comes back, or an error says what is wrong."""

import json
import math
import os
from dataclasses import replace

import pytest
from helpers.averaged import averaged_run

from sepstop import Decision, Record, Score
from sepstop.decide.selection import Selection
from sepstop.runs.history import (
    HISTORY_FILE,
    KEY,
    SCHEMA,
    SELECTION_FILE,
    continuation,
    from_log,
    newest_log_history,
    read_history,
    read_log_history,
    read_online,
    read_run,
    row_to_dict,
    rows_in,
    scalars,
    try_to_write_history,
    write_history,
    write_selection,
)
from sepstop.runs.records import RunHistory, header_to_dict, record_to_dict
from sepstop.types import Average

NAN = math.nan
FULL = Record(
    step=30,
    epoch=1.5,
    scores={"my_score": Score(0.5, 0.4, 0.6, (0.45, 0.55)), "entropy": Score(0.25)},
    seconds=2.25,
    resample_size=10,
    pool_size=40,
    average=Average("cumulative", 5, 30, 26),
    others={"checkpoint": {"my_score": Score(0.4), "entropy": Score(NAN)}},
)


def record(step, value, epoch=None):
    return Record(step, epoch, {"separability": Score(value)})


RUN = RunHistory(
    records=(record(10, 0.2, 0.5), record(20, NAN, 1.0), record(30, 0.4, 1.5)),
    decisions=(
        Decision(False, 10, "improving", 10),
        Decision(True, 10, "nothing to hope for", 20),
        Decision(False, 30, "told to go on", 30),
    ),
    settings={"criterion": {"name": "separability"}, "seed": 3, "pool": "abc"},
    settings_since=15,
    policy={"custom": "script:my_policy"},
    decides="separability",
    higher_is_better={"separability": True},
)
BEGUN = replace(RUN, records=(), decisions=())


def row_of(record, decision=RUN.decisions[0], run=RUN):
    return {**scalars(record), "step": record.step, KEY: row_to_dict(record, decision, run)}


def log_of(*records):
    """A log_history with rows of Trainer's own between those of the records."""
    rows = [{"loss": 0.7, "step": 1}]
    for number, one in enumerate(records):
        run = replace(RUN, settings={"seed": number}, settings_since=0)
        rows += [row_of(one, run=run), {"loss": 0.6}]
    return rows


COPIES = [  # of the first two records, with decisions that are not those of the file
    row_of(record, Decision(decision.stop, 10, "by the copy", record.step))
    for record, decision in zip(RUN.records[:2], RUN.decisions, strict=False)
]


def save_rows(folder, rows, step=20):
    (folder / f"checkpoint-{step}").mkdir()
    state = {"log_history": rows}
    (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))


# Rows of a log_history


def test_scalars_carry_the_name_of_the_criterion():
    nan = pytest.approx(NAN, nan_ok=True)
    assert scalars(FULL) == {
        "eval_my_score": 0.5,
        "eval_my_score_low": 0.4,
        "eval_my_score_high": 0.6,
        "eval_entropy": 0.25,
        "eval_entropy_low": nan,
        "eval_entropy_high": nan,
        "eval_my_score_of_cumulative": 0.5,
        "eval_entropy_of_cumulative": 0.25,
        "eval_my_score_of_checkpoint": 0.4,
        "eval_entropy_of_checkpoint": nan,
    }


def test_a_row_has_the_record_the_decision_and_the_header():
    (row,) = rows_in(json.loads(json.dumps([{"loss": 1.0}, row_of(FULL), {"eval_loss": 1.0}])))
    assert row.record == FULL
    assert row.decision == RUN.decisions[0]
    assert row.header == BEGUN


def test_candidates_survive_a_trainer_state_and_a_history_file(tmp_path):
    run = averaged_run(ended=50)
    rows = [
        row_of(one, decision, run) for one, decision in zip(run.records, run.decisions, strict=True)
    ]
    save_rows(tmp_path, rows, 50)
    assert repr(read_online(tmp_path)) == repr(run)
    write_history(tmp_path / HISTORY_FILE, run)
    assert repr(read_run(tmp_path)) == repr(run)


def test_a_history_before_averages_is_read(tmp_path):
    path = tmp_path / HISTORY_FILE
    write_history(path, RUN)
    header, *lines = map(json.loads, path.read_text().splitlines())
    header[KEY]["schema"] = 2
    for line in lines:
        del line["average"], line["others"]
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *lines]))
    assert repr(read_run(tmp_path)) == repr(RUN)


def test_the_history_in_a_log_that_went_through_json():
    records = [record(10, 0.3), FULL, record(20, NAN)]
    run = from_log(json.loads(json.dumps(log_of(*records), sort_keys=True)))
    assert [one.step for one in run.records] == [10, 20, 30]
    assert list(map(record_to_dict, run.records)) == [
        record_to_dict(records[place]) for place in (0, 2, 1)
    ]
    assert (run.settings, run.decides) == ({"seed": 2}, "separability")
    assert run.settings_since == 31  # step 30 was measured with the settings of another row


def test_the_newest_row_of_a_step_counts():
    run = from_log(log_of(record(10, 0.1), record(20, 0.2), record(10, 0.3)))
    assert [(step, score.value) for step, score in run.series] == [(10, 0.3), (20, 0.2)]


@pytest.mark.parametrize(("stop", "ended"), [(True, 20), (False, None)])
def test_a_stop_in_the_newest_row_is_the_end(stop, ended):
    rows = [row_of(record(10, 0.1)), row_of(record(20, 0.2), Decision(stop, 20, "why", 20))]
    assert from_log(rows).ended == ended


@pytest.mark.parametrize("rows", [[], [{"loss": 0.7}]])
def test_log_history_without_records(rows):
    assert rows_in(rows) == []
    assert from_log(rows) == RunHistory()


@pytest.mark.parametrize(
    "values", [5, None, [], {}, {"record": 5}, {"record": record_to_dict(FULL)}], ids=str
)
def test_rows_that_are_not_ours(values):
    with pytest.raises(ValueError, match="expected a sepstop record, got"):
        from_log([{KEY: values}])


OLD_RECORD = {"step": 10, "score": 0.5, "information": 0.7, "criterion": "separability"}


def test_rows_of_an_earlier_version_say_what_to_do(tmp_path):
    old = {KEY: {"record": OLD_RECORD, "settings": {}, "policy": {"name": "auto"}}}
    message = "written by an earlier development version of sepstop; start the run again, or score"
    with pytest.raises(ValueError, match=message):
        from_log([old])
    save_rows(tmp_path, [old])
    with pytest.raises(ValueError, match=rf"trainer_state\.json .*{message}"):
        read_log_history(tmp_path / "checkpoint-20")
    with pytest.warns(UserWarning, match=message):
        assert read_online(tmp_path) is None


def test_log_history_of_a_checkpoint(tmp_path):
    rows = log_of(record(10, NAN), FULL)
    save_rows(tmp_path, rows)
    assert repr(read_log_history(tmp_path / "checkpoint-20")) == repr(rows)


def test_checkpoint_without_trainer_state(tmp_path):
    assert read_log_history(tmp_path) == []
    assert read_log_history(tmp_path / "nowhere") == []


ROWS = [b"null", b"[1]", b'["\xff"]', b'[{"sepstop": 5}]']


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"log_history": [', *(b'{"log_history": %b}' % rows for rows in ROWS)],
)
def test_broken_trainer_state(tmp_path, content):
    path = tmp_path / "trainer_state.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"trainer_state\.json is not a trainer state: ."):
        read_log_history(tmp_path)


def test_the_newest_log_that_can_be_read(tmp_path):
    for step in (10, 20, 30):
        save_rows(tmp_path, [{"loss": step}], step)
    found = {step: tmp_path / f"checkpoint-{step}" for step in (30, 10, 20)}
    assert newest_log_history(found) == [{"loss": 30}]
    (found[30] / "trainer_state.json").write_text('{"log_history": [')
    with pytest.warns(UserWarning, match="-30.* is not a trainer state: .*; the checkpoint bef"):
        assert newest_log_history(found) == [{"loss": 20}]
    assert newest_log_history({}) == []


# The file


@pytest.mark.parametrize("ended", [None, 30])
def test_what_was_decided_comes_back_as_it_was_written(tmp_path, ended):
    run = replace(RUN, ended=ended)
    path = tmp_path / HISTORY_FILE
    write_history(path, BEGUN)
    write_history(path, run)
    assert repr(read_run(tmp_path)) == repr(read_online(tmp_path)) == repr(run)
    assert repr(read_history(str(path))) == repr(run)
    header, *lines = map(json.loads, path.read_text().splitlines())
    assert header == {KEY: {"schema": 3, "count": 3, **header_to_dict(run)}}
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_of_many_scores_comes_back(tmp_path):
    run = replace(RUN, records=(FULL,), decisions=(None,))
    write_history(tmp_path / HISTORY_FILE, run)
    assert read_run(tmp_path) == run


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / HISTORY_FILE
    write_history(path, RUN)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_history(path, replace(RUN, settings={"tokenizer": object()}))
    assert repr(read_history(path)) == repr(RUN)
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_takes_nothing_is_an_error_or_a_warning(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / HISTORY_FILE
    with pytest.raises(OSError, match="file"):
        write_history(path, RUN)
    with pytest.warns(RuntimeWarning, match="sepstop: could not write .*sepstop_history") as caught:
        try_to_write_history(path, RUN)
    assert caught[0].filename == __file__


def test_a_run_that_was_not_scored_yet(tmp_path):
    write_history(tmp_path / HISTORY_FILE, BEGUN)
    save_rows(tmp_path, COPIES)  # of an earlier run in the folder
    assert read_run(tmp_path) == BEGUN
    assert read_run(tmp_path).decision is None


def test_the_history_file_comes_before_its_copies_and_they_before_a_selection(tmp_path):
    write_history(tmp_path / SELECTION_FILE, replace(RUN, policy={}))
    chosen = read_run(tmp_path)
    assert (chosen.is_online, chosen.decision) == (False, RUN.decision)
    assert read_online(tmp_path) is None

    save_rows(tmp_path, COPIES)
    copies = read_run(tmp_path)
    assert copies.decision == Decision(True, 10, "by the copy", 20)
    assert [record.step for record in copies.records] == [10, 20]
    assert (copies.is_online, copies.ended, copies.decides) == (True, 20, "separability")

    write_history(tmp_path / HISTORY_FILE, RUN)
    assert repr(read_run(tmp_path)) == repr(RUN)


def test_a_selection_comes_back_as_a_history(tmp_path):
    decision = Decision(False, 30, "best separability of 3 checkpoints", 30)
    selection = Selection(
        decision, "separability", RUN.higher_is_better, RUN.records, {}, settings=RUN.settings
    )
    write_selection(tmp_path, selection)
    found = read_run(tmp_path)
    assert repr(found.records) == repr(RUN.records)
    assert found.decisions == (None, None, decision)
    assert (found.decides, found.settings) == ("separability", RUN.settings)
    assert (found.is_online, found.policy, found.ended) == (False, {}, None)


def test_a_selection_is_of_the_run_before_if_one_has_begun_since(tmp_path):
    write_history(tmp_path / SELECTION_FILE, RUN)
    write_history(tmp_path / HISTORY_FILE, BEGUN)
    for name, time in ((SELECTION_FILE, 10), (HISTORY_FILE, 20)):
        os.utime(tmp_path / name, (time, time))
    assert read_run(tmp_path) == BEGUN
    os.utime(tmp_path / SELECTION_FILE, (30, 30))
    assert read_run(tmp_path).decision == RUN.decision


def test_no_scores(tmp_path):
    with pytest.raises(FileNotFoundError, match="a run with the callback leaves sepstop_h"):
        read_run(tmp_path)
    for read in (read_run, read_online):
        with pytest.raises(FileNotFoundError, match="no folder at"):
            read(tmp_path / "org" / "model")
    write_history(tmp_path / SELECTION_FILE, replace(RUN, decisions=(None, None, None)))
    with pytest.raises(ValueError, match="does not say which checkpoint to keep: run `sepstop sel"):
        read_run(tmp_path)


# Broken files, and those of other versions

HEADER = {"schema": SCHEMA, "count": 1, **header_to_dict(BEGUN)}


def write_lines(folder, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / HISTORY_FILE).write_text("\n".join(texts))


def test_unknown_keys_of_a_newer_version_are_ignored(tmp_path):
    header, line = {**HEADER, "invented_later": 1}, {**record_to_dict(FULL), "invented_later": 2}
    write_lines(tmp_path, {KEY: header}, line)
    assert read_run(tmp_path) == replace(BEGUN, records=(FULL,), decisions=(None,))


@pytest.mark.parametrize(
    "lines",
    [
        [{KEY: {"schema": 1, "count": 1, "settings": {}, "policy": {}}}, OLD_RECORD],
        [{KEY: {**HEADER, "schema": 0}}],
        [OLD_RECORD, OLD_RECORD],  # without a header
    ],
    ids=["schema 1", "schema 0", "no header"],
)
@pytest.mark.parametrize("name", [HISTORY_FILE, SELECTION_FILE])
def test_a_file_of_an_earlier_version_says_what_to_do(tmp_path, lines, name):
    write_lines(tmp_path, *lines)
    (tmp_path / HISTORY_FILE).rename(tmp_path / name)
    message = (
        rf"{name}, line 1: written by an earlier development version of sepstop; remove the file "
        "and score the checkpoints with `sepstop select`"
    )
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({KEY: {**HEADER, "schema": 4}}, "schema 4 of a newer version of sepstop, expected at mo"),
        ({KEY: {**HEADER, "schema": "2"}}, "expected a header of sepstop, got {"),
        ({KEY: {**HEADER, "settings": []}}, "expected a header of sepstop, got {"),
        ({KEY: {**HEADER, "ended": "now"}}, "expected a header of sepstop, got {"),
        ({KEY: {**HEADER, "settings": {"seed": -1}}}, "expected a header of sepstop, got {"),
        ({KEY: {"schema": 3}}, "expected a header of sepstop, got {"),
        ({KEY: []}, "expected a header of sepstop, got {"),
        ({}, "expected a header of sepstop, got {}"),
        ([], r"expected a header of sepstop, got \[\]"),
        ("", "Expecting value"),
        ("{" * 99, "Expecting property name"),
    ],
    ids=str,
)
def test_broken_header(tmp_path, header, message):
    write_lines(tmp_path, header, record_to_dict(FULL))
    with pytest.raises(ValueError, match=rf"{HISTORY_FILE}, line 1: {message}"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 3, "sco', "Unterminated string"),
        ("", "Expecting value"),
        ([], r"expected a sepstop record, got \[\]"),
        ({"scores": {}}, "expected a sepstop record, got {'scores': {}}"),
        (OLD_RECORD, "a record written by an earlier development version"),
        ({**record_to_dict(FULL), "decision": {"stop": "no"}}, "expected a decision, got {'stop'"),
        ({**record_to_dict(FULL), "decision": [True]}, "expected a decision, got"),
    ],
    ids=str,
)
def test_broken_line(tmp_path, line, message):
    write_lines(tmp_path, {KEY: HEADER}, line, record_to_dict(FULL))
    with pytest.raises(ValueError, match=rf"{HISTORY_FILE}, line 2: {message}"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda lines: lines[:-1], r"is cut short or was changed: .* got 2, at steps \[10, 20\]$"),
        (lambda lines: lines[:1], r"expected 3 .* got 0, at steps \[\]$"),
        (lambda lines: lines + lines[1:], "got 6, at steps .10, 20, 30, 10,"),
        (lambda lines: [lines[0], *lines[:0:-1]], r"got 3, at steps \[30, 20, 10\]$"),
    ],
    ids=["lost one", "lost all", "twice", "reversed"],
)
def test_a_file_that_lost_or_gained_lines_is_broken(tmp_path, changed, message):
    path = tmp_path / HISTORY_FILE
    write_history(path, RUN)
    path.write_text("".join(changed(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


# Resumed runs


def test_a_history_goes_on_from_what_a_checkpoint_knows(tmp_path):
    path = tmp_path / HISTORY_FILE
    known = replace(RUN, records=RUN.records[:2], decisions=RUN.decisions[:2])
    assert continuation(path, known) == known
    write_history(path, RUN)
    assert repr(continuation(path, known)) == repr(RUN)
    other = replace(known, records=(record(10, 0.3, 0.5), RUN.records[1]))
    assert continuation(path, other) == other
    path.write_text(path.read_text()[:-10])
    with pytest.warns(UserWarning, match="jsonl, line 4: .*; the run goes on from what its check"):
        assert continuation(path, known) == known


@pytest.mark.parametrize("lines", [[{KEY: {"schema": 1}}, OLD_RECORD], [OLD_RECORD]])
def test_a_history_does_not_go_on_from_an_earlier_version(tmp_path, lines):
    write_lines(tmp_path, *lines)
    known = replace(RUN, records=RUN.records[:1], decisions=RUN.decisions[:1])
    with pytest.warns(UserWarning, match="line 1: written by an earlier development version"):
        assert continuation(tmp_path / HISTORY_FILE, known) == known
