"""The view in the terminal in which a run is trained."""

import io
import re

import pytest
from conftest import make_encoder
from helpers.averaged import averaged_run
from rich.console import Console
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from sepstop import Plateau, SepStopCallback
from sepstop.callbacks.progress import LiveView
from sepstop.runs.history import scalars


class Failing(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("out of luck")


@pytest.fixture
def viewed(tmp_path, tokenizer, train_rows):
    """A trainer with the view, and what the terminal got."""

    def make(callback, terminal=True, others=(), height=60, encoding=None, **options):
        defaults = {
            "max_steps": 16,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "eval_strategy": "steps",
            "eval_steps": 4,
            "logging_steps": 2,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": False,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        trainer = Trainer(
            model=make_encoder(),
            args=TrainingArguments(str(tmp_path / "run"), **(defaults | options)),
            train_dataset=train_rows,
            eval_dataset=train_rows,
            processing_class=tokenizer,
            callbacks=[callback, *others],
        )
        file = io.StringIO() if encoding is None else io.TextIOWrapper(io.BytesIO(), encoding)
        out = Console(file=file, force_terminal=terminal, width=110, height=height)
        LiveView(callback.attach(trainer), out).attach(trainer)
        return trainer, file

    return make


def pictures(file):
    """What was drawn one after the other, without colors."""
    drawn = re.split(r"\x1b\[1A\x1b\[2K(?:\x1b\[1A\x1b\[2K)*", file.getvalue())
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", picture) for picture in drawn]


def kinds(trainer):
    return [type(one) for one in trainer.callback_handler.callbacks]


def test_progress_logs_scores_and_the_decision(viewed, pool, capsys):
    trainer, file = viewed(SepStopCallback(pool), logging_steps=2)
    trainer.train()
    assert ProgressCallback not in kinds(trainer)
    drawn = pictures(file)
    assert "waiting for the first score" in drawn[0]
    assert "0/16" in drawn[0]
    last = drawn[-1]
    assert "16/16" in last
    assert "4 scores" in last
    for record in trainer.state.log_history:
        if "sepstop" in record:
            assert f"{record['eval_robust_mi']:.4f}" in last
    assert "loss 0." in last
    assert "eval_loss 0." in last
    assert "eval_robust_mi" not in last  # the table has it
    assert "as of step 16: " in last
    out = capsys.readouterr()
    assert "go on" not in out.out + out.err  # said in the picture
    assert "it/s" not in out.out + out.err


def test_an_average_is_named_and_other_candidates_do_not_fill_the_logs(pool, tokenizer):
    callback = SepStopCallback(pool)
    session, run = callback.session, averaged_run()
    session.prepare(make_encoder(), tokenizer)
    out = Console(file=io.StringIO(), width=110)
    live = LiveView(callback, out)
    state = TrainerState(max_steps=50)
    live.on_train_begin(None, state, None)
    for end in range(1, 6):
        session.records, session.decisions = list(run.records[:end]), list(run.decisions[:end])
        live.on_log(None, state, None, logs={"loss": 0.5, **scalars(run.records[end - 1])})
        live.on_evaluate(None, state, None)
    live.on_train_end(None, state, None)
    last = out.file.getvalue()
    assert "best: cumulative average of steps 11 to 40" in last
    assert [weights in last for weights in ("checkpoint", " recent ", " cumulative ")] == [True] * 3
    assert "loss 0.5" in last
    assert "eval_" not in last  # scores of all steps' candidates


def test_the_stop_is_shown(viewed, pool):
    trainer, file = viewed(SepStopCallback(pool, policy=Plateau(window=1, tolerance=0.9, warmup=2)))
    trainer.train()
    assert trainer.state.global_step < 16
    assert "STOP: as of step" in pictures(file)[-1]


def test_a_low_terminal_shows_the_newest(viewed, pool):
    trainer, file = viewed(SepStopCallback(pool), height=14, eval_steps=1)
    trainer.train()
    last = pictures(file)[-1]
    assert "16/16" in last
    shown = [int(step) for step in re.findall(r"^ *(\d+)  +\d\.\d{4}", last, re.MULTILINE)]
    assert shown == list(range(17 - len(shown), 17))
    assert 1 < len(shown) < 16
    assert len(last.splitlines()) <= 14


@pytest.mark.parametrize("options", [{"terminal": False}, {"disable_tqdm": True}])
def test_elsewhere_all_stays_as_it_is(viewed, pool, options):
    callback = SepStopCallback(pool)
    trainer, file = viewed(callback, **options)
    assert LiveView not in kinds(trainer)
    assert (ProgressCallback in kinds(trainer)) != trainer.args.disable_tqdm
    trainer.train()
    assert file.getvalue() == ""
    assert callback.session.verbose


def test_evaluating_afterwards_has_its_bar(viewed, pool, capsys):
    callback = SepStopCallback(pool)
    trainer, file = viewed(callback)
    trainer.train()
    assert callback.session.verbose
    size = len(file.getvalue())
    capsys.readouterr()
    trainer.evaluate()
    trainer.predict(trainer.eval_dataset)
    assert "it/s" in capsys.readouterr().err
    assert len(file.getvalue()) == size


def test_a_run_that_breaks_leaves_the_cursor_and_can_be_started_again(viewed, pool):
    failing = Failing(6)
    trainer, file = viewed(SepStopCallback(pool), others=[failing])
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.train()
    assert file.getvalue().rfind("\x1b[?25h") > file.getvalue().rfind("\x1b[?25l")
    failing.step = -1
    trainer.train()
    assert "16/16" in pictures(file)[-1]
    assert "4 scores" in pictures(file)[-1]


def test_a_terminal_that_cannot_show_it_stops_nothing(viewed, pool, capsys):
    callback = SepStopCallback(pool)
    trainer, _ = viewed(callback, encoding="ascii")
    with pytest.warns(UserWarning, match="sepstop: no view on this terminal: UnicodeEncodeError"):
        trainer.train()
    assert trainer.state.global_step == 16
    assert len(callback.history) == 4
    assert callback.session.verbose
    assert "sepstop: step 16" in capsys.readouterr().out
