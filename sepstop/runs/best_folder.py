"""The folder that a selection's weights are written to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from sepstop.decide.selection import Selection
from sepstop.runs.average_files import save_average
from sepstop.runs.averaging import averaged_model
from sepstop.runs.cache import files_of_model
from sepstop.runs.loading import BaseCache, load_model
from sepstop.runs.loading_options import Loading
from sepstop.runs.saved_weights import ADAPTER_CONFIG

COPY_FILE = "sepstop_copy.json"
"""File in a copied checkpoint that says which one it is, so that it is not taken for another."""

_WEIGHTS = (".safetensors", ".bin", ".index.json", ".onnx", ".onnx_data", ".h5", ".msgpack")
_OTHER_RUNTIMES = ("onnx", "openvino")  # folders


def check_free(folder: str | Path) -> None:
    """
    Raises:
        ValueError: something is there already.
    """
    path = Path(folder)
    if path.is_symlink():
        raise ValueError(f"{path} is a link; name the folder itself or another one")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not empty; name another folder or remove it")


def linked_folder(selection: Selection) -> Path:
    """Folder in the run's folder for an average that has no other, one for each average."""
    average = selection.best_record.average
    assert average is not None
    name = f"sepstop_average-{average.name}-{average.first_step}-{average.last_step}"
    return selection.paths[selection.best_step].parent / name


def write_best(selection: Selection, folder: str | Path, loading: Loading = Loading()) -> Selection:
    """Write the weights to keep as a complete model, without the state of the training.

    The folder is built in a hidden one beside it and moved at the end.

    Args:
        selection: of one run.
        folder: replaced if it exists; see `check_free`.
        loading: how to load the checkpoints of an average. Its ``dtype`` does not count: weights
            are written in the one they were saved in.

    Returns:
        The selection with the folder as its ``output``.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    folder, record = Path(folder), selection.best_record
    sources = selection.sources[record.step]
    newest = sources[-1]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        built = Path(scratch) / "model"
        if record.average is None:
            _copy(newest, built, files_of_model(newest))
            (built / COPY_FILE).write_text(json.dumps({"step": record.step}) + "\n")
        else:
            bases, as_saved = BaseCache(), replace(loading, dtype=None)
            model = averaged_model(sources, lambda path: load_model(path, as_saved, bases))
            save_average(built, model, None, record.average)
            _copy(newest, built, _beside_weights(newest))
        if folder.exists():
            shutil.rmtree(folder)
        built.rename(folder)
    return replace(selection, output=folder)


def _beside_weights(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that its model does not save: of the tokenizer, its own code."""
    return [
        path
        for path in files_of_model(checkpoint)
        if not path.name.endswith(_WEIGHTS)
        and path.name != ADAPTER_CONFIG
        and path.relative_to(checkpoint).parts[0] not in _OTHER_RUNTIMES
    ]


def _copy(source: Path, target: Path, files: Iterable[Path]) -> None:
    """Copy files, with their folders; those that are there already stay."""
    for path in files:
        place = target / path.relative_to(source)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
