"""Tokenization of the pool."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sepstop.measure.backbone import (
    is_cross_encoder,
    is_sentence_transformer,
    pretrained_backbone,
    unwrapped,
)
from sepstop.measure.pool import Pool
from sepstop.measure.prompts import Chat, prompt_text

DROP_RATE = 0.3
"""Share of a text's tokens that its corrupted copy lacks, see `drop_tokens`."""

_NO_LIMIT = 10**6  # tokenizers without a maximum length report a huge one

_Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts and the model's other inputs.

    Attributes:
        ids: ``(length,)`` int64 per text, on the CPU.
        types: ``(length,)`` int64 ``token_type_ids`` per text, which separate the two texts of a
            pair; None if all are 0 or the model takes none.
        pad_token_id, pad_type_id: ids to pad with; padding is masked.
        prompt_length: tokens of the prompt at the beginning of every text.
        are_prompts: texts that the model goes on from. They are padded on the left, so that what
            follows is next to them.
    """

    ids: Sequence[Tensor]
    types: Sequence[Tensor] | None = None
    pad_token_id: int = 0
    pad_type_id: int = 0
    prompt_length: int = 0
    are_prompts: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.ids)

    def at(self, indices: Sequence[int]) -> Tokens:
        """The texts at ``indices``, in that order."""
        types = None if self.types is None else [self.types[index] for index in indices]
        return replace(self, ids=[self.ids[index] for index in indices], types=types)

    def corrupted(self, rate: float, seed: int) -> Tokens:
        """The texts without a random share ``rate`` of their tokens, chosen as by `drop_tokens`."""
        masks = _kept(self.ids, rate, seed)
        for mask in masks:
            mask[: self.prompt_length] = True
        ids = [row[mask] for row, mask in zip(self.ids, masks, strict=True)]
        types = self.types
        if types is not None:
            types = [row[mask] for row, mask in zip(types, masks, strict=True)]
        return replace(self, ids=ids, types=types)


def drop_tokens(tokens: Sequence[Tensor], rate: float, seed: int) -> list[Tensor]:
    """Each text without a random share of its tokens.

    What frames the texts stays: the first and the last token of each; all that every text begins
    or ends with, such as special tokens or a prompt; and separators, which are tokens that every
    text ends with, wherever they are. The choice has its own random generator: the same texts
    always lose the same tokens.

    Args:
        tokens: ``(length,)`` token ids per text, on the CPU.
        rate: expected share of the other tokens to drop, from 0 to 1.
        seed: seed of the choice.

    Returns:
        The token ids that are left of each text.

    >>> drop_tokens([torch.tensor([2, 7, 3, 9, 3]), torch.tensor([2, 8, 3])], rate=1.0, seed=0)
    [tensor([2, 3, 3]), tensor([2, 3])]
    """
    masks = _kept(tokens, rate, seed)
    return [ids[mask] for ids, mask in zip(tokens, masks, strict=True)]


def _kept(tokens: Sequence[Tensor], rate: float, seed: int) -> list[Tensor]:
    """``(length,)`` bool per text: the tokens that `drop_tokens` keeps."""
    rows = [ids.tolist() for ids in tokens]
    begin = _common(rows)
    end = torch.tensor(_common([row[::-1] for row in rows]), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for ids in tokens:
        mask = torch.rand(len(ids), generator=generator) >= rate
        mask |= torch.isin(ids, end)
        mask[: len(begin)] = True
        mask[[0, -1]] = True
        masks.append(mask)
    return masks


def _common(rows: _Rows) -> list[int]:
    """What all rows begin with."""
    columns = zip(*rows, strict=False)
    return [first for first, *_ in takewhile(lambda column: len(set(column)) == 1, columns)]


def tokenize(
    pool: Pool,
    model: nn.Module | None,
    tokenizer: Any,
    max_length: int,
    as_prompts: bool = False,
) -> Tokens:
    """Token ids of the pool.

    Of a long text the beginning is kept, of a long prompt the end, and prompts get no closing
    special tokens. Chat messages are read as prompts. The default prompt of a SentenceTransformer
    is put before each text, as in its ``encode``. Token ids of a tokenized pool are truncated
    before their closing special tokens, as a tokenizer truncates.

    Args:
        pool: texts, or token ids, which are not tokenized again.
        model: the model that will read the tokens; None if it is unknown.
        tokenizer: a transformers tokenizer or processor; None loads the model's own.
        max_length: maximum number of tokens per text.
        as_prompts: the texts are prompts.

    Returns:
        `Tokens` in the order of the pool, on the CPU.

    Raises:
        ValueError: there is no tokenizer, a text has no tokens, or most texts get the same tokens.
    """
    body = None if model is None else unwrapped(model)
    prompt_length = 0
    rows: Any = pool.rows
    ids: _Rows
    types: _Rows | None
    if pool.is_tokenized and as_prompts:
        ids, types = [row[-max_length:] for row in rows], None
    elif pool.is_tokenized:
        ids, types = _truncate(pool, tokenizer, max_length)
    elif as_prompts or isinstance(pool.rows[0], Chat):
        tokenizer = resolve_tokenizer(tokenizer, body)
        ids, types = _encode_prompts(rows, tokenizer, max_length), None
    else:
        tokenizer = resolve_tokenizer(tokenizer, body)
        texts = [str(row) for row in pool.rows]
        if body is not None and is_sentence_transformer(body) and body.default_prompt_name:
            prompt = body.prompts[body.default_prompt_name]
            texts = [prompt + text for text in texts]
            prompt_length = _prompt_length(prompt, tokenizer)
        ids, types = _encode(texts, tokenizer, max_length)
    _check_rows(pool.rows, ids, max_length)
    if types is not None and (not _takes_types(body) or not any(map(any, types))):
        types = None
    return Tokens(
        ids=[torch.tensor(row, dtype=torch.long) for row in ids],
        types=None if types is None else [torch.tensor(row) for row in types],
        # Padding is masked, so any valid id does for a tokenizer without a padding token.
        pad_token_id=getattr(tokenizer, "pad_token_id", None) or 0,
        pad_type_id=getattr(tokenizer, "pad_token_type_id", None) or 0,
        prompt_length=prompt_length,
        are_prompts=as_prompts,
    )


def prompt_ids(prompt: str | Chat, text: str, tokenizer: Any) -> list[int]:
    """Token ids of a prompt, without the special tokens that close a text.

    Args:
        prompt: of the pool; a chat's text has all of its special tokens.
        text: from `sepstop.measure.prompts.prompt_text`, or with more at its end.
        tokenizer: a transformers tokenizer.
    """
    ((opening, ids),) = _open_ended([text], tokenizer, not isinstance(prompt, Chat))
    return [*opening, *ids]


def load_tokenizer(source: str | Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a folder or a hub repository.

    Args:
        source: the folder or the name of the repository.
        trust_remote_code: as in transformers' ``from_pretrained``.

    Raises:
        ValueError: there is no tokenizer, or one with special tokens only, which transformers
            makes up for a folder without a tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raise errors of many kinds
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"no tokenizer loads from {str(source)!r}: {why}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(f"no tokenizer loads from {str(source)!r}: it has special tokens only")
    return tokenizer


def resolve_tokenizer(tokenizer: Any, body: Any) -> Any:
    """The tokenizer for a pool of texts.

    Raises:
        ValueError: there is none, or the model does not read single texts.
    """
    if body is not None and is_cross_encoder(body):
        raise ValueError(
            "a CrossEncoder reads pairs of texts; expected a tokenized pool with input_ids (and "
            "token_type_ids), as in pairs.map(lambda row: model.tokenizer(row['query'], "
            "row['answer'], truncation=True))"
        )
    if body is not None and is_sentence_transformer(body) and body.transformers_model is None:
        own = getattr(body[0], "tokenizer", None)
        if not hasattr(own, "encode_batch"):
            raise ValueError(
                f"cannot tokenize the pool for a SentenceTransformer that begins with "
                f"{type(body[0]).__name__}; expected one that begins with a transformers model or "
                "a StaticEmbedding"
            )
        return own
    tokenizer = tokenizer or load_own_tokenizer(body)
    return getattr(tokenizer, "tokenizer", tokenizer)  # a processor has a tokenizer inside


def load_own_tokenizer(model: nn.Module | None) -> Any:
    """The tokenizer in the folder or repository that the model was loaded from.

    Raises:
        ValueError: there is none, or the model does not say where it was loaded from.
    """
    source = getattr(getattr(model, "config", None), "_name_or_path", "")
    try:
        if source:
            return load_tokenizer(source)
        why = "the model does not say where it was loaded from"
    except ValueError as error:
        why = str(error)
    raise ValueError(
        f"no tokenizer for the pool: {why}; pass processing_class= to the Trainer, tokenizer= "
        "(--tokenizer) to sepstop, or a pool that is already tokenized"
    )


def _encode(texts: list[str], tokenizer: Any, max_length: int) -> tuple[_Rows, _Rows | None]:
    """Token ids, and token types if the tokenizer returns them."""
    if hasattr(tokenizer, "encode_batch"):  # of a StaticEmbedding, which has no special tokens
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids[:max_length] for encoding in encodings], None
    limit = getattr(tokenizer, "model_max_length", _NO_LIMIT)
    with _same_settings(tokenizer):
        encoded = tokenizer(texts, truncation=True, max_length=min(max_length, limit))
    return encoded["input_ids"], encoded.get("token_type_ids")


@contextmanager
def _same_settings(tokenizer: Any) -> Iterator[None]:
    """Restore the truncation and padding of a fast tokenizer.

    It keeps those of its last call, and each checkpoint would save them in its tokenizer.json.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    truncation, padding = getattr(backend, "truncation", None), getattr(backend, "padding", None)
    try:
        yield
    finally:
        if hasattr(backend, "enable_truncation"):
            backend.no_truncation()
            backend.no_padding()
            if truncation is not None:
                backend.enable_truncation(**truncation)
            if padding is not None:
                backend.enable_padding(**padding)


def _encode_prompts(prompts: Sequence[Any], tokenizer: Any, max_length: int) -> _Rows:
    """Token ids of prompts; the first tokens of long ones are left out, but no special ones."""
    texts = [prompt_text(prompt, tokenizer) for prompt in prompts]
    limit = min(max_length, getattr(tokenizer, "model_max_length", _NO_LIMIT))
    return [
        [*opening, *ids[-max(1, limit - len(opening)) :]]
        for opening, ids in _open_ended(texts, tokenizer, not isinstance(prompts[0], Chat))
    ]


def _open_ended(
    texts: list[str], tokenizer: Any, with_opening: bool
) -> list[tuple[list[int], list[int]]]:
    """The special tokens that open each text, and the text's own; those that close it are left out.

    Args:
        with_opening: False if the texts have their special tokens already.
    """
    with _same_settings(tokenizer):
        bare = tokenizer(texts, add_special_tokens=False)["input_ids"]
        if not with_opening:
            return [([], ids) for ids in bare]
        whole = tokenizer(texts)["input_ids"]
    count = len(whole[0]) - len(bare[0])  # of opening and closing ones
    opening = next(
        number for number in range(count + 1) if whole[0][number:][: len(bare[0])] == bare[0]
    )
    return [(ids[:opening], own) for ids, own in zip(whole, bare, strict=True)]


def _prompt_length(prompt: str, tokenizer: Any) -> int:
    """Tokens of the prompt without a closing special token, as sentence-transformers counts."""
    with _same_settings(tokenizer):
        ids = tokenizer(prompt)["input_ids"]
    return len(ids) - int(bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _truncate(pool: Pool, tokenizer: Any, max_length: int) -> tuple[_Rows, _Rows | None]:
    """Token ids and types of a tokenized pool, truncated before the closing special tokens."""
    rows: Any = pool.rows
    closing = _num_closing(rows, getattr(tokenizer, "all_special_ids", None))
    head = max(max_length - closing, 0)

    def truncate(row: Sequence[int]) -> Sequence[int]:
        if len(row) <= max_length:
            return row
        return [*row[:head], *row[len(row) - (max_length - head) :]]

    types = pool.token_type_ids
    return (
        [truncate(row) for row in rows],
        None if types is None else [truncate(row) for row in types],
    )


def _num_closing(rows: _Rows, special_ids: Sequence[int] | None) -> int:
    """Number of special tokens that close every row; at most one if ``special_ids`` is None."""
    limit = 1 if special_ids is None else min(map(len, rows))
    count = 0
    while count < limit:
        last = {row[-1 - count] for row in rows}
        if len(last) > 1 or (special_ids is not None and not last <= set(special_ids)):
            break
        count += 1
    return count


def _takes_types(body: Any) -> bool:
    """True if the model takes ``token_type_ids``, or is unknown."""
    if body is None:
        return True
    return "token_type_ids" in inspect.signature(pretrained_backbone(body).forward).parameters


def _check_rows(rows: Sequence[Any], ids: _Rows, max_length: int) -> None:
    """Check that texts have tokens, and mostly different ones.

    Raises:
        ValueError: a text has no tokens, or fewer than half of the different texts are left
            different, as with a tokenizer without a vocabulary.
    """
    num_empty = sum(len(row) == 0 for row in ids)
    if num_empty:
        raise ValueError(f"{num_empty} texts of the pool have no tokens at all; drop them")
    num_texts, num_sequences = len(set(rows)), len({tuple(row) for row in ids})
    if num_sequences < num_texts / 2:
        raise ValueError(
            f"the {num_texts} different texts of the pool become only {num_sequences} different "
            "token sequences; check that this is the model's tokenizer and that "
            f"max_length={max_length} is enough"
        )
