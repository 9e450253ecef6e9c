"""Measures a model on the pool; shared by the callback, plain loops and offline selection."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from sepstop.criteria import CRITERIA, INPUTS
from sepstop.measure.embedding import (
    EMBEDDERS,
    Batching,
    Observation,
    Precision,
    observe,
    training_precision,
)
from sepstop.measure.heads import (
    IN_WORDS,
    HeadOfRun,
    declared_outputs,
    is_sequence_classifier,
    outputs_of,
)
from sepstop.measure.neighbors import Neighborhoods
from sepstop.measure.pool import read_pool
from sepstop.measure.resampling import draw_resamples, interval, score_resamples
from sepstop.measure.tokens import (
    DROPPED,
    Tokens,
    check_tokens,
    load_tokenizer,
    tokenize,
    warn_of_columns,
)
from sepstop.measure.untouched import same_randomness, untouched
from sepstop.types import Criterion, Embedder, Outputs, Record
from sepstop.utils.distributed import Ranks
from sepstop.utils.registry import build, describe

logger = logging.getLogger(__name__)

_LONG_POOL = 2000  # texts from which on a progress bar is worth its line
_OF_TRAINER = {"loss", "runtime", "samples_per_second", "steps_per_second"}  # its own metrics
_INFORMATION: dict[Outputs, tuple[str, str]] = {  # the criterion and what it is of
    "classes": ("information", "classes"),
    "labels": ("label_information", "labels"),
    "none": ("component_information", "components"),
}


class CriterionError(ValueError):
    """The criterion is for other outputs than the model's."""


class Monitor:
    """Scores a model's embeddings of an unlabeled pool.

    The pool is tokenised once and the resamples are drawn once, so the records of a run are
    paired: they differ by the model alone.

    >>> # monitor = Monitor(texts, tokenizer=tokenizer)
    >>> # history.append(monitor.measure(model, step))
    >>> # if Plateau()(history).stop: break

    Args:
        pool: see `sepstop.measure.pool.read_pool`.
        embedder: "auto" (a SentenceTransformer's own, "mean" of any other model), "mean", "cls",
            "last", a mapping as ``{"name": "mean", "layer": 6}``, or a function
            ``(model, input_ids, attention_mask) -> (b, D)``.
        criterion: a name in `sepstop.criteria.CRITERIA` or a function with the attributes
            ``name`` and ``higher_is_better``; it gets embeddings ``(B, n, D)``, or what it names in
            ``needs`` (see `sepstop.criteria.INPUTS`), and returns ``(B,)`` scores.
        resamples: number B of subsets of the pool that are scored.
        seed: of the sample of the pool and of the resamples.
        resample_size: points n in each; by default half the pool, at most 1000. Scores
            depend on it: compare only runs with the same.
        tokenizer: one, or its folder or hub name; by default that of the Trainer, or else the one
            saved with the model.
        text_column: the pool's column with the texts.
        pool_size: a larger pool is sampled down to this many texts; None takes all.
        max_length: texts are cut at this many tokens (or at the tokenizer's own limit).
        batch_size: texts in a forward pass; halved for good when memory runs out.
        padding: False puts only texts of one length into a batch. By default, False where padding
            changes what the model makes of a text, as it does without a padding token.
        precision: "bf16" or "fp16" autocast for the pool's forward pass, or "no". By default, that
            of the training, where accelerate (and so Trainer) set one up.
        outputs: what the model's outputs are: "classes" (one class out of k), "labels" (yes or no
            for each, not exclusive) or "none" (a regression, a reward, no logits). By default
            found out, see `sepstop.measure.heads.outputs_of`.
        progress: show a bar on long pools.
        distributed: divide the work over the processes of torch.distributed, which all have to
            make the same calls; each gets the same records. Of a model that is itself divided
            (FSDP) only this can be measured.

    Raises:
        FileNotFoundError, ValueError: what was expected and what came.
    """

    def __init__(
        self,
        pool: Any,
        embedder: Any = "auto",
        criterion: Any = "separability",
        resamples: int = 20,
        seed: int = 0,
        *,
        resample_size: int | None = None,
        tokenizer: Any = None,
        text_column: str = "text",
        pool_size: int | None = 2000,
        max_length: int = 256,
        batch_size: int = 64,
        padding: bool | None = None,
        precision: Precision | None = None,
        outputs: str = "auto",
        progress: bool = True,
        distributed: bool = False,
    ) -> None:
        for name, value in (
            ("resamples", resamples),
            ("max_length", max_length),
            ("batch_size", batch_size),
        ):
            if value < 1:
                raise ValueError(f"expected `{name}` >= 1, got {value}")
        for name, choice, known in (
            ("padding", padding, (True, False)),
            ("precision", precision, ("no", "bf16", "fp16")),
        ):
            if choice is not None and choice not in known:
                raise ValueError(f"expected `{name}` among {known} or None, got {choice!r}")
        if outputs not in ("auto", *get_args(Outputs)):
            raise ValueError(
                f"expected `outputs` 'auto', 'classes', 'labels' or 'none', got {outputs!r}"
            )
        self.embedder: Embedder = build("embedder", embedder, EMBEDDERS)
        self.criterion: Criterion = build("criterion", criterion, CRITERIA)
        for attribute in ("name", "higher_is_better"):
            if not hasattr(self.criterion, attribute):
                raise ValueError(f"the criterion {criterion!r} has no attribute `{attribute}`")
        if self.criterion.name in _OF_TRAINER:
            raise ValueError(
                f"a criterion called {self.criterion.name!r} would take the place of the Trainer's "
                f"own eval_{self.criterion.name}; expected another name"
            )
        self.needs: tuple[str, ...] = getattr(self.criterion, "needs", ("points",))
        unknown = [need for need in self.needs if need not in INPUTS]
        if unknown:
            raise ValueError(
                f"the criterion {self.criterion.name!r} needs {', '.join(unknown)}; "
                f"known: {', '.join(INPUTS)}"
            )
        self.pool = read_pool(pool, text_column, limit=pool_size, seed=seed)
        if resample_size is None:
            resample_size = min(len(self.pool) // 2, 1000)
        self.resample_size = resample_size
        if not 2 <= self.resample_size <= len(self.pool):
            raise ValueError(
                f"expected `resample_size` from 2 to the {len(self.pool)} texts of the pool, "
                f"got {self.resample_size}"
            )
        self.resamples = draw_resamples(len(self.pool), resamples, self.resample_size, seed)
        self.seed = seed
        self.max_length = max_length
        self.batch_size = batch_size
        self.padding, self.precision = self._asked = padding, precision
        self.progress = progress
        self.distributed = distributed
        named = isinstance(tokenizer, (str, Path))
        self.tokenizer = load_tokenizer(tokenizer) if named else tokenizer
        self._tokens: Tokens | None = None
        self._one_by_one = False  # a head that takes no batches
        self.head = HeadOfRun(outputs)
        self._previous_logits: Tensor | None = None
        self.neighborhoods = Neighborhoods()

    @property
    def settings(self) -> dict[str, Any]:
        """What a record depends on besides the model, ready for JSON.

        "outputs" only once they are known.
        """
        known = self.head.outputs or (None if self.head.asked == "auto" else self.head.asked)
        return {
            "criterion": describe(self.criterion, CRITERIA),
            "embedder": describe(self.embedder, EMBEDDERS),
            "resamples": len(self.resamples),
            "resample_size": self.resample_size,
            "seed": self.seed,
            "max_length": self.max_length,
            "padding": self.padding,
            "precision": self.precision,
            "pool_size": len(self.pool),
            "pool": self.pool.fingerprint,
            **({"outputs": known} if known else {}),
        }

    @property
    def asked_padding(self) -> bool | None:
        """What the user said of padding, whatever was found out since."""
        return self._asked[0]

    @property
    def ranks(self) -> Ranks:
        """The processes that divide the work."""
        return Ranks.of_run() if self.distributed else Ranks()

    @property
    def places(self) -> str:
        """What the neighbours of a text depend on besides the model."""
        keys = ("pool", "pool_size", "embedder", "max_length")
        return json.dumps({key: self.settings[key] for key in keys})

    @property
    def token_fingerprint(self) -> str:
        """SHA-256 of the pool's token ids; empty before a tokenizer is known."""
        if self._tokens is None and self.tokenizer is None and not self.pool.is_tokenized:
            return ""
        digest = hashlib.sha256()
        for ids in self._tokens or tokenize(self.pool, None, self.tokenizer, self.max_length):
            digest.update(ids.numpy().tobytes() + b";")
        return digest.hexdigest()

    @property
    def needs_logits(self) -> bool:
        """True if the criterion needs logits."""
        return any(need.endswith("logits") for need in self.needs)

    def prepare(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        labels: Sequence[Any] | None = None,
        precision: Precision | None = None,
    ) -> None:
        """Tokenize the pool, check it, try the model, and find out what its outputs are.

        `measure` does the same at its first call; call this to see errors before training begins.

        Args:
            model: the model that will be measured.
            tokenizer: used if none was given to the Monitor.
            labels: of some training rows, if known; they help to tell what the outputs are.
            precision: that of the training, where the model does not tell; likewise.

        Raises:
            ValueError: no tokenizer to be found; a text that the model cannot read; a model that
                gives no embeddings, or no logits where the criterion needs them; outputs that the
                criterion is not for, or about which configuration, labels and logits contradict
                each other.
        """
        self._tokens = self._previous_logits = None
        self.padding, self.precision = self._asked
        self.precision = self.precision or precision
        self._one_by_one = False
        self.head = HeadOfRun(self.head.asked)
        self.neighborhoods = Neighborhoods()
        self.ranks.together(self._check_same_pool)
        tokens = self._tokenized(model, tokenizer)
        self._find_outputs(model, labels)
        points = self._observe(model, tokens.at(_by_length(tokens)[-2:])).points
        if not points.is_floating_point():
            raise ValueError(f"expected floating points from the embedder, got {points.dtype}")

    def remember(self, model: nn.Module, step: int = 0) -> None:
        """Note which texts lie next to each other before training, at the cost of embedding them.

        The information of later records refers to it; see `sepstop.criteria.Information`. Measuring
        the model before training does the same.
        """
        self.note(self.embed(model), step)

    def embed(self, model: nn.Module) -> Observation:
        """The forward pass over the pool, without logits."""
        tokens = self._tokenized(model)
        return self._observe(model, tokens, progress=self.progress, with_logits=False)

    def measure(self, model: nn.Module, step: int, epoch: float | None = None) -> Record:
        """Embed the pool with ``model`` and score it.

        The model's weights and modes and the random states are left as they were. Points
        that are not finite give a warning and a record whose score is NaN.

        Args:
            model: on its device; wrapped by PEFT, DDP or ``torch.compile`` as it may be.
            step: optimizer steps taken.
            epoch: epochs taken, if counted.
        """
        start = time.perf_counter()
        seen = self.observe(model)._replace(outputs=self.head.outputs)
        with untouched(model):
            record = self.score(seen, step, epoch, model)
        record = replace(record, seconds=time.perf_counter() - start)
        return self.ranks.of_first(record)  # one for all, down to the last bit

    def observe(self, model: nn.Module) -> Observation:
        """The forward passes over the pool: all that `score` needs of most models.

        Raises:
            ValueError: as `prepare`.
        """
        tokens = self._tokenized(model)
        self._find_outputs(model)
        seen = self._observe(model, tokens, progress=self.progress)
        if "corrupted_logits" in self.needs:
            dropped = tokens.corrupted(DROPPED, self.seed)
            corrupted = self._observe(model, dropped, progress=self.progress).logits
            seen = seen._replace(corrupted_logits=corrupted)
        width = 0 if seen.logits is None else seen.logits.shape[-1]
        return seen._replace(outputs=declared_outputs(model, width))

    def settled(self, seen: Observation) -> Observation:
        """What was observed, with the outputs taken for what they are in this run.

        Raises:
            ValueError: they are something else than in what was observed before, or the criterion
                is not for them.
        """
        width = 0 if seen.logits is None else seen.logits.shape[-1]
        outputs = self.head.settle(width, seen.outputs)
        self._check_criterion()
        return seen._replace(outputs=outputs)

    def score(
        self, seen: Observation, step: int, epoch: float | None = None, model: Any = None
    ) -> Record:
        """The record of what was observed, after those of earlier steps.

        Args:
            model: for a criterion that needs it, as ``weightwatcher`` does.
        """
        seen = self.settled(seen)
        if seen.points.device.type == "mps":  # it has no float64
            seen = seen.cpu()
        self.head.hold(step)
        with torch.no_grad(), same_randomness(seen.points.device):
            self.note(seen, step)
            near = self._neighbors(seen, step)
            scores = self._score(model, seen, near, step)
            information = self._information(seen, near)
        size = len(seen.points)
        low, high = interval(scores, self.resample_size, size)
        least, most = interval(information, self.resample_size, size)
        return Record(
            step=step,
            epoch=epoch,
            score=sum(scores) / len(scores),
            low=low,
            high=high,
            criterion=self.criterion.name,
            resamples=tuple(scores),
            resample_size=self.resample_size,
            pool_size=size,
            information=sum(information) / len(information),
            information_of=_INFORMATION[seen.outputs or "none"][1],
            information_low=least,
            information_high=most,
            information_resamples=tuple(information),
        )

    def _observe(
        self,
        model: nn.Module,
        tokens: Tokens,
        progress: bool = False,
        with_logits: bool | None = None,
    ) -> Observation:
        self._precision(model)
        whole = with_logits is None
        with_logits = self.head.has_logits if with_logits is None else with_logits
        batching = self._batching(model, with_logits)
        if whole:  # a pass without logits does not show what padding does to them
            self.padding = batching.padding
        ranks = self.ranks
        seen = ranks.together(
            lambda: observe(
                model,
                tokens.at(ranks.share(len(tokens))),
                self.embedder,
                batching,
                progress=progress and len(tokens) >= _LONG_POOL and ranks.rank == 0,
                with_logits=with_logits,
                on_smaller=self._take_smaller_batches,
            )
        )
        points = ranks.gathered(seen.points, len(tokens))
        if seen.logits is None:
            return Observation(points, None)
        return Observation(points, ranks.gathered(seen.logits, len(tokens)))

    def _batching(self, model: nn.Module, with_logits: bool) -> Batching:
        """How the pool is put through the model, found out by trying where it is not settled."""
        size = 1 if self._one_by_one and with_logits else self.batch_size
        batching = Batching(size, self.padding is not False, self.precision or "no")
        if self.padding is not None:
            return batching
        tokens = self._tokenized(model)
        shortest, *_, longest = _by_length(tokens)

        def alike(*places: int) -> bool:
            """Whether the first of these texts is seen in their batch as it is alone."""

            def seen(places: Sequence[int]) -> Observation:
                few = tokens.at(places)
                return observe(model, few, self.embedder, batching, with_logits=with_logits)

            alone = seen(places[:1])
            try:
                return _is_alike(seen(places), alone, model, batching.precision)
            except (RuntimeError, ValueError):
                return False

        ranks = self.ranks
        if ranks.of_first(ranks.together(lambda: alike(shortest, longest))):
            return batching
        logger.info("padding changes what the model makes of a text: one length a batch")
        if with_logits:
            takes = ranks.of_first(ranks.together(lambda: alike(shortest, shortest)))
            self._one_by_one = not takes
        return replace(batching, padding=False, size=1 if self._one_by_one else size)

    def _precision(self, model: nn.Module) -> Precision:
        if self.precision is None:
            self.precision = training_precision(model)
        return self.precision

    def _take_smaller_batches(self, size: int) -> None:
        logger.info("out of memory: the pool is embedded %d texts at a time from now on", size)
        self.batch_size = size

    def note(self, seen: Observation, step: int = 0) -> None:
        """Remember the neighbours in what was observed, for the information of later records."""
        if not torch.isfinite(seen.points).all():
            return
        self.neighborhoods.add(step, seen.points, seen.logits, seen.outputs)
        if step == 0 and not self.neighborhoods.refers_back:
            warnings.warn(
                f"sepstop: the untrained head already predicts the same {seen.outputs} for "
                "neighboring texts, so the pre-training reference is disabled: the information "
                "takes the neighbors of each evaluation alone, and memorized wrong labels may go "
                "undetected",
                RuntimeWarning,
                stacklevel=4,
            )

    def _check_same_pool(self) -> None:
        ranks, places = self.ranks, self.places
        first = ranks.of_first(places)
        if places != first:
            raise ValueError(
                f"expected the same pool on all {ranks.size} ranks; rank {ranks.rank} has {places} "
                f"and rank 0 has {first}"
            )

    def _find_outputs(self, model: nn.Module, labels: Sequence[Any] | None = None) -> None:
        """Whether the model gives logits, and what they are: once a run."""
        if self.head.outputs is None:
            width, asked = self._tried(model), self.head.asked
            found = self.ranks.together(lambda: outputs_of(model, width, labels, asked))
            self.head.find(width, self.ranks.of_first(found))
            self._check_criterion()
        elif self.head.follow(model):
            self._check_criterion()

    def _tried(self, model: nn.Module) -> int:
        """k of the model's ``(b, k)`` logits, tried on a short and a long text; 0 without any.

        Outputs whose width goes with the length of the text are of its tokens, and those that are
        the embeddings are no logits.

        Raises:
            ValueError: there are none, but the criterion or the user needs them, or the model is a
                sequence classifier.
        """
        tokens, ranks = self._tokenized(model), self.ranks
        shortest, *_, longest = _by_length(tokens)
        few, one = tokens.at([shortest, longest]), Batching(1, precision=self._precision(model))

        def seen(with_logits: bool) -> Observation:
            return ranks.together(
                lambda: observe(model, few, self.embedder, one, with_logits=with_logits)
            )

        try:
            points, logits, *_ = seen(with_logits=True)
        except Exception as error:  # no head, more inputs, ...
            if self.needs_logits or self.head.asked in ("classes", "labels"):
                raise
            if self.head.asked == "none" or not is_sequence_classifier(model):
                return 0  # nothing that embedding the pool needs
            seen(with_logits=False)  # may say more
            raise ValueError(
                f"{type(model).__name__} gives no logits for texts of the pool "
                f"({type(error).__name__}: {error}); to be decided by the embeddings alone, say "
                "outputs='none'"
            ) from error
        assert logits is not None
        are_points = logits.shape == points.shape and torch.allclose(
            logits, points.float(), equal_nan=True
        )
        return 0 if are_points else logits.shape[-1]

    def _check_criterion(self) -> None:
        """
        Raises:
            CriterionError: the criterion is for other outputs than the model's.
        """
        wanted: Outputs | None = getattr(self.criterion, "outputs", None)
        outputs = self.head.outputs
        if wanted is None or outputs is None or wanted == outputs:
            return
        raise CriterionError(
            f"the criterion {self.criterion.name!r} is for a model whose outputs are "
            f"{IN_WORDS[wanted]}, but they are {IN_WORDS[outputs]}: use "
            f"{_INFORMATION[outputs][0]!r}, or another on embeddings, as 'separability'; or name "
            f"the outputs: outputs={wanted!r} (--outputs)"
        )

    def _score(
        self,
        model: Any,
        seen: Observation,
        near: dict[str, Tensor | None],
        step: int,
    ) -> list[float]:
        """The score of each resample, all of them NaN if any point is not finite."""
        inputs: dict[str, Any] = {
            "model": model,
            "points": seen.points,
            "logits": seen.logits,
            "previous_logits": self._previous_logits,
            "corrupted_logits": seen.corrupted_logits,
            **near,
        }
        self._previous_logits = seen.logits
        given = {need: inputs[need] for need in self.needs}
        scores = self._on_resamples(self.criterion, given)
        is_first = "previous_logits" in given and given["previous_logits"] is None
        if not np.isfinite(scores).all() and not is_first:
            given = {"points": seen.points} | given
            warnings.warn(
                f"sepstop: {_why_no_score(self.criterion.name, given)} at step {step}; this "
                "evaluation has no score",
                RuntimeWarning,
                stacklevel=3,
            )
        return scores

    def _neighbors(self, seen: Observation, step: int) -> dict[str, Tensor | None]:
        """What `INPUTS` says of neighbours; None where points were not finite."""
        near = self.neighborhoods.until(step)
        if near is None:
            return {"neighbors": None, "neighbor_classes": None}
        near = near.to(seen.points.device)
        classes = seen.classes
        return {"neighbors": near, "neighbor_classes": None if classes is None else classes[near]}

    def _information(self, seen: Observation, near: dict[str, Tensor | None]) -> list[float]:
        """Of each resample; NaN where the model's outputs are not finite."""
        given = {"points": seen.points, "logits": seen.logits, **near}
        criterion: Criterion = build("criterion", _INFORMATION[seen.outputs or "none"][0], CRITERIA)
        return self._on_resamples(criterion, given)

    def _on_resamples(self, criterion: Criterion, given: dict[str, Any]) -> list[float]:
        """`score_resamples`, divided over the ranks."""
        ranks, count = self.ranks, len(self.resamples)
        part = ranks.together(
            lambda: score_resamples(criterion, given, self.resamples[ranks.share(count)])
        )
        return ranks.collected(part, count)

    def _tokenized(self, model: nn.Module, tokenizer: Any = None) -> Tokens:
        if self._tokens is None:
            tokens = tokenize(self.pool, model, self.tokenizer or tokenizer, self.max_length)
            check_tokens(tokens, self.pool, model)
            warn_of_columns(self.pool, model)
            self._tokens = tokens
        return self._tokens


def _by_length(tokens: Tokens) -> list[int]:
    """Places of the texts, the shortest first."""
    return sorted(range(len(tokens)), key=lambda place: len(tokens.ids[place]))


def _is_alike(
    batch: Observation, alone: Observation, model: nn.Module, precision: Precision
) -> bool:
    """Whether the first text of a batch is seen as it is alone, up to rounding."""
    half = precision != "no" or next(model.parameters()).dtype.itemsize < 4
    for one, other in zip(batch[:2], alone[:2], strict=True):
        if one is None or other is None:
            continue
        mine, its = one[0].cpu().double(), other[0].cpu().double()  # "mps" has no float64
        if (mine - its).norm() > (0.05 if half else 1e-3) * its.norm():
            return False
    return True


def _why_no_score(name: str, inputs: dict[str, Any]) -> str:
    for need, values in inputs.items():
        if values is None or isinstance(values, nn.Module):
            continue
        bad = int((~torch.isfinite(values).all(dim=-1)).sum())
        if bad:
            what = {"points": "embeddings"}.get(need, need.replace("_", " "))
            return f"{bad} of {len(values)} {what} are NaN or infinite"
    return f"{name} is not a finite number"
