"""The page as one file that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sepstop.report.html.run import Run


def write_page(
    run_dirs: Sequence[str | Path],
    output: str | Path,
    *,
    map_name: str = "pca",
    **options: Any,
) -> list[str]:
    """Write the report of runs to one HTML file, which is replaced as a whole or not at all.

    Args:
        run_dirs: folders of runs.
        output: the file; folders above it are made.
        map_name: how texts come into the plane: "pca", "umap" or "pacmap".
        **options: of `sepstop.report.html.run.look_at`.

    Returns:
        What there is to say besides, as on the page.

    Raises:
        ImportError: a package is missing; the message names it.
        OSError, ValueError: nothing to show in a folder, or something unusable.
    """
    _check_installed()
    from sepstop.report.html.maps import check_map
    from sepstop.report.html.run import look_at

    check_map(map_name)
    page, notes = render([look_at(path, map_name=map_name, **options) for path in run_dirs])
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        unfinished.write_text(page, encoding="utf-8", newline="\n")
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    return notes


def render(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """The page, and the notes on it."""
    _check_installed()
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    from sepstop.report.html.data import run_data
    from sepstop.report.html.overview import names_of, overview

    names = names_of(runs)
    shown = [
        run_data(run, i, name) for i, (run, name) in enumerate(zip(runs, names, strict=True), 1)
    ]
    compared = overview(runs)
    scripts = [_script(get_plotlyjs()), _script(_part("page.js"))]
    environment = Environment(
        loader=PackageLoader("sepstop.report.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        runs=shown,
        compared=compared,
        scripts=scripts,
        style=_part("page.css"),
        policy=_content_policy(scripts),
        today=date.today().isoformat(),
        data={"runs": [_for_script(run) for run in shown], "compared": compared},
    )
    notes = [note for run in shown for note in run["notes"]]
    return page, [*notes, *(compared["notes"] if compared else [])]


def _check_installed() -> None:
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise ImportError(f"a report needs {error.name}: pip install 'sepstop[report]'") from error


def _for_script(run: dict[str, Any]) -> dict[str, Any]:
    """Without what is in the page's tables."""
    return {key: value for key, value in run.items() if key not in ("settings", "records", "texts")}


def _part(name: str) -> str:
    return (files("sepstop.report.html") / name).read_text(encoding="utf-8")


def _script(text: str) -> str:
    """What may stand between script tags as it is, and hashes as the browser will hash it.

    Raises:
        ValueError: it would end the script or open a comment that hides its end.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("this version of plotly cannot be written into a page; take another")
    return text


def _content_policy(scripts: Sequence[str]) -> str:
    """No network, and no script but these: one that came by a text would not run."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
