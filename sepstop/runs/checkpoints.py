"""What a user names, a run, a model or a list of them, to folders of checkpoints."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sepstop.runs.leftovers import of_newest_run
from sepstop.runs.saved_weights import adapter_folders

_MODEL_FILES = ("config.json", "adapter_config.json", "modules.json")
_TRAINER_FILES = ("trainer_state.json", "training_args.bin")
_NAMED = 5  # of what is found instead
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# Weights of other frameworks, of which a repository may hold gigabytes.
_OTHER_FORMATS = ["*.h5", "*.msgpack", "*.ot", "*.gguf", "*.tflite", "*.onnx*", "openvino/*"]


@dataclass(frozen=True)
class Run:
    """Checkpoints that belong together, in an order.

    Attributes:
        name: as the user knows it.
        checkpoints: step -> folder.
        home: where files on them may be left.
        is_trained: whether `home` is a run's own folder.
    """

    name: str
    checkpoints: dict[int, Path]
    home: Path
    is_trained: bool


def find_runs(source: str | Path) -> list[str]:
    """The runs in what a user names, each as `find_run` takes it.

    Args:
        source: a folder of checkpoints, a checkpoint, the name of a model on the hub (with
            ``@revision`` if need be), a folder of any of these, or a text file that lists folders
            beside it and names on the hub, a line each, comments after ``#``.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file that is no list.
    """
    path = Path(source)
    if path.is_file():
        return _listed(path)
    if not path.is_dir() or _is_model(path) or _numbered(path):
        return [str(source)]
    inside = [folder for folder in _folders(path) if _is_model(folder) or _numbered(folder)]
    return [str(folder) for folder in inside] or [str(source)]


def find_run(source: str | Path) -> Run:
    """The checkpoints of a run's folder, or the one that a model's folder or name on the hub is.

    Checkpoints that an older run left in the folder are left out, with a warning.

    Raises:
        FileNotFoundError: no checkpoints; the message says what is there.
    """
    path = Path(source)
    if not path.exists() and _HUB_NAME.fullmatch(str(source)):
        return _of_hub(str(source))
    if not path.is_dir():
        raise FileNotFoundError(f"no folder at {path}")
    found = _numbered(path)
    if found:
        return Run(str(source), of_newest_run(path, found), path, is_trained=True)
    if _is_model(path) or _has_adapters(path):
        return Run(str(source), {_step_of(path): path}, path.resolve().parent, is_trained=False)
    names = sorted(inside.name for inside in path.iterdir())
    more = ", ..." if len(names) > _NAMED else ""
    judged = any(name.endswith(".npz") for name in names)
    hint = "; recorded runs are for `sepstop bench judge`" if judged else ""
    raise FileNotFoundError(
        f"expected folders named checkpoint-<step> in {path}, or a model, found "
        f"{', '.join(names[:_NAMED]) or 'nothing'}{more}{hint}"
    )


def _step_of(model: Path) -> int:
    """As Trainer noted it, whatever the folder is called now; or else the number in its name."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return max(1, int(json.loads((model / "trainer_state.json").read_text())["global_step"]))
    number = re.search(r"(\d+)$", model.resolve().name)
    return max(1, int(number[1])) if number else 1


def find_checkpoints(run_dir: str | Path) -> dict[int, Path]:
    """Step -> folder of each checkpoint in ``run_dir``.

    Raises:
        FileNotFoundError: there is none; the message says what is there.
    """
    return find_run(run_dir).checkpoints


def _numbered(folder: Path) -> dict[int, Path]:
    """``checkpoint-<step>`` folders; or else models, if their names end in different numbers."""
    folders = _folders(folder)
    of_trainer = [path for path in folders if re.fullmatch(r"checkpoint-\d+", path.name)]
    named = of_trainer or [path for path in folders if _is_model(path) or _has_adapters(path)]
    numbers = [re.search(r"(\d+)$", path.name) for path in named]
    found = {int(number[1]): path for number, path in zip(numbers, named, strict=True) if number}
    return found if len(found) == len(named) else {}


def _is_model(folder: Path) -> bool:
    """By its files; Trainer's are beside folders of PEFT adapters with names of their own."""
    if any((folder / name).is_file() for name in _MODEL_FILES):
        return True
    is_checkpoint = any((folder / name).is_file() for name in _TRAINER_FILES)
    return is_checkpoint and bool(adapter_folders(folder))


def _has_adapters(folder: Path) -> bool:
    """Whether PEFT saved a model there whose adapters have names, and not a run its epochs."""
    return bool(adapter_folders(folder)) and not _numbered(folder)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _listed(path: Path) -> list[str]:
    """What a text file lists; a folder elsewhere is for the command line, not for a file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected a folder or a text file that lists models, got {path}: {error}"
        ) from error
    names = [name for line in lines if (name := line.split("#")[0].strip())]
    if not names:
        raise ValueError(f"{path} lists nothing: expected a folder or a model's name a line")
    runs = []
    for name in names:
        folder = path.parent / name
        if folder.is_dir():
            if not folder.resolve().is_relative_to(path.parent.resolve()):
                raise ValueError(
                    f"{path} names {name!r}, which lies outside its folder; name it on the "
                    "command line if you want it"
                )
            runs += find_runs(folder)
        elif _HUB_NAME.fullmatch(name):
            runs.append(name)
        else:
            raise ValueError(
                f"{path} names {name!r}, which is neither a folder beside it nor the name of a "
                "model on the hub, as org/model"
            )
    return runs


def _of_hub(name: str) -> Run:
    from huggingface_hub import cached_assets_path, snapshot_download

    repository, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repository, revision=revision or None, ignore_patterns=_OTHER_FORMATS
        )
    except Exception as error:  # of the network, of the hub's library, of the name
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"no folder at {name}, and no model of that name from the hub: {why}"
        ) from error
    home = cached_assets_path("sepstop", namespace="observations")
    return Run(name, {1: Path(folder)}, home, is_trained=False)
