"""Log-likelihoods of known answers to prompts: the logits of a model that answers in words."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sepstop.measure.backbone import unwrapped
from sepstop.measure.first_tokens import MOST_LIKELY
from sepstop.measure.language_model import last_log_probabilities, options_for_last
from sepstop.measure.prompts import Chat, prompt_text
from sepstop.measure.tokens import prompt_ids
from sepstop.utils.tables import is_file, open_table, text_of

_ENOUGH_PROMPTS = 8  # whose ends are tried
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """Answers that exclude each other, as the model's tokens.

    An answer is scored up to the first token that tells it from all others. Where the first tokens
    of the answers differ, one forward pass over the prompts is enough. Otherwise the beginnings
    that several answers share are read after the prompts, with the prompts' key-value cache, or
    with the prompts once more if the model has no cache.

    Attributes:
        tokens: of each answer, up to the token that tells it apart, ``(k,)``.
        shared: beginnings of at least one token that are to be read after the prompt; none is the
            beginning of another.
    """

    tokens: tuple[Ids, ...]
    shared: tuple[Ids, ...]

    @classmethod
    def of(cls, names: Sequence[str], tokens: Sequence[Ids]) -> Answers:
        """The answers with these tokens.

        Args:
            names: of the answers, for messages, ``(k,)``.
            tokens: of each answer, ``(k,)``.

        Raises:
            ValueError: fewer than two answers, an answer without a token, two answers of the same
                tokens, or an answer that is the beginning of another.

        >>> Answers.of(["red", "red hot", "blue"], [(5, 1), (5, 7, 8), (6,)]).tokens
        ((5, 1), (5, 7), (6,))
        """
        if len(tokens) < 2:
            raise ValueError(f"expected at least 2 answers, got {len(tokens)}")
        for name, ids in zip(names, tokens, strict=True):
            if not ids:
                raise ValueError(f"the answer {name!r} has no tokens")
        for i, ids in enumerate(tokens):
            for j, other in enumerate(tokens):
                if i != j and other[: len(ids)] == ids:
                    raise ValueError(_not_told_apart(names[i], names[j], ids == other))
        told = tuple(_until_told_apart(ids, tokens) for ids in tokens)
        read = {ids[:-1] for ids in told if len(ids) > 1}
        longest = [ids for ids in read if not any(_begins(ids, other) for other in read)]
        return cls(told, tuple(sorted(longest)))

    @property
    def longest(self) -> int:
        """Tokens that are read after a prompt, at most."""
        return max(map(len, self.shared), default=0)

    @property
    def keeps_cache(self) -> bool:
        """True if more is read after the prompts."""
        return bool(self.shared)

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **inputs: Any
    ) -> Tensor:
        """Log-likelihood of each answer after each prompt, which serve as logits.

        Their softmax is the probability of each answer given that it is one of them; `mass` is the
        probability of this.

        Logits over the vocabulary are made at the last token of a prompt, and at the tokens of a
        shared beginning, for a batch of prompts at a time.

        Args:
            model: a causal language model; may be wrapped.
            input_ids: ``(b, L)`` int64 token ids of the prompts, left-padded.
            attention_mask: ``(b, L)`` int64: 1 for tokens, 0 for padding.
            **inputs: ``position_ids``, if the model takes them.

        Returns:
            ``(b, k)`` float32 on the model's device.

        Raises:
            ValueError: the model returns no logits over the vocabulary.
        """
        body = unwrapped(model)  # DDP's own forward waits for the other ranks, to sync buffers
        options: dict[str, Any] = {"use_cache": self.keeps_cache, **inputs}
        output = body(
            input_ids=input_ids,
            attention_mask=attention_mask,
            **options_for_last(body, 1),
            **options,
        )
        first = last_log_probabilities(output, 1)[:, -1]  # (b, V)
        scores = torch.stack([first[:, ids[0]] for ids in self.tokens], dim=1)  # (b, k)
        for beginning in self.shared:
            past = getattr(output, "past_key_values", None)
            known = _after(body, beginning, past, input_ids, attention_mask, inputs)
            for place, ids in enumerate(self.tokens):
                for at in range(1, len(ids)):
                    # A token counts where its beginning is read first.
                    if ids[:at] == beginning[:at] and self._reader(ids[:at]) == beginning:
                        scores[:, place] += known[:, at - 1, ids[at]]
        return scores

    def _reader(self, ids: Ids) -> Ids:
        """The first of the shared beginnings that begins with ``ids``."""
        return next(one for one in self.shared if one[: len(ids)] == ids)


def mass(logits: Tensor) -> float:
    """Mean probability that a prompt is answered by one of the answers.

    Args:
        logits: ``(N, k)`` log-likelihoods, from `Answers`.
    """
    return float(logits.logsumexp(dim=-1).exp().mean())


def read_answers(answers: Any) -> list[str] | list[Ids] | int:
    """The answers that a user gave.

    Args:
        answers: strings, token ids of each, or the path of a file with one answer a row: .txt, or a
            table with the column "answer". If they are unknown, the number of first tokens that
            stand for them, see `sepstop.measure.first_tokens`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: none of these, an empty row, or a number out of range.
    """
    if isinstance(answers, str) and answers.isdecimal() and not is_file(Path(answers)):
        answers = int(answers)  # on the command line
    if type(answers) is int:
        if not 1 <= answers <= MOST_LIKELY:
            raise ValueError(f"expected a number of answers from 1 to {MOST_LIKELY}, got {answers}")
        return answers
    if isinstance(answers, (str, Path)):
        if not is_file(Path(answers)):
            raise FileNotFoundError(f"no file with answers at {answers!s:.200}")
        table = open_table(answers, "answers")
        columns = () if table.columns is None else ("answer",)
        table.require(*columns)
        texts = [
            text_of(cell, row, table.name) for row, (cell, *_) in enumerate(table.rows(*columns))
        ]
        answers = [text for text in texts if text is not None]
    if not isinstance(answers, Sequence):
        raise ValueError(
            f"expected a list of answers, or their number, got {type(answers).__name__}"
        )
    if all(isinstance(answer, str) for answer in answers):
        return [str(answer) for answer in answers]
    if all(isinstance(answer, Sequence) and not isinstance(answer, str) for answer in answers):
        ids = [tuple(answer) for answer in answers]
        if all(type(token) is int and token >= 0 for one in ids for token in one):
            return ids
    raise ValueError("expected answers that are all strings, or all lists of token ids")


def tokenize_answers(
    answers: Sequence[str] | Sequence[Ids],
    end: str,
    prompts: Sequence[str | Chat],
    tokenizer: Any,
) -> Answers:
    """The answers as the model's tokens after these prompts.

    Args:
        answers: from `read_answers`.
        end: text after each answer, which is scored where it tells answers apart.
        prompts: texts or chats of the pool; empty for prompts that are token ids.
        tokenizer: of the model.

    Raises:
        ValueError: as `Answers.of`; or an answer has other tokens after other prompts, or becomes
            one token with the end of a prompt.
    """
    if not answers or not isinstance(answers[0], str):
        ids = [tuple(map(int, one)) for one in answers]
        return Answers.of([str(one) for one in ids], ids)
    names = [str(answer) for answer in answers]
    tried = [(prompt, prompt_text(prompt, tokenizer)) for prompt in prompts[:_ENOUGH_PROMPTS]]
    tokens = []
    for name in names:
        found = {_continuation(prompt, text, name + end, tokenizer) for prompt, text in tried} or {
            tuple(tokenizer(name + end, add_special_tokens=False)["input_ids"])
        }
        if len(found) > 1:
            raise ValueError(
                f"the answer {name!r} has other tokens after one prompt of the pool than after "
                "another; let all prompts end alike, for instance with a line break"
            )
        tokens.append(found.pop())
    return Answers.of(names, tokens)


def _continuation(prompt: str | Chat, text: str, answer: str, tokenizer: Any) -> Ids:
    """The tokens that an answer adds to a prompt."""
    before = prompt_ids(prompt, text, tokenizer)
    after = prompt_ids(prompt, text + answer, tokenizer)
    if after[: len(before)] != before:
        raise ValueError(
            f"the end of the prompt {text[-20:]!r} and the answer {answer!r} share a token; move "
            "the white space between them to the beginning of the answers, as in ' yes'"
        )
    return tuple(after[len(before) :])


def _not_told_apart(name: str, other: str, is_same: bool) -> str:
    if is_same:
        return f"the answers {name!r} and {other!r} have the same tokens"
    return (
        f"the answer {name!r} is the beginning of {other!r}, so it is never less likely; set "
        "answer_end to what training writes after an answer, such as the tokenizer's eos_token"
    )


def _until_told_apart(ids: Ids, others: Sequence[Ids]) -> Ids:
    """The shortest beginning of ``ids`` that no other answer has."""
    for length in range(1, len(ids) + 1):
        if sum(other[:length] == ids[:length] for other in others) == 1:
            return ids[:length]
    return ids


def _begins(ids: Ids, other: Ids) -> bool:
    return len(ids) < len(other) and other[: len(ids)] == ids


def _after(
    body: Any,
    beginning: Ids,
    past: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    inputs: Mapping[str, Any],
) -> Tensor:
    """Log-probabilities of the tokens after each token of a beginning that follows the prompts.

    Args:
        past: key-value cache of the prompts; None without one.

    Returns:
        ``(b, m, V)`` float32.
    """
    count = len(beginning)
    options: dict[str, Any] = {"use_cache": past is not None}
    ids = torch.tensor(beginning, device=input_ids.device).repeat(len(input_ids), 1)
    mask = torch.cat([attention_mask, torch.ones_like(ids)], dim=1)
    if past is None:
        ids = torch.cat([input_ids, ids], dim=1)
    else:
        options["past_key_values"] = copy.deepcopy(past)  # the pass adds to it
    if "position_ids" in inputs:
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        options["position_ids"] = places[:, -ids.shape[1] :]
    output = body(input_ids=ids, attention_mask=mask, **options_for_last(body, count), **options)
    return last_log_probabilities(output, count)
