"""The journal file of a study: repaired after a crash, and written in batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from autocompress.errors import RunFolderError
from autocompress.results.files import disk_error

LOCK_S = 10  # after which a lock that a killed process left is taken


def repair_journal(path: Path) -> None:
    """Drop a torn last record, which a kill or a full disk leaves; RunFolderError when a record before it is damaged."""
    if not path.exists():
        return
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                json.loads(line)
            except ValueError:
                raise RunFolderError(
                    f"{path}: line {number} is damaged; restore the file from a copy, or move it away to start the search anew "
                    "(trials.csv keeps what was found)"
                ) from None
        if len(whole) < len(content):
            with path.open("rb+") as file:
                file.truncate(len(whole))
    except RunFolderError:
        raise
    except OSError as error:
        raise disk_error(path, error) from error


@contextmanager
def holding(storage: Any, write: Callable[[list[Any]], Any]) -> Iterator[None]:
    """Inside the block `storage._held` is a list of what is kept back; at its end that is written."""
    storage._held = []
    try:
        yield
    finally:
        held, storage._held = storage._held, None
        if held:
            write(held)


class BatchedJournal(JournalFileBackend):
    """A journal file that can take many records in one write: a trial of 300 parameters costs one lock and one sync instead of 300."""

    def __init__(self, path: str) -> None:
        super().__init__(path, lock_obj=JournalFileOpenLock(path, grace_period=LOCK_S))
        self._held: list[dict[str, Any]] | None = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append, or keep until the batch ends."""
        if self._held is None:
            super().append_logs(logs)
        else:
            self._held += logs

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Records from that number on; none inside a batch, of which nothing is written yet."""
        if self._held is None:
            yield from super().read_logs(log_number_from)

    def batch(self) -> AbstractContextManager[None]:
        """Write everything of the block at its end."""
        return holding(self, super().append_logs)


@contextmanager
def batched(study: optuna.Study) -> Iterator[None]:
    """Parameters and attributes set inside the block are written together, where the storage is one of ours."""
    batch = getattr(getattr(study._storage, "_backend", None), "batch", nullcontext)
    with batch():
        yield
