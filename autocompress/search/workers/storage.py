"""Open and lock the storage of a study, and wait for a database that is away."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from autocompress.errors import RunFolderError
from autocompress.results.files import disk_error
from autocompress.search.problem.goal import directions
from autocompress.search.problem.options import STUDY_NAME
from autocompress.search.workers.journal import Batch, BatchedJournal, repair_journal
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
MODEL = "model"  # study attribute: hash of the model


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


def open_storage(url: str) -> BaseStorage:
    """Open a storage.

    Args:
        url: path of a journal file, or URL of a database (sqlite:///..., postgresql://...).

    Returns:
        A storage that writes in batches and waits for its database.

    Raises:
        RunFolderError: it cannot be opened.
    """
    try:
        if "://" not in url:
            return JournalStorage(BatchedJournal(url))
        # SQLAlchemy's own choice of a driver depends on its version.
        for scheme in ("postgresql://", "postgres://"):
            if url.startswith(scheme):
                url = f"postgresql+psycopg://{url.removeprefix(scheme)}"
        engine: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 2}
        if url.startswith("sqlite"):
            engine = {"connect_args": {"timeout": 60}}
        return PatientStorage(url, engine)
    except OSError as error:
        raise disk_error(Path(url), error) from error
    except ImportError as error:
        raise RunFolderError(f"storage {url}: {error}") from None
    except Exception as error:
        first = str(error).split("\n")[0]
        raise RunFolderError(
            f"storage {url}: cannot be opened ({type(error).__name__}: {first})"
        ) from error


def _lacks_file(url: str) -> bool:
    """Return True if a SQLite database has no file yet."""
    path = url.removeprefix("sqlite:///").partition("?")[0]
    plain = path != "" and not path.startswith((":", "file:"))
    return url.startswith("sqlite:///") and plain and not Path(path).exists()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock a run folder inside the block, so that one search runs in it.

    Args:
        folder: the run folder.

    Raises:
        RunFolderError: another process holds it, or the disk refuses.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(
            f"{folder}: another search is running in this folder; "
            "wait for it or choose another --out"
        ) from None
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def open_study(
    url: str, name: str = STUDY_NAME, create: bool = True, objectives: Sequence[str] = ()
) -> optuna.Study:
    """Open a study, which proposes at random until it gets another sampler.

    Args:
        url: of the storage.
        name: of the study.
        create: True makes the study where it is missing, and repairs a journal file. Then the
            caller must hold the run folder, and nobody else may write.
        objectives: extra metrics that are objectives.

    Returns:
        The study.

    Raises:
        RunFolderError: the storage is damaged, foreign, or holds no such study.
    """
    if "://" not in url and create:
        repair_journal(Path(url))
    if not create and _lacks_file(url):  # a database would be made
        raise RunFolderError(f"storage {url}: no such file; start it with autocompress search")
    storage, sampler = open_storage(url), optuna.samplers.RandomSampler()
    try:
        if not create:
            return optuna.load_study(study_name=name, storage=storage, sampler=sampler)
        return optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=sampler,
            directions=directions(objectives),
            load_if_exists=True,
        )
    except OSError as error:
        raise disk_error(Path(url), error) from error
    except KeyError:
        raise RunFolderError(f"storage {url}: holds no study {name!r}") from None
    except (ValueError, AssertionError, AttributeError) as error:
        raise RunFolderError(
            f"storage {url}: damaged ({type(error).__name__}); "
            "restore it from a copy or move it away"
        ) from error


def study_of(model: str, url: str, name: str, objectives: Sequence[str]) -> optuna.Study:
    """Open the study of a model, and make it where it is missing.

    Args:
        model: hash of the model.
        url: of the storage.
        name: of the study.
        objectives: extra metrics that are objectives.

    Returns:
        The study.

    Raises:
        RunFolderError: it belongs to another model or has other objectives.
    """
    study = open_study(url, name, objectives=objectives)
    if len(study.directions) != len(directions(objectives)):
        reason = f"has {len(study.directions)} objectives"
    elif study.user_attrs.get(MODEL, model) != model:
        reason = "belongs to another model"
    else:
        study.set_user_attr(MODEL, model)
        return study
    raise RunFolderError(f"storage {url}: study {name!r} {reason}; choose another storage or name")
