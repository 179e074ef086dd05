"""A release: one version everywhere, and a wheel that works outside the checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import autocompress
from autocompress.space.source import shipped_spaces
from autocompress.targets.target import target_names

ROOT = Path(__file__).parents[1]
# It runs outside the checkout, on the files of the wheel.
TRIED = """
import sys, autocompress as ac
from importlib.metadata import distribution
from pathlib import Path
from autocompress.space.search_space import SearchSpace
from autocompress.space.source import shipped_spaces
from autocompress.targets.target import target_file, target_names
assert Path(ac.__file__).is_relative_to(sys.argv[1]), ac.__file__
for name in shipped_spaces():
    SearchSpace.load(name)
assert all(target_file(name).is_file() for name in target_names())
task = ac.load_task("autocompress.tasks:easy_vqa", validation_images=5)
assert len(ac.find_modules(task.model, task.example_inputs)) > 10
print(ac.__version__, *shipped_spaces(), *target_names())
"""


def test_one_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == autocompress.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == autocompress.__version__
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


@pytest.mark.extensive
def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    """It asks PyPI for the build backend."""

    def done(*command: str | Path) -> str:
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    source = tmp_path / "source"  # the build leaves files beside what it builds
    shutil.copytree(ROOT / "autocompress", source / "autocompress")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("autocompress-*.whl")
    site = tmp_path / "site"
    done("-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    given = f"import sys; sys.path.insert(0, {str(site)!r}); sys.argv[1:] = [{str(site)!r}]\n"
    printed = done("-c", given + TRIED).split()
    assert printed == [autocompress.__version__, *shipped_spaces(), *target_names()]


def test_the_site_is_built_with_warnings_as_errors() -> None:
    """Strict mode counts the warnings that are logged, which --quiet leaves out."""
    (line,) = [row for row in (ROOT / "Makefile").read_text().splitlines() if "mkdocs build" in row]
    assert "--quiet" not in line.partition("#")[0]
    assert "\nstrict: true\n" in (ROOT / "mkdocs.yml").read_text()
