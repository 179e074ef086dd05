"""The lowest versions that pyproject.toml allows are ones that can be installed and tried.

`make test VERSIONS=oldest`.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from oldest import oldest

ROOT = Path(__file__).parent.parent


def test_each_dependency_has_a_lower_bound() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    pins = oldest(text)
    names = [
        requirement.split(">=")[0].split("[")[0]
        for requirement in tomllib.loads(text)["project"]["dependencies"]
    ]
    assert [pin.split("==")[0] for pin in pins[: len(names)]] == names
    printed = subprocess.run(
        [sys.executable, ROOT / "tests" / "oldest.py", ROOT / "pyproject.toml"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.split() == pins


def test_extras_markers_and_the_package_itself() -> None:
    text = """
[project]
dependencies = ["torch>=2.13", "psycopg[binary]>=3.2.1,<4"]
[project.optional-dependencies]
test = ["autocompress[ray]", "types-PyYAML"]
ray = ["ray>=2.50"]
"""
    assert oldest(text) == ["torch==2.13", "psycopg==3.2.1", "ray==2.50"]
