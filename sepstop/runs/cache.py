"""What was observed of checkpoints, kept on disk so that none is embedded twice."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from sepstop.measure.embedding import Observation
from sepstop.measure.monitor import Monitor
from sepstop.runs.saved_weights import ADAPTER_CONFIG
from sepstop.types import Outputs
from sepstop.utils.files import load_arrays

STORE = "sepstop_cache"
"""Folder of a run's observations, in the run's folder."""

_CONTENTS = "contents.json"  # in it: what was read of files
_FORMAT = 3  # to be raised when the same checkpoint would be observed otherwise
_NO_PART = {"trainer_state.json", "training_args.bin", "README.md"}  # of the model
_NO_PART_ENDINGS = (".pt", ".pth")  # of optimizer, scheduler and random states


class ObservationStore:
    """Observations by what they depend on: files of a checkpoint, pool, embedder and lengths.

    Files are written as a whole or not at all; one that cannot be read is as good as none.

    Args:
        folder: made when needed; None keeps nothing.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._contents = self._known_contents()
        self._written = len(self._contents)

    def keeps(self, monitor: Monitor) -> bool:
        """Not what an embedder of the user's own sees, whose name says nothing of what it does."""
        return self.folder is not None and "custom" not in monitor.settings["embedder"]

    def key(
        self, checkpoint: Path, monitor: Monitor, *how: str, base_model: str | Path | None = None
    ) -> str:
        """SHA-256 over the checkpoint's content and how ``monitor`` looks at it.

        Empty where nothing can be kept.

        Args:
            *how: it is loaded, if not as it is: the weights' dtype, the adapter's name.
            base_model: folder or hub name of an adapter's base, in place of the recorded one.
        """
        if not self.keeps(monitor):
            return ""
        corrupted = "corrupted_logits" in monitor.needs
        looks = (_FORMAT, monitor.places, monitor.token_fingerprint, monitor.seed, corrupted)
        precision = monitor.precision or "no"
        seen_as = repr((*looks, precision, monitor.asked_padding, *how)) + self.content(
            checkpoint, base_model
        )
        if len(self._contents) > self._written:
            self._written = len(self._contents)
            self._write(_CONTENTS, json.dumps(dict(self._contents)).encode())
        return hashlib.sha256(seen_as.encode()).hexdigest()

    def content(self, checkpoint: Path, base_model: str | Path | None = None) -> str:
        """SHA-256 over the files that make the model; a file that was not touched is read once."""
        digest = hashlib.sha256()
        if base_model is not None and not Path(base_model).is_dir():
            digest.update(str(base_model).encode())  # on the hub
        for path in _parts(checkpoint, base_model):
            digest.update(path.name.encode() + self._content_of_file(path).encode())
        return digest.hexdigest()

    def _content_of_file(self, path: Path) -> str:
        state = path.stat()
        version = [str(path.resolve()), state.st_size, state.st_mtime_ns]
        name = hashlib.sha256(repr(version).encode()).hexdigest()
        if name not in self._contents:
            with path.open("rb") as file:
                self._contents[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._contents[name]

    def get(self, key: str, device: torch.device) -> Observation | None:
        if not key:
            return None
        try:
            arrays = load_arrays(self._path(key))
            outputs: Any = str(arrays.pop("outputs")) or None
            parts = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
            seen = Observation(**parts, outputs=outputs)
        except (OSError, KeyError, ValueError, TypeError):
            return None
        whole = seen.points.ndim == 2 and seen.points.is_floating_point()
        return seen if whole and outputs in (None, *get_args(Outputs)) else None

    def put(self, key: str, seen: Observation) -> None:
        """A full disk or a folder that is not ours to write is a warning."""
        if not key:
            return
        arrays = {
            name: values.float().cpu().numpy()
            for name, values in seen._asdict().items()
            if isinstance(values, torch.Tensor)
        }
        arrays["outputs"] = np.array(seen.outputs or "")
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no name of them is an option's
        self._write(self._path(key).name, file.getbuffer())

    def _write(self, name: str, content: bytes | memoryview) -> None:
        assert self.folder is not None
        path, unfinished = self.folder / name, self.folder / f".{name}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content)
            unfinished.replace(path)
        except OSError as error:
            warnings.warn(f"sepstop: could not write {path}: {error}", RuntimeWarning, stacklevel=3)

    def _known_contents(self) -> dict[str, str]:
        """What files held, by their place, size and time of the last change."""
        with suppress(OSError, ValueError):
            known = {} if self.folder is None else json.loads((self.folder / _CONTENTS).read_text())
            if isinstance(known, dict):
                return {str(version): str(content) for version, content in known.items()}
        return {}

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key[:32]}.npz"


def _parts(checkpoint: Path, base_model: str | Path | None = None) -> list[Path]:
    """The files that make the model, those of adapters' bases included where they are folders."""
    files = [
        path
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name not in _NO_PART and path.suffix not in _NO_PART_ENDINGS
    ]
    bases = {
        str(base_model or json.loads(path.read_text()).get("base_model_name_or_path"))
        for path in files
        if path.name == ADAPTER_CONFIG
    }
    for base in map(Path, sorted(bases)):
        if base.is_dir() and checkpoint.resolve().is_relative_to(base.resolve()):
            files += sorted(path for path in base.glob("*") if path.is_file())  # no checkpoints
        elif base.is_dir():
            files += _parts(base)
    return files
