"""Forward passes over the pool, with the batching and the precision of a run."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sepstop.config import AUTO, Precision, SepStopConfig
from sepstop.measure.answers import Ids, read_answers, tokenize_answers
from sepstop.measure.backbone import is_sharded, unwrapped
from sepstop.measure.embedding import (
    Batching,
    Head,
    Observation,
    classify,
    observe,
    training_precision,
)
from sepstop.measure.first_tokens import first_tokens, group
from sepstop.measure.language_model import check_causal
from sepstop.measure.pool import Pool
from sepstop.measure.pooling import POOLINGS, LastTokenPooling
from sepstop.measure.token_checks import check_tokens
from sepstop.measure.tokens import (
    DROP_RATE,
    Tokens,
    load_tokenizer,
    resolve_tokenizer,
    tokenize,
)
from sepstop.types import Pooling
from sepstop.utils.distributed import Ranks
from sepstop.utils.registry import build, describe

logger = logging.getLogger(__name__)

_LONG_POOL = 2000  # texts from which on a progress bar is worth its line
# Settings that embeddings depend on.
_OF_EMBEDDINGS = ("pool", "pool_size", "pooling", "max_length")


def embedding_key(settings: Mapping[str, Any]) -> str:
    """What embeddings, and so neighbors, depend on besides the model, as JSON.

    Args:
        settings: as `sepstop.measure.monitor.Monitor.settings`, in any order of keys.

    Returns:
        The key; empty if the settings lack one of these.
    """
    if not all(name in settings for name in _OF_EMBEDDINGS):
        return ""
    return json.dumps({name: settings[name] for name in _OF_EMBEDDINGS}, sort_keys=True)


class Observer:
    """Runs a model over the pool. Tokens, padding and precision are settled once a run.

    Args:
        pool: the texts.
        config: its pooling, tokenizer, max_length, batch_size, padding, precision, seed (of dropped
            tokens) and progress count.
        distributed: divide the texts over the processes of torch.distributed, which all make the
            same calls and get the same observation.

    Attributes:
        pooling: computes the points of a batch.
        answers: strings or token ids; the number of first tokens that stand for unknown ones; None
            for a pool that is not of prompts.
        padding: True to pad texts of a batch to one length; None until the first model.
        precision: autocast of the forward pass; None until the first model.
        batch_size: texts in a forward pass; halved when memory runs out. None for as many as have
            `batch_tokens` tokens.
        batch_tokens: tokens in a forward pass; halved when memory runs out. None for as many as
            suit the device.
        tokenizer: the configuration's; None if it names none.
        progress: True to show a progress bar for long pools.

    Raises:
        ValueError: an unknown pooling, or a tokenizer that cannot be loaded.
    """

    def __init__(self, pool: Pool, config: SepStopConfig, distributed: bool = False) -> None:
        self.pool, self.config, self.distributed = pool, config, distributed
        self.pooling: Pooling = build("pooling", config.pooling, POOLINGS)
        self.answers = None if config.answers is None else read_answers(config.answers)
        if self.answers is not None and config.pooling == AUTO:
            self.pooling = LastTokenPooling()
        named = isinstance(config.tokenizer, (str, Path))
        self.tokenizer = load_tokenizer(config.tokenizer) if named else config.tokenizer
        self.batch_size: int | None = config.batch_size
        self.batch_tokens: int | None = None
        self.progress = config.progress
        self.reset()

    def reset(self) -> None:
        """Forget the tokens, padding and precision of an earlier model."""
        self.padding, self.precision = self.config.padding, self.config.precision
        self._tokens: Tokens | None = None
        self._corrupted: Tokens | None = None
        self._head: Head = classify
        self._one_by_one = False  # a head that takes no batches

    @property
    def ranks(self) -> Ranks:
        """The processes that divide the work."""
        return Ranks.of_run() if self.distributed else Ranks()

    @property
    def embedding_key(self) -> str:
        """`embedding_key` of this observer's settings."""
        return embedding_key(
            {
                "pool": self.pool.fingerprint,
                "pool_size": len(self.pool),
                "pooling": describe(self.pooling, POOLINGS),
                "max_length": self.config.max_length,
            }
        )

    @property
    def token_fingerprint(self) -> str:
        """SHA-256 of the pool's token ids; empty before a tokenizer is known."""
        if self._tokens is None and self.tokenizer is None and not self.pool.is_tokenized:
            return ""
        tokens = self._tokens or self._tokenized(None, self.tokenizer)
        digest = hashlib.sha256()
        for ids in tokens:
            digest.update(ids.numpy().tobytes() + b";")
        return digest.hexdigest()

    def tokens(self, model: nn.Module, tokenizer: Any = None) -> Tokens:
        """The pool's tokens, checked against the first model.

        Args:
            model: reads the tokens.
            tokenizer: used if the configuration names none.

        Raises:
            ValueError: no tokenizer, or a text that the model cannot read.
        """
        if self._tokens is None:
            tokenizer = self.tokenizer or tokenizer
            tokens, more = self._tokenized(model, tokenizer), 0
            if self.answers is not None:
                check_causal(model, "answers=")
                head = self._head_of(self.answers, model, tokenizer)
                self._head, more = head, getattr(head, "longest", 0)
            check_tokens(tokens, self.pool, model, more)
            self._tokens = tokens
        return self._tokens

    def _tokenized(self, model: nn.Module | None, tokenizer: Any) -> Tokens:
        limit = self.config.max_length
        return tokenize(self.pool, model, tokenizer, limit, self.answers is not None)

    def _head_of(
        self, answers: list[str] | list[Ids] | int, model: nn.Module, tokenizer: Any
    ) -> Head:
        """What computes the logits of a model that answers in words."""
        if isinstance(answers, int):
            return first_tokens
        rows: Any = () if self.pool.is_tokenized else self.pool.rows
        if isinstance(answers[0], str):
            tokenizer = resolve_tokenizer(tokenizer, unwrapped(model))
        return tokenize_answers(answers, self.config.answer_end, rows, tokenizer)

    def check_same_pool(self) -> None:
        """Compare the pools of all ranks.

        Raises:
            ValueError: they differ.
        """
        ranks, key = self.ranks, self.embedding_key
        first = ranks.of_first(key)
        if key != first:
            raise ValueError(
                f"expected the same pool on all {ranks.size} ranks; rank {ranks.rank} has {key} "
                f"and rank 0 has {first}"
            )

    def observe_pool(
        self,
        model: nn.Module,
        with_logits: bool,
        *,
        with_corrupted: bool = False,
        with_losses: bool = False,
        settle: bool = True,
    ) -> Observation:
        """What criteria need of the pool, from one forward pass.

        Args:
            with_corrupted: the logits of the corrupted texts as well, from a second pass.
            with_losses: the losses of a language model as well.
            model, with_logits, settle: as in `observe`.

        Raises:
            ValueError: as `observe`.
        """
        tokens, options = self.tokens(model), {"progress": self.progress, "settle": settle}
        seen = self.observe(model, tokens, with_logits, with_losses=with_losses, **options)
        if with_corrupted:
            if self._corrupted is None:
                self._corrupted = tokens.corrupted(DROP_RATE, self.config.seed)
            corrupted = self.observe(model, self._corrupted, with_logits, **options)
            seen = seen._replace(corrupted_logits=corrupted.logits)
        return self._grouped(seen)

    def _grouped(self, seen: Observation) -> Observation:
        """The observation with groups of first tokens as classes, if answers are unknown."""
        return group(seen, self.answers) if isinstance(self.answers, int) else seen

    def observe(
        self,
        model: nn.Module,
        tokens: Tokens,
        with_logits: bool,
        *,
        with_losses: bool = False,
        progress: bool = False,
        settle: bool = True,
    ) -> Observation:
        """One forward pass over ``tokens``, divided over the ranks.

        Args:
            model: on its device; left as it was.
            tokens: N texts.
            with_logits: compute the logits as well.
            with_losses: compute the losses of a language model as well.
            progress: show a progress bar if N is large.
            settle: keep what is found out about padding. A pass without logits does not show what
                padding does to them.

        Returns:
            ``(N, D)`` points and, with logits, ``(N, k)`` float32, on the model's device.

        Raises:
            ValueError: as `sepstop.measure.embedding.observe`.
        """
        self._settle_precision(model)
        batching = self._batching(model, with_logits)
        if settle:
            self.padding = batching.padding
        ranks = self.ranks
        seen = ranks.together(
            lambda: observe(
                model,
                tokens.at(ranks.share(len(tokens))),
                self.pooling,
                batching,
                head=self._head,
                progress=progress and len(tokens) >= _LONG_POOL and ranks.rank == 0,
                with_logits=with_logits,
                with_losses=with_losses,
                on_smaller_batch=self._take_smaller_batches,
            )
        )

        def gathered(part: Tensor | None) -> Any:
            return None if part is None else ranks.gathered(part, len(tokens))

        return Observation(
            gathered(seen.points),
            gathered(seen.logits),
            token_losses=gathered(seen.token_losses),
        )

    def try_texts(self, model: nn.Module, with_logits: bool) -> Observation:
        """The observation of the shortest and the longest text, each in a pass of its own."""
        tokens = self.tokens(model)
        shortest, *_, longest = _by_length(tokens)
        batching = Batching(1, precision=self._settle_precision(model))
        seen = self.ranks.together(
            lambda: observe(
                model,
                tokens.at([shortest, longest]),
                self.pooling,
                batching,
                with_logits=with_logits,
                head=self._head,
            )
        )
        return self._grouped(seen)

    def longest_texts(self, model: nn.Module) -> Tokens:
        """The tokens of the two longest texts."""
        tokens = self.tokens(model)
        return tokens.at(_by_length(tokens)[-2:])

    def _settle_precision(self, model: nn.Module) -> Precision:
        if self.precision is None:
            self.precision = training_precision(model)
        return self.precision

    def _batching(self, model: nn.Module, with_logits: bool) -> Batching:
        """The batching of the pool. If padding is not settled, a few texts are tried."""
        size = 1 if self._one_by_one and with_logits else self.batch_size
        padding, precision = self.padding is not False, self.precision or "no"
        batching = Batching(size, self.batch_tokens, padding, precision)
        if size is None and self.ranks.size > 1 and is_sharded(model):
            # All ranks call a divided model equally often, whatever the lengths of their texts.
            longest = max(len(ids) for ids in self.tokens(model).ids)
            size = batching.on(next(model.parameters()).device).texts(longest)
            batching = replace(batching, size=size)
        if self.padding is not None:
            return batching
        tokens = self.tokens(model)
        shortest, *_, longest = _by_length(tokens)

        def is_alike(*indices: int) -> bool:
            """True if the first of these texts has the same results in a batch as alone."""

            def seen(indices: Sequence[int]) -> Observation:
                few = tokens.at(indices)
                found = observe(
                    model, few, self.pooling, batching, with_logits=with_logits, head=self._head
                )
                if not isinstance(self.answers, int) or found.logits is None:
                    return found
                # Ids of tokens of almost the same probability may change places.
                return found._replace(logits=found.logits.chunk(2, dim=-1)[0])

            alone = seen(indices[:1])
            try:
                return _is_close(seen(indices), alone, model, batching.precision)
            except (RuntimeError, ValueError):
                return False

        ranks = self.ranks
        if ranks.of_first(ranks.together(lambda: is_alike(shortest, longest))):
            return batching
        logger.info("padding changes the model's results: texts of one length share a batch")
        if with_logits:
            takes_batches = ranks.of_first(ranks.together(lambda: is_alike(shortest, shortest)))
            self._one_by_one = not takes_batches
        return replace(batching, padding=False, size=1 if self._one_by_one else batching.size)

    def _take_smaller_batches(self, smaller: Batching) -> None:
        what = f"{smaller.size} texts" if smaller.size else f"{smaller.tokens} tokens"
        logger.info("out of memory: %s in a forward pass from now on", what)
        self.batch_size, self.batch_tokens = smaller.size, smaller.tokens


def _by_length(tokens: Tokens) -> list[int]:
    """Indices of the texts, the shortest first."""
    return sorted(range(len(tokens)), key=lambda index: len(tokens.ids[index]))


def _is_close(
    batch: Observation, alone: Observation, model: nn.Module, precision: Precision
) -> bool:
    """True if the first text of a batch has the results that it has alone, up to rounding."""
    half = precision != "no" or next(model.parameters()).dtype.itemsize < 4
    for one, other in zip(batch[:2], alone[:2], strict=True):
        if one is None or other is None:
            continue
        mine, its = one[0].cpu().double(), other[0].cpu().double()  # "mps" has no float64
        if (mine - its).norm() > (0.05 if half else 1e-3) * its.norm():
            return False
    return True
