"""Checkpoint discovery: runs and models by folder, list file or hub name."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sepstop.runs.average_files import AVERAGE_FILE
from sepstop.runs.best_folder import COPY_FILE
from sepstop.runs.leftovers import without_leftovers
from sepstop.runs.pruned import PRUNED_FILE, read_kept
from sepstop.runs.saved_weights import LAST_CHECKPOINT, adapter_folders

_MODEL_FILES = ("config.json", "adapter_config.json", "modules.json")
_TRAINER_FILES = ("trainer_state.json", "training_args.bin")
_SHOWN = 5  # files in an error
_OF_TRAINER = re.compile(r"checkpoint-\d+")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_DEPTH = 2  # of folders of runs: ms-swift writes output/MODEL/v0-DATE-TIME/checkpoint-STEP

# Files of a repository, as patterns in which * stands for folders too.
_OF_RUN = ["checkpoint-[0-9]*/*", "sepstop_*", "*config.json", "modules.json"]
_NOT_NEEDED = [
    # Weights for other frameworks, which can take gigabytes.
    *("*.h5", "*.msgpack", "*.ot", "*.gguf", "*.tflite", "*.onnx*", "*openvino/*"),
    # The state of the training, which takes twice the weights, and copies of checkpoints.
    *("checkpoint-*/*.pt", "checkpoint-*/*.pth", "checkpoint-*/optimizer*", "*.distcp"),
    *("checkpoint-*/global_step*", "checkpoint-*/pytorch_model_fsdp*"),
    *("checkpoint-*-merged/*", f"{LAST_CHECKPOINT}/*"),
]


@dataclass(frozen=True)
class CheckpointRun:
    """The checkpoints of a run, or a single model.

    Attributes:
        name: the folder or hub name that the user gave.
        checkpoints: step -> folder of each checkpoint.
        home: folder with files about the checkpoints.
        is_trained: True if `home` is the output folder of a run.
        is_one_run: True if the checkpoints are surely of one run: named ``checkpoint-<step>``, with
            logs that do not contradict each other. Models in other folders with numbers may be
            unrelated.
        store: folder for what is computed of the checkpoints, if not `home`, as for a repository of
            the hub.
        is_pruned: True if the other checkpoints were deleted and this one is what was kept.
    """

    name: str
    checkpoints: dict[int, Path]
    home: Path
    is_trained: bool
    is_one_run: bool = False
    store: Path | None = None
    is_pruned: bool = False


def find_runs(source: str | Path) -> list[str]:
    """The runs that a user names, each in the form that `find_run` takes.

    Args:
        source: a folder of checkpoints, a checkpoint, a repository on the hub (with ``@revision``
            if needed), a folder of any of these or of such folders, or a text file with one entry
            per line: folders beside the file, or names on the hub. ``#`` begins a comment.

    Raises:
        ValueError: the file is not such a list.
    """
    path = Path(source)
    if path.is_file():
        return _read_list(path)
    if not path.is_dir():
        return [str(source)]
    found: dict[Path, Path] = {}
    for folder in _runs_in(path, _DEPTH):
        found.setdefault(folder.resolve(), folder)
    return [str(folder) for folder in found.values()] or [str(source)]


def _runs_in(folder: Path, depth: int) -> list[Path]:
    """The folder itself if it is a run or a model, else those in it."""
    if _is_model(folder) or _numbered(folder) or (folder / PRUNED_FILE).is_file():
        return [folder]
    inside = _originals(folder) if depth else []
    return [run for one in inside for run in _runs_in(one, depth - 1)]


def find_run(source: str | Path) -> CheckpointRun:
    """The checkpoints in a run's folder, or the model that a folder or hub name stands for.

    Of a run whose checkpoints were deleted it is what was kept, until newer ones are saved.

    Raises:
        FileNotFoundError: no checkpoints; the message lists what was found instead.

    Warns:
        UserWarning: checkpoints of an older run in the same folder were left out.
    """
    path = Path(source)
    if not path.exists() and _HUB_NAME.fullmatch(str(source)):
        return _from_hub(str(source))
    if not path.is_dir():
        raise FileNotFoundError(f"no folder at {path}")
    found = _numbered(path)
    pruned = read_kept(path)
    if pruned is not None and pruned.left.issuperset(one.name for one in found.values()):
        if not pruned.folder.is_dir():
            raise FileNotFoundError(
                f"the checkpoints in {path} were deleted, and what was kept is no longer at "
                f"{pruned.folder}; remove {PRUNED_FILE} there to go on with what else is in it"
            )
        only = {pruned.step: pruned.folder}
        return CheckpointRun(str(source), only, path, True, is_one_run=True, is_pruned=True)
    if found:
        _warn_of_others(path, found)
        kept, is_sure = without_leftovers(path, found)
        of_trainer = all(_OF_TRAINER.fullmatch(folder.name) for folder in kept.values())
        return CheckpointRun(str(source), kept, path, True, is_one_run=of_trainer and is_sure)
    if _is_model(path) or _has_adapters(path):
        home = path.resolve().parent
        return CheckpointRun(str(source), {_step_of(path): path}, home, is_trained=False)
    names = sorted(inside.name for inside in path.iterdir())
    more = ", ..." if len(names) > _SHOWN else ""
    are_recorded = any(name.endswith(".npz") for name in names)
    hint = "; recorded runs are for `sepstop bench judge`" if are_recorded else ""
    raise FileNotFoundError(
        f"expected folders named checkpoint-<step> in {path}, or a model, found "
        f"{', '.join(names[:_SHOWN]) or 'nothing'}{more}{hint}"
    )


def find_checkpoints(run_dir: str | Path) -> dict[int, Path]:
    """Step -> folder of each checkpoint in ``run_dir``. Raises and warns as `find_run` does."""
    return find_run(run_dir).checkpoints


def _step_of(model: Path) -> int:
    """The step that Trainer recorded, or else the number at the end of the name; at least 1."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return max(1, int(json.loads((model / "trainer_state.json").read_text())["global_step"]))
    number = re.search(r"(\d+)$", model.resolve().name)
    return max(1, int(number[1])) if number else 1


def _numbered(folder: Path) -> dict[int, Path]:
    """``checkpoint-<step>`` folders, or else models whose names end in different numbers.

    Models without a number may be beside those of one name with numbers, such as "final" beside
    "epoch-1" and "epoch-2". A run that counts from 0 is counted from 1, since 0 is the model before
    training; "checkpoint-0" is that model, and left out.
    """
    models = _models(folder)
    numbers = {path: re.search(r"(\d+)$", path.name) for path in models}
    found = {int(number[1]): path for path, number in numbers.items() if number}
    stems = {path.name.rstrip("0123456789") for path in found.values()}
    with_number = sum(number is not None for number in numbers.values())
    if len(found) < with_number or (with_number < len(models) and not _are_steps(found, stems)):
        return {}
    if 0 not in found:
        return found
    if _OF_TRAINER.fullmatch(found[0].name):
        return {step: path for step, path in found.items() if step > 0}
    return {step + 1: path for step, path in found.items()}


def _are_steps(found: dict[int, Path], stems: set[str]) -> bool:
    return len(found) > 1 and len(stems) == 1


def _models(folder: Path) -> list[Path]:
    """The models in a folder: those of a Trainer, or else all that are not runs themselves."""
    folders = _originals(folder)
    of_trainer = _of_trainer(folders)
    return of_trainer or [
        path for path in folders if (_is_model(path) and not _is_run(path)) or _has_adapters(path)
    ]


def _is_run(folder: Path) -> bool:
    """True for the folder of a Trainer's run, which often has the final model at its top."""
    return bool(_of_trainer(_folders(folder))) or (folder / PRUNED_FILE).is_file()


def _of_trainer(folders: Iterable[Path]) -> list[Path]:
    return [path for path in folders if _OF_TRAINER.fullmatch(path.name)]


def _warn_of_others(folder: Path, found: dict[int, Path]) -> None:
    """Say which models in a run's folder are not among its checkpoints."""
    others = [path.name for path in _models(folder) if path not in found.values()]
    if others:
        warnings.warn(
            f"sepstop: {', '.join(others)} in {folder} left out: expected a number of steps or "
            "epochs from 1 on at the end of a checkpoint's name",
            stacklevel=3,
        )


def _originals(folder: Path) -> list[Path]:
    """The folders in a folder, without what sepstop wrote there and links to others of them."""
    inside = [path for path in _folders(folder) if not path.is_symlink()]
    real = [path.resolve() for path in inside]
    for path in _folders(folder):
        target = path.resolve()
        if path.is_symlink() and not any(target.is_relative_to(other) for other in real):
            inside.append(path)
    written = (AVERAGE_FILE, COPY_FILE)
    return sorted(path for path in inside if not any((path / name).is_file() for name in written))


def _is_model(folder: Path) -> bool:
    """True if a folder has a model's files, or Trainer's files beside folders of named adapters."""
    if any((folder / name).is_file() for name in _MODEL_FILES):
        return True
    is_checkpoint = any((folder / name).is_file() for name in _TRAINER_FILES)
    return is_checkpoint and bool(adapter_folders(folder))


def _has_adapters(folder: Path) -> bool:
    """True if the folders in it are named adapters of one model, not the epochs of a run."""
    return bool(adapter_folders(folder)) and not _numbered(folder)


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones, such as one that is being removed."""
    inside = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in inside if path.is_dir())


def _read_list(path: Path) -> list[str]:
    """The runs that a text file lists. It can name only folders beside it, as it may be foreign."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected a folder or a text file that lists models, got {path}: {error}"
        ) from error
    names = [name for line in lines if (name := line.split("#")[0].strip())]
    if not names:
        raise ValueError(f"expected one folder or hub name per line in {path}, found none")
    runs = []
    for name in names:
        folder = path.parent / name
        if folder.is_dir():
            if not folder.resolve().is_relative_to(path.parent.resolve()):
                raise ValueError(
                    f"{path} lists {name!r}, which is outside its folder; pass it on the command "
                    "line instead"
                )
            runs += find_runs(folder)
        elif _HUB_NAME.fullmatch(name):
            runs.append(name)
        else:
            raise ValueError(
                f"{path} lists {name!r}, which is neither a folder beside it nor a model's name on "
                "the hub, such as org/model"
            )
    return runs


def _from_hub(name: str) -> CheckpointRun:
    """A repository with the checkpoints of a run, or with one model."""
    from huggingface_hub import cached_assets_path, snapshot_download

    repository, _, revision = name.partition("@")

    def downloaded(files: list[str] | None) -> Path:
        try:
            return Path(
                snapshot_download(
                    repository,
                    revision=revision or None,
                    allow_patterns=files,
                    ignore_patterns=_NOT_NEEDED,
                )
            )
        except Exception as error:  # from the network, the hub's library or a bad name
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FileNotFoundError(
                f"no folder and no model on the hub at {name}: {why}"
            ) from error

    store = cached_assets_path("sepstop", namespace="observations")
    folder = downloaded(_OF_RUN)
    if _of_trainer(_folders(folder)):
        kept, is_sure = without_leftovers(folder, _numbered(folder), has_times=False)
        return CheckpointRun(name, kept, folder, True, is_one_run=is_sure, store=store)
    return CheckpointRun(name, {1: downloaded(None)}, store, is_trained=False)
