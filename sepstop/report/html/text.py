"""What a page says in words: texts made harmless, and pictures for those who do not see them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sepstop.types import Decision, Record

_JOINERS = "\u200c\u200d"  # of scripts and emoji; they turn nothing around
_FOLDERS = re.compile(r"(?<![\w/.:])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"<>|:,;()]+[/\\])+")


def plain(text: Any, limit: int = 200) -> str:
    """``text`` on one line, cut at ``limit`` characters; what is no visible character is replaced.

    Control characters, marks that turn the direction of writing around and lone surrogates become
    U+FFFD. It is text, not HTML: whoever writes it into a page escapes it.

    >>> plain("a\\tb\\n c\\u202e").encode("ascii", "backslashreplace")
    b'a b c\\\\ufffd'
    """
    line = " ".join(str(text).split())
    cut = line if len(line) <= limit else f"{line[: limit - 1]}…"
    return "".join("\ufffd" if _is_hidden(character) else character for character in cut)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character)[0] == "C" and character not in _JOINERS


def without_folders(text: str, run_dir: Path) -> str:
    """``text`` with the names of files only, not where they lie on this machine."""
    for folder in (run_dir.resolve(), run_dir):
        if len(folder.parts) > 1:
            text = text.replace(str(folder), run_dir.resolve().name)
    return _FOLDERS.sub("", text)


def said(text: str, run_dir: Path) -> str:
    """A reason, a setting or a note of a run as it may be shown."""
    return plain(without_folders(text, run_dir), 300)


def number(value: float | None) -> str:
    """Four digits, or "no score".

    >>> number(0.82366), number(12345.6), number(float("nan"))
    ('0.8237', '1.235e+04', 'no score')
    """
    if value is None or not math.isfinite(value):
        return "no score"
    return f"{value:.4g}"


def decision_in_words(decision: Decision, monitored: bool) -> str:
    """What was decided, in a sentence.

    >>> decision_in_words(Decision(True, 80, "", 140), monitored=True)
    'The run was stopped at step 140; the checkpoint to keep is that of step 80.'
    """
    if decision.best_step is None:
        return "There is no checkpoint to recommend."
    keep = f"the checkpoint to keep is that of step {decision.best_step}"
    if decision.stop:
        what = "The run was stopped" if monitored else "In hindsight the run could have stopped"
        return f"{what} at step {decision.step}; {keep}."
    if monitored:
        return f"The run was not stopped; {keep}."
    return f"{keep[0].upper()}{keep[1:]}."


def curve_in_words(name: str, values: dict[int, float], marks: dict[str, int | None]) -> str:
    """A line over steps, for a person who cannot see it.

    >>> curve_in_words("score", {10: 0.5, 20: 0.75, 30: float("nan")}, {"pick": 20, "stop": None})
    'score from step 10 to 30: 0.5 at first, 0.75 at last, between 0.5 at step 10 and 0.75 at step \
20. 1 of 3 has no score. The pick is step 20.'
    """
    finite = {step: value for step, value in values.items() if math.isfinite(value)}
    if not finite:
        return f"{name}: no step has a score."
    low, high = min(finite, key=lambda s: finite[s]), max(finite, key=lambda s: finite[s])
    words = [
        f"{name} from step {min(values)} to {max(values)}: {number(finite[min(finite)])} at first, "
        f"{number(finite[max(finite)])} at last, between {number(finite[low])} at step {low} and "
        f"{number(finite[high])} at step {high}."
    ]
    if len(finite) < len(values):
        missing = len(values) - len(finite)
        words.append(f"{missing} of {len(values)} {'has' if missing == 1 else 'have'} no score.")
    words += [f"The {mark} is step {step}." for mark, step in marks.items() if step is not None]
    return " ".join(words)


def groups_in_words(groups: Sequence[str]) -> str:
    """How many are in each, the largest first.

    >>> groups_in_words(["a", "b", "a"])
    'a 2, b 1'
    """
    return ", ".join(f"{name} {count}" for name, count in Counter(groups).most_common(12))


def step_in_words(
    step: int, record: Record | None, decision: Decision, by: str = "information"
) -> str:
    """What a slider says at a checkpoint: "step 140, information 1.161, the pick"."""
    words = [f"step {step}"]
    if record is not None:
        value = record.information if by == "information" else record.score
        words.append(f"{by} {number(value)}" if math.isfinite(value) else f"no {by}")
    if step == decision.best_step:
        words.append("the pick")
    if decision.stop and step == decision.step:
        words.append("the stop")
    return ", ".join(words)
