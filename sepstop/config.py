"""The configuration of a run: how to measure the pool and how to decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final, Literal, get_args

from sepstop.types import Criterion, Decision, Outputs, Pooling, Series

Precision = Literal["no", "bf16", "fp16"]
"""Autocast of a forward pass, by accelerate's names."""

CriterionSpec = str | dict[str, Any] | Criterion
PoolingSpec = str | dict[str, Any] | Pooling
AnswersSpec = str | int | list[str] | list[list[int]]
PolicySpec = str | dict[str, Any] | Callable[[Series], Decision]

AUTO: Final = "auto"

_AT_LEAST_ONE = (
    "num_resamples",
    "max_length",
    "batch_size",
    "pool_size",
    "every_n_steps",
    "average_every_n_steps",
)
_MAY_BE_NONE = ("resample_size", "pool_size", "batch_size", "every_n_steps")


@dataclass(frozen=True, kw_only=True)
class SepStopConfig:
    """How to measure the pool and how to decide.

    `sepstop.SepStopCallback` takes these fields as keyword arguments, YAML files and the command
    line by name. A policy, a criterion or a pooling is the object itself, a known name,
    ``"module:attribute"``, or a mapping with a ``name`` and the object's parameters.

    Args:
        policy: when to stop: "patience", "plateau", "past_peak", "first_optimum", or a function of
            a `sepstop.types.Series` that returns a `sepstop.types.Decision`. "auto" is the policy
            that `sepstop.decide.policies.default_policy` gives for the score that decides.
        criterion: the score that decides, one of `sepstop.criteria.CRITERIA` or your own. "auto"
            is ``robust_mi`` for one class out of k, ``label_mi`` for labels that do not exclude
            each other, ``component_mi`` for models without either.
        extra_criteria: scores to record beside the one that decides, from the same forward passes.
            "auto" is as above. Those for other outputs are left out.
        pooling: "auto" (a SentenceTransformer's own pooling, "mean" for other models), "mean",
            "cls", "last", a mapping such as ``{"name": "mean", "layer": 6}``, or a function
            ``(model, input_ids, attention_mask) -> (b, D)``.
        num_resamples: number B of random subsets of the pool to score.
        resample_size: texts n in a resample. Default: half the pool, at most 1000. Scores depend
            on it: compare only runs with the same size.
        seed: seed of the pool's sample and of the resamples.
        tokenizer: a tokenizer, its folder or hub name. Default: the Trainer's, or the one saved
            with the model.
        text_column: the pool's column with the texts.
        pool_size: sample a larger pool down to this many texts. None takes all.
        max_length: truncate texts to this many tokens, or to the tokenizer's own limit.
        batch_size: texts in a forward pass. Default: as many as have 16384 tokens (2048 on a CPU),
            padding included. Halved for good when memory runs out.
        padding: False puts only texts of one length into a batch. Default: False where padding
            changes the model's results, as without a padding token.
        precision: "bf16" or "fp16" autocast for the pool's forward pass, or "no". Default: the
            precision of the training.
        outputs: "classes" (one class out of k), "labels" (yes or no for each) or "none" (a
            regression, a reward, no logits). "auto" finds out, see `sepstop.measure.outputs`.
        answers: what a causal language model may answer, where it has no head: the answers as
            strings or token ids, or a file with one a row (a table's column is "answer"). The pool
            has prompts then, each answer is a class, and its log-likelihood the logit. See
            `sepstop.measure.answers`. If the answers are unknown, a number such as 20: the 20 most
            likely first tokens are classes, and all other tokens are one more. See
            `sepstop.measure.first_tokens`.
        answer_end: text that training puts after an answer, such as the tokenizer's ``eos_token``.
            It is needed if an answer is the beginning of another.
        average: score and keep running averages of the trained weights, which are better than
            single checkpoints. False scores and keeps the checkpoints themselves.
        score_checkpoints: score the checkpoint beside its averages, by one more pass over the pool.
            The best of them is kept.
        average_every_n_steps: number of steps between updates of the averages.
        average_device: device of the averages, such as "cpu". Default: that of the weights.
        every_n_steps: minimum number of steps between scores. Default: every evaluation. Without
            evaluations, the number of steps between scores. Default: each epoch.
        max_overhead: largest share of the run's time for scoring, such as 0.1. Evaluations that
            would exceed it are not scored, except the first and the last. Default: no limit.
        load_best_model_at_end: load the best weights when training ends, for runs without
            evaluations. With evaluations, set Trainer's argument of the same name.
        continue_after_stop: continue a stopped run when it is resumed. The policy starts afresh.
            By default a stopped run stays stopped.
        on_error: "skip" a measurement or an extra criterion that fails, with a warning, or "raise".
        progress: show a progress bar for long pools.
        verbose: print a line for each score.

    Raises:
        ValueError: a value out of range, or an unknown choice.
    """

    policy: PolicySpec = AUTO
    criterion: CriterionSpec = AUTO
    extra_criteria: Sequence[CriterionSpec] = ("separability",)
    pooling: PoolingSpec = AUTO
    num_resamples: int = 20
    resample_size: int | None = None
    seed: int = 0
    tokenizer: Any = None
    text_column: str = "text"
    pool_size: int | None = 1000
    max_length: int = 256
    batch_size: int | None = None
    padding: bool | None = None
    precision: Precision | None = None
    outputs: Literal["auto", "classes", "labels", "none"] = AUTO
    answers: AnswersSpec | None = None
    answer_end: str = ""
    average: bool = True
    score_checkpoints: bool = False
    average_every_n_steps: int = 1
    average_device: str | None = None
    every_n_steps: int | None = None
    max_overhead: float | None = None
    load_best_model_at_end: bool = False
    continue_after_stop: bool = False
    on_error: Literal["skip", "raise"] = "skip"
    progress: bool = True
    verbose: bool = True

    def __post_init__(self) -> None:
        for name in (*_AT_LEAST_ONE, "resample_size", "seed"):
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise ValueError(f"expected a whole number as `{name}`, got {value!r}")
            if name in _AT_LEAST_ONE and value < 1:
                raise ValueError(f"expected `{name}` >= 1, got {value}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"expected `seed` from 0 to 2**63 - 1, got {self.seed}")
        share = self.max_overhead
        if share is not None and (
            not isinstance(share, Real) or isinstance(share, bool) or not 0 < share < 1
        ):
            raise ValueError(f"expected `max_overhead` between 0 and 1, got {share!r}")
        for name, known in (
            ("average", (True, False)),
            ("score_checkpoints", (True, False)),
            ("padding", (True, False, None)),
            ("precision", (*get_args(Precision), None)),
            ("outputs", (AUTO, *get_args(Outputs))),
            ("on_error", ("skip", "raise")),
        ):
            if getattr(self, name) not in known:
                shown = ", ".join(map(repr, known))
                raise ValueError(f"expected `{name}` among {shown}, got {getattr(self, name)!r}")
        if self.answers is not None and self.outputs not in (AUTO, "classes"):
            raise ValueError(f"answers are classes, but `outputs` is {self.outputs!r}")
        if not isinstance(self.answer_end, str):
            raise ValueError(f"expected a text as `answer_end`, got {self.answer_end!r}")
        if isinstance(self.extra_criteria, str) or not isinstance(self.extra_criteria, Sequence):
            raise ValueError(
                f"expected a list of criteria as `extra_criteria`, got {self.extra_criteria!r}"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SepStopConfig:
        """The configuration in ``values``; keys that are not fields are ignored.

        >>> SepStopConfig.of({"seed": 4, "pool": ["a", "b"]}) == SepStopConfig(seed=4)
        True
        """
        return cls(**{name: values[name] for name in cls.names() if name in values})

    @classmethod
    def names(cls) -> list[str]:
        """The names of the fields."""
        return [field.name for field in dataclasses.fields(cls)]
