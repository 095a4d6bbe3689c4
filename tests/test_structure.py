"""The rules of the house that a machine can read."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["curation", "trainers", "pipeline", "launch"]
FILES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_imports_point_one_way_and_ray_stays_in_the_pipeline() -> None:
    for path in FILES:
        package = path.relative_to(ROOT).parts[0]
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & set(ORDER[ORDER.index(package) + 1 :]), path
        if package in ("curation", "trainers"):
            assert not tops & {"ray", "submitit"}, path
        if path.name == "config.py" and package != "launch":
            assert not tops & {"torch", "ray", "numpy"}, path


def test_everything_public_says_what_it_is() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not path.stat().st_size, path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"
