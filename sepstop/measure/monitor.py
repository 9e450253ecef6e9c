"""Measurement of a model on the pool, for callbacks, plain loops and offline selection."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sepstop.config import AUTO, Precision, SepStopConfig
from sepstop.criteria import CRITERIA
from sepstop.measure.answers import mass
from sepstop.measure.average import RunningAverages
from sepstop.measure.embedding import Observation
from sepstop.measure.language_model import check_causal
from sepstop.measure.neighbors import Neighborhoods
from sepstop.measure.observer import Observer
from sepstop.measure.outputs import declared_outputs, infer_outputs, is_sequence_classifier
from sepstop.measure.pool import read_pool
from sepstop.measure.pooling import POOLINGS
from sepstop.measure.resampling import draw_resamples
from sepstop.measure.run_outputs import RunOutputs
from sepstop.measure.scorer import (
    Scorer,
    build_criterion,
    criteria_for,
    looks_at_neighbors,
    needs_logits,
    needs_of,
)
from sepstop.types import CHECKPOINT, Average, Criterion, Record, Series
from sepstop.utils.distributed import Ranks
from sepstop.utils.registry import describe

_LEAST_MASS = 0.01  # probability of the answers below which they are probably written otherwise

MAX_RESAMPLE_SIZE = 1000
"""Largest resample size by default."""


class Monitor:
    """Scores a model on an unlabeled pool.

    The pool is tokenized once and the resamples are drawn once, so the records of a run are
    paired: they differ by the model alone. In a loop of your own, where `RunningAverages` keeps
    averages of the weights::

        monitor, records = Monitor(texts, SepStopConfig(tokenizer=tokenizer)), []
        monitor.set_reference(model)  # before training
        averages = RunningAverages(model)
        for step in range(1, 101):
            train(model, step)
            averages.update(model, step)
            if step % 5 == 0:
                records.append(monitor.measure(model, step, averages=averages))
                decision = PastPeak()(monitor.series(records))
                if decision.best_step == step:
                    with averages.applied(model, records[-1].average.name):
                        model.save_pretrained("best")
                if decision.stop:
                    break

    Without ``averages``, the model itself is scored.

    Args:
        pool: see `sepstop.measure.pool.read_pool`.
        config: how to measure. Default: `SepStopConfig()`.
        distributed: divide the work over the processes of torch.distributed, which all make the
            same calls and get the same records. A model that is itself divided (FSDP) can only be
            measured this way.

    Attributes:
        pool: the texts.
        resample_size: texts n in a resample.
        resample_indices: ``(B, n)`` int64 index sets into the pool, on the CPU.
        observer: runs the model over the pool.
        run_outputs: the outputs of the run's model.

    Raises:
        FileNotFoundError, ValueError: an unusable pool or configuration.
    """

    def __init__(
        self, pool: Any, config: SepStopConfig | None = None, *, distributed: bool = False
    ) -> None:
        self.config = config = SepStopConfig() if config is None else config
        self._named_criteria()  # raises for an unknown criterion
        self.pool = read_pool(pool, config.text_column, limit=config.pool_size, seed=config.seed)
        size, texts = config.resample_size, len(self.pool)
        self.resample_size = min(texts // 2, MAX_RESAMPLE_SIZE) if size is None else size
        if not 2 <= self.resample_size <= texts:
            raise ValueError(
                f"expected `resample_size` from 2 to the {texts} texts of the pool, "
                f"got {self.resample_size}"
            )
        self.resample_indices = draw_resamples(
            texts, config.num_resamples, self.resample_size, config.seed
        )
        self.observer = Observer(self.pool, config, distributed)
        asked = config.outputs if config.answers is None else "classes"
        self.run_outputs = RunOutputs(asked)
        self._scorer: Scorer | None = None
        self._neighborhoods = Neighborhoods()

    # What is known about the run

    @property
    def settings(self) -> dict[str, Any]:
        """What a record depends on besides the model, ready for JSON.

        The names are those of `SepStopConfig`; "pool" is the fingerprint of the texts. The criteria
        and "outputs" are missing until they are known.
        """
        outputs = self.run_outputs.known
        settings: dict[str, Any] = {
            "pooling": describe(self.observer.pooling, POOLINGS),
            "num_resamples": len(self.resample_indices),
            "resample_size": self.resample_size,
            "seed": self.config.seed,
            "max_length": self.config.max_length,
            "padding": self.observer.padding,
            "precision": self.observer.precision,
            "pool_size": len(self.pool),
            "pool": self.pool.fingerprint,
            **({} if outputs is None else {"outputs": outputs}),
        }
        answers = self.observer.answers
        if answers is not None:
            settings["answer_end"] = self.config.answer_end
            settings["answers"] = (
                answers
                if isinstance(answers, int)
                else [one if isinstance(one, str) else list(one) for one in answers]
            )
        if self._scorer is not None:
            first, *others = [describe(one, CRITERIA) for one in self._scorer.criteria]
            settings |= {"criterion": first, "extra_criteria": others}
        return settings

    @property
    def scorer(self) -> Scorer:
        """The run's scorer.

        Raises:
            RuntimeError: before the first model.
        """
        if self._scorer is None:
            raise RuntimeError("expected `prepare` or `measure` first: no model is known yet")
        return self._scorer

    @property
    def decides(self) -> str:
        """Name of the score that decides; empty before the first model."""
        return "" if self._scorer is None else self._scorer.decides

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """Direction of each score, by name; empty before the first model."""
        return {} if self._scorer is None else self._scorer.higher_is_better

    @property
    def ranks(self) -> Ranks:
        """The processes that divide the work."""
        return self.observer.ranks

    @property
    def embedding_key(self) -> str:
        """What embeddings depend on besides the model: `sepstop.measure.observer.embedding_key`."""
        return self.observer.embedding_key

    @property
    def neighborhoods(self) -> Neighborhoods:
        """The neighbors of earlier steps."""
        return self._neighborhoods

    @neighborhoods.setter
    def neighborhoods(self, found: Neighborhoods) -> None:
        self._neighborhoods = found
        if self._scorer is not None:
            self._scorer.neighborhoods = found

    def series(self, records: Sequence[Record]) -> Series:
        """The score that decides, for a policy."""
        return Series.of(records, self.scorer.decides, self.higher_is_better[self.decides])

    def restore_outputs(self, recorded: Any) -> None:
        """Take over the outputs that a resumed run recorded, where they are a guess so far."""
        if self.run_outputs.restore(recorded):
            self._settle_criteria()

    # Measurement

    def prepare(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        labels: Sequence[Any] | None = None,
        precision: Precision | None = None,
    ) -> None:
        """Tokenize and check the pool, try the model on it, and settle which score decides.

        `measure` does so at its first call. Call this to see errors before training begins. It
        forgets what is known about an earlier model.

        Args:
            model: the model that will be measured.
            tokenizer: used if the configuration names none.
            labels: of some training rows, if known; they help to infer the outputs.
            precision: of the training, if the configuration names none.

        Raises:
            CriterionError: the criterion that decides is for other outputs than the model's.
            ValueError: no tokenizer; a text that the model cannot read; a model without
                embeddings, or without logits although the criterion needs them; configuration,
                labels and logits that contradict each other.
        """
        self.observer.reset()
        self.observer.precision = self.observer.precision or precision
        self.run_outputs = RunOutputs(self.run_outputs.requested)
        self._scorer, self._neighborhoods = None, Neighborhoods()
        self.ranks.together(self.observer.check_same_pool)
        self.observer.tokens(model, tokenizer)
        self._find_outputs(model, labels)
        texts = self.observer.longest_texts(model)
        points = self.observer.observe(model, texts, self.run_outputs.has_logits).points
        if not points.is_floating_point():
            raise ValueError(f"expected floating points from the pooling, got {points.dtype}")

    def set_reference(self, model: nn.Module, step: int = 0) -> None:
        """Add the neighbors before training: one forward pass over the pool, without a record.

        The mutual information of later records refers to them. Measuring the model at step 0 adds
        them as well. Does nothing if no criterion looks at neighbors.

        Args:
            model: before training, or at ``step``.
            step: optimizer steps taken.
        """
        if self._scorer is None:
            self.prepare(model)
        if self.scorer.uses_neighbors:
            seen = self._pass(model, with_logits=self.run_outputs.has_logits)
            self.scorer.add_neighbors(seen._replace(outputs=self.run_outputs.outputs), step)

    def embed(self, model: nn.Module) -> Observation:
        """The forward pass over the pool, without logits: ``(N, D)`` points."""
        return self._pass(model, with_logits=False)

    def _pass(self, model: nn.Module, with_logits: bool) -> Observation:
        return self.observer.observe_pool(model, with_logits, settle=with_logits)

    def measure(
        self,
        model: nn.Module,
        step: int,
        epoch: float | None = None,
        averages: RunningAverages | None = None,
    ) -> Record:
        """Embed the pool with ``model``, or with its averages, and score it.

        The model's weights and modes and the random states are left as they were. Points or logits
        that are not finite give a warning and scores of NaN.

        Args:
            model: on its device; may be wrapped by PEFT, DDP or ``torch.compile``.
            step: optimizer steps taken; not less than in the call before.
            epoch: epochs taken, if counted.
            averages: of the model's weights. Each is observed, see `observe`, and so is the model
                itself if the configuration says ``score_checkpoints``. Without averages, or before
                their first step, the model itself is scored.

        Returns:
            The record of the best of these candidates.

        Raises:
            ValueError: as `prepare`.
            RuntimeError: the forward pass writes into weights, which are too large to restore.
        """
        start = time.perf_counter()
        candidates, known = {}, {}
        if averages is not None and averages.count:
            for name in averages.decays:
                with self.ranks.entered(averages.applied(model, name)):
                    candidates[name] = self.observe(model)
                known[name] = averages.described(name)
        if not candidates or self.config.score_checkpoints:
            candidates[CHECKPOINT] = self.observe(model)
        outputs = self.run_outputs.outputs
        candidates = {name: seen._replace(outputs=outputs) for name, seen in candidates.items()}
        record = self.score(candidates, step, epoch, known)
        record = replace(record, seconds=time.perf_counter() - start)
        return self.ranks.of_first(record)  # one for all, down to the last bit

    def observe(self, model: nn.Module) -> Observation:
        """All that `score` needs, from one forward pass over the pool.

        A criterion on corrupted logits, such as the default for one class out of k, takes a second
        pass. The outputs are those that the model declares; `settled` sets those of the run.

        Raises:
            ValueError: as `prepare`.
        """
        self.observer.tokens(model)
        self._find_outputs(model)
        seen = self.observer.observe_pool(
            model,
            self.run_outputs.has_logits,
            with_corrupted=self.needs("corrupted_logits"),
            with_losses=self.needs("token_losses"),
        )
        width = 0 if seen.logits is None else seen.logits.shape[-1]
        return seen._replace(outputs=declared_outputs(model, width))

    def needs(self, name: str) -> bool:
        """True if a criterion needs this input, see `sepstop.criteria.INPUTS`.

        Raises:
            RuntimeError: before the first model.
        """
        return any(name in needs_of(one) for one in self.scorer.criteria)

    def is_complete(self, seen: Observation) -> bool:
        """True if ``seen``, perhaps of an earlier process, has all that criteria need.

        Raises:
            ValueError, CriterionError: as `settled`.
        """
        self.settled(seen)
        found = {"corrupted_logits": seen.corrupted_logits, "token_losses": seen.token_losses}
        return all(part is not None or not self.needs(name) for name, part in found.items())

    def settled(self, seen: Observation) -> Observation:
        """``seen`` with the outputs of this run.

        Raises:
            ValueError: it contradicts the outputs of earlier observations.
            CriterionError: the criterion that decides is for other outputs.
        """
        width = 0 if seen.logits is None else seen.logits.shape[-1]
        outputs = self.run_outputs.resolve(width, seen.outputs)
        if self._scorer is None:
            self._settle_criteria()
        return seen._replace(outputs=outputs)

    def score(
        self,
        seen: Observation | Mapping[str, Observation],
        step: int,
        epoch: float | None = None,
        averages: Mapping[str, Average] | None = None,
    ) -> Record:
        """The record of an observation, or of the best of a step's candidates.

        Args:
            seen: from `observe`, this process's or another's; or several by the candidate's name.
            step: optimizer steps taken; not less than in the call before.
            epoch: epochs taken, if counted.
            averages: which candidates are averages, by name.

        Raises:
            ValueError, CriterionError: as `settled`.

        Warns:
            RuntimeWarning: a trained model hardly ever gives one of the answers.
        """
        candidates = {CHECKPOINT: seen} if isinstance(seen, Observation) else seen
        if step > 0 and isinstance(self.observer.answers, list):
            _warn_of_unlikely_answers(candidates)
        settled = {name: self.settled(one) for name, one in candidates.items()}
        self.run_outputs.freeze(step)
        return self.scorer.best_of(settled, step, epoch, averages)

    @property
    def uses_neighbors(self) -> bool:
        """True if a criterion looks at neighbors; before the first model, if one may."""
        if self._scorer is not None:
            return self._scorer.uses_neighbors
        specs = (self.config.criterion, *self.config.extra_criteria)
        return AUTO in specs or any(map(looks_at_neighbors, self._named_criteria()))

    def _named_criteria(self) -> list[Criterion]:
        """The criteria that the configuration names, "auto" left out."""
        specs = (self.config.criterion, *self.config.extra_criteria)
        return [build_criterion(spec) for spec in specs if spec != AUTO]

    # Outputs and criteria

    def _find_outputs(self, model: nn.Module, labels: Sequence[Any] | None = None) -> None:
        """Infer the outputs once a run, and choose the criteria by them."""
        if self.run_outputs.outputs is None:
            width, asked = self._logit_width(model), self.run_outputs.requested
            found = self.ranks.together(lambda: infer_outputs(model, width, labels, asked))
            self.run_outputs.set(width, self.ranks.of_first(found))
            self._settle_criteria()
        elif self.run_outputs.update(model) or self._scorer is None:
            self._settle_criteria()
        of_language = [one.name for one in self.scorer.criteria if "token_losses" in needs_of(one)]
        if of_language:
            check_causal(model, f"the criterion {of_language[0]!r}")

    def _settle_criteria(self) -> None:
        assert self.run_outputs.outputs is not None
        criteria = criteria_for(self.config, self.run_outputs.outputs, self.run_outputs.has_logits)
        self._scorer = Scorer(
            criteria,
            self.resample_indices,
            self._neighborhoods,
            self.ranks,
            self.config.on_error,
        )

    def _logit_width(self, model: nn.Module) -> int:
        """k of the model's ``(b, k)`` logits, found by two texts; 0 without logits.

        Outputs whose width depends on the text's length belong to its tokens. Outputs that equal
        the embeddings are not logits.

        Raises:
            ValueError: the criterion or the user needs logits, or the model is a sequence
                classifier, and there are none.
        """
        try:
            points, logits, *_ = self.observer.try_texts(model, with_logits=True)
        except Exception as error:  # no head, more inputs, ...
            is_needed = self.config.criterion != AUTO and needs_logits(self._named_criteria()[0])
            if is_needed or self.run_outputs.requested in ("classes", "labels"):
                raise
            if self.run_outputs.requested == "none" or not is_sequence_classifier(model):
                return 0  # embeddings need no logits
            self.observer.try_texts(model, with_logits=False)  # may say more
            raise ValueError(
                f"{type(model).__name__} returns no logits for texts of the pool "
                f"({type(error).__name__}: {error}); to decide by the embeddings alone, set "
                "outputs='none'"
            ) from error
        assert logits is not None
        are_points = logits.shape == points.shape and torch.allclose(
            logits, points.float(), equal_nan=True
        )
        return 0 if are_points else logits.shape[-1]


def _warn_of_unlikely_answers(candidates: Mapping[str, Observation]) -> None:
    """Warn if a trained model hardly ever gives one of the answers."""
    found = [mass(seen.logits) for seen in candidates.values() if seen.logits is not None]
    if found and max(found) < _LEAST_MASS:
        warnings.warn(
            f"sepstop: the model gives one of the answers with a probability of {max(found):.2g}; "
            "check that they are written as in training, with the white space before them and the "
            "same prompts, such as ' yes' after 'Answer:'",
            RuntimeWarning,
            stacklevel=3,
        )
