"""Rooms: imports point one way, folders stay small, heavy dependencies have doors, files say their
purpose.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import autocompress

ROOT = Path(autocompress.__file__).parent
LEVELS = [
    {"errors", "integer_form"},
    {"candidate"},
    {"results", "task"},
    {"cache"},
    {"model"},
    {"compress"},
    {"targets", "measure"},
    {"space", "export"},
    {"search"},
    {"report"},
    {"tasks", "__init__", "cli", "__main__"},
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
DOORS = {
    "optuna": {"search", "cli"},  # the command line sets Optuna's verbosity
    "plotly": {"report"},
    "onnx": {"export", "targets"},
    "torch_pruning": {"model"},
    "ray": {"search"},
    "sqlalchemy": {"search"},
}
MOST_FILES = 12  # in one folder
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Absolute names of the modules that a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "autocompress":
            other = parts[1] if len(parts) > 1 else "__init__"
            assert LEVEL[other] <= LEVEL[room(path)], f"{path} imports {name}"


def test_no_file_imports_itself_through_others() -> None:
    graph = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        )
        graph[name] = {other for other in imports(path) if other.startswith("autocompress.")}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the files of the cycle


def test_folders_stay_small() -> None:
    for folder in {path.parent for path in FILES}:
        files = sorted(path.name for path in folder.glob("*.py"))
        assert len(files) <= MOST_FILES, f"{folder}: {files}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_dependencies_have_doors(path: Path) -> None:
    for name in imports(path):
        package = name.split(".")[0]
        if package in DOORS:
            assert room(path) in DOORS[package], f"{path} imports {name}"


def test_every_file_says_its_purpose() -> None:
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_nothing_is_unpickled() -> None:
    """A run folder, a cache or a storage may come from anybody."""
    for path in FILES:
        names = imports(path)
        assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & {
            name.split(".")[0] for name in names
        }, path
        called = {
            node.func.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "torch"
        }
        assert not {"load", "save"} & called, path
