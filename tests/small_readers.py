"""Tasks of small models that read pictures, for packages that generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from small_folders import write_jsonl
from small_pictures import DECODER, FAMILIES, picture_rows

import autocompress as ac

# The kernel of attention with a cache takes heads of 16 numbers. The model builder takes each
# product with as many outputs as there are words for the head.
SIZES = {"head_dim": 16, "vocab_size": 72}
WIDE = {"hidden_size": 64}  # Qwen2-VL has heads that are as wide as the model together


def reader_task(place: Path, family: str = "llava", **options: Any) -> Any:
    """Return a task of a small model that answers questions about random pictures."""
    with mock.patch.dict(DECODER, {**SIZES, **(WIDE if family.startswith("qwen") else {})}):
        FAMILIES[family](place / "model")
    data = write_jsonl(place / "dev.jsonl", picture_rows(place))
    return ac.from_pretrained(place / "model", validation=data, test=data, batch_size=3, **options)
