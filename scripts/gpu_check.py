"""Exactness, speed and memory on a GPU, and the cost of watching a real run there.

    python scripts/gpu_check.py           # on a machine with a GPU, within six minutes
    python scripts/gpu_check.py --small   # a rehearsal of every part at tiny sizes

The most telling parts come first: `parity` (the same numbers as on the CPU), `speed` (the H0 engine
beside a matrix product), `scoring` (one evaluation's scores), `training` (a decoder under Trainer)
and `offline` (its checkpoints). Judging recorded suites on the GPU is left for later.

It runs from a checkout without installation or network and needs torch, numpy, scipy, scikit-learn,
transformers and accelerate. It uses peft, cuML and FlashLib where they are installed. A part that
lacks a package is skipped, one that fails is reported, and one that runs out of time is cut short;
the others go on. The figures are written to a JSON file as they come, and printed as a table at the
end. The exit status is 1 if a number differs from the CPU's or a part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
TOLERANCE = 1e-6  # relative, of what has to be equal on both devices
PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy", "scipy", "scikit-learn")
SETTINGS = ("float32", "tf32 by torch.backends", "tf32 by allow_tf32")  # of products
NEVER = {"name": "patience", "patience": None}  # a policy that does not stop


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        value: None if it was left out; `note` says why.
        target: what the value should be: at most, for a number.
        decides: the exit status is 1 if the target is missed.
    """

    name: str
    value: float | str | bool | None
    unit: str = ""
    target: float | bool | None = None
    note: str = ""
    decides: bool = False

    @property
    def met(self) -> bool | None:
        if self.target is None or self.value is None:
            return None
        if isinstance(self.target, bool):
            return self.value == self.target
        return float(self.value) <= self.target  # False for NaN


@dataclass
class Part:
    """A part of the check and what came of it."""

    name: str
    status: str = "running"
    reason: str = ""
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)


@dataclass
class Setup:
    """What the parts share.

    Attributes:
        folder: scratch space; `training` leaves its run here for `offline`.
        until: `time.perf_counter` at which the part in progress should end.
    """

    device: torch.device
    small: bool
    folder: Path
    until: float = math.inf

    def seconds_left(self) -> float:
        return self.until - time.perf_counter()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Skipped(Exception):  # noqa: N818
    """A part cannot run here."""


class OutOfTime(BaseException):
    """The time of a part is up. Nothing inside the part may catch it as an error of its own."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes, on the CPU")
    default = Path(os.environ.get("OUT", ".")) / "gpu_check.json"
    parser.add_argument("--out", type=Path, default=default, help="JSON file of the figures")
    parser.add_argument("--budget", type=float, default=360, help="seconds in all")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args(arguments)
    if not given.small and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --small rehearses the check on the CPU")
    start = time.perf_counter()
    device = "cpu" if given.small else "cuda"
    report: dict[str, Any] = {"machine": machine(device), "small": given.small, "parts": []}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        setup = Setup(torch.device(device), given.small, Path(folder))
        for name in given.parts:
            part = Part(name)
            report["parts"].append(part)
            setup.until = start + PARTS[name][1] * given.budget
            save = partial(write, report, given.out)
            carry_out(part, PARTS[name][0], setup, save)
    print(table(report))
    print(f"\n{time.perf_counter() - start:.0f} s in all; written to {given.out}")
    return exit_status(report["parts"])


def carry_out(
    part: Part,
    figures: Callable[[Setup], Iterator[Figure]],
    setup: Setup,
    save: Callable[[], None],
) -> None:
    """Runs one part and notes its figures as they come, and how it ended."""
    start = time.perf_counter()
    try:
        with alarm(setup.seconds_left()):
            for figure in figures(setup):
                part.figures.append(figure)
                part.seconds = round(time.perf_counter() - start, 2)
                print(f"[{part.name}] {line(figure)}", flush=True)
                save()
        part.status = "done"
    except Skipped as error:
        part.status, part.reason = "skipped", str(error)
    except OutOfTime as error:
        part.status, part.reason = "cut short" if part.figures else "left out", str(error)
    except Exception as error:
        part.status, part.reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
        if _is_missing(error):
            part.status = "skipped"
        else:
            traceback.print_exc()
    part.seconds = round(time.perf_counter() - start, 2)
    save()
    gc.collect()
    with contextlib.suppress(RuntimeError):  # after a kernel failed, every call does
        torch.cuda.empty_cache()


def _is_missing(error: Exception) -> bool:
    """Whether a package of someone else is not installed."""
    return isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("sepstop")


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` within if it takes longer."""
    if seconds <= 0:
        raise OutOfTime("no time was left for it")

    def ring(*_: Any) -> None:
        raise OutOfTime("the time for it is used up")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# The report


def machine(device: str) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "cuda": torch.version.cuda if device == "cuda" else None,
        "platform": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def write(report: dict[str, Any], path: Path) -> None:
    parts = [
        asdict(part)
        | {"figures": [asdict(figure) | {"met": figure.met} for figure in part.figures]}
        for part in report["parts"]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report | {"parts": parts}, indent=1) + "\n")


def table(report: dict[str, Any]) -> str:
    found = report["machine"]
    versions = [f"{package} {number}" for package, number in found["versions"].items()]
    lines = ["", ", ".join([found["device"], f"CUDA {found['cuda']}", *versions])]
    for part in report["parts"]:
        reason = f": {part.reason}" if part.reason else ""
        lines += ["", f"{part.name} ({part.seconds:.1f} s, {part.status}{reason})"]
        lines += [f"  {line(figure)}" for figure in part.figures]
    return "\n".join(lines)


def line(figure: Figure) -> str:
    value = figure.value
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    if value is None:
        shown = "left out"
    elif figure.unit:
        shown += f" {figure.unit}"
    target = ""
    if figure.met is not None:
        bound = figure.target if isinstance(figure.target, bool) else f"<= {figure.target:g}"
        target = f"{bound}: {'met' if figure.met else 'MISSED'}"
    return f"{figure.name:58} {shown:18} {target:18} {figure.note}".rstrip()


def exit_status(parts: list[Part]) -> int:
    failed = any(part.status == "failed" for part in parts)
    missed = any(
        figure.decides and figure.met is False for part in parts for figure in part.figures
    )
    return int(failed or missed)


# Points and time


def mixture(n: int, dimensions: int, seed: int = 0, device: str | torch.device = "cpu") -> Tensor:
    """Unit-length float32 ``(n, D)``: 20 Gaussians of intrinsic dimension 30 and a little noise."""
    generator = torch.Generator(device).manual_seed(seed)
    draw = partial(torch.randn, generator=generator, device=device)
    centers = 1.5 * draw(20, 30)
    chosen = torch.randint(20, (n,), generator=generator, device=device)
    inner = centers[chosen] + 0.5 * draw(n, 30)
    points = (inner @ draw(30, dimensions)).div_(30**0.5)
    points.add_(draw(n, dimensions), alpha=0.02)
    return points.div_(points.norm(dim=-1, keepdim=True))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(points: Tensor, block: int = 8192) -> None:
    """The full float32 product of the points with themselves: what all pairs cost at least."""
    for rows in points.split(block):
        for columns in points.split(block):
            rows @ columns.T


def timed(work: Callable[[], Any], setup: Setup, repeats: int = 3) -> tuple[float, float]:
    """Median seconds after a first call, and the peak of memory above what was held, in MiB."""
    work()
    setup.wait()
    on_gpu = setup.device.type == "cuda"
    held = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        setup.wait()
        seconds.append(time.perf_counter() - start)
    peak = (torch.cuda.max_memory_allocated() - held) / 2**20 if on_gpu else 0.0
    return statistics.median(seconds), peak


# Part 1: the same numbers as on the CPU


def parity(setup: Setup) -> Iterator[Figure]:
    """Deaths, trees and criteria against the CPU, with TF32 forbidden and allowed."""
    clouds = trap_clouds(200 if setup.small else 1500)
    lengths = {name: reference(cloud) for name, cloud in clouds.items()}
    for setting in SETTINGS:
        with products(setting):
            for error in (deaths_error, tree_error):
                for engine in ("dense", "filtered"):
                    worst = Worst()
                    for name, cloud in clouds.items():
                        there = cloud.to(setup.device)
                        worst.add(name, partial(error, there, lengths[name], engine))
                    kind = error.__name__.removesuffix("_error")
                    yield worst.figure(f"{kind}, {engine}, {setting}")
    worst = Worst()
    for name, cloud in clouds.items():
        worst.add(name, partial(dendrogram_error, cloud.to(setup.device), lengths[name]))
    yield worst.figure("dendrograms")
    worst = Worst()
    worst.add("", partial(batch_error, setup))
    yield worst.figure("deaths of resamples and of a batch")
    for dtype in (torch.bfloat16, torch.float16):
        cloud = clouds["mixture"].to(dtype)
        worst = Worst()
        worst.add("", partial(deaths_error, cloud.to(setup.device), reference(cloud), "auto"))
        yield worst.figure(f"deaths of {dtype} points")
    yield from criteria_parity(setup)
    yield from neighbor_parity(setup)


class Worst:
    """The largest error and where it was seen."""

    value = 0.0
    where = ""

    def add(self, where: str, measure: Callable[[], float]) -> None:
        """NaN, as what raises is taken for, counts as the largest error."""
        try:
            error = measure()
        except Exception as failure:
            why = f"{type(failure).__name__}: {failure}".splitlines()[0]
            error, where = math.nan, f"{where}: {why}"
        if not error <= self.value and not math.isnan(self.value):
            self.value, self.where = error, where

    def figure(self, name: str) -> Figure:
        return Figure(name, self.value, target=TOLERANCE, note=self.where, decides=True)


def trap_clouds(n: int) -> dict[str, Tensor]:
    """Float32 clouds that are hard on distances by products."""
    clump = mixture(n, 64, seed=3)
    clump[: n // 4] = clump[0] + 1e-4 * normal(n // 4, 64, seed=1)
    half = n // 2
    pairs = mixture(n, 384, seed=4)
    pairs[half : 2 * half] = pairs[:half] + 1e-5 * normal(half, 384, seed=2)
    copies = mixture(n, 32, seed=7)
    copies[half : 2 * half] = copies[:half]
    return {
        "mixture": mixture(2 * n, 384),
        "isotropic": normal(n, 384, seed=5),
        "clump": clump,
        "pairs": pairs,
        "copies": copies,
        "offset": mixture(n, 96, seed=5) + 1000.0,
        "scales": mixture(n, 96, seed=6) * torch.logspace(-3, 3, n)[:, None],
        "float64": mixture(n, 96, seed=8).double() * 1e200,
        "equal": torch.ones(50, 8),
        "two points": mixture(2, 8),
    }


def reference(points: Tensor) -> Tensor:
    """Edge lengths of the tree by SciPy in float64, from differences of coordinates."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import pdist

    scale = points.double().abs().max()
    lengths = linkage(pdist((points.double() / scale).numpy()), "single")[:, 2]
    return torch.from_numpy(np.sort(lengths)) * scale


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest of all; NaN if the shapes differ."""
    if found.shape != expected.shape:
        return math.nan
    floor = 1e-9 * expected.max() + torch.finfo(torch.float32).tiny
    return float(((found.cpu().double() - expected).abs() / expected.clamp(min=floor)).max())


def deaths_error(points: Tensor, expected: Tensor, engine: Any) -> float:
    from sepstop import h0_deaths

    return relative_error(h0_deaths(points, engine=engine), expected)


def dendrogram_error(points: Tensor, expected: Tensor) -> float:
    from sepstop.homology import h0_dendrogram

    return relative_error(h0_dendrogram(points)[1].sort().values, expected)


def tree_error(points: Tensor, expected: Tensor, engine: Any) -> float:
    """Error of the edges' lengths, measured again; NaN if they do not span the points."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    from sepstop import h0_tree

    edges = h0_tree(points, engine=engine)[0].cpu()
    n = len(points)
    graph = coo_array((np.ones(n - 1), (edges[:, 0].numpy(), edges[:, 1].numpy())), shape=(n, n))
    if connected_components(graph, directed=False)[0] != 1:
        return math.nan
    ends = points.cpu().double() / float(points.abs().max())
    lengths = (ends[edges[:, 0]] - ends[edges[:, 1]]).norm(dim=-1).sort().values
    return relative_error(lengths * float(points.abs().max()), expected)


def batch_error(setup: Setup) -> float:
    from sepstop import h0_deaths

    n, size = (120, 60) if setup.small else (1000, 500)
    points = mixture(n, 64, seed=9)
    resamples = torch.stack([normal(n, seed=seed).argsort()[:size] for seed in range(12)])
    expected = torch.stack([reference(points[part]) for part in resamples])
    points, resamples = points.to(setup.device), resamples.to(setup.device)
    found = (h0_deaths(points, resamples), h0_deaths(points[resamples]))
    return max(
        relative_error(row, want)
        for deaths in found
        for row, want in zip(deaths, expected, strict=True)
    )


@contextlib.contextmanager
def products(setting: str) -> Iterator[None]:
    """Float32 products as the setting says: exact, or with TF32 allowed in either of two ways."""
    if setting == "float32":
        yield
    elif setting == "tf32 by allow_tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
    elif not hasattr(torch.backends, "fp32_precision"):  # torch before 2.9
        yield
    else:  # as TrainingArguments(tf32=True) does
        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = before


def score_inputs(n: int, dimensions: int, classes: int) -> dict[str, Tensor]:
    """Everything that a criterion of a pool may need, on the CPU."""
    points = mixture(n, dimensions).double()
    logits = points @ normal(dimensions, classes, seed=3).double() * 4
    near = torch.randint(n, (n, 4, 3), generator=torch.Generator().manual_seed(4))
    near[:, -1] = torch.cdist(points, points).topk(4, largest=False).indices[:, 1:]
    return {
        "points": points,
        "logits": logits,
        "previous_logits": logits + normal(n, classes, seed=5),
        "corrupted_logits": logits + normal(n, classes, seed=6),
        "token_losses": normal(n, 2, seed=7).exp(),
        "neighbors": near,
        "neighbor_classes": logits.argmax(dim=-1)[near],
    }


def criteria_parity(setup: Setup) -> Iterator[Figure]:
    """Each criterion on resamples, the worst error as a part of its largest score."""
    from sepstop.bench.criteria import COMPARED
    from sepstop.criteria import CRITERIA
    from sepstop.measure.resampling import draw_resamples

    n, dimensions = (150, 48) if setup.small else (1000, 384)
    inputs = score_inputs(n, dimensions, classes=10)
    resamples = draw_resamples(n, 4, n // 2, seed=0)
    for name, kind in (CRITERIA | COMPARED).items():
        criterion = kind()
        needs = getattr(criterion, "needs", ("points",))
        if missing := [need for need in needs if need not in inputs]:
            yield Figure(f"criterion {name}", None, note=f"it needs the {missing[0]}")
            continue
        given = {need: inputs[need] for need in needs}
        worst = Worst()
        worst.add("", partial(criterion_error, setup, criterion, given, resamples))
        yield worst.figure(f"criterion {name}")


def criterion_error(
    setup: Setup, criterion: Any, inputs: dict[str, Tensor], resamples: Tensor
) -> float:
    from sepstop.measure.resampling import score_resamples

    there = {name: values.to(setup.device) for name, values in inputs.items()}
    found = torch.tensor(score_resamples(criterion, there, resamples))
    expected = torch.tensor(score_resamples(criterion, dict(inputs), resamples))
    return float((found - expected).abs().max() / expected.abs().max())


def neighbor_parity(setup: Setup) -> Iterator[Figure]:
    """Texts with other nearest neighbors than on the CPU; ties may fall either way."""
    from sepstop.measure.neighbors import nearest_neighbors

    points = mixture(200 if setup.small else 2000, 384)
    expected = nearest_neighbors(points)
    for setting in SETTINGS[:2]:
        with products(setting):
            found = nearest_neighbors(points.to(setup.device)).cpu()
        moved = (found != expected).any(dim=1).double().mean()
        yield Figure(f"texts with other neighbors, {setting}", float(moved), "of all")


# Part 2: the H0 engine beside a product


def speed(setup: Setup) -> Iterator[Figure]:
    """Seconds and peak memory of `h0_deaths`; targets are those of a new mark at 50,000 points."""
    from sepstop import h0_deaths

    shapes = [(50_000, 384), (50_000, 768), (10_000, 768)]
    large = [(50_000, 4096), (2000, 768), (100_000, 384)]
    if setup.small:
        shapes, large = [(2000, 32)], [(600, 64)]
    for n, columns in shapes:
        yield from h0_figures(setup, n, columns)
    total, size, count, dimensions = (200, 100, 20, 32) if setup.small else (2000, 1000, 200, 384)
    points = mixture(total, dimensions, device=setup.device)
    drawn = [normal(total, seed=seed).argsort()[:size] for seed in range(count)]
    resamples = torch.stack(drawn).to(setup.device)
    name = f"{count} resamples of {size:,} x {dimensions}"
    bare = partial(_products_of_resamples, points, resamples)
    yield Figure(f"products of {name}", timed(bare, setup)[0], "s")
    seconds, peak = timed(partial(h0_deaths, points, resamples), setup)
    yield Figure(f"h0_deaths of {name}", seconds, "s", target=0.06)
    yield Figure("  its peak memory", peak, "MiB", target=512)
    yield from peers(setup, *shapes[0])
    for n, columns in large:
        yield from h0_figures(setup, n, columns)
    yield from engine_settings(setup, *shapes[0])


def _products_of_resamples(points: Tensor, resamples: Tensor) -> None:
    for part in resamples.split(10):
        clouds = points[part]
        (clouds @ clouds.mT).sum()


def h0_figures(setup: Setup, n: int, dimensions: int) -> Iterator[Figure]:
    from sepstop import h0_deaths

    shape = f"{n:,} x {dimensions}"
    if setup.seconds_left() < 15 and not setup.small:
        yield Figure(f"h0_deaths of {shape}", None, note="no time left")
        return
    points = mixture(n, dimensions, device=setup.device)
    floor = timed(partial(product, points), setup)[0]
    yield Figure(f"product of {shape}", floor, "s")
    seconds, peak = timed(partial(h0_deaths, points), setup)
    mark = n == 50_000 and dimensions <= 768
    target = 0.1 if mark else 0.015 if n <= 10_000 else None
    yield Figure(f"h0_deaths of {shape}", seconds, "s", target=target)
    yield Figure("  as a multiple of the product", seconds / floor)
    yield Figure("  its peak memory", peak, "MiB", target=954 if mark else None)


def peers(setup: Setup, n: int, dimensions: int) -> Iterator[Figure]:
    """cuML's single linkage over all pairs, and FlashLib's tree of a matrix of distances."""
    points = mixture(n, dimensions, device=setup.device)

    def cuml() -> None:
        from cuml.cluster import AgglomerativeClustering

        AgglomerativeClustering(connectivity="pairwise", linkage="single").fit(points)

    def flashlib() -> None:
        from flashlib.kernels.flash_mst import flash_mst

        flash_mst(torch.cdist(points, points))

    for name, work in {"cuML's single linkage": cuml, "FlashLib's flash_mst": flashlib}.items():
        try:
            seconds, peak = timed(work, setup, repeats=1)
            note = f"{peak:.0f} MiB of torch's memory"
            yield Figure(f"{name} of {n:,} x {dimensions}", seconds, "s", note=note)
        except Exception as error:  # a peer that is missing or fails says nothing about sepstop
            note = f"{type(error).__name__}: {error}".splitlines()[0][:100]
            yield Figure(f"{name} of {n:,} x {dimensions}", None, note=note)


def engine_settings(setup: Setup, n: int, dimensions: int) -> Iterator[Figure]:
    """Choices that were made on a CPU: where the filtered engine takes over, and its blocks."""
    from sepstop import h0_deaths
    from sepstop.homology import filtered

    for size in (200,) if setup.small else (500, 1500, 4000, 10_000):
        points = mixture(size, dimensions, device=setup.device)
        for engine in ("dense", "filtered"):
            seconds = timed(partial(h0_deaths, points, engine=engine), setup)[0]
            yield Figure(f"{engine} engine on {size:,} x {dimensions}", seconds, "s")
    points = mixture(n, dimensions, device=setup.device)
    before = filtered._WIDER
    for wider in (2, 8):
        try:
            filtered._WIDER = wider
            seconds, peak = timed(partial(h0_deaths, points), setup, repeats=1)
        finally:
            filtered._WIDER = before
        name = f"h0_deaths with blocks {wider} times as wide as on a CPU"
        yield Figure(name, seconds, "s", note=f"{before} is set; {peak:.0f} MiB")


# Part 3: the scores of one evaluation


def scoring(setup: Setup) -> Iterator[Figure]:
    """Seconds of each criterion on 20 resamples of a pool of 2,000 decoder embeddings."""
    from sepstop.bench.criteria import COMPARED
    from sepstop.criteria import CRITERIA
    from sepstop.measure.neighbors import nearest_neighbors
    from sepstop.measure.resampling import draw_resamples, score_resamples

    n, dimensions = (200, 48) if setup.small else (2000, 2048)
    drawn = score_inputs(n, dimensions, classes=20)
    inputs: Any = {name: values.to(setup.device) for name, values in drawn.items()}
    inputs["points"] = inputs["points"].float()  # as a pooling returns them
    seconds = timed(partial(nearest_neighbors, inputs["points"]), setup)[0]
    yield Figure("nearest neighbors", seconds, "s")
    resamples = draw_resamples(n, 20, n // 2, seed=0)
    names = ("separability", "robust_mi", "neighbor_mi", "component_mi", "infomax", "stable_rank")
    for name in names:
        work = partial(score_resamples, (CRITERIA | COMPARED)[name](), inputs, resamples)
        yield Figure(name, timed(work, setup)[0], "s")


# Part 4: a decoder under Trainer


@dataclass
class Watched:
    """What was seen of a run.

    Attributes:
        spent: seconds in `total`, and of them in the `callback`; of these in `embedding` the pool
            and in `scoring`.
        dtypes: of a projection's output in the forward passes of "training" and of the "pool".
    """

    weights: dict[str, Tensor]
    spent: dict[str, float]
    dtypes: dict[str, set[str]]
    scores: int


def training(setup: Setup) -> Iterator[Figure]:
    """A run of a decoder classifier, watched and unwatched."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    base = setup.folder / "base"
    model = new_decoder(setup)
    count = sum(parameter.numel() for parameter in model.parameters())
    yield Figure("parameters", count / 1e6, "million")
    model.save_pretrained(base)
    del model
    first = train(setup, base, "warm-up", steps=2)
    yield Figure(
        "callback of a short run before, which loads the kernels", first.spent["callback"], "s"
    )
    steps = 4 if setup.small else 90
    watched = train(setup, base, "run", steps)
    total, callback = watched.spent["total"], watched.spent["callback"]
    embedding, scoring = watched.spent["embedding"], watched.spent["scoring"]
    yield Figure("run with sepstop", total, "s", note=f"{watched.scores} scores and the start")
    yield Figure("  share in the callback", callback / total, "of the run")
    yield Figure("    embedding the pool", embedding / total, "of the run")
    yield Figure("    neighbors and scores", scoring / total, "of the run")
    yield Figure("    tokens, files and the rest", (callback - embedding - scoring) / total)
    yield Figure("  scoring as a part of embedding", scoring / embedding)
    seen = {phase: ", ".join(sorted(kinds)) for phase, kinds in watched.dtypes.items()}
    same = watched.dtypes["training"] == watched.dtypes["pool"]
    note = f"training {seen['training']}, pool {seen['pool']}"
    yield Figure("pool's pass in the precision of training", same, target=True, note=note)
    unwatched = train(setup, base, "unwatched", steps)
    yield Figure("run without sepstop", unwatched.spent["total"], "s")
    same = equal_weights(watched.weights, unwatched.weights)
    again = True
    if not same:  # is it sepstop, or does no run repeat itself here?
        again = equal_weights(train(setup, base, "unwatched", steps).weights, unwatched.weights)
    note = "" if again else "two runs without sepstop differ, too"
    yield Figure("weights bit-identical to those without", same, target=True, note=note)
    budget = train(setup, base, "budget", 4 * steps, max_overhead=0.1)
    note = f"{4 * steps} steps, {budget.scores} of 20 evaluations scored"
    yield Figure("run with max_overhead=0.1", budget.spent["total"], "s", note=note)
    share = budget.spent["callback"] / budget.spent["total"]
    yield Figure("  share in the callback", share, "of the run")


def new_decoder(setup: Setup) -> nn.Module:
    """A classifier with random weights in float32: 0.8 billion, or a few thousand if small."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    }
    if setup.small:
        sizes = dict.fromkeys(sizes, 2) | {
            "vocab_size": 200,
            "hidden_size": 16,
            "intermediate_size": 32,
        }
    torch.manual_seed(0)
    with torch.device(setup.device):
        return LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=4, pad_token_id=0))


def to_train(setup: Setup, base: Path) -> nn.Module:
    """The decoder with LoRA adapters, or without peft with its last layer alone to be trained."""
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(base).to(setup.device)
    torch.manual_seed(1)
    try:
        import peft
    except ImportError:
        for name, parameter in model.named_parameters():
            last = f"layers.{model.config.num_hidden_layers - 1}."
            parameter.requires_grad_(last in name or "score" in name)
        return model
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=16, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]
    )
    return peft.get_peft_model(model, config)


def token_rows(count: int, longest: int, setup: Setup, seed: int) -> list[list[int]]:
    """Texts of two thirds of the longest length up to it."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randint, generator=generator)
    lengths = draw(longest * 2 // 3, longest + 1, (count,)).tolist()
    vocabulary = 200 if setup.small else 32_000
    return [draw(5, vocabulary, (length,)).tolist() for length in lengths]


def the_pool(setup: Setup) -> Any:
    from sepstop.measure.pool import Pool

    count, longest = (24, 12) if setup.small else (2000, 150)
    return Pool(tuple(map(tuple, token_rows(count, longest, setup, seed=2))))


def train(
    setup: Setup, base: Path, folder: str, steps: int, max_overhead: float | None = None
) -> Watched:
    """One run in a folder; ``run`` keeps its checkpoints.

    It is scored twice or, with ``max_overhead``, up to 20 times; ``unwatched`` is not.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from sepstop import SepStopCallback

    watch = folder != "unwatched"
    batch, length = (2, 8) if setup.small else (16, 128)
    rows = [ids[:length] for ids in token_rows(steps * batch, 2 * length, setup, seed=3)]
    data = [
        {"input_ids": ids, "attention_mask": [1] * length, "labels": place % 4}
        for place, ids in enumerate(rows)
    ]
    arguments = TrainingArguments(
        output_dir=str(setup.folder / folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=1e-4,
        bf16=True,
        use_cpu=setup.device.type == "cpu",
        save_strategy="steps" if folder == "run" else "no",
        save_steps=steps // 2,
        save_only_model=True,
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    model = to_train(setup, base)
    spent = dict.fromkeys(("callback", "embedding", "scoring"), 0.0)
    dtypes: dict[str, set[str]] = {"training": set(), "pool": set()}
    callbacks = []
    if watch:
        callback = SepStopCallback(
            the_pool(setup),
            policy=NEVER,
            every_n_steps=max(1, steps // (20 if max_overhead else 2)),
            max_overhead=max_overhead,
            verbose=False,
        )
        clock(setup, callback, spent)
        watch_dtypes(model, dtypes, spent)
        callbacks.append(callback)
    trainer: Any = Trainer(model, arguments, train_dataset=data, callbacks=callbacks)  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    setup.wait()
    start = time.perf_counter()
    trainer.train()
    setup.wait()
    spent["total"] = time.perf_counter() - start
    scores = sum(len(callback.history) for callback in callbacks)
    return Watched(dict(model.state_dict()), spent, dtypes, scores)


def clock(setup: Setup, callback: Any, spent: dict[str, float]) -> None:
    """Counts the seconds in all events of the callback, and in its monitor's parts."""
    for name in dir(callback):
        if name.startswith("on_"):
            clocked(callback, name, spent, "callback", setup)
    for name, what in {"observe": "embedding", "embed": "embedding", "score": "scoring"}.items():
        clocked(callback.monitor, name, spent, what, setup)


def clocked(owner: Any, name: str, spent: dict[str, float], what: str, setup: Setup) -> None:
    method = getattr(owner, name)
    running = f"in {what}"

    def timed_method(*args: Any, **kwargs: Any) -> Any:
        setup.wait()
        start = time.perf_counter()
        spent[running] = spent.get(running, 0) + 1
        try:
            return method(*args, **kwargs)
        finally:
            setup.wait()
            spent[running] -= 1
            spent[what] += time.perf_counter() - start

    setattr(owner, name, timed_method)


def watch_dtypes(model: nn.Module, dtypes: dict[str, set[str]], spent: dict[str, float]) -> None:
    """Notes the dtype of the first query projection's output in each kind of pass."""
    projection = next(module for name, module in model.named_modules() if name.endswith("q_proj"))

    def note(_: nn.Module, __: Any, output: Tensor) -> None:
        phase = "pool" if spent.get("in callback") else "training"
        dtypes[phase].add(str(output.dtype).removeprefix("torch."))

    projection.register_forward_hook(note)


def equal_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


# Part 5: the checkpoints of that run


def offline(setup: Setup) -> Iterator[Figure]:
    """`select_checkpoint` beside loading each checkpoint and one bare pass over the pool.

    Both read from the disk's cache, and with kernels that are loaded: a bare pass goes before.
    """
    from sepstop import select_checkpoint

    run = setup.folder / "run"
    checkpoints = sorted(run.glob("checkpoint-*"))
    if not checkpoints:
        raise Skipped("the part `training` left no checkpoints")
    pool = the_pool(setup)
    bare_passes(setup, checkpoints[:1], pool)
    least = bare_passes(setup, checkpoints, pool)
    setup.wait()
    start = time.perf_counter()
    selection = select_checkpoint(run, pool, progress=False, average=False)
    setup.wait()
    each = (time.perf_counter() - start) / len(checkpoints)
    yield Figure("loading and a bare pass, a checkpoint", least, "s")
    yield Figure("select_checkpoint, a checkpoint", each, "s")
    yield Figure("  as a multiple of the bare cost", each / least)
    skipped = "; ".join(map(str, selection.skipped.values()))
    yield Figure("  checkpoints that were scored", len(selection.records), note=skipped)
    start = time.perf_counter()
    select_checkpoint(run, pool, progress=False, average=False)
    again = (time.perf_counter() - start) / len(checkpoints)
    yield Figure("  once more, from its cache", again, "s")


def bare_passes(setup: Setup, checkpoints: list[Path], pool: Any) -> float:
    """Seconds a checkpoint to load it and to run it over the pool, in batches of like length.

    In bfloat16, as `training` has it and `select_checkpoint` after it.
    """
    from transformers import AutoModelForSequenceClassification

    load = AutoModelForSequenceClassification.from_pretrained
    size = 8 if setup.small else 512
    rows = sorted(pool.rows, key=len, reverse=True)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    start = time.perf_counter()
    adapted = (checkpoints[0] / "adapter_config.json").is_file()
    base = load(setup.folder / "base").to(setup.device) if adapted else None
    for path in checkpoints:
        if base is None:
            model: Any = load(path).to(setup.device)
        else:
            from peft import PeftModel

            model = PeftModel.from_pretrained(base, str(path))
        model.eval()
        for batch in batches:
            width = len(batch[0])
            ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch])
            ids = ids.to(setup.device)
            with torch.no_grad(), torch.autocast(setup.device.type, torch.bfloat16):
                model(input_ids=ids, attention_mask=(ids != 0).long()).logits.float().cpu()
        if base is not None:
            base = model.unload()
    return (time.perf_counter() - start) / len(checkpoints)


PARTS: dict[str, tuple[Callable[[Setup], Iterator[Figure]], float]] = {
    # each with the share of the budget that is used up when it has to end
    "parity": (parity, 0.25),
    "speed": (speed, 0.5),
    "scoring": (scoring, 0.55),
    "training": (training, 0.85),
    "offline": (offline, 0.97),
}


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
