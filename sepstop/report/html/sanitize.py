"""Sanitized text for the page."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

_JOINERS = "\u200c\u200d"  # of scripts and emoji; they do not change the direction of text
_FOLDERS = re.compile(r"(?<![\w/.:])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"<>|:,;()]+[/\\])+")


def plain(text: Any, limit: int = 200) -> str:
    """``text`` on one line of visible characters, cut at ``limit`` characters.

    Control characters, marks that change the direction of text and lone surrogates become U+FFFD.
    The result is text, not HTML: escape it where it is written into a page.

    >>> plain("a\\tb\\n c\\u202e").encode("ascii", "backslashreplace")
    b'a b c\\\\ufffd'
    """
    line = " ".join(str(text).split())
    cut = line if len(line) <= limit else f"{line[: limit - 1]}…"
    return "".join("\ufffd" if _is_hidden(character) else character for character in cut)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character)[0] == "C" and character not in _JOINERS


def without_folders(text: str, run_dir: Path) -> str:
    """``text`` with file names instead of paths: a page does not show this machine's folders."""
    for folder in (run_dir.resolve(), run_dir):
        if len(folder.parts) > 1:
            text = text.replace(str(folder), run_dir.resolve().name)
    return _FOLDERS.sub("", text)


def shown(text: str, run_dir: Path) -> str:
    """A reason, a setting or a note of a run, ready for the page."""
    return plain(without_folders(text, run_dir), 300)
