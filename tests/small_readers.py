"""Tasks of small models that read pictures, for packages that generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_folders import write_jsonl
from small_pictures import FAMILIES, picture_rows

import autocompress as ac


def reader_task(place: Path, family: str = "llava", **options: Any) -> Any:
    """Return a task of a small model that answers questions about random pictures."""
    FAMILIES[family](place / "model")
    data = write_jsonl(place / "dev.jsonl", picture_rows(place))
    return ac.from_pretrained(place / "model", validation=data, test=data, batch_size=3, **options)
