"""A run that is measured and decided: its history, its policy, and its files."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from sepstop.callbacks.averaged_steps import AveragedSteps
from sepstop.callbacks.checks import check_significance
from sepstop.callbacks.overhead import Overhead
from sepstop.config import AUTO, CriterionSpec, Precision, SepStopConfig
from sepstop.decide.policies import POLICIES, decide, policy_for
from sepstop.measure.average import RunningAverages
from sepstop.measure.backbone import is_causal_lm
from sepstop.measure.monitor import Monitor
from sepstop.measure.neighbors import NEIGHBORS_FILE, Neighborhoods
from sepstop.runs.history import HISTORY_FILE, try_to_write_history
from sepstop.runs.records import RunHistory, record_to_dict
from sepstop.types import NO_SCORE, Decision, Policy, Record
from sepstop.utils.distributed import Ranks
from sepstop.utils.registry import build, describe

logger = logging.getLogger(__name__)

_UNPAIRED = {"num_resamples", "resample_size", "seed", "pool_size", "pool"}


class Session:
    """Measures, decides and remembers; knows no trainer.

    Callbacks hold one and translate their trainer's events. The calls, in order, the same on all
    ranks: `prepare`, `resume`, `settle_stop`, `set_reference`; `after_step` after each optimizer
    step and `measure` at each evaluation; `end`.

    Args:
        pool: see `sepstop.measure.pool.read_pool`.
        config: of the run.

    Attributes:
        monitor: measures the model.
        averaged_steps: updates the averages of the weights.
        overhead: the time that scoring takes.
        records: the scores so far, those before a resume included.
        decisions: the decision made at each record.
        stays_stopped: True for a run that was stopped before it was resumed, unless the
            configuration says ``continue_after_stop``.
        verbose: print a line for each score.

    Raises:
        FileNotFoundError, ValueError: an unusable pool or configuration.
    """

    def __init__(self, pool: Any, config: SepStopConfig) -> None:
        self.config = config
        self.monitor = Monitor(pool, config)
        self.averaged_steps = AveragedSteps(config)
        self.overhead = Overhead(config.max_overhead)
        self.policy: Policy | None = None  # of an "auto", known when the model is
        if config.policy != AUTO:
            self.policy = build("policy", config.policy, POLICIES)
            check_significance(self.policy, self.monitor)
        self.records: list[Record] = []
        self.decisions: list[Decision | None] = []
        self.stays_stopped = False
        self.verbose = config.verbose
        self._settings_since = 0  # first step measured with the current settings
        self._policy_restart_step = -1  # the policy sees only the scores after this step
        self._run_key = ""  # of the first record, which tells runs apart
        self._overhead_is_said = False
        self._left_out_step = -1  # the newest evaluation that was not scored

    # State

    @property
    def decision(self) -> Decision | None:
        """The newest decision; None before the first record."""
        return self.decisions[-1] if self.decisions else None

    @property
    def averages(self) -> RunningAverages | None:
        """The averages of the weights; None without them. In the warm-up they are empty."""
        return self.averaged_steps.averages

    @property
    def decides(self) -> str:
        """Name of the score that decides; empty before `prepare`."""
        return self.monitor.decides

    @property
    def settings(self) -> dict[str, Any]:
        """What a record depends on besides the model, ready for JSON.

        `Monitor.settings`, and how the weights are averaged, by the names of `SepStopConfig`.
        """
        names = ("average", "score_checkpoints", "average_every_n_steps")
        return self.monitor.settings | {name: getattr(self.config, name) for name in names}

    def decide_by(self, criterion: CriterionSpec) -> None:
        """Replace the configuration's criterion; before `prepare`."""
        self.config = self.monitor.config = replace(self.config, criterion=criterion)

    def is_due(self, step: int, is_last: bool) -> bool:
        """True if an evaluation is to be scored.

        These are the first, the last, and those between that ``every_n_steps`` leaves and
        `is_affordable`. Collective.
        """
        every = self.config.every_n_steps
        if every and self.records and not is_last and step - self.records[-1].step < every:
            return False
        return self.is_affordable(step, is_last)

    def is_affordable(self, step: int, is_last: bool) -> bool:
        """True if ``max_overhead`` lets this step be scored; the same on all ranks. Collective."""
        if self.config.max_overhead is None or not self.records or is_last:
            return True
        if step in (self.records[-1].step, self._left_out_step):  # asked again
            return step != self._left_out_step
        allows = Ranks.of_run().of_first(self.overhead.allows_a_score())
        self._left_out_step = self._left_out_step if allows else step
        return allows

    # Events of a run

    def prepare(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        labels: Any = None,
        precision: Precision | None = None,
    ) -> None:
        """`Monitor.prepare`, the policy that fits the score that decides, and the averages.

        Raises:
            ValueError: the model, the pool and the configuration do not fit each other, or the
                model can't be averaged.

        Warns:
            UserWarning: a language model without answers, on whose embeddings nothing chooses well.
        """
        self.overhead.start()
        self._overhead_is_said, self._left_out_step = False, -1
        with self.overhead.counted():
            self.averaged_steps.prepare(model)
            self.monitor.prepare(model, tokenizer, labels, precision)
        self._settle_policy()
        if self.config.criterion == AUTO and self.decides == "component_mi" and is_causal_lm(model):
            warnings.warn(
                "sepstop: nothing is known of what this language model answers, so component_mi "
                "decides, which has kept much worse weights than the last ones on decoders; name "
                "the answers (answers=[...]) or guess their number (answers=20); for continued "
                "pre-training, set criterion='pool_loss'",
                stacklevel=4,
            )

    def resume(self, recorded: RunHistory) -> None:
        """Take over what a resumed run recorded; a new run recorded nothing.

        The newest decision is made again, by the policy that the run has now.

        Raises:
            ValueError: the run was measured differently, and the policy needs the same resamples.

        Warns:
            UserWarning: the run was measured differently, or records have no score that decides.
        """
        self.monitor.restore_outputs(recorded.settings.get("outputs"))
        self._settle_policy()
        own = self.own_part(recorded)
        self._run_key = _key_of(recorded.records[0]) if recorded.records else ""
        self.records, self.decisions = list(own.records), list(own.decisions)
        self._policy_restart_step = -1
        self._settings_since = recorded.settings_since
        left_out = len(recorded.records) - len(self.records)
        if left_out:
            warnings.warn(
                f"sepstop: {left_out} of the resumed run's {len(recorded.records)} records have no "
                f"score {self.decides!r}, which decides now; they are left out",
                stacklevel=3,
            )
        if self.records:
            if self._settings_changed(recorded.settings):
                self._settings_since = self.records[-1].step + 1
            self.decisions[-1] = self.decide(self.records)
            self.overhead.score_seconds = self.records[-1].seconds

    def own_part(self, recorded: RunHistory) -> RunHistory:
        """The records with the score that decides now."""
        return recorded.where(lambda record: self.decides in record.scores)

    def share(self) -> None:
        """Use the first rank's history on all ranks: each has read its own disk."""
        self.records, self.decisions, self._policy_restart_step = Ranks.of_run().of_first(
            (self.records, self.decisions, self._policy_restart_step)
        )

    def take_over_stop(self, whole: RunHistory, decision: Decision, step: int) -> None:
        """Take over a stop that was decided after the checkpoint at ``step`` was saved.

        With ``continue_after_stop``, the policy ignores the scores up to ``step`` instead.

        Args:
            whole: the run up to the stop, as `own_part` gives it.
            decision: on its newest record.
        """
        if self.config.continue_after_stop:
            self._policy_restart_step = step
        else:
            self.records = list(whole.records)
            self.decisions = [*whole.decisions[:-1], decision]

    def settle_stop(self) -> bool:
        """True, with a line on the terminal, if the resumed run stays stopped."""
        stopped = self.decision is not None and self.decision.stop
        self.stays_stopped = stopped and not self.config.continue_after_stop
        if self.stays_stopped and self.decision is not None:
            self.say(
                f"sepstop: this run was stopped before and stays stopped ({self.decision.reason}); "
                "to continue it, set continue_after_stop=True"
            )
        return self.stays_stopped

    def set_reference(
        self, folder: str | Path, step: int, model: nn.Module, measured_first: bool = False
    ) -> None:
        """Set the neighbors that scores refer to: those before training, or of the resumed run.

        Args:
            folder: of the run.
            step: at which training begins.
            model: the model that will be measured.
            measured_first: True if the pool is scored before the first step anyway.

        Warns:
            RuntimeWarning: the resumed run's neighbors are missing, or the pool could not be
                embedded.
        """
        if not self.monitor.scorer.uses_neighbors:
            return
        if step > 0:
            path = Path(folder) / NEIGHBORS_FILE
            found = Neighborhoods.load(path, self.monitor.embedding_key, step, self._run_key)
            self.monitor.neighborhoods = Ranks.of_run().of_first(found)
            if self.records and not self.monitor.neighborhoods.steps:
                warnings.warn(
                    f"sepstop: {path} is missing or belongs to another run, pool or pooling; the "
                    "mutual information refers to the next evaluation instead of the start, so it "
                    "may not compare with earlier records",
                    RuntimeWarning,
                    stacklevel=3,
                )
        elif not measured_first:
            try:
                with self.overhead.counted():
                    self.monitor.set_reference(model)
            except Exception as error:
                self.fail("could not embed the pool before training", error)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Add the weights to the averages.

        Call it once after each optimizer step, before a measurement of that step. It is not
        collective. An error is raised, or warned of, by the next `check_averages`.

        Args:
            model: that of `prepare`.
            step: optimizer steps taken.
        """
        if not self.stays_stopped:
            self.overhead.add_step()
            self.averaged_steps.update(model, step)

    def check_averages(self) -> None:
        """Give up the averages on all ranks if one could not update them. Collective."""
        try:
            self.averaged_steps.check()
        except Exception as error:
            self.fail("could not average the weights, so checkpoints are scored", error)

    def measure(
        self, model: nn.Module, step: int, epoch: float | None, folder: str | Path
    ) -> tuple[Record, Decision] | None:
        """Score the pool, decide, and write both to the run's files.

        Returns:
            The record and the decision; None if this step or a later one was scored before, as by
            an evaluation on another data set or right after resuming.
        """
        if self.records and self.records[-1].step >= step:
            return None
        with self.overhead.counted():
            self.check_averages()
            record = Ranks.of_run().of_first(self._record(model, step, epoch))
            self.overhead.add_score(record.seconds)
        decision = self.decide([*self.records, record])
        self._run_key = self._run_key or _key_of(record)
        self.records.append(record)
        self.decisions.append(decision)
        self.write(folder)
        if Ranks.of_run().rank == 0 and self.monitor.scorer.uses_neighbors:
            path = Path(folder) / NEIGHBORS_FILE
            self.monitor.neighborhoods.save(path, self.monitor.embedding_key, self._run_key)
        return record, decision

    def decide(self, records: list[Record]) -> Decision:
        """The decision on the newest of ``records``."""
        series = self.monitor.series(records)
        try:
            assert self.policy is not None  # since `prepare`
            return decide(self.policy, series, self._policy_restart_step)
        except Exception as error:
            step = records[-1].step
            self.fail(f"could not decide at step {step}", error)
            why = f"the policy failed: {type(error).__name__}: {error}"
            return Decision(False, series.best_step, why, step)

    def end(self, folder: str | Path, step: int, remedy: str = "") -> None:
        """Record that training ended at ``step``.

        Args:
            folder: of the run.
            step: optimizer steps taken.
            remedy: what to do if the pool was not scored once, as a clause.

        Warns:
            RuntimeWarning: the pool was not scored once, or all its scores are equal.
        """
        if not self.records:
            warnings.warn(
                f"sepstop: the pool was not scored once in {step} steps: {remedy}",
                RuntimeWarning,
                stacklevel=4,
            )
            self.write(folder, step)
            return
        series = self.monitor.series(self.records).trained
        values = [score.value for score in series.scores if score.is_finite]
        if len(values) > 1 and len(set(values)) == 1:
            warnings.warn(
                f"sepstop: all {len(values)} scores of {series.name} are {values[0]:g}, so they do "
                "not tell which weights are best, and the earliest were kept; if that is 0, look "
                "whether the model predicts the same for every text",
                RuntimeWarning,
                stacklevel=4,
            )
        # Trainer takes one more step when a stopped run is resumed; it changes nothing.
        self.write(folder, self.records[-1].step if self.stays_stopped else step)

    def write(self, folder: str | Path, ended: int | None = None) -> None:
        """Replace the history file of the run in ``folder``.

        Args:
            ended: step at which training ended; None while it goes on.
        """
        if Ranks.of_run().rank == 0:
            try_to_write_history(Path(folder) / HISTORY_FILE, self.recorded(ended))

    # Output

    def announce_start(self, keeps: str, last_step: float = math.inf) -> None:
        """Print which score decides, which policy stops the run, what is scored and what is kept.

        Args:
            keeps: what happens to the best candidate, as a clause.
            last_step: of the run, if it is known.

        Warns:
            UserWarning: the warm-up lasts to the end, so there will be no averages.
        """
        first = self.averaged_steps.first_step
        if self.averages is not None and first > last_step:
            warnings.warn(
                f"sepstop: the warm-up lasts until step {first} and the run until step "
                f"{last_step:g}, so there will be no averages, and checkpoints are scored",
                stacklevel=4,
            )
        others = [name for name in self.monitor.higher_is_better if name != self.decides]
        beside = f" ({', '.join(others)} recorded beside it)" if others else ""
        policy = describe(self.policy, POLICIES)
        stops = policy.get("name", policy.get("custom"))
        scored = ""
        if self.averages is not None:
            and_checkpoints = " and checkpoints" * self.config.score_checkpoints
            since = f"from step {first} on"
            scored = f"averages of the weights {since}{and_checkpoints} are scored; "
        self.say(f"sepstop: {self.decides} decides{beside}; policy {stops}; {scored}{keeps}")

    def announce(self, record: Record, decision: Decision) -> None:
        """Print the scores, what they are of if it is an average, and the decision.

        With the first score, or the first of averages, a line says what share of the time it takes.
        """
        scores = {self.decides: record.scores[self.decides]} | dict(record.scores)
        shown = "  ".join(f"{name} {score}" for name, score in scores.items())
        verdict = "STOP" if decision.stop else "go on"
        of = "" if record.average is None else f", {record.average}"
        self.say(f"sepstop: step {record.step}{of}  {shown}  {verdict}: {decision.reason}")
        is_typical = self.averages is None or self.averages.count > 0
        if self.overhead.steps and is_typical and not self._overhead_is_said:
            self.say(f"sepstop: {self.overhead.described(len(self.monitor.pool))}")
            self._overhead_is_said = True

    def say(self, line: str) -> None:
        """Log a line, and print it on the first rank if `verbose`."""
        logger.info(line)
        if self.verbose and Ranks.of_run().rank == 0:
            tqdm.write(line)

    def recorded(self, ended: int | None = None) -> RunHistory:
        """The run so far, as in its history file.

        Args:
            ended: step at which training ended; None while it goes on.
        """
        return RunHistory(
            tuple(self.records),
            tuple(self.decisions),
            settings=self.settings,
            settings_since=self._settings_since,
            policy={} if self.policy is None else describe(self.policy, POLICIES),
            decides=self.decides,
            higher_is_better=self.monitor.higher_is_better,
            ended=ended,
        )

    def _settle_policy(self) -> None:
        direction = self.monitor.higher_is_better[self.decides]
        self.policy = policy_for(self.config.policy, self.decides, direction)

    def _record(self, model: nn.Module, step: int, epoch: float | None) -> Record:
        try:
            decided = self.decides
            record = self.monitor.measure(model, step, epoch, self.averages)
            if self.decides != decided:  # the outputs were found to be others than assumed
                self._settle_policy()
            return record
        except Exception as error:
            self.fail(f"could not measure step {step}", error)
            return Record(
                step,
                epoch,
                dict.fromkeys(self.monitor.higher_is_better, NO_SCORE),
                resample_size=self.monitor.resample_size,
                pool_size=len(self.monitor.pool),
            )

    def fail(self, what: str, error: Exception) -> None:
        """Warn of an error, or raise it if ``on_error`` says so."""
        if self.config.on_error == "raise":
            raise error
        logger.debug(what, exc_info=True)
        warnings.warn(
            f"sepstop: {what}; training goes on without it: {type(error).__name__}: {error}\n"
            f"{traceback.format_exc(limit=-3)}",
            RuntimeWarning,
            stacklevel=3,
        )

    def _settings_changed(self, recorded: Mapping[str, Any]) -> bool:
        """True, with a warning, if the run was measured differently before it was resumed.

        Raises:
            ValueError: it was, and the policy compares the same resamples.
        """
        changed = self._changes(recorded)
        if not changed:
            return False
        what = f"the resumed run was measured differently: {'; '.join(changed.values())}"
        if changed.keys() & _UNPAIRED and getattr(self.policy, "significance", None):
            raise ValueError(
                f"{what}. A policy with `significance` compares the same resamples: expected the "
                "earlier settings"
            )
        warnings.warn(f"sepstop: {what}; its scores may not compare with new ones", stacklevel=3)
        return True

    def _changes(self, recorded: Mapping[str, Any]) -> dict[str, str]:
        """The settings whose change makes scores differ, each with a sentence.

        Another criterion is not a change if the run recorded its scores before. An extra criterion
        that is new or missing is not a change either.
        """
        settings = self.settings
        recorded = {"average": False} | dict(recorded)  # by a version that knew no averages
        known = [recorded.get("criterion"), *recorded.get("extra_criteria", [])]
        changed = {
            key: f"{key} was {value!r} and is {settings[key]!r}"
            for key, value in recorded.items()
            if key != "extra_criteria"
            and settings.get(key, value) != value
            and not (key == "criterion" and settings[key] in known)
        }
        for extra in settings["extra_criteria"]:
            name = extra.get("name")  # None for one that settings do not describe
            before = [one for one in known if name and one and one.get("name") == name]
            if before and extra not in before:
                changed["extra_criteria"] = f"an extra criterion was {before[0]!r} and is {extra!r}"
        return changed


def _key_of(record: Record) -> str:
    """SHA-256 of a record; its wall time makes it unique."""
    return hashlib.sha256(json.dumps(record_to_dict(record), sort_keys=True).encode()).hexdigest()
