"""How fast this machine multiplies matrices, found without torch."""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

_DRIVER = Path("/proc/driver/nvidia/gpus")
_DENSE_TFLOPS = {
    "B200": 2250, "GH200": 989, "H200": 989, "H100": 989, "H100 NVL": 835, "H100 PCIe": 756, "H800": 989, "H20": 148,
    "A100": 312, "A800": 312, "A40": 150, "A30": 165, "A10": 125, "A10G": 70, "A6000": 155,
    "L40S": 362, "L40": 181, "L4": 121, "6000 Ada": 364, "5090": 210, "4090": 165, "3090": 71, "V100": 125, "T4": 65,
}  # fmt: skip
"""Dense TFLOP/s in bf16 (fp16 where there is none) by NVIDIA's data sheets, for the words that tell a GPU by its name."""
_REACHED = 0.8
"""Share of the data sheet's rate that a large product reaches: an H200 was measured at 780 to 800 TFLOP/s."""
_ASSUMED_TFLOPS = 100
"""For a GPU that the table does not have."""
_SIDE, _SECONDS = 768, 0.08
"""Rows of the matrices whose product is measured, and for how long."""


@dataclass(frozen=True)
class MatmulRate:
    """What this machine computes with, and how fast that multiplies matrices."""

    flops: float
    """FLOP/s of all cores or GPUs together: in float32 on a CPU, in bf16 on GPUs."""
    device: Literal["cpu", "cuda"]
    count: int
    """Number of cores or GPUs."""
    origin: str
    """Where the number comes from, to follow "a matmul rate of so much"."""


@cache
def matmul_rate() -> MatmulRate:
    """The rate of the GPUs that CUDA would use, from a table; without any that of the cores, measured in a moment."""
    names = gpu_names()
    if names:
        rates = [known_tflops(name) for name in names]
        flops = sum(_ASSUMED_TFLOPS if rate is None else _REACHED * rate for rate in rates) * 1e12
        kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        how = "assumed, as the data sheet of some is not known" if None in rates else "estimated from data sheets"
        return MatmulRate(flops, "cuda", len(names), f"{how}, for {kinds}")
    count = os.cpu_count() or 1
    return MatmulRate(_measured_flops(), "cpu", count, f"measured on {count} cores")


def gpu_names() -> list[str]:
    """The names of the NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves visible, by the driver or by nvidia-smi."""
    names = [
        match[1].strip()
        for path in sorted(_DRIVER.glob("*/information"))
        if (match := re.search(r"^Model:(.*)$", path.read_text(errors="replace"), re.MULTILINE))
    ] or _names_by_smi()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    chosen = [word.strip() for word in visible.split(",")]
    if all(word.isdecimal() for word in chosen):
        return [names[int(word)] for word in chosen if int(word) < len(names)]
    # GPUs by their UUID, which are as many as there are names; "" and -1 stand for none.
    return names[: sum(not word.startswith("-") for word in chosen if word)]


def known_tflops(name: str) -> int | None:
    """Dense TFLOP/s of the GPU called `name`, by the entry that has most of its words; None if there is no such entry."""
    words = set(re.split(r"[\s-]+", name))
    entries = [entry for entry in _DENSE_TFLOPS if set(entry.split()) <= words]
    return _DENSE_TFLOPS[max(entries, key=lambda entry: len(entry.split()))] if entries else None


def _names_by_smi() -> list[str]:
    """The names that nvidia-smi prints; none if there is no such program or it finds no GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _measured_flops() -> float:
    """FLOP/s of a float32 product of matrices on all cores: of the fastest of some, as other processes may slow others down."""
    a = np.ones((_SIDE, _SIDE), dtype=np.float32)
    end, fastest = time.perf_counter() + _SECONDS, float("inf")
    while (began := time.perf_counter()) < end:
        a @ a
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * _SIDE**3 / fastest
