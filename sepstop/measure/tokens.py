"""The pool as a model reads it, checked before a model does."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sepstop.measure.backbone import (
    inputs_of,
    is_cross_encoder,
    is_sentence_transformer,
    pretrained,
    text_config,
    unwrapped,
)
from sepstop.measure.pool import Pool

DROPPED = 0.3
"""Share of a text's tokens that its corrupted copy lacks."""

_NO_LIMIT = 10**6  # tokenizers without a maximum length report a huge one
_POSITIONS = {"position_embeddings", "position_embedding", "embed_positions", "wpe"}
"""What transformers calls its tables of absolute positions."""


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts, with what else a model needs to read them.

    Attributes:
        ids: ``(length,)`` int64 each, on the CPU.
        types: ``token_type_ids`` likewise, which tell the two texts of a pair apart; None where
            all are 0 or the model takes none.
        pad_token_id, pad_type_id: valid ids to pad with; padding is masked.
        prompt_length: tokens of the prompt that every text begins with.
    """

    ids: Sequence[Tensor]
    types: Sequence[Tensor] | None = None
    pad_token_id: int = 0
    pad_type_id: int = 0
    prompt_length: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.ids)

    def at(self, places: Sequence[int]) -> Tokens:
        """The texts at these places, in this order."""
        types = None if self.types is None else [self.types[place] for place in places]
        return replace(self, ids=[self.ids[place] for place in places], types=types)

    def corrupted(self, share: float, seed: int) -> Tokens:
        """Each text without a random ``share`` of its tokens, as `drop_tokens` chooses them."""
        kept = drop_tokens([torch.arange(len(ids)) for ids in self.ids], share, seed)
        ids = [ids[places] for ids, places in zip(self.ids, kept, strict=True)]
        types = self.types
        if types is not None:
            types = [row[places] for row, places in zip(types, kept, strict=True)]
        return replace(self, ids=ids, types=types)


def drop_tokens(tokens: Sequence[Tensor], share: float, seed: int) -> list[Tensor]:
    """Each text without a random ``share`` of its tokens; its first and last always stay.

    Drawn from its own generator, so that the same texts lose the same tokens every time.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for ids in tokens:
        keep = torch.rand(len(ids), generator=generator) >= share
        keep[[0, -1]] = True
        kept.append(ids[keep])
    return kept


def tokenize(pool: Pool, model: nn.Module | None, tokenizer: Any, max_length: int) -> Tokens:
    """The pool's token ids, at most ``max_length`` a text.

    A SentenceTransformer's default prompt is put before each text, as its ``encode`` does. Token
    ids that are too long are cut before their closing special tokens, as a tokenizer cuts.

    Args:
        pool: texts, or token ids, which are taken as they are.
        model: what will read them; None tokenizes without knowing it.
        tokenizer: None takes the model's own.

    Raises:
        ValueError: no tokenizer, texts without tokens, or a tokenizer that does not tell the texts
            apart.
    """
    body = None if model is None else unwrapped(model)
    prompt_length = 0
    if pool.is_tokenized:
        ids, types = _cut(pool, tokenizer, max_length)
    else:
        tokenizer = _fit(tokenizer, body)
        texts = [str(row) for row in pool.rows]
        if body is not None and is_sentence_transformer(body) and body.default_prompt_name:
            prompt = body.prompts[body.default_prompt_name]
            texts = [prompt + text for text in texts]
            prompt_length = _prompt_length(prompt, tokenizer)
        ids, types = _encoded(texts, tokenizer, max_length)
    _check_texts(pool.rows, ids, max_length)
    if types is not None and (not _takes_types(body) or not any(map(any, types))):
        types = None
    return Tokens(
        ids=[torch.tensor(row, dtype=torch.long) for row in ids],
        types=None if types is None else [torch.tensor(row) for row in types],
        # Any valid id does where a tokenizer has no padding token, as padding is masked.
        pad_token_id=getattr(tokenizer, "pad_token_id", None) or 0,
        pad_type_id=getattr(tokenizer, "pad_token_type_id", None) or 0,
        prompt_length=prompt_length,
    )


def check_tokens(tokens: Tokens, pool: Pool, model: nn.Module) -> None:
    """
    Raises:
        ValueError: a text has an id beyond the model's embeddings, or more tokens than the model
            has positions; the message names the row. On a GPU, either would end the process.
    """
    known = _embedded_ids(model)
    places = _positions(model)
    for number, ids in enumerate(tokens.ids):
        where = pool.row_numbers[number] if pool.row_numbers else number
        if known is not None and int(ids.max()) >= known:
            raise ValueError(
                f"row {where} of the pool has the token id {int(ids.max())}, but "
                f"{type(pretrained(model)).__name__} has embeddings for {known} ids: expected the "
                "model's own tokenizer; after adding tokens, call model.resize_token_embeddings"
            )
        if places is not None and len(ids) > places:
            raise ValueError(
                f"row {where} of the pool has {len(ids)} tokens, but "
                f"{type(pretrained(model)).__name__} has {places} positions; pass "
                f"max_length={places}"
            )


def warn_of_columns(pool: Pool, model: nn.Module) -> None:
    """Warn where a tokenized pool has more columns that the model reads."""
    if not pool.is_tokenized:
        return
    inner = pretrained(model)
    known = inspect.signature(inner.forward).parameters
    for name in pool.other_columns:
        if name in known and not re.search("label|start_positions|end_positions", name):
            warnings.warn(
                f"sepstop: the pool's column {name} is an input of {type(inner).__name__}, but "
                "only input_ids, attention_mask and token_type_ids are passed to the model",
                stacklevel=4,
            )


def load_tokenizer(source: str | Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a folder or hub repository.

    Raises:
        ValueError: there is none, or one of special tokens alone, which transformers makes up
            for a folder without.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raise all kinds
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"no tokenizer loads from {str(source)!r}: {why}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(f"no tokenizer loads from {str(source)!r}: it has special tokens only")
    return tokenizer


def _fit(tokenizer: Any, body: Any) -> Any:
    """The tokenizer for the texts of a pool.

    Raises:
        ValueError: none is to be found, or the model reads no single texts.
    """
    if body is not None and is_cross_encoder(body):
        raise ValueError(
            "a CrossEncoder reads pairs of texts: expected a tokenized pool with input_ids (and "
            "token_type_ids), as in pairs.map(lambda row: model.tokenizer(row['query'], "
            "row['answer'], truncation=True))"
        )
    if body is not None and is_sentence_transformer(body) and body.transformers_model is None:
        own = getattr(body[0], "tokenizer", None)
        if not hasattr(own, "encode_batch"):
            raise ValueError(
                f"the pool cannot be tokenized for a SentenceTransformer that begins with "
                f"{type(body[0]).__name__}: expected a transformers model or a StaticEmbedding"
            )
        return own
    tokenizer = tokenizer or _tokenizer_of(body)
    return getattr(tokenizer, "tokenizer", tokenizer)  # of a processor


def _tokenizer_of(model: nn.Module | None) -> Any:
    """The tokenizer in the folder or repository that the model was loaded from."""
    source = getattr(getattr(model, "config", None), "_name_or_path", "")
    try:
        if source:
            return load_tokenizer(source)
        why = "the model does not tell where it came from"
    except ValueError as error:
        why = str(error)
    raise ValueError(
        f"no tokenizer for the pool: {why}; pass processing_class= to the Trainer, tokenizer= "
        "(--tokenizer) to sepstop, or a pool that is already tokenized"
    )


_Rows = Sequence[Sequence[int]]


def _encoded(texts: list[str], tokenizer: Any, max_length: int) -> tuple[_Rows, _Rows | None]:
    """Token ids, and token types where the tokenizer gives them."""
    if hasattr(tokenizer, "encode_batch"):  # of a StaticEmbedding, which adds no special tokens
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [row.ids[:max_length] for row in found], None
    limit = getattr(tokenizer, "model_max_length", _NO_LIMIT)
    with _same_settings(tokenizer):
        encoded = tokenizer(texts, truncation=True, max_length=min(max_length, limit))
    return encoded["input_ids"], encoded.get("token_type_ids")


@contextmanager
def _same_settings(tokenizer: Any) -> Iterator[None]:
    """What a fast tokenizer keeps of its last call would be in each checkpoint's tokenizer.json."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    truncation, padding = getattr(backend, "truncation", None), getattr(backend, "padding", None)
    try:
        yield
    finally:
        if hasattr(backend, "enable_truncation"):
            backend.no_truncation(), backend.no_padding()
            if truncation is not None:
                backend.enable_truncation(**truncation)
            if padding is not None:
                backend.enable_padding(**padding)


def _prompt_length(prompt: str, tokenizer: Any) -> int:
    """Tokens of the prompt without a closing special token, as sentence-transformers counts."""
    with _same_settings(tokenizer):
        ids = tokenizer(prompt)["input_ids"]
    return len(ids) - int(bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _cut(pool: Pool, tokenizer: Any, max_length: int) -> tuple[_Rows, _Rows | None]:
    """Token ids and types of a tokenized pool, cut before the closing special tokens."""
    rows: Any = pool.rows
    closing = _closing(rows, getattr(tokenizer, "all_special_ids", None))
    head = max(max_length - closing, 0)

    def cut(row: Sequence[int]) -> Sequence[int]:
        if len(row) <= max_length:
            return row
        return [*row[:head], *row[len(row) - (max_length - head) :]]

    types = pool.token_type_ids
    return [cut(row) for row in rows], None if types is None else [cut(row) for row in types]


def _closing(rows: _Rows, special: Sequence[int] | None) -> int:
    """How many special tokens close every row; at most one if it is not known which are special."""
    most = 1 if special is None else min(map(len, rows))
    count = 0
    while count < most:
        last = {row[-1 - count] for row in rows}
        if len(last) > 1 or (special is not None and not last <= set(special)):
            break
        count += 1
    return count


def _takes_types(body: Any) -> bool:
    if body is None:
        return True
    return "token_type_ids" in inspect.signature(inputs_of(body).forward).parameters


def _embedding_table(model: nn.Module) -> Any:
    """The module that looks up token ids; None where it cannot be told."""
    body = inputs_of(model)
    if is_sentence_transformer(body):  # of a StaticEmbedding
        return getattr(body[0], "embedding", None)
    try:
        return body.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _embedded_ids(model: nn.Module) -> int | None:
    """How many token ids the model knows; None where it does not tell."""
    count = getattr(_embedding_table(model), "num_embeddings", None)
    return count if isinstance(count, int) else None


def _positions(model: nn.Module) -> int | None:
    """The longest text for which the model has absolute positions; None for relative ones.

    Their table is beside that of the tokens; others belong to images.
    """
    table = _embedding_table(model)
    for module in inputs_of(model).modules():
        beside = dict(module.named_children())
        if not any(child is table for child in beside.values()):
            continue
        for name in _POSITIONS & beside.keys():
            places = beside[name]
            if isinstance(places, nn.Embedding):
                reserved = 0 if places.padding_idx is None else places.padding_idx + 1  # RoBERTa
                peft = getattr(unwrapped(model), "active_peft_config", None)
                soft = getattr(peft, "num_virtual_tokens", None) or 0
                offset = int(getattr(places, "offset", 0))
                return places.num_embeddings - reserved - offset - soft
    return None


def _check_texts(rows: Sequence[Any], ids: _Rows, max_length: int) -> None:
    """A tokenizer without a vocabulary gives every text the same few tokens."""
    empty = sum(len(row) == 0 for row in ids)
    if empty:
        raise ValueError(f"{empty} texts of the pool have no tokens at all; drop them")
    different, left = len(set(rows)), len({tuple(row) for row in ids})
    if left < different / 2:
        raise ValueError(
            f"the {different} different texts of the pool become only {left} different token "
            f"sequences: is this the model's tokenizer, and is max_length={max_length} enough?"
        )


def valid_padding(tokens: Tokens, model: nn.Module) -> int:
    """The id to pad with: the model's own, by which a decoder's head finds the last token.

    A model without one, or with one that it has no embedding for, gets the tokenizer's.
    """
    own, known = getattr(text_config(model), "pad_token_id", None), _embedded_ids(model)
    if isinstance(own, int) and 0 <= own < (known or own + 1):
        return own
    return tokens.pad_token_id if tokens.pad_token_id < (known or tokens.pad_token_id + 1) else 0
