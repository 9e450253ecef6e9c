"""A language model to record, which learns to answer prompts with the names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sepstop.bench.learner import Learner, Split, as_tensors, prepare
from sepstop.bench.rows import with_noise
from sepstop.bench.run_settings import RunSettings
from sepstop.measure.answers import Answers, tokenize_answers
from sepstop.measure.embedding import Batching, Observation, observe, padded
from sepstop.measure.first_tokens import first_tokens
from sepstop.measure.pooling import POOLINGS
from sepstop.measure.tokens import DROP_RATE, Tokens, prompt_ids
from sepstop.measure.untouched import untouched
from sepstop.types import Pooling
from sepstop.utils.registry import build

_GENERATED = 40
"""Test prompts whose answers are generated at each evaluation."""


@dataclass(frozen=True)
class _AnswersAndFirst:
    """Log-likelihoods of the answers, then what the model says first, from one forward pass."""

    answers: Answers

    @property
    def keeps_cache(self) -> bool:
        return self.answers.keeps_cache

    def __call__(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **inputs: Any
    ) -> Tensor:
        parts = [
            head(model, input_ids, attention_mask, **inputs)
            for head in (self.answers, first_tokens)
        ]
        return torch.cat(parts, dim=-1)


class Answerer(Learner):
    """A causal language model in training on prompts and answers.

    Args:
        model: the language model, adapters included.
        pooling: computes the points.
        answers: one for each class, with the log-likelihoods as logits.
        completions: ``(length,)`` int64 token ids of each class's answer and its end, ``(k,)``.
        pad_token_id: for batches.
    """

    def __init__(
        self,
        model: nn.Module,
        pooling: Pooling,
        answers: Answers,
        completions: Sequence[Tensor],
        pad_token_id: int,
    ) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling
        self.head, self.completions = _AnswersAndFirst(answers), list(completions)
        self.pad_token_id = pad_token_id

    def loss(self, split: Split, rows: Tensor) -> Tensor:
        """Mean cross-entropy of the answers' tokens; see `Learner.loss`."""
        answers = [self.completions[split.labels["train"][int(row)]] for row in rows]
        prompts = [split.tokens["train"].ids[int(row)] for row in rows]
        batch = [torch.cat(pair) for pair in zip(prompts, answers, strict=True)]
        input_ids, mask, inputs = self._padded(batch)
        kept = max(map(len, answers))
        logits = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            logits_to_keep=kept + 1,
            use_cache=False,
            **inputs,
        ).logits[:, :-1]  # (b, kept, V)
        is_answer = torch.stack(
            [torch.arange(kept) >= kept - len(answer) for answer in answers]
        ).to(self.device)
        wanted = input_ids[:, -kept:].masked_fill(~is_answer, -100)
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())

    def observe(self, tokens: Tokens) -> Observation:
        """See `Learner.observe`; after the classes come the columns of `first_tokens`."""
        return observe(
            self.model, tokens, self.pooling, Batching(), with_logits=True, head=self.head
        )

    def more_arrays(self, split: Split, seen: dict[str, Observation]) -> dict[str, Any]:
        """What the model says first, and ``te_gen``, the share of generated answers that are right.

        ``pool_f`` and ``pool_g`` are `first_tokens` of the pool and of its corrupted texts.
        """
        first = {
            key: seen[part].logits[:, split.classes :].float().cpu().numpy()  # type: ignore[index]
            for key, part in (("pool_f", "pool"), ("pool_g", "corrupted"))
        }
        return first | {"te_gen": self._generated_accuracy(split)}

    def _generated_accuracy(self, split: Split) -> float:
        """Share of the first test prompts that the model answers right, word by word."""
        prompts, wanted = split.tokens["test"].ids[:_GENERATED], split.labels["test"][:_GENERATED]
        input_ids, mask, _ = self._padded(prompts)
        with untouched(self.model):
            said = self.model.generate(  # type: ignore[operator]
                input_ids=input_ids,
                attention_mask=mask,
                max_new_tokens=max(map(len, self.completions)),
                do_sample=False,
                pad_token_id=self.pad_token_id,
            )[:, input_ids.shape[1] :]
        answers = [self.completions[label] for label in wanted]
        right = [
            said[i, : len(answer)].tolist() == answer.tolist() for i, answer in enumerate(answers)
        ]
        return float(np.mean(right))

    def _padded(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As `sepstop.measure.embedding.padded`, on the left."""
        return padded(Tokens(rows, pad_token_id=self.pad_token_id, are_prompts=True), self.model)


def answerer_and_split(
    rows: dict[str, tuple[list[str], NDArray[np.int64]]],
    names: Sequence[str],
    settings: RunSettings,
    rng: np.random.Generator,
) -> tuple[Answerer, Split]:
    """The model and the data at the start of a run.

    Args:
        rows: from `sepstop.bench.rows.split_rows`.
        names: of the classes, in the order of their numbers. An answer is a name after a space,
            with spaces for underscores.

    Raises:
        ValueError: as `sepstop.measure.answers.tokenize_answers`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    end = tokenizer.eos_token or ""
    prompts = {part: _prompts(texts, settings, tokenizer) for part, (texts, _) in rows.items()}
    answers = [" " + name.replace("_", " ") for name in names]
    tokens = {part: _tokens(texts, tokenizer) for part, texts in prompts.items()}
    tokens["corrupted"] = tokens["pool"].corrupted(DROP_RATE, settings.seed)
    labels = {part: y for part, (_, y) in rows.items()}
    labels["train"] = with_noise(labels["train"], len(names), settings, rng)
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    first = prompts["pool"][0]
    start = len(tokens["pool"].ids[0])
    learner = Answerer(
        prepare(model, settings),
        build("pooling", settings.pooling, POOLINGS),
        tokenize_answers(answers, end, prompts["pool"], tokenizer),
        as_tensors([prompt_ids(first, first + one + end, tokenizer)[start:] for one in answers]),
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
    return learner, Split(tokens, labels, len(names))


def _prompts(texts: Sequence[str], settings: RunSettings, tokenizer: Any) -> list[str]:
    """The prompt of each text, of which the first ``settings.max_length`` tokens are kept."""
    options = {"add_special_tokens": False, "return_offsets_mapping": True}
    places = tokenizer(list(texts), **options)["offset_mapping"]
    ends = [ends[: settings.max_length][-1][1] for ends in places]
    cut = [text[:end] for text, end in zip(texts, ends, strict=True)]
    return [settings.prompt.replace("{text}", text) for text in cut]


def _tokens(prompts: Sequence[str], tokenizer: Any) -> Tokens:
    ids = as_tensors([prompt_ids(prompt, prompt, tokenizer) for prompt in prompts])
    return Tokens(ids, are_prompts=True)
