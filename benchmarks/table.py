"""Print the files that benchmarks wrote with --json as parts of a documentation page.

`python -m benchmarks.table FILE ...`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def page_part(content: Mapping[str, Any]) -> str:
    """Return Markdown: machine, date, versions, command, and a table of the figures.

    Args:
        content: as `output.write_figures` writes it.
    """
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    lines = [
        f"- Machine: {', '.join(map(str, content['machine'].values()))}. Date: {content['date']}.",
        f"- Versions: {versions}.",
        f"- Command: `{content['command']}`",
        "",
        "| figure | measured |",
        "|---|---|",
        *(f"| `{key}` | {value:.5g} |" for key, value in content["figures"].items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print a part for each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args().files:
        print(page_part(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
