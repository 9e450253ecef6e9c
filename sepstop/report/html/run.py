"""What there is to show of a run, gathered from its folder, where only the cache changes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sepstop.decide.selection import Selection
from sepstop.measure.monitor import CriterionError
from sepstop.measure.neighbors import NEIGHBORS_FILE, Neighborhoods
from sepstop.measure.pool import Pool, read_pool
from sepstop.measure.resampling import draw_resamples
from sepstop.report.figures import history_of
from sepstop.report.html.frames import MOST_TEXTS, Camera, Frame, sample
from sepstop.report.html.labels import read_labels
from sepstop.runs import history as rows
from sepstop.runs.checkpoints import find_checkpoints
from sepstop.runs.select import NothingScoredError, select_checkpoint
from sepstop.types import Decision, Record

POOL_FILE = "pool.jsonl"
"""Where a run's folder may have its pool."""

UNKNOWN = Decision(False, None, "the run recorded no decision")
"""The decision of a run whose own is not on disk."""

_PLACES = ("pool", "pool_size", "embedder", "max_length")  # of `Monitor.places`


@dataclass(frozen=True)
class Run:
    """A run, ready to be shown.

    Attributes:
        folder: the run's.
        history: its records, in order of steps.
        decision: that of the run itself, or else of the selection; `UNKNOWN` without either.
        monitored: True if the run's own decision is known.
        by_information: True if the information decides, False if the criterion's score does.
        log: the recorded "settings" and "policy", and the learning "rates" in the log.
        state: the trainer's, without its log.
        config: the model's.
        selection: the checkpoints, scored on the pool; None without a pool or checkpoints.
        others: the same by other criteria.
        frames: a picture of each checkpoint there still is.
        classifies: whether the groups of frames are predicted classes.
        map_name: how the texts came into the plane.
        mapped: how many of them are on the map.
        texts: those on the map, if they are to be shown.
        labels: of those on the map, if they were given.
        notes: what is to be said besides.
    """

    folder: Path
    history: Sequence[Record]
    decision: Decision
    monitored: bool
    by_information: bool
    log: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    selection: Selection | None = None
    others: Mapping[str, Selection] = field(default_factory=dict)
    frames: Sequence[Frame] = ()
    classifies: bool = False
    map_name: str = "pca"
    mapped: int = 0
    texts: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def record(self) -> Mapping[int, Record]:
        """By step: those of the history, and where it has none those of the selection."""
        of_selection = self.selection.records if self.selection else ()
        return {record.step: record for record in [*of_selection, *self.history]}

    @property
    def marks(self) -> dict[str, int | None]:
        """The steps of the pick and of the stop."""
        decision = self.decision
        return {"pick": decision.best_step, "stop": decision.step if decision.stop else None}

    @property
    def settings(self) -> Mapping[str, Any]:
        """How the records were measured."""
        of_selection = self.selection.settings if self.selection else {}
        return self.log.get("settings", of_selection)

    @property
    def class_names(self) -> Mapping[int, str]:
        return class_names(self.config)


def look_at(
    run_dir: str | Path,
    pool: Any = None,
    *,
    text_column: str = "text",
    labels: str | None = None,
    texts: bool = False,
    criteria: Sequence[str] | None = None,
    map_name: str = "pca",
    progress: bool = False,
    **options: Any,
) -> Run:
    """Everything that is shown of a run.

    Args:
        run_dir: its folder.
        pool: a file of texts; by default `POOL_FILE` in the folder, if it is there. Without any
            there are no frames and no other criteria.
        text_column, labels: the file's columns with the texts and, to be shown, their labels.
        texts: keep the texts on the map, to be shown.
        criteria: more than the one that the run was scored by; a few cheap ones by default.
        map_name: of `sepstop.report.html.maps.MAPS`.
        progress: show bars.
        **options: of `select_checkpoint`.

    Raises:
        FileNotFoundError: no such folder or file, or nothing to show in it.
        ValueError: a file is broken, or the pool, a criterion or the labels are unusable.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoints: dict[int, Path] = {}
        with suppress(FileNotFoundError):  # a run may have kept none
            checkpoints = find_checkpoints(folder)
        run = _recorded(folder, checkpoints)
        file = folder / POOL_FILE if pool is None and (folder / POOL_FILE).is_file() else pool
        if labels is not None and file is None:
            raise ValueError("labels are a column of the pool's file: name it by pool= (--pool)")
        if file is not None and checkpoints:
            recorded = run.settings if run else {}
            chosen = read_pool(
                file, text_column, recorded.get("pool_size", 2000), recorded.get("seed", 0)
            )
            given = None if labels is None else read_labels(Path(file), labels, chosen)
            camera = Camera(
                mapped=sample(len(chosen)),
                barred=_first_resample(chosen, recorded),
                map_name=map_name,
                neighborhoods=_neighborhoods(folder, recorded),
                labels=given,
                names=class_names(_config(checkpoints)),
            )

            def selected(**more: Any) -> Selection:
                fixed = {"write_history": False, "progress": progress}
                return select_checkpoint(folder, chosen, **(options | fixed | more))

            try:
                run = _photographed(run, folder, checkpoints, camera, selected, criteria)
            except NothingScoredError as error:
                if run is None:
                    raise
                run = replace(run, notes=[str(error)])
            mapped = camera.mapped.tolist()
            shown = texts and not chosen.is_tokenized
            run = replace(
                run,
                map_name=map_name,
                mapped=len(mapped),
                texts=[str(chosen.rows[i]) for i in mapped] if shown else None,
                labels=None if given is None else [given[i] for i in mapped],
            )
    if run is None:
        history_of(folder)  # raises, and says what is missing
        raise FileNotFoundError(f"nothing to show in {folder}")
    said = [str(w.message) for w in caught if issubclass(w.category, (UserWarning, RuntimeWarning))]
    notes = [*dict.fromkeys(line.removeprefix("sepstop: ") for line in said), *run.notes]
    if file is not None and not checkpoints:
        notes.append("the pool is not looked at, as the folder has no checkpoints to embed it")
    return replace(run, notes=notes)


def _recorded(folder: Path, checkpoints: Mapping[int, Path]) -> Run | None:
    """What the run left without a look at its models; None if that has no scores."""
    try:
        found = history_of(folder)
    except FileNotFoundError:
        return None
    rates = [row.get("learning_rate") for row in rows.newest_log_history(checkpoints)]
    recorded = {"settings": found.settings} if found.settings else {}
    newest = checkpoints[max(checkpoints)] if checkpoints else folder  # with no trainer's state
    return Run(
        folder=folder,
        history=found.records,
        decision=found.decision or UNKNOWN,
        monitored=found.is_online and found.decision is not None,
        by_information=found.by_information,
        log=recorded
        | {"policy": found.policy, "rates": [r for r in rates if isinstance(r, float)]},
        state=_json(newest / "trainer_state.json"),
        config=_config(checkpoints),
    )


def _photographed(
    run: Run | None,
    folder: Path,
    checkpoints: Mapping[int, Path],
    camera: Camera,
    selected: Callable[..., Selection],
    criteria: Sequence[str] | None,
) -> Run:
    """``run`` with what its checkpoints make of the pool.

    Args:
        selected: `select_checkpoint` with all but ``on_observed`` and ``criterion``.
    """
    selection = selected(on_observed=camera)
    by_default = ["stable_rank", *(["infomax"] if camera.classifies else [])]
    names = by_default if criteria is None else criteria
    others: dict[str, Selection] = {}
    notes = _notes(camera, selection)
    for name in names:
        if name in ("information", selection.records[0].criterion):
            continue
        try:
            others[name] = selected(criterion=name, ties="best")
        except CriterionError as error:
            notes.append(f"{name} is not shown: {error}")
    if run is None or not run.monitored:
        run = Run(
            folder=folder,
            history=selection.records,
            decision=selection.decision,
            monitored=False,
            by_information=selection.by_information,
            state=_json(checkpoints[max(checkpoints)] / "trainer_state.json"),
            config=_config(checkpoints),
        )
    return replace(
        run,
        selection=selection,
        others=others,
        frames=camera.frames,
        classifies=bool(camera.classifies),
        notes=notes,
    )


def _first_resample(pool: Pool, recorded: Mapping[str, Any]) -> Any:
    """The first of the resamples that the scores are taken on, as `select_checkpoint` has them."""
    size = min(len(pool) // 2, 1000)
    if pool.fingerprint == recorded.get("pool"):
        size = recorded.get("resample_size", size)
    return draw_resamples(len(pool), 1, size, recorded.get("seed", 0))[0][:MOST_TEXTS]


def _neighborhoods(folder: Path, recorded: Mapping[str, Any]) -> Neighborhoods:
    """Those that the run left, which its information refers to; or none yet."""
    if not all(key in recorded for key in _PLACES):
        return Neighborhoods()
    places = json.dumps({key: recorded[key] for key in _PLACES})
    return Neighborhoods.load(folder / NEIGHBORS_FILE, places, 2**62)


def _notes(camera: Camera, selection: Selection) -> list[str]:
    notes = [f"{path.name} is left out: {why}" for path, why in selection.skipped.items()]
    if camera.blurred:
        steps = ", ".join(map(str, camera.blurred))
        notes.append(f"no map or barcode of step {steps}: embeddings are not finite numbers")
    if camera.unmatched:
        notes.append(
            "the labels are neither names nor numbers of the model's classes, so the accuracy of "
            "its predictions is not shown"
        )
    return notes


def _config(checkpoints: Mapping[int, Path]) -> dict[str, Any]:
    """Of the newest checkpoint's model and adapter; empty without any."""
    if not checkpoints:
        return {}
    newest = checkpoints[max(checkpoints)]
    return _json(newest / "config.json") | _json(newest / "adapter_config.json")


def class_names(config: Mapping[str, Any]) -> dict[int, str]:
    """Of a model's configuration; empty if they are transformers' placeholders, or no names.

    >>> class_names({"id2label": {"0": "glad", "1": "sad"}})
    {0: 'glad', 1: 'sad'}
    >>> class_names({"id2label": {"0": "LABEL_0"}})
    {}
    """
    names = config.get("id2label")
    if not isinstance(names, Mapping) or not all(
        key.isdecimal() and len(key) < 10 for key in map(str, names)
    ):
        return {}
    if all(str(name) == f"LABEL_{number}" for number, name in names.items()):
        return {}
    return {int(number): str(name) for number, name in names.items()}


def _json(path: Path) -> dict[str, Any]:
    """Empty if there is nothing to read."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}
