"""What was observed of checkpoints, kept on disk so that none is embedded twice."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from sepstop.embedding import Observation
from sepstop.monitor import Monitor

STORE = "sepstop_cache"
"""Folder of a run's observations, in the run's folder."""

_FORMAT = 1  # to be raised when the same checkpoint would be observed otherwise
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

    def key(self, checkpoint: str | os.PathLike[str], monitor: Monitor) -> str:
        """SHA-256 over the checkpoint's content and how ``monitor`` looks at it.

        Empty where nothing can be kept: without a folder, or with an embedder of the user's own,
        whose name says nothing of what it does.
        """
        if self.folder is None or "custom" in monitor.settings["embedder"]:
            return ""
        corrupted = "corrupted_logits" in monitor.needs
        looks = (_FORMAT, monitor.places, monitor.token_fingerprint, monitor.seed, corrupted)
        digest = hashlib.sha256(repr(looks).encode())
        for path in _parts(Path(checkpoint)):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def get(self, key: str, device: torch.device) -> Observation | None:
        if not key:
            return None
        try:
            with np.load(self._path(key), allow_pickle=False) as arrays:
                found = {name: torch.from_numpy(arrays[name]).to(device) for name in arrays.files}
            return Observation(**found)
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def put(self, key: str, seen: Observation) -> None:
        """A full disk or a folder that is not ours to write is a warning."""
        if self.folder is None or not key:
            return
        path = self._path(key)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        arrays = {
            name: values.float().cpu().numpy()
            for name, values in seen._asdict().items()
            if values is not None
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                np.savez(file, **arrays)
            unfinished.replace(path)
        except OSError as error:
            warnings.warn(f"sepstop: could not write {path}: {error}", RuntimeWarning, stacklevel=2)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key[:32]}.npz"


def _parts(checkpoint: Path) -> list[Path]:
    """The files that make the model, those of an adapter's base included where it is a folder."""
    files = [
        path
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name not in _NO_PART and path.suffix not in _NO_PART_ENDINGS
    ]
    config = checkpoint / "adapter_config.json"
    if config.is_file():
        base = Path(str(json.loads(config.read_text()).get("base_model_name_or_path")))
        if base.is_dir():
            files += _parts(base)
    return files
