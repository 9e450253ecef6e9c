"""What a run decided is what every command shows, whatever the run left on disk."""

import io
import json

import lightning.pytorch as pl
import matplotlib as mpl
import pytest
from conftest import make_encoder
from helpers.lightning_module import Classifier
from rich.console import Console
from transformers import Trainer, TrainerCallback, TrainingArguments
from typer.testing import CliRunner

from sepstop import Decision, Patience, SepStopCallback, select_checkpoint
from sepstop.callbacks.lightning import SepStopCallback as LightningCallback
from sepstop.cli.main import app
from sepstop.decide.policies import POLICIES
from sepstop.report.candidates import weights_label
from sepstop.report.html.collect import collect
from sepstop.report.live import follow
from sepstop.runs.history import HISTORY_FILE, SCHEMA, read_run
from sepstop.runs.records import record_to_dict
from sepstop.utils.registry import describe

pytestmark = pytest.mark.filterwarnings("ignore:sepstop. could not decide:RuntimeWarning")

EAGER = Patience(patience=1)
NEVER = Patience(patience=None)
SETTINGS = {"num_resamples": 3, "seed": 5, "max_length": 12}


BY_EVALUATIONS = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "best",
    "metric_for_best_model": "robust_mi",
    "greater_is_better": True,
    "load_best_model_at_end": True,
}


class StopsAt:
    """A policy of one's own, which names neither a step to keep nor the step it looked at."""

    def __init__(self, *steps):
        self.steps = steps

    def __call__(self, series):
        stops = len(series) > 0 and series.steps[-1] in self.steps
        return Decision(stops, None, f"told to stop at {self.steps}")


def failing(series):
    raise ZeroDivisionError("nothing to divide by")


def decided_by(policy):
    """The policy; with one of its own, a run is decided by its embeddings."""
    own = {"criterion": "separability", "extra_criteria": ["auto"]}
    return {"policy": policy, **({} if policy == "auto" else own)}


def as_json(records):
    """Comparable where they hold NaN; Trainer's files have their keys in another order."""
    return [record_to_dict(record) for record in records]


@pytest.fixture
def train(tmp_path, pool, tokenizer, train_rows):
    """Runs a Trainer in tmp_path / "run"; its callback."""

    def run(policy="auto", resume=None, others=(), go_on=False, **options):
        callback = SepStopCallback(
            pool, every_n_steps=2, continue_after_stop=go_on, **decided_by(policy), **SETTINGS
        )
        defaults = {
            "max_steps": 10,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "eval_strategy": "no",
            "save_steps": 2,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        trainer = Trainer(
            model=make_encoder(),
            args=TrainingArguments(str(tmp_path / "run"), **(defaults | options)),
            train_dataset=train_rows,
            eval_dataset=train_rows.select(range(8)) if "eval_strategy" in options else None,
            processing_class=tokenizer,
            callbacks=[callback, *others],
        )
        trainer.train(resume_from_checkpoint=resume)
        return callback

    return run


@pytest.fixture
def check(tmp_path, pool, monkeypatch):
    """Compares what the commands show of tmp_path / "run" with what its callback decided."""

    def compare(callback, decides="separability", ended=None):
        folder, decision = tmp_path / "run", callback.decision
        marks = {"pick": decision.best_step, "stop": decision.step if decision.stop else None}

        trained = ended or callback.history[-1].step
        recorded = read_run(folder)
        assert recorded.ended == trained
        assert as_json(recorded.records) == as_json(callback.history)
        assert list(recorded.decisions) == callback.session.decisions
        assert recorded.policy == describe(callback.session.policy, POLICIES)
        assert recorded.settings == callback.session.settings
        assert recorded.decides == decides

        shown = collect(folder)
        assert (shown.decision, shown.is_monitored, shown.marks) == (decision, True, marks)
        assert shown.history.decides == decides

        said = CliRunner().invoke(app, ["card", str(folder)])
        assert said.exit_code == 0, said.output
        (kept,) = (one for one in callback.history if one.step == decision.best_step)
        average = f"The weights are the {kept.average}, chosen without labels"
        origin = f"from step {kept.step}" if kept.average is None else average
        assert origin in said.stdout
        assert f" of {trained} training steps" in said.stdout
        assert f"| {decides} (decides) |" in said.stdout
        assert f"says: {decision.reason}." in said.stdout

        with mpl.rc_context({"svg.fonttype": "none"}):
            picture = tmp_path / "run.svg"
            said = CliRunner().invoke(app, ["plot", str(folder), "-o", str(picture)])
        assert said.exit_code == 0, said.output
        both = decision.stop and decision.best_step == decision.step
        assert ("stop: " in picture.read_text()) == decision.stop
        weights = f"step {kept.step}" if kept.average is None else weights_label(kept)
        assert f"{'pick and stop' if both else 'pick'}: {weights}" in picture.read_text()
        assert f"{decides} (decides)" in picture.read_text()

        for once in (True, False):
            out = Console(file=io.StringIO(), width=300)
            follow(folder, out, once=once, every=0.01)  # which ends, as training has
            text = out.file.getvalue()
            assert f"training ended at step {trained}\n" in text
            assert (f"{decides} (decides)" if once else f"{decides} decides\n") in text
            if once:
                assert f"as of step {decision.step}: {decision.reason}" in text
                assert ("STOP" in text) == decision.stop
            else:
                stops = [found for found in callback.session.decisions if found.stop]
                assert text.count("stopped: ") == len(stops)

        if list(folder.glob("checkpoint-*")):
            selection = select_checkpoint(folder, pool, progress=False, average=False)
            assert selection.online_best_step == decision.best_step
            assert selection.settings == callback.session.monitor.settings
            assert selection.decides == decides

    return compare


@pytest.mark.parametrize(
    ("policy", "options", "decides"),
    [
        ("auto", {"save_strategy": "no"}, "robust_mi"),
        ("auto", {}, "robust_mi"),
        (EAGER, {"save_strategy": "no"}, "separability"),
        (EAGER, {"save_only_model": True}, "separability"),
        (NEVER, {"save_strategy": "no"}, "separability"),
        (StopsAt(6), {"save_strategy": "no"}, "separability"),
        (StopsAt(6), {"save_total_limit": 1}, "separability"),
        ("auto", BY_EVALUATIONS, "robust_mi"),
        (EAGER, BY_EVALUATIONS | {"metric_for_best_model": "separability"}, "separability"),
        ("auto", BY_EVALUATIONS | {"metric_for_best_model": "separability"}, "separability"),
        (failing, {"save_strategy": "no"}, "separability"),
        (failing, {}, "separability"),
    ],
)
def test_of_a_trainer(train, check, policy, options, decides):
    check(train(policy, **options), decides)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("policy", ["auto", EAGER, StopsAt(8)])
def test_of_lightning(tmp_path, pool, tokenizer, batches, check, policy):
    callback = LightningCallback(
        pool, tokenizer=tokenizer, every_n_steps=4, **decided_by(policy), **SETTINGS
    )
    pl.Trainer(
        default_root_dir=tmp_path / "run",
        callbacks=[callback],
        max_steps=12,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Classifier(), batches)
    check(callback, "robust_mi" if policy == "auto" else "separability")


def test_of_a_run_without_its_history_file(train, check, tmp_path):
    callback = train(StopsAt(6))
    (tmp_path / "run" / HISTORY_FILE).unlink()
    check(callback)


def test_of_a_run_whose_checkpoints_lost_their_log(train, check, tmp_path):
    """As after a crash before the save was whole, or from weights that were copied alone."""
    callback = train(StopsAt(6))
    for state in tmp_path.glob("run/checkpoint-*/trainer_state.json"):
        state.unlink()
    check(callback)
    path = tmp_path / "run" / "checkpoint-4"
    alone = select_checkpoint(path, callback.session.monitor.pool, progress=False, average=False)
    assert alone.settings == callback.session.monitor.settings


def test_a_torn_history_file_is_never_guessed_at(train, pool, tmp_path):
    train(EAGER)
    path = tmp_path / "run" / HISTORY_FILE
    path.write_bytes(path.read_bytes()[:-9])
    last = len(path.read_bytes().splitlines())
    with pytest.raises(ValueError, match=rf"{HISTORY_FILE}, line {last}: "):
        select_checkpoint(tmp_path / "run", pool, progress=False, average=False)
    for command in ("plot", "card", "report", "watch"):
        said = CliRunner().invoke(app, [command, str(tmp_path / "run")])
        assert said.exit_code == 2
        assert f"{HISTORY_FILE}, line {last}: " in "".join(said.stderr.splitlines())


def test_of_a_run_that_trained_on_after_its_last_score(train, check):
    class Ends(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 7

    callback = train(NEVER, others=[Ends()])
    assert callback.history[-1].step == 6
    check(callback, ended=7)


def test_of_a_run_that_went_on_after_a_stop(train, check, tmp_path):
    first = train(StopsAt(4))
    assert first.decision.stop
    callback = train(StopsAt(4, 8), resume=True, go_on=True)
    assert [found.step for found in callback.session.decisions if found.stop] == [4, 8]
    check(callback)
    # Resumed without the word it stays stopped, and nothing on disk says otherwise.
    check(train(StopsAt(4, 8), resume=True))
    assert read_run(tmp_path / "run").ended == 8


def test_of_a_run_that_went_back(train, check, tmp_path):
    train(StopsAt(8))
    callback = train(NEVER, resume=str(tmp_path / "run" / "checkpoint-4"))
    assert [record.step for record in callback.history] == [2, 4, 6, 8, 10]
    check(callback)


def test_of_a_new_run_in_the_folder_of_an_earlier_one(train, check, tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append(read_run(args.output_dir))

    train(EAGER, save_strategy="no")
    callback = train(NEVER, save_strategy="no", others=[Look()], max_steps=3)
    assert [len(run.records) for run in seen] == [0, 1, 2]
    assert {run.ended for run in seen} == {None}
    assert {run.policy["patience"] for run in seen} == {None}
    check(callback)


@pytest.mark.parametrize("command", ["card", "plot", "watch", "report"])
def test_a_run_without_the_callback_in_the_folder_afterwards_is_told_of(
    train, train_rows, tmp_path, command
):
    train(EAGER, max_steps=6)
    args = TrainingArguments(
        str(tmp_path / "run"), max_steps=6, save_steps=3, report_to=[], use_cpu=True
    )
    Trainer(make_encoder(seed=1), args, train_dataset=train_rows).train()
    options = {"watch": ["--once"], "card": []}.get(command, ["-o", str(tmp_path / "x.svg")])
    said = CliRunner().invoke(app, [command, str(tmp_path / "run"), *options])
    assert said.exit_code == 0, said.output
    told = " ".join(said.stderr.split())
    assert "sepstop: checkpoint-3, checkpoint-6 in" in told
    assert "come from a run without sepstop" in told


def test_a_record_that_the_checkpoint_was_saved_without_is_taken_from_the_file(train, tmp_path):
    """A run that is killed between the save of a step and its score, which is saved again."""
    whole = train(NEVER, max_steps=6)
    recorded = read_run(tmp_path / "run")
    state, before = (
        tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json" for step in (4, 2)
    )
    log_history = json.loads(before.read_text())["log_history"]
    state.write_text(json.dumps(json.loads(state.read_text()) | {"log_history": log_history}))
    resumed = train(NEVER, max_steps=6, resume=str(state.parent))
    assert [record.step for record in resumed.history] == [2, 4, 6]
    assert resumed.history[:2] == list(recorded.records[:2]) == whole.history[:2]


def test_a_run_that_cannot_read_its_history_file_goes_on_with_a_warning(train, check, tmp_path):
    train(NEVER, max_steps=4)
    path = tmp_path / "run" / HISTORY_FILE
    path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}'))
    with pytest.raises(ValueError, match=rf"line 1: schema {SCHEMA + 1} of a newer version"):
        read_run(tmp_path / "run")
    with pytest.warns(UserWarning, match="newer version .* goes on from what its checkpoint knows"):
        callback = train(NEVER, max_steps=6, resume=True)
    assert [record.step for record in callback.history] == [2, 4, 6]
    check(callback)
