"""Name the folder in which benchmarks keep what takes long to make, such as trained weights."""

from __future__ import annotations

import os
from pathlib import Path


def kept_folder() -> Path:
    """Return AUTOCOMPRESS_BENCH_CACHE, by default ~/.cache/autocompress-benchmarks."""
    folder = os.environ.get("AUTOCOMPRESS_BENCH_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "autocompress-benchmarks"
