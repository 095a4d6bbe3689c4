"""How a run was made: who asked, with what code, on what machine."""

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
    """Add this invocation to `provenance.json`, newest last."""
    path = run_dir / "provenance.json"
    try:
        earlier = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        earlier = []
    write_atomic(path, json.dumps([*earlier, describe()], indent=1) + "\n")


def describe() -> dict[str, Any]:
    """This process, its code and its machine."""
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
    """The git commit of the code, with a plus if it was changed since; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
