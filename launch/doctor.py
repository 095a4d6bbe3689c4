"""windrow doctor: is this machine fit to run?"""

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
_OPTIONAL = {"faiss": "windrow[cpu] or windrow[gpu]", "submitit": "windrow[slurm]", "sentence_transformers": "windrow[text]"}
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "sentence_transformers": "sentence-transformers"}

Finding = tuple[str, str]


def examine() -> int:
    """Print every check with what was found; returns 0 if nothing is bad, else 1."""
    checks: list[Callable[[], Iterator[Finding]]] = [_python, _libraries, _accelerators, _memory, _disk, _limits, _ray]
    worst = GOOD
    for check in checks:
        for verdict, text in check():
            print(f"{verdict:>5}  {text}", flush=True)
            worst = BAD if BAD in (verdict, worst) else worst
    return int(worst == BAD)


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield (GOOD, f"Python {found}") if sys.version_info >= (3, 11) else (BAD, f"Python {found}: 3.11 or newer is needed")


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
        yield GOOD, f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _memory() -> Iterator[Finding]:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield (GOOD, f"{gib:.0f} GiB of memory") if gib >= 4 else (BAD, f"{gib:.1f} GiB of memory; 4 GiB are needed")
    shared = Path("/dev/shm")  # noqa: S108 - Ray's object store lives there
    if shared.exists():
        free = shutil.disk_usage(shared).free / 2**30
        if free >= 0.5:
            yield GOOD, f"{shared}: {free:.1f} GiB free"
        else:
            yield NOTE, f"{shared}: {free:.1f} GiB free; Ray will use slower files. In a container, raise --shm-size."


def _disk() -> Iterator[Finding]:
    for place in (Path.cwd(), Path("/tmp")):  # noqa: S108 - where Ray keeps its session
        free = shutil.disk_usage(place).free / 2**30
        yield (GOOD if free >= 5 else NOTE), f"{place}: {free:.0f} GiB free" + ("" if free >= 5 else "; runs may fill it")


def _limits() -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    verdict = GOOD if soft >= 1024 else NOTE
    yield verdict, f"{soft} open files allowed" + ("" if soft >= 1024 else "; run `ulimit -n 65536`")


def _ray() -> Iterator[Finding]:
    from pipeline.runtime.config import Resources
    from pipeline.runtime.console import Console
    from pipeline.runtime.ray_executor import RayExecutor

    where = os.environ.get("RAY_ADDRESS")
    try:
        with RayExecutor(Console(quiet=True)) as executor:
            cpus, gpus = executor.num_cpus(), executor.num_gpus(Resources())
        place = f"the Ray cluster at {where}" if where else "Ray starts on this machine"
        yield GOOD, f"{place}: {cpus} CPUs, {gpus} GPUs"
    except Exception as error:
        yield BAD, f"Ray does not start: {error}"
