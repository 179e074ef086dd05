"""Arguments that all benchmarks take, and the file that --json writes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from autocompress.targets.device.result import versions


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    return parser


def write_figures(path: str | None, figures: Mapping[str, float]) -> None:
    """{"figures": {key: number}, "machine": {...}, "versions": {...}}."""
    if path is None:
        return
    found = versions()
    machine = {key: found.pop(key) for key in ("machine", "processor")}
    Path(path).write_text(
        json.dumps({"figures": dict(figures), "machine": machine, "versions": found}, indent=1)
    )
