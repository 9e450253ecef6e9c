"""Checks of a pool's tokens against the model that reads them."""

from __future__ import annotations

import inspect
import re
import warnings
from typing import Any

from torch import nn

from sepstop.measure.backbone import (
    is_sentence_transformer,
    pretrained,
    pretrained_backbone,
    text_config,
    unwrapped,
)
from sepstop.measure.pool import Pool
from sepstop.measure.tokens import Tokens

_POSITION_TABLES = {"position_embeddings", "position_embedding", "embed_positions", "wpe"}
"""Names of tables of absolute positions in transformers."""


def check_tokens(tokens: Tokens, pool: Pool, model: nn.Module, more: int = 0) -> None:
    """Check that the model has an embedding and a position for every token.

    On a GPU, a missing embedding or position ends the process.

    Args:
        tokens: the tokens of the pool.
        pool: the pool, for row numbers in messages.
        model: the model that will read the tokens.
        more: number of tokens that it will read after them.

    Raises:
        ValueError: a token id without an embedding, or a text with more tokens than the model has
            positions; the message names the row.

    Warns:
        UserWarning: the pool has another column that the model could read, which is ignored.
    """
    num_embeddings = _num_embeddings(model)
    num_positions = _num_positions(model)
    name = type(pretrained(model)).__name__
    for index, ids in enumerate(tokens.ids):
        row = pool.row_numbers[index] if pool.row_numbers else index
        if num_embeddings is not None and int(ids.max()) >= num_embeddings:
            raise ValueError(
                f"row {row} of the pool has the token id {int(ids.max())}, but {name} has "
                f"embeddings for {num_embeddings} ids; use the model's own tokenizer and, after "
                "adding tokens to it, call model.resize_token_embeddings"
            )
        if num_positions is not None and len(ids) + more > num_positions:
            of_answers = f" and answers have up to {more}" if more else ""
            raise ValueError(
                f"row {row} of the pool has {len(ids)} tokens{of_answers}, but {name} has "
                f"{num_positions} positions; set max_length={num_positions - more}"
            )
    _warn_of_ignored_columns(pool, model)


def _warn_of_ignored_columns(pool: Pool, model: nn.Module) -> None:
    """Warn about columns of a tokenized pool that the model could read but does not get."""
    if not pool.is_tokenized:
        return
    inner = pretrained(model)
    known = inspect.signature(inner.forward).parameters
    for name in pool.other_columns:
        if name in known and not re.search("label|start_positions|end_positions", name):
            warnings.warn(
                f"sepstop: the pool's column {name} is an input of {type(inner).__name__}, but "
                "only input_ids, attention_mask and token_type_ids are passed to the model",
                stacklevel=5,
            )


def padding_id(tokens: Tokens, model: nn.Module) -> int:
    """A token id to pad with, for which the model has an embedding.

    This is the model's own padding id, because a decoder's head uses it to find the last token.
    Without a valid one, it is the tokenizer's, or else 0.
    """
    num_embeddings = _num_embeddings(model)
    for candidate in (getattr(text_config(model), "pad_token_id", None), tokens.pad_token_id):
        if isinstance(candidate, int) and 0 <= candidate < (num_embeddings or candidate + 1):
            return candidate
    return 0


def _embedding_table(model: nn.Module) -> Any:
    """The module that looks up token ids; None if it is unknown."""
    body = pretrained_backbone(model)
    if is_sentence_transformer(body):  # one that begins with a StaticEmbedding
        return getattr(body[0], "embedding", None)
    try:
        return body.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _num_embeddings(model: nn.Module) -> int | None:
    """Number of token ids with an embedding; None if it is unknown."""
    count = getattr(_embedding_table(model), "num_embeddings", None)
    return count if isinstance(count, int) else None


def _num_positions(model: nn.Module) -> int | None:
    """Number of tokens for which the model has absolute positions; None for relative positions.

    The table of positions is a sibling of the token embeddings. Tables elsewhere belong to images.
    """
    table = _embedding_table(model)
    for module in pretrained_backbone(model).modules():
        siblings = dict(module.named_children())
        if not any(child is table for child in siblings.values()):
            continue
        for name in _POSITION_TABLES & siblings.keys():
            positions = siblings[name]
            if isinstance(positions, nn.Embedding):
                # RoBERTa reserves the positions up to its padding index.
                reserved = 0 if positions.padding_idx is None else positions.padding_idx + 1
                offset = int(getattr(positions, "offset", 0))
                peft = getattr(unwrapped(model), "active_peft_config", None)
                soft_prompt = getattr(peft, "num_virtual_tokens", None) or 0
                return positions.num_embeddings - reserved - offset - soft_prompt
    return None
