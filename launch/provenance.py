"""Provenance of a run: the commands that made it, with the code and the machine of each."""

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curation.base.files import write_atomic

_LIBRARIES = ("torch", "torchvision", "timm", "ray", "numpy", "pyarrow", "pydantic", "simplejpeg")


def record(run_dir: Path) -> None:
    """Append this invocation to the list in `provenance.json`. A file that is no JSON is begun anew."""
    path = run_dir / "provenance.json"
    try:
        invocations = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        invocations = []
    write_atomic(path, json.dumps([*invocations, describe()], indent=1) + "\n")


def describe() -> dict[str, Any]:
    """This invocation: time, command, versions of the code and its libraries, machine."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "windrow": version("windrow"),
        "commit": commit(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "machine": f"{platform.node()}, {platform.platform()}",
    }


def commit() -> str | None:
    """The git commit of the code, with a plus if tracked files were changed since; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
