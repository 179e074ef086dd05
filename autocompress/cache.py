"""Keep costly results on disk between runs, in a bounded folder for each kind of result.

Kernel timings, training precisions, latency tables, float graphs, variants and teacher outputs lie
below `cache_folder()`. The name of an entry is a hash of its inputs (`key_of`), so no entry is out
of date. A cache that fails costs time, never a result: a damaged entry counts as missing, and a
failed write is repeated by the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from platformdirs import user_cache_path

from autocompress.results.files import write_atomic

T = TypeVar("T")
SLACK = 1 / 8  # share of the limit that one process writes between two trims
SUFFIXES = (".json", ".safetensors")  # other files in the folder are never removed
ABANDONED_S = 3600.0  # age at which the temporary file of a writer is removed
LOCK_S = 10.0  # longest wait for another process that updates the same entry
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # raised by parsers


def cache_folder() -> Path:
    """Return the folder of all caches: AUTOCOMPRESS_CACHE, or else the user's cache folder."""
    override = os.environ.get("AUTOCOMPRESS_CACHE")
    return Path(override) if override else user_cache_path("autocompress")


def key_of(*parts: str | bytes) -> str:
    """Return the key of an entry with a content that follows from `parts`.

    Args:
        parts: everything that affects the content, versions of tools and formats included.

    Returns:
        SHA-256 of the concatenated parts, 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


@dataclass
class Cache:
    """Read and write the entries of one folder, shared by several processes.

    Each entry appears whole: it is written to a temporary file with a unique name, which is then
    renamed. The least recently used entries are removed when the folder exceeds `limit_bytes`. With
    several writers it may exceed the limit by SLACK for each further one.

    Attributes:
        folder: created by the first write; None turns the cache off.
        limit_bytes: bound of the sum of all entries.
    """

    folder: Path | None
    limit_bytes: int = 256 << 20
    _untrimmed: float = float("inf")  # bytes written since the last trim; the first write trims

    def read(self, name: str, load: Callable[[Path], T]) -> T | None:
        """Return the content of an entry, and mark it as used.

        Args:
            name: path of the entry in the folder.
            load: parser of the file. If it raises one of DAMAGE, the entry is removed.

        Returns:
            The parsed content, or None if the entry is missing or damaged.
        """
        if self.folder is None:
            return None
        path = self.folder / name
        try:
            content = load(path)
        except FileNotFoundError:
            return None
        except DAMAGE:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def write(self, name: str, content: str | bytes) -> None:
        """Write an entry whole or not at all; a full disk or a missing permission is ignored.

        Args:
            name: path of the entry in the folder; its suffix must be one of SUFFIXES.
            content: the whole file.
        """
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            write_atomic(self.folder / name, content)
            self._untrimmed += len(content)
            slack = SLACK * self.limit_bytes
            if self._untrimmed > slack:
                self._trim(self.limit_bytes - slack)
                self._untrimmed = 0

    def update(
        self, name: str, load: Callable[[Path], T], change: Callable[[T | None], str]
    ) -> None:
        """Replace an entry by a function of its content, without losing changes of other processes.

        Args:
            name: path of the entry in the folder.
            load: parser of the file, as in `read`.
            change: new text of the file from the parsed content (None if missing or damaged).
        """
        if self.folder is None:
            return
        path = self.folder / name
        # NotImplementedError: a file system without locks.
        with contextlib.suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f"{path.name}.lock"), timeout=LOCK_S, poll_interval=0.01):
                self.write(name, change(self.read(name, load)))

    def _trim(self, limit_bytes: float) -> None:
        """Remove the least recently used entries, and temporary files of dead writers."""
        assert self.folder is not None
        entries = []
        for path in self.folder.rglob("*"):
            temporary = path.name.startswith(".") and any(f"{s}." in path.name for s in SUFFIXES)
            if not temporary and path.suffix not in SUFFIXES:
                continue
            with contextlib.suppress(OSError):  # removed by another process
                state = path.stat()
                if not stat.S_ISREG(state.st_mode):
                    continue
                if not temporary:
                    used_ns = max(state.st_atime_ns, state.st_mtime_ns)
                    entries.append((used_ns, state.st_size, path))
                elif time.time() - state.st_mtime > ABANDONED_S:
                    path.unlink()
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= limit_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                total -= size
