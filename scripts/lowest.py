"""Constraints with the lowest version of each dependency that pyproject.toml admits.

    python scripts/lowest.py > lowest.txt

torch is left to the version pinned in constraints.txt, and what the project does not name to pip.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
EXTRAS = ("lightning", "peft", "plot", "report")
PINNED = ("torch",)


def main() -> None:
    pins = {pin.name: str(pin) for pin in pinned() if pin.name in PINNED}
    print("\n".join(sorted((lowest() | pins).values())))


def lowest() -> dict[str, str]:
    """Name -> name==version, of the dependencies and the extras for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [
        *project["dependencies"],
        *(name for extra in EXTRAS for name in project["optional-dependencies"][extra]),
    ]
    found = {}
    for requirement in map(Requirement, named):
        (bound,) = requirement.specifier
        if bound.operator != ">=":
            raise ValueError(f"expected {requirement.name}>=VERSION, got {requirement}")
        found[requirement.name] = f"{requirement.name}=={bound.version}"
    return found


def pinned() -> Iterator[Requirement]:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            yield Requirement(line)


if __name__ == "__main__":
    main()
