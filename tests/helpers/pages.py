"""The README and the pages in docs/, and the code on them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TOP = ("README.md", "AGENTS.md", "CONTRIBUTING.md", "sepstop/skills/sepstop/SKILL.md")
_DOCS = (path for path in ROOT.glob("docs/**/*.md") if path.parent.name != "templates")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*map(ROOT.joinpath, _TOP), *sorted(_DOCS)]
}

_PIECE = re.compile(
    r"(?:^<!-- (?P<mark>(?:not run:|run by) [^\n]*) -->\n)?"
    r"^```(?P<language>\w+)\n(?P<block>.*?)^```$"
    r"|^ {4}(?P<line>sepstop [a-z][^\n]*)"
    r"|^\| `(?P<cell>sepstop [a-z]+ runs/[^`]*)`",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Piece:
    """Python of a page, or a `sepstop` command.

    Attributes:
        code: the block, or one command on one line.
        is_python: False for a command.
        mark: the comment before it, such as "run by tests/test_readme.py"; empty without one.
    """

    code: str
    is_python: bool
    mark: str = ""


def pieces_of(page: str) -> list[Piece]:
    """Python blocks and `sepstop` commands of a page, in order."""
    found = []
    for match in _PIECE.finditer(re.sub(r"\\\n\s*", "", PAGES[page])):
        mark = match["mark"] or ""
        if match["language"] == "python":
            found.append(Piece(match["block"], True, mark))
        lines = (match["block"] or match["line"] or match["cell"]).splitlines()
        if match["language"] in (None, "console", "bash"):
            found += [Piece(line, False, mark) for line in lines if line.startswith("sepstop ")]
    return found
