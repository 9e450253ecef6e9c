"""A callback from the section `sepstop` of a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from sepstop.config import SepStopConfig

if TYPE_CHECKING:
    from sepstop.callbacks.trainer import SepStopCallback

SECTION = "sepstop"


def read_section(file: Path) -> dict[str, Any]:
    """The section ``sepstop`` of a YAML file. Other sections are ignored.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML, or has no such section.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    section = content.get(SECTION) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"expected a section `{SECTION}:` with settings in {file}")
    return section


def callback_of(section: Mapping[str, Any]) -> SepStopCallback:
    """The callback that a section describes.

    Args:
        section: ``pool``, a file of texts or prompts, and any of the fields of
            `sepstop.config.SepStopConfig`.

    Raises:
        OSError, ValueError: as of `sepstop.SepStopCallback`; no pool, an unknown setting, or a
            value of another type.
    """
    from sepstop.callbacks.trainer import SepStopCallback

    if section.get("pool") is None:
        raise ValueError(
            "expected a pool of unlabeled texts: a .txt, .jsonl, .json, .csv or .parquet file"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--pool", type=str)
    parser.add_class_arguments(SepStopConfig, None)
    try:
        given = vars(parser.parse_object(dict(section)))
    except ArgumentError as error:
        raise ValueError(f"settings of sepstop: {error}") from error
    return SepStopCallback(**{name: given[name] for name in section})


def with_absolute_files(section: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The section with its files found from any working directory.

    Args:
        folder: where relative files are.
    """
    absolute = dict(section)
    for name in ("pool", "answers"):
        value = section.get(name)
        if isinstance(value, str) and (folder / value).exists():
            absolute[name] = str((folder / value).resolve())
    return absolute
