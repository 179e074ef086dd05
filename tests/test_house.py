"""Imports point one way, and each heavy dependency has its doors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import autocompress

ROOT = Path(autocompress.__file__).parent
LEVELS = [
    {"errors", "pareto", "integer_form", "copies"},
    {"candidate", "limits", "batches", "outputs", "user_code"},
    {"output_kinds", "loading"},
    {"task", "attention", "recurrent"},
    {"task_source", "split", "channels", "free_shapes", "float_copy"},
    {"structures", "hugging_face"},
    {"operands", "towers"},
    {"operators", "matrices"},
    {"program"},
    {"plain"},
    {"prepare"},
    {"coupling"},
    {"modules", "results", "files"},
    {"tensor_files"},
    {"compress", "targets", "measure", "axes", "recovery_space", "search_space"},
    {"export"},
    {"search"},
    {"report"},
    {"inspection"},
    {"tasks", "__init__", "arguments", "cli", "show", "__main__"},
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
DOORS = {
    "optuna": {"search", "cli"},  # the command line sets Optuna's verbosity
    "plotly": {"report"},
    "onnx": {"export", "targets"},
    "torch_pruning": {"coupling"},
    "ray": {"search"},
    "sqlalchemy": {"search"},
}
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "autocompress":
            other = parts[1] if len(parts) > 1 else "__init__"
            assert LEVEL[other] <= LEVEL[room(path)], f"{path} imports {name}"


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
        assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & {name.split(".")[0] for name in names}, path
        called = {
            node.func.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "torch"
        }
        assert not {"load", "save"} & called, path
