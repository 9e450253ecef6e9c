"""A run's progress and scores in the terminal in which it is trained."""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers import PrinterCallback, ProgressCallback
from transformers.utils import logging

from sepstop.callbacks.session import Watch
from sepstop.report.live import view
from sepstop.runs import history as rows

_EVERY = 0.2  # seconds between two pictures


class LiveView(ProgressCallback):  # type: ignore[misc]  # which is Any
    """A bar of the steps, the newest logs and the scores, redrawn in place while a run is trained.

    It takes the place of the Trainer's own bar and printed logs, on a terminal only: elsewhere, and
    with ``disable_tqdm``, `attach` changes nothing.

        callback.attach(trainer)
        LiveView(callback).attach(trainer)

    Args:
        callback: whose scores are shown.
        console: where; standard output by default.
    """

    def __init__(self, callback: Watch, console: Console | None = None) -> None:
        super().__init__()
        self.callback = callback
        self.console = console or Console()
        self._live: Live | None = None
        self._steps = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._logs: dict[str, float] = {}
        self._drawn = 0.0
        self._spoken = (False, False, False)  # what else is said when no picture is shown

    def attach(self, trainer: Any) -> LiveView:
        """Show ``trainer``'s runs from now on; call it when the scores' callback is there."""
        if (
            self.console.is_terminal
            and not trainer.args.disable_tqdm
            and trainer.is_world_process_zero()
        ):
            for own in (ProgressCallback, PrinterCallback):
                trainer.remove_callback(own)
            trainer.add_callback(self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._end()  # of a run that was broken off
        callback, monitor = self.callback, self.callback.monitor
        self._spoken = callback.verbose, monitor.progress, logging.is_progress_bar_enabled()
        callback.verbose = monitor.progress = False
        logging.disable_progress_bar()  # there is one for each save
        for task in self._steps.task_ids:
            self._steps.remove_task(task)
        self._steps.add_task("step", total=state.max_steps, completed=state.global_step)
        self._logs = {}
        self._live = Live(console=self.console, auto_refresh=False)
        self._draw(now=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._steps.update(self._steps.task_ids[0], completed=state.global_step)
        self._draw()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        numbers = {key: v for key, v in (logs or {}).items() if isinstance(v, (int, float))}
        if "train_runtime" in numbers:  # the last word; the best model is loaded next
            self._end()
            return
        self._logs |= numbers
        self._draw()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._live is None:
            super().on_prediction_step(args, state, control, **more)

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._live is None:
            super().on_evaluate(args, state, control, **more)
        self._draw(now=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._end()

    def _draw(self, now: bool = False) -> None:
        """Draw if it is time to; where the terminal does not take it, the run goes on without."""
        if self._live is None or not (now or time.monotonic() - self._drawn > _EVERY):
            return
        try:
            if not self._live.is_started:
                self._live.start()
                self.console.show_cursor(True)  # it stays, should the run end by an exception
            self._live.update(self._picture(), refresh=True)
            self._drawn = time.monotonic()
        except Exception as error:
            self._end()
            why = f"{type(error).__name__}: {error}"
            warnings.warn(f"sepstop: no view on this terminal: {why}", stacklevel=3)

    def _picture(self) -> RenderableType:
        callback, history = self.callback, self.callback.history
        in_table = rows.scalars(history[-1]) if history else {}
        logs = (f"{key} {v:.4g}" for key, v in self._logs.items() if key not in in_table)
        height = self.console.height - 3
        scores = view(history, callback.decision, callback.by_information, "sepstop", height)
        return Group(scores, Text("  ".join(logs), style="dim"), self._steps)

    def _end(self) -> None:
        if self._live is None:
            return
        live, self._live = self._live, None
        with suppress(Exception):
            live.update(self._picture())
            live.stop()
        self.callback.verbose, self.callback.monitor.progress, bars = self._spoken
        if bars:
            logging.enable_progress_bar()
