"""Wait for the database of a study while it is away, and write to it in batches.

`storage.py` imports this file where a storage is a database; it brings SQLAlchemy.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import sqlalchemy.exc
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage

from autocompress.errors import RunFolderError
from autocompress.search.workers.journal import Batch
from autocompress.search.workers.optuna_internals import (
    HELD,
    Call,
    database_methods,
    write_together,
)

PATIENCE_S = 300.0  # how long a database may be away before a search gives up
AWAY = (
    StorageInternalError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
    sqlalchemy.exc.PendingRollbackError,  # of Optuna's slower query after a failed one
)
LASTING = ("disk is full", "readonly", "No space left")


class PatientStorage(RDBStorage):
    """Wait for a database whose server restarts or whose file is locked, up to `PATIENCE_S`.

    Inside `batch`, parameters and attributes of trials are kept back and written in one
    transaction. So hundreds of them cost one commit.

    Args:
        url: of the database.
        engine: keywords of SQLAlchemy's engine.
    """

    def __init__(self, url: str, engine: dict[str, Any]) -> None:
        self._waiting = threading.local()
        self._batch: Batch[Call] = Batch()
        super().__init__(url, engine_kwargs=engine)

    def batch(self) -> AbstractContextManager[None]:
        """Return a block whose writes are done at its end, all or nothing."""
        return self._batch.block(partial(self._patiently, write_together))

    def _patiently(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if getattr(self._waiting, "inside", False):
            return call(self, *arguments, **keywords)
        self._waiting.inside, until, pause, again = True, time.monotonic() + PATIENCE_S, 0.1, False
        try:
            while True:
                try:
                    return call(self, *arguments, **keywords)
                except UpdateFinishedTrialError:
                    if again and call.__name__ == "set_trial_state_values":
                        return True  # the first try arrived, its answer did not
                    raise
                except AWAY as error:
                    self._check_patience(error, time.monotonic() + pause > until)
                    time.sleep(pause)
                    pause, again = min(2 * pause, 2.0), True
        finally:
            self._waiting.inside = False

    def _check_patience(self, error: Exception, late: bool) -> None:
        """Raise RunFolderError where waiting does not help, or has lasted too long."""
        if not _passes(error):
            raise RunFolderError(
                f"storage {self.url}: {_reason(error)}; what was told is kept"
            ) from error
        if late:
            raise RunFolderError(
                f"storage {self.url}: away for more than {PATIENCE_S:.0f} s ({_reason(error)}); "
                "what was told is kept there, the same command goes on when it is back"
            ) from error


def _passes(error: Exception) -> bool:
    """Return True if waiting may help: not for a full disk or a wrong value."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return isinstance(cause, AWAY[1:]) and not any(word in str(cause) for word in LASTING)


def _reason(error: Exception) -> str:
    return str(error.__cause__ or error).split("\n")[0]


def _patient(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def patiently(self: PatientStorage, *arguments: Any, **keywords: Any) -> Any:
        if self._batch.is_open and call.__name__ in HELD:
            return self._batch.add([Call(call.__name__, arguments, keywords)])
        return self._patiently(call, *arguments, **keywords)

    return patiently


for _name, _method in database_methods().items():
    setattr(PatientStorage, _name, _patient(_method))
