"""What a callback does whatever trains the model: measure, decide, remember."""

from __future__ import annotations

import logging
import math
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn
from tqdm.auto import tqdm

from sepstop.callbacks.checks import check_policy
from sepstop.criteria import Information, Separability
from sepstop.decide.policies import (
    POLICIES,
    Auto,
    Mode,
    Plateau,
    best_record,
    decide,
    has_information,
)
from sepstop.measure.monitor import Monitor
from sepstop.measure.neighbors import NEIGHBORS_FILE, Neighborhoods
from sepstop.runs import history as rows
from sepstop.types import Criterion, Decision, Policy, Record
from sepstop.utils.distributed import Ranks
from sepstop.utils.registry import build, describe

logger = logging.getLogger(__name__)


class Watch:
    """The history of a run and the decision on it; callbacks translate their trainer's events.

    The arguments are described in `sepstop.SepStopCallback`.

    Attributes:
        history: the records so far, those before a resume included.
        decisions: the decision made at each record; None where an earlier version of sepstop did
            not write it down.
    """

    def __init__(
        self,
        pool: Any,
        criterion: Any = None,
        policy: Any = None,
        embedder: Any = None,
        *,
        every_n_steps: int | None = None,
        continue_after_stop: bool = False,
        on_error: Literal["skip", "raise"] = "skip",
        verbose: bool = True,
        **monitor_options: Any,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"expected `every_n_steps` >= 1, got {every_n_steps}")
        if on_error not in ("skip", "raise"):
            raise ValueError(f"expected `on_error` 'skip' or 'raise', got {on_error!r}")
        given = {"criterion": criterion, "embedder": embedder}
        monitor_options |= {key: value for key, value in given.items() if value is not None}
        if isinstance(pool, Monitor) and monitor_options:
            raise ValueError(f"give {sorted(monitor_options)} to the Monitor instead")
        self.monitor = pool if isinstance(pool, Monitor) else Monitor(pool, **monitor_options)
        mode: Mode = "max" if self._criterion.higher_is_better else "min"
        self._has_own_policy = policy is not None
        # Whoever names a criterion wants it to decide.
        self._is_default = criterion is None and self._criterion.name == Separability.name
        default: type = Auto if self._is_default else Plateau
        self.policy: Policy = (
            default(mode=mode) if policy is None else build("policy", policy, POLICIES)
        )
        check_policy(self.policy, self.monitor)
        self._mode = mode
        self.every_n_steps = every_n_steps
        self.continue_after_stop = continue_after_stop
        self.on_error = on_error
        self.verbose = verbose
        self.history: list[Record] = []
        self.decisions: list[Decision | None] = []
        self._settings_since = 0  # first step measured with the settings of now
        self._afresh_after = -1  # told to go on after a stop that the checkpoint does not know
        self._stopped_before = False  # resumed after a stop: the weights stay as they are

    @property
    def _criterion(self) -> Criterion:
        return self.monitor.criterion

    @property
    def decision(self) -> Decision | None:
        """The newest decision; None before the first record."""
        return self.decisions[-1] if self.decisions else None

    @property
    def by_information(self) -> bool:
        """Whether the policy goes by the information, where there is any, and not by the score."""
        return isinstance(self.policy, Auto)

    @property
    def decides(self) -> str:
        """Name of the score that the newest decision went by."""
        informed = not self.history or has_information(self.history)
        return Information.name if self.by_information and informed else self._criterion.name

    @property
    def _best_metric(self) -> str:
        """What the metric is called whose best is the policy's pick."""
        return Information.name if self.by_information else self._criterion.name

    def _is_due(self, step: int, is_last: bool) -> bool:
        """Whether an evaluation is to be scored: the first, the last, and one ``every_n_steps``."""
        every = self.every_n_steps
        return not every or not self.history or is_last or step - self.history[-1].step >= every

    def _restore(self, recorded: rows.RunHistory) -> None:
        """Take over what a resumed run recorded; a new run recorded nothing.

        The newest decision is made again, by the policy that the run has now.
        """
        own = self._of_own_criterion(recorded)
        self.history, self.decisions = list(own.records), list(own.decisions)
        self._afresh_after = -1
        self._settings_since = recorded.settings_since
        self.monitor.head.recall(recorded.settings.get("outputs"))
        if self.history:
            if self._settings_changed(recorded.settings):
                self._settings_since = self.history[-1].step + 1
            self.decisions[-1] = self._decide(self.history)

    def _of_own_criterion(self, recorded: rows.RunHistory) -> rows.RunHistory:
        return recorded.where(lambda record: record.criterion == self._criterion.name)

    def _recorded(self, ended: int | None = None) -> rows.RunHistory:
        """The run so far, as its history file has it."""
        return rows.RunHistory(
            tuple(self.history),
            tuple(self.decisions),
            settings=self.monitor.settings,
            settings_since=self._settings_since,
            policy=describe(self.policy, POLICIES),
            decides=self.decides,
            ended=ended,
        )

    def _write_down(self, folder: str | Path, ended: int | None = None) -> None:
        """Replace the history file of the run in ``folder``.

        Args:
            ended: step at which training ended; None while it goes on.
        """
        if Ranks.of_run().rank == 0:
            rows.try_to_write_run(Path(folder) / rows.HISTORY_FILE, self._recorded(ended))

    def _end(self, folder: str | Path, step: int) -> None:
        """Note in the history file that training ended at ``step``."""
        # The step that a stopped run takes when it is resumed changes nothing.
        self._write_down(folder, self.history[-1].step if self._stopped_before else step)

    def _stays_stopped(self) -> bool:
        """Whether a resumed run was stopped before and is not told to go on; said if so."""
        stopped = self.decision is not None and self.decision.stop
        self._stopped_before = stopped and not self.continue_after_stop
        if self._stopped_before and self.decision is not None:
            self._say(
                f"sepstop: this run was stopped before and stays stopped ({self.decision.reason}); "
                "continue_after_stop=True goes on"
            )
        return self._stopped_before

    def _recall_neighbors(
        self, folder: str | Path, step: int, model: nn.Module, measured_first: bool = False
    ) -> None:
        """The neighbours that the information refers to: from before training, or of the run.

        Args:
            folder: of the run.
            step: at which it begins or goes on.
            measured_first: it is scored before the first step anyway.
        """
        if step > 0:
            path, places = Path(folder) / NEIGHBORS_FILE, self.monitor.places
            found = Neighborhoods.load(path, places, step)
            self.monitor.neighborhoods = Ranks.of_run().of_first(found)
            if self.history and not self.monitor.neighborhoods.steps:
                warnings.warn(
                    f"sepstop: {path}, which the run wrote at each evaluation, is missing or of "
                    "another pool or embedder; the information refers to the next evaluation "
                    "instead of the start, and may not compare with what was recorded before",
                    RuntimeWarning,
                    stacklevel=3,
                )
        elif not measured_first:
            try:
                self.monitor.remember(model)
            except Exception as error:
                self._fail("sepstop could not embed the pool before training", error)

    def _score(
        self, model: nn.Module, step: int, epoch: float | None, folder: str | Path
    ) -> tuple[Record, Decision] | None:
        """Score the pool once for this step, decide, and write down both; None the second time."""
        if self.history and self.history[-1].step == step:
            return None  # a second evaluation set, or an evaluation right after resuming
        record = Ranks.of_run().of_first(self._record(model, step, epoch))
        decision = self._decide([*self.history, record])
        self.history.append(record)
        self.decisions.append(decision)
        self._write_down(folder)
        if Ranks.of_run().rank == 0:
            path = Path(folder) / NEIGHBORS_FILE
            self.monitor.neighborhoods.save(path, self.monitor.places)
        return record, decision

    def _record(self, model: nn.Module, step: int, epoch: float | None) -> Record:
        try:
            return self.monitor.measure(model, step, epoch)
        except Exception as error:
            self._fail(f"sepstop could not measure step {step}", error)
            return Record(step, epoch, math.nan, criterion=self._criterion.name)

    def _decide(self, history: list[Record]) -> Decision:
        try:
            return decide(self.policy, history, self._mode, self._afresh_after)
        except Exception as error:
            step = history[-1].step
            self._fail(f"sepstop could not decide at step {step}", error)
            best = best_record(history, self._mode)
            why = f"the policy failed: {type(error).__name__}: {error}"
            return Decision(False, None if best is None else best.step, why, step)

    def _fail(self, what: str, error: Exception) -> None:
        if self.on_error == "raise":
            raise error
        logger.debug(what, exc_info=True)
        warnings.warn(
            f"{what}; training goes on without it: {type(error).__name__}: {error}\n"
            f"{traceback.format_exc(limit=-3)}",
            RuntimeWarning,
            stacklevel=3,
        )

    def _settings_changed(self, recorded: Mapping[str, Any]) -> bool:
        """True, with a warning, if the run was measured with other settings before it was resumed.

        Raises:
            ValueError: they changed, and the policy compares the same resamples.
        """
        changed = {
            key: f"{key} was {value!r} and is {self.monitor.settings[key]!r}"
            for key, value in recorded.items()
            if self.monitor.settings.get(key, value) != value
        }
        if not changed:
            return False
        what = f"the resumed run was measured otherwise: {'; '.join(changed.values())}"
        unpaired = changed.keys() & {"resamples", "resample_size", "seed", "pool_size", "pool"}
        if unpaired and getattr(self.policy, "significance", None):
            raise ValueError(
                f"{what}. A policy with `significance` compares the same resamples: expected the "
                "settings of before"
            )
        warnings.warn(f"sepstop: {what}; its scores may not compare with new ones", stacklevel=2)
        return True

    def _row(self, record: Record, decision: Decision) -> dict[str, Any]:
        """A copy of the record and decision for the trainer's own state, ready for JSON."""
        return {
            "record": rows.to_dict(record),
            "decision": rows.decision_to_dict(decision),
            **rows.header_of(self._recorded()),
        }

    def _announce(self, record: Record, decision: Decision) -> None:
        informed = math.isfinite(record.information)
        information = f"information {record.information:.4f}  " if informed else ""
        self._say(
            f"sepstop: step {record.step}  {record.criterion} {record.score:.4f} "
            f"[{record.low:.4f}, {record.high:.4f}]  {information}"
            f"{'STOP' if decision.stop else 'go on'}: {decision.reason}"
        )

    def _say(self, line: str) -> None:
        logger.info(line)
        if self.verbose and Ranks.of_run().rank == 0:
            tqdm.write(line)
