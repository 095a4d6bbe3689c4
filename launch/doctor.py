"""windrow doctor: checks of whether this machine is fit to run."""

import importlib
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

GOOD, NOTE, BAD = "ok", "note", "BAD"
_REQUIRED = ("torch", "torchvision", "timm", "ray", "pyarrow", "numpy", "sklearn", "simplejpeg", "numba", "PIL", "pydantic")
_OPTIONAL = {"faiss": "windrow[cpu] or windrow[gpu]"}
"""Optional modules, and the extras that install them."""
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow"}
"""Distributions that are not called like their module."""
_GIB = 2**30

Finding = tuple[str, str]
"""A verdict (GOOD, NOTE or BAD) and a sentence."""


def examine() -> int:
    """Print the finding of every check. Returns the exit code: 1 if one is BAD, else 0."""
    checks: list[Callable[[], Iterator[Finding]]] = [_python, _libraries, _accelerators, _memory, _disk, _limits, _ray]
    worst = GOOD
    for check in checks:
        for verdict, text in check():
            print(f"{verdict:>5}  {text}", flush=True)
            worst = BAD if BAD in (verdict, worst) else worst
    return int(worst == BAD)


def _python() -> Iterator[Finding]:
    name = f"Python {'.'.join(map(str, sys.version_info[:3]))}"
    yield (GOOD, name) if sys.version_info >= (3, 11) else (BAD, f"{name}: 3.11 or newer is needed")


def _libraries() -> Iterator[Finding]:
    for name in (*_REQUIRED, *_OPTIONAL):
        try:
            importlib.import_module(name)
            yield GOOD, f"{name} {_version(name)}"
        except ImportError as error:
            if name in _OPTIONAL:
                yield NOTE, f"{name} is not installed; it comes with `pip install '{_OPTIONAL[name]}'`"
            else:
                yield BAD, f"{name} does not load: {error}. Install windrow again in a fresh environment."


def _version(module: str) -> str:
    """The version of an installed module."""
    try:
        return version(_DISTRIBUTIONS.get(module, module))
    except PackageNotFoundError:
        return str(getattr(importlib.import_module(module), "__version__", ""))


def _accelerators() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield NOTE, f"no CUDA device; everything runs on the CPU ({os.cpu_count()} cores), slowly"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield GOOD, f"GPU {index}: {properties.name}, {properties.total_memory / _GIB:.0f} GiB"


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    yield (GOOD, f"{total:.0f} GiB of memory") if total >= 4 else (BAD, f"{total:.1f} GiB of memory; 4 GiB are needed")
    shared = Path("/dev/shm")  # noqa: S108 - Ray's object store lives there
    if shared.exists():
        free = shutil.disk_usage(shared).free / _GIB
        if free >= 0.5:
            yield GOOD, f"{shared}: {free:.1f} GiB free"
        else:
            yield NOTE, f"{shared}: {free:.1f} GiB free; Ray will use slower files. In a container, raise --shm-size."


def _disk() -> Iterator[Finding]:
    for directory in (Path.cwd(), Path("/tmp")):  # noqa: S108 - where Ray keeps its session
        free = shutil.disk_usage(directory).free / _GIB
        yield (GOOD if free >= 5 else NOTE), f"{directory}: {free:.0f} GiB free" + ("" if free >= 5 else "; runs may fill it")


def _limits() -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_enough = soft == resource.RLIM_INFINITY or soft >= 1024
    count = "any number of" if soft == resource.RLIM_INFINITY else str(soft)
    yield (GOOD if is_enough else NOTE), f"{count} open files allowed" + ("" if is_enough else "; run `ulimit -n 65536`")


def _ray() -> Iterator[Finding]:
    from pipeline.runtime.config import Resources
    from pipeline.runtime.console import Console
    from pipeline.runtime.ray_executor import RayExecutor

    address = os.environ.get("RAY_ADDRESS")
    try:
        with RayExecutor(Console(quiet=True)) as executor:
            cpus, gpus = executor.num_cpus(), executor.num_gpus(Resources())
        cluster = f"the Ray cluster at {address}" if address else "Ray starts on this machine"
        yield GOOD, f"{cluster}: {cpus} CPUs, {gpus} GPUs"
    except Exception as error:
        yield BAD, f"Ray does not start: {error}"
