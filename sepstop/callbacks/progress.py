"""Progress bar and scores of a run, in the terminal that trains it."""

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

from sepstop.callbacks.trainer import SepStopCallback
from sepstop.report.live import view
from sepstop.runs.history import scalars

_INTERVAL = 0.2  # seconds between two frames


class LiveView(ProgressCallback):  # type: ignore[misc]  # which is Any
    """Shows a progress bar, the newest logs and the scores, redrawn in place during training.

    On a terminal, it replaces the Trainer's own progress bar and printed logs. Elsewhere, and with
    ``disable_tqdm``, `attach` changes nothing::

        callback.attach(trainer)
        LiveView(callback).attach(trainer)

    Args:
        callback: whose scores are shown.
        console: where to draw. Default: standard output.
    """

    def __init__(self, callback: SepStopCallback, console: Console | None = None) -> None:
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
        self._in_table: set[str] = set()  # logs that the table of scores has
        self._drawn = 0.0
        self._own_output = (False, False, False)  # verbose, progress, bars without this view

    def attach(self, trainer: Any) -> LiveView:
        """Show the runs of ``trainer`` from now on; it must have the scores' callback already."""
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
        self._end()  # of a run that was interrupted
        session, observer = self.callback.session, self.callback.monitor.observer
        self._own_output = session.verbose, observer.progress, logging.is_progress_bar_enabled()
        session.verbose = observer.progress = False
        logging.disable_progress_bar()  # each save would show one
        for task in self._steps.task_ids:
            self._steps.remove_task(task)
        self._steps.add_task("step", total=state.max_steps, completed=state.global_step)
        self._logs, self._in_table = {}, set()
        self._live = Live(console=self.console, auto_refresh=False)
        self._draw(now=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._steps.update(self._steps.task_ids[0], completed=state.global_step)
        self._draw()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        numbers = {key: v for key, v in (logs or {}).items() if isinstance(v, (int, float))}
        if "train_runtime" in numbers:  # the last row; the best model is loaded next
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
        """Draw if it is time to; if the terminal cannot show it, the run goes on without a view."""
        if self._live is None or not (now or time.monotonic() - self._drawn > _INTERVAL):
            return
        try:
            if not self._live.is_started:
                self._live.start()
                self.console.show_cursor(True)  # also after a run that ends by an exception
            self._live.update(self._frame(), refresh=True)
            self._drawn = time.monotonic()
        except Exception as error:
            self._end()
            why = f"{type(error).__name__}: {error}"
            warnings.warn(f"sepstop: no view on this terminal: {why}", stacklevel=3)

    def _frame(self) -> RenderableType:
        for record in self.callback.history[-1:]:
            self._in_table |= scalars(record).keys()  # another step may have other candidates
        logs = (f"{key} {v:.4g}" for key, v in self._logs.items() if key not in self._in_table)
        height = self.console.height - 3
        scores = view(self.callback.session.recorded(), "sepstop", height)
        return Group(scores, Text("  ".join(logs), style="dim"), self._steps)

    def _end(self) -> None:
        if self._live is None:
            return
        live, self._live = self._live, None
        with suppress(Exception):
            live.update(self._frame())
            live.stop()
        session, observer = self.callback.session, self.callback.monitor.observer
        session.verbose, observer.progress, bars = self._own_output
        if bars:
            logging.enable_progress_bar()
