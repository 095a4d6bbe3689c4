import re
import tomllib
from pathlib import Path

from launch import doctor

ROOT = Path(__file__).resolve().parents[2]


def test_optional_modules_are_imported_and_their_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = [path for package in ("curation", "trainers", "pipeline") for path in (ROOT / package).rglob("*.py")]
    for module, hint in doctor._OPTIONAL.items():
        assert set(re.findall(r"windrow\[(\w+)\]", hint)) <= set(extras)
        assert any(re.search(rf"^\s*import {module}\b", path.read_text(), re.MULTILINE) for path in sources), module
