"""Keep what the allocator of Linux holds back while large files are opened small."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # numbers of mallopt(3)
LARGE_BLOCK = 1 << 20  # blocks from this size on go back to the system when they are freed
# What glibc raises the threshold to by itself in a process that frees large blocks.
USUAL_BLOCK = 32 << 20


def release_memory() -> None:
    """Give free memory back to the system.

    The allocator of Linux keeps what is freed between blocks in use: after an export that is more
    than the model. Other systems are left alone.
    """
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def large_blocks_freed_at_once() -> Iterator[None]:
    """Give large blocks back to the system as soon as they are freed, within this context.

    ONNX Runtime copies weights several times while it opens a file. A process that has freed blocks
    of up to 32 MB keeps such copies in its heap, between blocks that stay: opening a file of 438 MB
    took up to 0.5 GB more. Other systems are left alone.
    """
    option = _function("mallopt")
    if option is None:
        yield
        return
    option(MMAP_THRESHOLD, LARGE_BLOCK)
    try:
        yield
    finally:
        option(MMAP_THRESHOLD, USUAL_BLOCK)
        option(TRIM_THRESHOLD, 2 * USUAL_BLOCK)


def _function(name: str) -> Any:
    """Return a function of the C library of Linux; None on other systems and for musl."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
