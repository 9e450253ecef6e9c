"""Prompts: what a model that answers in words is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ASSISTANT = "assistant"


@dataclass(frozen=True)
class Chat:
    """A prompt of chat messages, for the tokenizer's chat template.

    ``str(chat)`` is what was said, a message a line.

    Attributes:
        messages: role and content of each.
    """

    messages: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "\n".join(content for _, content in self.messages)


def is_chat(cell: Any) -> bool:
    """True for a list of messages."""
    return isinstance(cell, (list, tuple)) and bool(cell) and isinstance(cell[0], Mapping)


def read_chat(cell: Sequence[Any], row: int, table: str) -> Chat:
    """The messages in a cell.

    Args:
        cell: as `is_chat`.
        row: number of the row, for messages.
        table: name of the table, for messages.

    Raises:
        ValueError: a message without a role or without text, or an answer at the end.
    """
    messages = []
    for message in cell:
        role, content = (
            (message.get("role"), message.get("content"))
            if isinstance(message, Mapping)
            else (None, None)
        )
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(
                f"expected chat messages with a role and a text as content, got {message!r:.60} at "
                f"row {row} of {table}"
            )
        messages.append((role, content))
    if messages[-1][0] == _ASSISTANT:
        raise ValueError(
            f"expected prompts, got a conversation that ends with an answer of the assistant at "
            f"row {row} of {table}; leave its last message out"
        )
    return Chat(tuple(messages))


def prompt_text(prompt: str | Chat, tokenizer: Any) -> str:
    """The text that the model reads, with all special tokens of a chat.

    Raises:
        ValueError: messages, but the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return prompt
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the pool has chat messages, but the tokenizer has no chat template; set "
            "tokenizer.chat_template, or pass prompts as strings"
        )
    messages = [{"role": role, "content": content} for role, content in prompt.messages]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
