"""Time and memory of sampling 2000 texts from a million, and of reading the whole file.

    python scripts/bench_pool.py

A new process reads each format, once with `sepstop.measure.pool.read_pool` and once with pandas (a
dataset: by taking its column). Memory is the growth of the process. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from sepstop.measure.pool import read_pool

FORMATS = (".txt", ".jsonl", ".csv", ".parquet", ".arrow")
WORDS = np.array(["text", "run", "loss", "step", "model", "label", "near", "far", "score", "point"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs=2, metavar=("PATH", "HOW"), help="internal")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measured(Path(given.measure[0]), given.measure[1])))
        return
    table = Table(title=f"2000 of {given.rows:,} rows")
    for column in ("", "file", "sepstop", "memory", "whole", "memory", "time", "memory"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for path in written(given.rows, Path(folder)):
            ours, whole = (in_a_process(path, how) for how in ("sepstop", "whole"))
            files = path.rglob("*") if path.is_dir() else [path]
            table.add_row(
                path.suffix,
                f"{sum(file.stat().st_size for file in files) / 2**20:.0f} MiB",
                *(
                    text
                    for found in (ours, whole)
                    for text in (f"{found['seconds']:.1f} s", f"{found['mib']:.0f} MiB")
                ),
                f"{ours['seconds'] / whole['seconds']:.1f}",
                f"{ours['mib'] / max(whole['mib'], 1):.2f}",
            )
    Console(width=100).print(table)


def written(rows: int, folder: Path) -> list[Path]:
    """The same texts in each format."""
    generator = np.random.default_rng(0)
    words = generator.choice(WORDS, size=(rows, 30))
    frame = pd.DataFrame({"number": np.arange(rows), "text": [" ".join(row) for row in words]})
    paths = [folder / f"pool{suffix}" for suffix in FORMATS]
    paths[0].write_text("\n".join(frame["text"]))
    frame.to_json(paths[1], orient="records", lines=True)
    frame.to_csv(paths[2], index=False)
    frame.to_parquet(paths[3])
    datasets.Dataset.from_pandas(frame).save_to_disk(str(paths[4]))
    return paths


def in_a_process(path: Path, how: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(path), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(path: Path, how: str) -> dict[str, float]:
    source: Any = datasets.load_from_disk(str(path)) if path.suffix == ".arrow" else path
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = peak_kib()
    start = time.perf_counter()
    texts = read_pool(source, limit=2000).rows if how == "sepstop" else read_whole(source)
    seconds = time.perf_counter() - start
    assert len(texts) >= 2000
    return {"seconds": seconds, "mib": (peak_kib() - before) / 2**10}


def peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def read_whole(source: Any) -> list[str]:
    if isinstance(source, datasets.Dataset):
        return source["text"][:]
    if source.suffix == ".txt":
        return source.read_text().split("\n")
    read = {".jsonl": pd.read_json, ".csv": pd.read_csv, ".parquet": pd.read_parquet}[source.suffix]
    options: dict[str, Any] = {"lines": True} if source.suffix == ".jsonl" else {}
    if source.suffix != ".jsonl":
        options["columns" if source.suffix == ".parquet" else "usecols"] = ["text"]
    return read(source, **options)["text"].tolist()


if __name__ == "__main__":
    main()
