"""Parse the arguments that all benchmarks take, check packages, and write the file of --json.

`python -m benchmarks.table FILE` prints such a file as the part of a documentation page.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from benchmarks.bench import versions


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


def write_figures(path: str | None, figures: Mapping[str, float]) -> None:
    """Write {"figures": {key: number}, "machine": {...}, "versions": {...}} and date and command.

    Args:
        path: of the file; None writes nothing.
        figures: number by key.
    """
    if path is None:
        return
    runtimes = versions()
    machine = {key: runtimes.pop(key) for key in ("machine", "processor")}
    name, *words = sys.argv
    content = {
        "figures": dict(figures),
        "machine": machine,
        "versions": runtimes,
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(name).stem}", *words]),
    }
    Path(path).write_text(json.dumps(content, indent=1))
