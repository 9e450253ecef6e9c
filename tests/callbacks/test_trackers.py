"""Each tracker's own files after a real run have the scores at their steps."""

import json
import sqlite3
import struct
import sys
import time

import pytest
from conftest import make_encoder
from helpers.scores import values
from transformers import Trainer, TrainingArguments

from sepstop import Decision, SepStopCallback
from sepstop.callbacks.alerts import send_alert

STEPS = [2, 4, 6]
ALERT = ("sepstop stopped the run at step 6", "three scores are enough")


def stops_at_the_end(series):
    stop = len(series.steps) == len(STEPS)
    return Decision(stop, series.best_step, ALERT[1], series.steps[-1])


@pytest.fixture
def tracked(tmp_path, pool, tokenizer, train_rows):
    """The history of a run that reports to a tracker."""

    def run(tracker):
        callback = SepStopCallback(pool, policy=stops_at_the_end, num_resamples=3)
        args = TrainingArguments(
            str(tmp_path / "run"),
            max_steps=6,
            eval_strategy="steps",
            eval_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to=[tracker],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=make_encoder(),
            args=args,
            train_dataset=train_rows,
            eval_dataset=train_rows.select(range(8)),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        callback.attach(trainer)
        trainer.train()
        assert [record.step for record in callback.history] == STEPS
        return callback.history

    return run


NAMES = ("separability", "robust_mi")


def check(found, history):
    """``found``: rows with a step and the two scores."""
    assert [row[0] for row in found] == STEPS
    for place, name in enumerate(NAMES, start=1):
        assert [row[place] for row in found] == pytest.approx(values(history, name))


def test_weights_and_biases_offline(tracked, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    history = tracked("wandb")
    wandb.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    end, rows = time.monotonic() + 30, []
    # Another process writes the file, on a busy machine after finish() has returned.
    while len(rows) < len(history) and time.monotonic() < end:
        records = list(wandb_records(file.read_bytes()))
        rows = [row for row in map(wandb_row, records) if "eval/separability" in row]
        time.sleep(0.1)
    keys = ("train/global_step", *(f"eval/{name}" for name in NAMES))
    check([tuple(row[key] for key in keys) for row in rows], history)
    alerts = [record.alert for record in records if record.HasField("alert")]
    assert [(alert.title, alert.text) for alert in alerts] == [ALERT]


def wandb_row(record):
    """The metrics in a record of a run's file."""
    items = record.history.item
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def wandb_records(data):
    """Records of a run's file: a LevelDB log after seven bytes, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2 as protocol

    at, record = 7, b""
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:  # no piece begins so close to a block's end
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return  # still being written
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield protocol.Record.FromString(record)
            record = b""


def test_mlflow(tracked, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = f"file:{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    history = tracked("mlflow")
    mlflow.end_run()
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.search_experiments()[0].experiment_id])
    first, second = (client.get_metric_history(run.info.run_id, f"eval_{name}") for name in NAMES)
    check([(a.step, a.value, b.value) for a, b in zip(first, second, strict=True)], history)


def test_trackio(tracked, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it looks at the folder on import
    history = tracked("trackio")
    (file,) = tmp_path.glob("trackio/*.db")
    with sqlite3.connect(file) as connection:
        rows = [
            json.loads(row)
            for (row,) in connection.execute("SELECT metrics FROM metrics ORDER BY id")
        ]
        alerts = list(connection.execute("SELECT title, text FROM alerts"))
    keys = ("train/global_step", *(f"eval/{name}" for name in NAMES))
    check([tuple(row[key] for key in keys) for row in rows if keys[1] in row], history)
    assert alerts == [ALERT]


def test_an_alert_that_fails_is_a_warning():
    pytest.importorskip("trackio")
    with pytest.warns(RuntimeWarning, match="could not send an alert to trackio: RuntimeError"):
        send_alert(["tensorboard", "trackio"], *ALERT)  # no run has begun
