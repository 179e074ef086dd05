"""Keep a study in a journal file: repaired after a crash, and written in batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from autocompress.errors import RunFolderError
from autocompress.results.files import disk_error
from autocompress.search.workers.optuna_internals import backend_of

LOCK_S = 10  # after which the lock of a killed process is taken
Record = TypeVar("Record")


def repair_journal(path: Path) -> None:
    """Drop a torn last record, as a kill or a full disk leaves it.

    Args:
        path: the journal file; a missing one is left alone.

    Raises:
        RunFolderError: a record before the last one is damaged, or the disk refuses.
    """
    if not path.exists():
        return
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        _check_lines(path, whole)
        if len(whole) < len(content):
            with path.open("rb+") as file:
                file.truncate(len(whole))
    except RunFolderError:
        raise
    except OSError as error:
        raise disk_error(path, error) from error


def _check_lines(path: Path, content: bytes) -> None:
    for number, line in enumerate(content.splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            raise RunFolderError(
                f"{path}: line {number} is damaged; restore the file from a copy, or choose "
                "another --out to start the search anew (the points so far stay in this one)"
            ) from None


class Batch(Generic[Record]):
    """Keep records back inside a block, and write them together at its end."""

    def __init__(self) -> None:
        self._records: list[Record] | None = None

    @property
    def is_open(self) -> bool:
        """Return True inside the block."""
        return self._records is not None

    def add(self, records: list[Record]) -> None:
        """Keep records back.

        Args:
            records: in their order; only inside the block.
        """
        assert self._records is not None
        self._records += records

    @contextmanager
    def block(self, write: Callable[[list[Record]], Any]) -> Iterator[None]:
        """Open the block.

        Args:
            write: called with all records at the end, if there are any.
        """
        self._records = []
        try:
            yield
        finally:
            records, self._records = self._records, None
            if records:
                write(records)


class BatchedJournal(JournalFileBackend):
    """Append many records to a journal file in one write.

    A trial of 300 parameters costs one lock and one sync instead of 300.

    Args:
        path: the journal file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, lock_obj=JournalFileOpenLock(path, grace_period=LOCK_S))
        self._path = Path(path)
        self._batch: Batch[dict[str, Any]] = Batch()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, or keep them back until the batch ends.

        Args:
            logs: records.

        Raises:
            RunFolderError: the disk refuses.
        """
        if self._batch.is_open:
            self._batch.add(logs)
        else:
            self._append(logs)

    def _append(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            raise disk_error(self._path, error) from error

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Read records; inside a batch there are none, since it is not written yet.

        Args:
            log_number_from: index of the first record.

        Returns:
            Records in their order.
        """
        if not self._batch.is_open:
            yield from super().read_logs(log_number_from)

    def batch(self) -> AbstractContextManager[None]:
        """Return a block whose records are written at its end."""
        return self._batch.block(self._append)


@contextmanager
def batched(study: optuna.Study) -> Iterator[None]:
    """Write parameters and attributes that are set inside the block together.

    Args:
        study: its storage must be one of ours, otherwise each is written by itself.
    """
    batch = getattr(backend_of(study), "batch", nullcontext)
    with batch():
        yield
