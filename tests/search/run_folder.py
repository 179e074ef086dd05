"""What tests of the search read in a run folder."""

from __future__ import annotations

import csv
from pathlib import Path


def rows(folder: Path) -> list[dict[str, str]]:
    """Of trials.csv; none where there is no such file yet."""
    path = folder / "trials.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
