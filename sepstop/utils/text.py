"""Words of messages."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[object], most: int = 5) -> str:
    """The first names, and how many more there are.

    >>> listed("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    shown = list(map(str, names))
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more
