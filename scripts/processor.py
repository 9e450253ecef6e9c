"""The name of this machine's processor, for tables of timings."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Its name, with the widest vector instructions that torch uses, as ``AMD EPYC (AVX2)``."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
