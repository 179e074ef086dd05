"""Write what `benchmarks.peers` measured into docs/benchmarks/peers.md and README.md.

    python -m benchmarks.peer_pages

The files of --json lie in docs/benchmarks/data as peers_MODEL.json. The tables stand between the
markers of a page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.anytime import HERE
from benchmarks.table import page_part

README = HERE.parent / "README.md"
PAGE = HERE.parent / "docs" / "benchmarks" / "peers.md"
DATA = PAGE.parent / "data"
BEGIN, END = "<!-- peers -->", "<!-- end -->"
TITLES = {
    "built_in": "easy-VQA",
    "encoder": "encoder",
    "resnet": "ResNet-20",
    "smollm": "SmolLM2-135M",
    "efficientnet": "EfficientNet-Lite0",
}
HEAD = """\
| file | bytes | smaller | faster (95 %) | test | min | ours smaller, faster | dominated |
|---|---|---|---|---|---|---|---|"""
SHORT_HEAD = """\
| model | others' files | smaller | faster | dominated |
|---|---|---|---|---|"""


def kept() -> dict[str, dict[str, Any]]:
    """Return the kept files of --json by model, in the order of `TITLES`."""
    paths = {name: DATA / f"peers_{name}.json" for name in TITLES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a file."""
    if "reason" in row:
        reason = row["reason"].replace("|", "/").replace("<", "&lt;")
        return [row["method"], f"none: {reason}", *[""] * 6]
    low, high = row["faster_interval"]
    faster = f"{row['faster']:.2f}x ({low:.2f} to {high:.2f})"
    words = [row["method"], f"{row['bytes']}", f"{row['smaller']:.2f}x", faster]
    words += [f"{row['test']:.4f}", f"{row['minutes']:.1f}"]
    if "dominated" not in row:
        return [*words, "", ""]
    ours = f"{row['ours_smaller']:.2f}x, {row['ours_faster']:.2f}x"
    return [*words, ours, "yes" if row["dominated"] else "no"]


def lines(rows: Iterable[Iterable[str]]) -> list[str]:
    """Return rows of cells as lines of Markdown."""
    return ["| " + " | ".join(row) + " |" for row in rows]


def model_part(name: str, content: Mapping[str, Any]) -> str:
    """Return Markdown of a model: how it was measured, its figures, its files."""
    rows = content["tables"][name]
    tools = sorted({row["version"] for row in rows} - {""})
    files = "\n".join([HEAD, *lines(map(cells, rows))])
    return f"### {TITLES[name]}\n{page_part(content)}\nTools: {', '.join(tools)}.\n\n{files}\n"


def short_row(name: str, content: Mapping[str, Any]) -> list[str]:
    """Return the cells of a model for README.md; those of figures stay empty without one."""
    figures = content["figures"]
    peers = [row for row in content["tables"][name] if "dominated" in row]
    if not peers:
        return [TITLES[name], "0", "", "", ""]
    words = [
        f"{figures[f'{name}_{what}_at_equal_accuracy']:.2f}x" for what in ("smaller", "faster")
    ]
    return [TITLES[name], f"{len(peers)}", *words, f"{sum(row['dominated'] for row in peers)}"]


def filled(text: str, part: str) -> str:
    """Return a page with the part between its markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no part between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{part}{END}{after}"


def pages() -> dict[Path, str]:
    """Return the content of both pages by path."""
    contents = kept()
    long = "\n".join(model_part(name, content) for name, content in contents.items())
    rows = lines(short_row(name, content) for name, content in contents.items())
    short = "\n".join([SHORT_HEAD, *rows, ""])
    return {path: filled(path.read_text(), part) for path, part in ((PAGE, long), (README, short))}


def main() -> None:
    """Write both pages."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
