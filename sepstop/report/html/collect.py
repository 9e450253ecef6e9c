"""Collection of report data from a run's folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sepstop.config import SepStopConfig
from sepstop.criteria import CRITERIA
from sepstop.decide.selection import Selection
from sepstop.measure.monitor import MAX_RESAMPLE_SIZE
from sepstop.measure.neighbors import NEIGHBORS_FILE, Neighborhoods
from sepstop.measure.observer import embedding_key
from sepstop.measure.pool import Pool, read_pool
from sepstop.measure.resampling import draw_resamples
from sepstop.report.html.frames import MAX_TEXTS, FrameRecorder, sample
from sepstop.report.html.labels import read_labels
from sepstop.report.html.report_data import ReportData
from sepstop.report.scored_run import read_scored_run
from sepstop.runs.checkpoints import find_checkpoints
from sepstop.runs.history import history_of_selection, newest_log_history
from sepstop.runs.records import RunHistory
from sepstop.runs.select import NothingScoredError, select_checkpoint

POOL_FILE = "pool.jsonl"
"""Name of the pool's file in a run's folder."""


def collect(
    run_dir: str | Path,
    pool: Any = None,
    *,
    labels: str | None = None,
    texts: bool = False,
    map_name: str = "pca",
    **options: Any,
) -> ReportData:
    """Everything the page shows of a run. Only the cache in its folder changes.

    Args:
        run_dir: folder of the run.
        pool: file of texts. Default: `POOL_FILE` in the folder if it exists. Without one, there are
            no frames and no further scores.
        labels: column of the pool's file with labels to show.
        texts: show the texts of the map.
        map_name: key of `sepstop.report.html.maps.MAPS`.
        **options: of `sepstop.runs.select.select_checkpoint`. By default, ``extra_criteria`` are
            those that the run recorded, and ``infomax`` if the run recorded that its model predicts
            one class out of k.

    Raises:
        FileNotFoundError: no such folder or file, or no scores and nothing to score.
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
        data = _from_files(folder, checkpoints)
        file = folder / POOL_FILE if pool is None and (folder / POOL_FILE).is_file() else pool
        if labels is not None and file is None:
            raise ValueError("labels are a column of the pool's file; pass it as pool= (--pool)")
        if file is not None and checkpoints:
            data = _with_checkpoints(replace(data, map_name=map_name), file, labels, texts, options)
    if not data.history.records:
        read_scored_run(folder)  # its error says what is missing
        raise FileNotFoundError(f"no scores in {folder}")
    shown = [
        str(w.message) for w in caught if issubclass(w.category, (UserWarning, RuntimeWarning))
    ]
    notes = [*dict.fromkeys(text.removeprefix("sepstop: ") for text in shown), *data.notes]
    if file is not None and not checkpoints:
        notes.append("the pool is not used, since the folder has no checkpoints to embed it with")
    return replace(data, notes=notes)


def _from_files(folder: Path, checkpoints: Mapping[int, Path]) -> ReportData:
    """What can be read without running a model; without records if there are no scores."""
    history = RunHistory()
    with suppress(FileNotFoundError):
        history = read_scored_run(folder)
    rates = [row.get("learning_rate") for row in newest_log_history(checkpoints)]
    state: Mapping[str, Any] = {}
    config: Mapping[str, Any] = {}
    if checkpoints:
        newest = checkpoints[max(checkpoints)]
        state = _read_json(newest / "trainer_state.json")
        config = _read_json(newest / "config.json") | _read_json(newest / "adapter_config.json")
    return ReportData(
        folder=folder,
        history=history,
        learning_rates=[rate for rate in rates if isinstance(rate, float)],
        trainer_state=state,
        model_config=config,
    )


def _with_checkpoints(
    data: ReportData, file: Any, labels: str | None, texts: bool, options: dict[str, Any]
) -> ReportData:
    """``data`` with a selection among the checkpoints and a frame of each step's record."""
    recorded = data.history.settings
    pool = read_pool(
        file,
        options.get("text_column", SepStopConfig.text_column),
        recorded.get("pool_size", SepStopConfig.pool_size),
        recorded.get("seed", SepStopConfig.seed),
    )
    given = None if labels is None else read_labels(Path(file), labels, pool)
    recorder = FrameRecorder(
        map_indices=sample(len(pool)),
        barcode_indices=_first_resample(pool, recorded),
        map_name=data.map_name,
        neighborhoods=_neighborhoods(data.folder, recorded),
        labels=given,
        class_names=data.class_names,
    )
    mapped = recorder.map_indices.tolist()
    data = replace(
        data,
        num_mapped=len(mapped),
        texts=[str(pool.rows[i]) for i in mapped] if texts and not pool.is_tokenized else None,
        labels=None if given is None else [given[i] for i in mapped],
    )
    try:
        selection = select_checkpoint(
            data.folder,
            pool,
            write_history=False,
            on_observed=recorder,
            **_extra_criteria(recorded) | options,
        )
    except NothingScoredError as error:
        if not data.history.records:
            raise
        return replace(data, notes=[str(error)])
    return replace(
        data,
        history=data.history if data.is_monitored else history_of_selection(selection),
        selection=selection,
        frames=recorder.frames,
        has_classes=bool(recorder.has_classes),
        notes=_notes(recorder, selection),
    )


def _extra_criteria(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """``extra_criteria`` with infomax, for a run that recorded that it has classes; else empty.

    Names in a file import nothing: only sepstop's own criteria are taken from it.
    """
    if recorded.get("outputs") != "classes":
        return {}
    known = [one for one in recorded.get("extra_criteria", ()) if str(one.get("name")) in CRITERIA]
    return {"extra_criteria": [*known, "infomax"]}


def _first_resample(pool: Pool, recorded: Mapping[str, Any]) -> Tensor:
    """``(n,)`` int64 indices of the first resample that scores are computed on."""
    size = min(len(pool) // 2, MAX_RESAMPLE_SIZE)
    if pool.fingerprint == recorded.get("pool"):
        size = recorded.get("resample_size", size)
    seed = recorded.get("seed", SepStopConfig.seed)
    return draw_resamples(len(pool), 1, size, seed)[0][:MAX_TEXTS]


def _neighborhoods(folder: Path, recorded: Mapping[str, Any]) -> Neighborhoods:
    """The neighbors that the run left and its scores refer to; empty if there are none."""
    return Neighborhoods.load(folder / NEIGHBORS_FILE, embedding_key(recorded))


def _notes(recorder: FrameRecorder, selection: Selection) -> list[str]:
    notes = [f"{path.name} was skipped: {why}" for path, why in selection.skipped.items()]
    if recorder.nonfinite_steps:
        steps = ", ".join(map(str, recorder.nonfinite_steps))
        notes.append(f"no map or barcode at step {steps}: embeddings are NaN or infinite")
    if recorder.has_unmatched_labels:
        notes.append(
            "the labels are neither names nor numbers of the model's classes, so the page does not "
            "show its accuracy"
        )
    return notes


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is none to read."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}
