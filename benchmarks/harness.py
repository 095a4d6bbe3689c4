"""What every benchmark shares: one process a measurement, a table, and a file that says where the numbers come from."""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "faiss-cpu",
    "faiss-gpu",
    "scikit-learn",
    "superkmeans",
    "flash-kmeans",
    "timm",
    "lightly",
    "torchvision",
    "pillow",
    "simplejpeg",
    "numba",
    "webdataset",
    "mosaicml-streaming",
    "litdata",
    "ray",
)


class Skipped(Exception):  # noqa: N818 - not an error
    """A peer cannot run here; says why."""


def main(
    name: str,
    presets: dict[str, dict[str, list[str]]],
    measure: Callable[[str, str, int, argparse.Namespace], Row],
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Run every engine on every case of a preset, each in a process of its own.

    `presets` maps a preset to its cases and each case to its engines; `measure(case, engine, seed, args)` returns the
    measures, whose medians over the repeats count. Engines take turns, so that what else the machine does meets all alike.
    """
    parser = argparse.ArgumentParser(prog=name, description=sys.modules["__main__"].__doc__)
    parser.add_argument("--preset", choices=presets, default="cpu")
    parser.add_argument("--case", action="append", help="only this case; may be given again")
    parser.add_argument("--engine", action="append", help="only this engine; may be given again")
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many runs counts")
    parser.add_argument("--out", type=Path, help="write the results to this file")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "ENGINE", "SEED"), help=argparse.SUPPRESS)
    if add_arguments is not None:
        add_arguments(parser)
    args = parser.parse_args()
    if args.one:
        case, engine, seed = args.one
        try:
            row = measure(case, engine, int(seed), args)
        except (Skipped, ImportError) as why:
            row = {"skipped": str(why)}
        print(json.dumps(row))
        return
    rows = []
    for case, known in presets[args.preset].items():
        if case not in (args.case or [case]):
            continue
        found: dict[str, list[Row]] = {engine: [] for engine in known if engine in (args.engine or [engine])}
        for seed in range(args.repeats):
            for engine, so_far in found.items():
                if not any("skipped" in row for row in so_far):
                    print(f"{case}: {engine}, {seed + 1} of {args.repeats} …", file=sys.stderr, flush=True)
                    so_far.append(_in_a_process(case, engine, seed))
        rows += [{"case": case, "engine": engine, **_medians(so_far)} for engine, so_far in found.items()]
    _show(name, rows)
    if args.out:
        config = {key: value.name if isinstance(value, Path) else value for key, value in vars(args).items() if key != "one"}
        result = {"hardware": _hardware(), "versions": _versions(), "commit": _commit(), "config": config, "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def _medians(rows: list[Row]) -> Row:
    skipped = next((row for row in rows if "skipped" in row), None)
    return skipped or {name: median(row[name] for row in rows) for name, value in rows[0].items() if value is not None}


def _in_a_process(case: str, engine: str, seed: int) -> Row:
    command = [sys.executable, *sys.argv, "--one", case, engine, str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"skipped": f"failed with exit code {done.returncode}"}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


class PeakMemory:
    """The most memory used inside the block beyond what was used before it: of the GPU if there is one, else of the process.

    Pages of files are left out: the machine can take them back.
    """

    def __enter__(self) -> "PeakMemory":
        self._before = self._used()
        self._highest = self._before
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._highest = max(self._highest, self._used())
        self._over.set()
        self._watcher.join()

    @property
    def num_bytes(self) -> int:
        return self._highest - self._before

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self._highest = max(self._highest, self._used())

    def _used(self) -> int:
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            return total - free
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product in `dtype` on this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(10):
        began = now()
        a @ a
        best = min(best, now() - began)
    return 2 * size**3 / best


def now() -> float:
    """Seconds, after everything asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _show(name: str, rows: list[Row]) -> None:
    measures = list(dict.fromkeys(key for row in rows for key in row if key not in ("case", "engine", "skipped")))
    table = Table(box=box.SIMPLE_HEAD, title=name, title_justify="left")
    for heading in ("case", "engine", *measures):
        table.add_column(heading, justify="left" if heading in ("case", "engine") else "right")
    for row in rows:
        values = [f"skipped: {row['skipped']}"] if "skipped" in row else [_number(row.get(measure)) for measure in measures]
        table.add_row(row["case"], row["engine"], *values)
    Console(width=max(140, Console().width)).print(table)


def _number(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else "" if value is None else f"{value:,}"


def _hardware() -> dict[str, Any]:
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu or platform.processor(), "cores": os.cpu_count(), "memory_bytes": memory, "gpus": gpus}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    run = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=_ROOT, capture_output=True, text=True)
    return run.stdout.strip()
