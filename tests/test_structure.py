"""The rules of the house that a machine can read."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.stages.stage import Stage

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["curation", "trainers", "pipeline", "launch"]
FILES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
KNOW_RAY = ("pipeline/runtime/", "launch/backends/")


def module_name(path: Path) -> str:
    """The dotted name that others import a file by; those of benchmarks have no package."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] == "benchmarks" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it, but for those that only types need."""

    def nodes(tree: ast.AST) -> Iterator[ast.AST]:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                continue
            yield node
            yield from nodes(node)

    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in number:
            visit(name)
    return found


def test_imports_point_one_way() -> None:
    for path in FILES:
        package = path.relative_to(ROOT).parts[0]
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & set(ORDER[ORDER.index(package) + 1 :]), path


def test_only_the_runtime_knows_ray() -> None:
    for path in FILES:
        if not str(path.relative_to(ROOT)).startswith(KNOW_RAY):
            tops = {name.split(".")[0] for name in imports(path)}
            assert not tops & {"ray", "submitit"}, path


def test_no_stage_imports_a_stage() -> None:
    folder = ROOT / "pipeline" / "stages"
    stages = {f"pipeline.stages.{path.stem}" for path in folder.glob("*.py") if "(Stage)" in path.read_text()}
    assert len(stages) >= 8
    for path in folder.glob("*.py"):
        assert not imports(path) & (stages - {module_name(path)}), path


@pytest.mark.parametrize("files", [FILES, BENCHMARKS], ids=["packages", "benchmarks"])
def test_no_modules_import_one_another(files: list[Path]) -> None:
    names = {module_name(path): path for path in files}
    graph = {name: {other for other in imports(path) if other in names and other != name} for name, path in names.items()}
    # Importing a module runs the packages around it, which hold nothing but their descriptions.
    assert circles(graph) == []


def test_packages_hold_nothing_but_their_description() -> None:
    for path in FILES:
        if path.name == "__init__.py":
            assert [type(node) for node in ast.parse(path.read_text()).body] == [ast.Expr], path


def test_configuration_needs_neither_torch_nor_ray_nor_numpy() -> None:
    modules = [module_name(path) for path in FILES if path.name == "config.py"]
    assert len(modules) >= 10
    program = f"import sys, {', '.join(modules)}; print({{'torch', 'ray', 'numpy'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


def test_plan_status_and_report_know_no_stage_by_name() -> None:
    for module in (path for path in FILES if path.parent == ROOT / "pipeline" / "stages"):
        __import__(module_name(module))
    names = {stage.name for stage in Stage.__subclasses__() if stage.__module__.startswith("pipeline.")}
    assert len(names) >= 8
    for path in (*(ROOT / "launch" / "report").rglob("*.py"), ROOT / "launch" / "plan.py", ROOT / "launch" / "status.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not set(node.value.split("/")) & names, f"{path}:{node.lineno}: {node.value!r}"


def test_everything_public_says_what_it_is() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not path.stat().st_size, path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


def test_files_that_the_documents_name_are_there() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = document.read_text()
        for name in re.findall(r"`((?:curation|trainers|pipeline|launch|configs|tests|benchmarks|docs)/[\w./-]*)`", text):
            assert (ROOT / name).exists(), f"{document.name}: {name}"
