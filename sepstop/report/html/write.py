"""The page as one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sepstop.utils.files import write_atomically

if TYPE_CHECKING:
    from sepstop.report.html.report_data import ReportData

_ONLY_IN_TABLES = (
    "settings",
    "records",
    "candidates",
    "texts",
    "score_names",
)  # parts that no script needs


def write_page(
    run_dirs: Sequence[str | Path],
    output: str | Path,
    *,
    map_name: str = "pca",
    **options: Any,
) -> list[str]:
    """Write the report of runs as one HTML file, all or nothing.

    Args:
        run_dirs: folders of runs.
        output: file to write; its folders are made.
        map_name: projection of texts to the plane: "pca", "umap" or "pacmap".
        **options: of `sepstop.report.html.collect.collect`.

    Returns:
        The notes on the page.

    Raises:
        ImportError: a package is missing; the message names it.
        OSError, ValueError: nothing to show in a folder, or something unusable.
    """
    _check_installed()
    from sepstop.report.html.collect import collect
    from sepstop.report.html.maps import check_map

    check_map(map_name)
    page, notes = render([collect(path, map_name=map_name, **options) for path in run_dirs])
    write_atomically(output, page.encode())
    return notes


def render(runs: Sequence[ReportData]) -> tuple[str, list[str]]:
    """The page and the notes on it.

    Raises:
        ImportError: a package is missing; the message names it.
    """
    _check_installed()
    from plotly.offline import get_plotlyjs

    from sepstop.report.html.comparison import compare_runs, page_names
    from sepstop.report.html.page_data import page_data

    names = page_names(runs)
    positions = range(1, len(runs) + 1)
    parts = [page_data(*one) for one in zip(runs, positions, names, strict=True)]
    comparison = compare_runs(runs)
    scripts = [_checked_script(get_plotlyjs()), _checked_script(_read("page.js"))]
    environment = Environment(
        loader=PackageLoader("sepstop.report.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        runs=parts,
        comparison=comparison,
        scripts=scripts,
        style=_read("page.css"),
        content_policy=_content_policy(scripts),
        today=date.today().isoformat(),
        data={"runs": [_for_script(part) for part in parts], "comparison": comparison},
    )
    notes = [note for part in parts for note in part["notes"]]
    return page, [*notes, *(comparison["notes"] if comparison else [])]


def _check_installed() -> None:
    """
    Raises:
        ImportError: a package of the extra "report" is missing.
    """
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise ImportError(f"a report needs {error.name}: pip install 'sepstop[report]'") from error


def _for_script(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in _ONLY_IN_TABLES}


def _read(name: str) -> str:
    return (files("sepstop.report.html") / name).read_text(encoding="utf-8")


def _checked_script(text: str) -> str:
    """A script that can stand between script tags, with line ends as the browser hashes them.

    Raises:
        ValueError: it contains text that ends a script or opens a comment.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("this version of plotly can't be embedded in a page; install another one")
    return text


def _content_policy(scripts: Sequence[str]) -> str:
    """Content security policy: no network, and no scripts but these."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
