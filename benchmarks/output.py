"""Parse the arguments that all benchmarks take, check packages, and write the file of --json.

`python -m benchmarks.table FILE` prints such a file as the part of a documentation page.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.bench import DEFAULT, SessionSettings, versions

INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni")  # as /proc/cpuinfo names them


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of all benchmarks."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    return parser


def require(module: str, extra: str) -> None:
    """Exit with one line if a package is missing that an extra of this project installs."""
    require_installed(module, f"-e '.[{extra}]'")


def require_installed(module: str, arguments: str) -> None:
    """Exit with one line if a package is missing that `pip install` gives with some arguments."""
    if importlib.util.find_spec(module) is None:
        sys.exit(f"this benchmark needs {module}; pip install {arguments}")


def instructions() -> str:
    """Return which instructions for products this processor has; "" where Linux does not tell."""
    path = Path("/proc/cpuinfo")
    words = path.read_text().split() if path.exists() else []
    return " ".join(name for name in INSTRUCTIONS if name in words)


def write_figures(
    path: str | None,
    figures: Mapping[str, float],
    more: Mapping[str, Any] | None = None,
    settings: SessionSettings = DEFAULT,
) -> None:
    """Write {"figures": {key: number}, "machine": {...}, "versions": {...}} and date and command.

    Args:
        path: of the file; None writes nothing.
        figures: number by key.
        more: further entries of the file.
        settings: of the sessions, whose runtime is among the versions.
    """
    if path is None:
        return
    runtimes = versions(settings)
    machine = {key: runtimes.pop(key) for key in ("machine", "processor")}
    machine |= {"processors": f"{os.cpu_count()} processors", "instructions": instructions()}
    name, *words = sys.argv
    content = {
        "figures": dict(figures),
        "machine": machine,
        "versions": runtimes,
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(name).stem}", *words]),
        **(more or {}),
    }
    Path(path).write_text(json.dumps(content, indent=1))
