"""Observation cache: what models showed, on disk, so that each is embedded once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from sepstop.measure.embedding import Observation
from sepstop.measure.monitor import Monitor
from sepstop.measure.pooling import POOLINGS
from sepstop.runs.loading_options import Loading
from sepstop.runs.saved_weights import ADAPTER_CONFIG, LAST_CHECKPOINT
from sepstop.types import Outputs
from sepstop.utils.files import load_arrays, pack_arrays, write_or_warn

CACHE_FOLDER = "sepstop_cache"
"""Name of the cache folder inside a run's folder."""

_HASHES = "contents.json"  # in the cache folder: hashes of files that were read
_FORMAT = 4  # increase it when the same checkpoint would give another observation
_NOT_MODEL = (
    "README.md",
    "sepstop_*",  # of running averages
    "trainer_state.json",
    "training_args.bin",
    "*.pt",  # optimizer, scheduler and random states, in the files of several libraries
    "*.pth",
    "*.distcp",
    "optimizer*",
    "scheduler*",
    "random_states*",
    "rng_state*",
    "global_step*",
    "pytorch_model_fsdp*",
    "latest",
    LAST_CHECKPOINT,
    "zero_to_fp32.py",
)
"""Names of files and folders that are no part of a model, as patterns."""


def observation_view(monitor: Monitor, loading: Loading, with_logits: bool = True) -> str:
    """Everything that an observation depends on, besides the files of the model.

    Corrupted logits or losses may be missing from an observation, see
    `sepstop.measure.monitor.Monitor.is_complete`.

    Args:
        monitor: observes the models.
        loading: loads the models. Its ``base_model`` counts as a file, see `ObservationCache.key`.
        with_logits: False for observations without a head.

    Returns:
        A key for `ObservationCache.key`. Empty if observations can't be cached: the name of a
        pooling or model class of the user's own does not tell what it does.
    """
    observer = monitor.observer
    is_own = monitor.settings["pooling"].get("name") not in POOLINGS
    if is_own or loading.model_class is not None:
        return ""
    view = (
        observer.embedding_key,
        observer.token_fingerprint,
        monitor.config.seed,
        observer.precision or "no",
        monitor.config.padding,
        loading.dtype,
        loading.adapter,
        with_logits,
        *([] if observer.answers is None else [observer.answers, monitor.config.answer_end]),
    )
    return repr(view)


class ObservationCache:
    """Observations on disk, by the files of a model and how it was observed.

    A file that can't be read counts as missing. A full disk, or a folder that is not writable, is a
    RuntimeWarning.

    Args:
        folder: folder of the cache, made when the first file is written. None caches nothing.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._hashes = self._read_hashes()
        self._num_written = len(self._hashes)
        self._contents: dict[tuple[Path, str], str] = {}

    def key(
        self,
        models: Sequence[Path],
        view: str,
        base_model: str | Path | None = None,
        average: str = "",
    ) -> str:
        """Key of an observation: SHA-256 of the view and the contents of the models.

        Args:
            models: folder of the checkpoint or other model; of an average those in it, by step.
                They are not to change between two calls.
            view: see `observation_view`.
            base_model: folder or hub name of an adapter's base, instead of the one that it names.
            average: name of the average; empty for one model.

        Returns:
            The key; empty without a folder or a view. `get` finds nothing under an empty key, and
            `put` ignores it.
        """
        if self.folder is None or not view:
            return ""
        contents = [self._content_once(model, base_model) for model in models]
        if len(self._hashes) > self._num_written:
            self._num_written = len(self._hashes)
            hashes = json.dumps(dict(self._hashes)).encode()
            write_or_warn(self.folder / _HASHES, hashes, stacklevel=2)
        parts = [str(_FORMAT), view, *([average] if average else []), *contents]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def content(self, model: Path, base_model: str | Path | None = None) -> str:
        """SHA-256 of the files of a model. A file is read again only if it has changed."""
        digest = hashlib.sha256()
        if base_model is not None and not Path(base_model).is_dir():
            digest.update(str(base_model).encode())  # on the hub
        for path in _model_files(model, base_model):
            digest.update(path.name.encode() + self._hash(path).encode())
        return digest.hexdigest()

    def _content_once(self, model: Path, base_model: str | Path | None) -> str:
        asked = (model, str(base_model))
        if asked not in self._contents:
            self._contents[asked] = self.content(model, base_model)
        return self._contents[asked]

    def get(self, key: str, device: torch.device) -> Observation | None:
        """The observation with this key, on ``device``; None if there is none."""
        if self.folder is None or not key:
            return None
        try:
            arrays = load_arrays(self._path(self.folder, key))
            outputs: Any = str(arrays.pop("outputs")) or None
            parts = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
            seen = Observation(**parts, outputs=outputs)
        except (OSError, KeyError, ValueError, TypeError):
            return None
        is_valid = seen.points.ndim == 2 and seen.points.is_floating_point()
        return seen if is_valid and outputs in (None, *get_args(Outputs)) else None

    def put(self, key: str, seen: Observation) -> None:
        """Keep an observation, as float32.

        Warns:
            RuntimeWarning: the file can't be written.
        """
        if self.folder is None or not key:
            return
        arrays = {
            name: values.float().cpu().numpy()
            for name, values in seen._asdict().items()
            if isinstance(values, torch.Tensor)
        }
        arrays["outputs"] = np.array(seen.outputs or "")
        write_or_warn(self._path(self.folder, key), pack_arrays(arrays), stacklevel=2)

    def _hash(self, path: Path) -> str:
        """SHA-256 of a file, remembered by its path, size and time of the last change."""
        state = path.stat()
        version = [str(path.resolve()), state.st_size, state.st_mtime_ns]
        name = hashlib.sha256(repr(version).encode()).hexdigest()
        if name not in self._hashes:
            with path.open("rb") as file:
                self._hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[name]

    def _read_hashes(self) -> dict[str, str]:
        with suppress(OSError, ValueError):
            known = {} if self.folder is None else json.loads((self.folder / _HASHES).read_text())
            if isinstance(known, dict):
                return {str(name): str(content) for name, content in known.items()}
        return {}

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / f"{key[:32]}.npz"


def files_of_model(model: Path) -> list[Path]:
    """The files in a model's folder, without the training state and what sepstop wrote."""
    return [
        path
        for path in sorted(model.rglob("*"))
        if path.is_file() and not any(map(_is_not_model, path.relative_to(model).parts))
    ]


def _is_not_model(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _NOT_MODEL)


def _model_files(model: Path, base_model: str | Path | None = None) -> list[Path]:
    """The files of a model, and those of its adapters' bases if they are folders."""
    files = files_of_model(model)
    bases = {
        str(base_model or json.loads(path.read_text()).get("base_model_name_or_path"))
        for path in files
        if path.name == ADAPTER_CONFIG
    }
    for base in map(Path, sorted(bases)):
        if base.is_dir() and model.resolve().is_relative_to(base.resolve()):
            files += sorted(path for path in base.glob("*") if path.is_file())  # no checkpoints
        elif base.is_dir():
            files += _model_files(base)
    return files
