"""Where the study lives: opening and locking it, and waiting for a server that is away."""

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
from optuna.storages._rdb.models import TrialSystemAttributeModel, TrialUserAttributeModel
from optuna.storages._rdb.storage import _create_scoped_session

from autocompress.errors import RunFolderError
from autocompress.results.files import disk_error
from autocompress.search.problem.goal import directions
from autocompress.search.problem.options import STUDY_NAME
from autocompress.search.workers.journal import BatchedJournal, holding, repair_journal

PATIENCE_S = 300.0  # how long a database may be away before a search gives up
AWAY = (
    StorageInternalError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
    sqlalchemy.exc.PendingRollbackError,  # of the slower query that Optuna tries where trials cannot be read
)
ATTRIBUTES: dict[str, Any] = {
    "set_trial_user_attr": TrialUserAttributeModel,
    "set_trial_system_attr": TrialSystemAttributeModel,
}


class PatientStorage(RDBStorage):
    """A database whose server may restart and whose file may be locked: what fails for that reason is tried again for PATIENCE_S.

    Inside `batch` parameters and attributes of trials are kept back, to be written in one transaction: hundreds of them cost one commit.
    """

    def __init__(self, url: str, engine: dict[str, Any]) -> None:
        self._waiting = threading.local()
        self._held: list[tuple[str, tuple[Any, ...], dict[str, Any]]] | None = None
        super().__init__(url, engine_kwargs=engine)

    def batch(self) -> AbstractContextManager[None]:
        """Write everything of the block at its end, all or nothing."""
        return holding(self, partial(self._patiently, PatientStorage._write))

    def _write(self, held: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> None:
        # A record that is there already is one that arrived without an answer, and all others with it.
        with _create_scoped_session(self.scoped_session, True) as session:
            for name, given, named in held:
                if name == "_set_trial_param":
                    self._set_trial_param_without_commit(session, *given, **named)
                else:
                    self._set_trial_attr_without_commit(session, ATTRIBUTES[name], *given, **named)

    def _patiently(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if getattr(self._waiting, "inside", False):
            return call(self, *given, **named)
        self._waiting.inside, until, pause, again = True, time.monotonic() + PATIENCE_S, 0.1, False
        try:
            while True:
                try:
                    return call(self, *given, **named)
                except UpdateFinishedTrialError:
                    if again and call.__name__ == "set_trial_state_values":
                        return True  # the first try arrived, its answer did not
                    raise
                except AWAY as error:
                    if not _passes(error):
                        raise RunFolderError(
                            f"storage {self.url}: {_reason(error)}; what was told is kept"
                        ) from error
                    if time.monotonic() + pause > until:
                        raise RunFolderError(
                            f"storage {self.url}: away for more than {PATIENCE_S:.0f} s ({_reason(error)}); "
                            "what was told is kept there, the same command goes on when it is back"
                        ) from error
                    time.sleep(pause)
                    pause, again = min(2 * pause, 2.0), True
        finally:
            self._waiting.inside = False


def _passes(error: Exception) -> bool:
    """Whether waiting may help: a server or a lock does come back, a full disk or a wrong value does not."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    lasting = ("disk is full", "readonly", "No space left")
    return isinstance(cause, AWAY[1:]) and not any(word in str(cause) for word in lasting)


def _reason(error: Exception) -> str:
    return str(error.__cause__ or error).split("\n")[0]


def _patient(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def patiently(self: PatientStorage, *given: Any, **named: Any) -> Any:
        if self._held is not None and call.__name__ in ("_set_trial_param", *ATTRIBUTES):
            return self._held.append((call.__name__, given, named))
        return self._patiently(call, *given, **named)

    return patiently


# What Optuna calls on a database: the methods of a storage, and three of this class that its cache uses.
for _name in (
    *(name for name in vars(BaseStorage) if not name.startswith("_")),
    "_create_new_trial",
    "_get_trials",
    "_set_trial_param",
):
    if callable(getattr(RDBStorage, _name, None)):
        setattr(PatientStorage, _name, _patient(getattr(RDBStorage, _name)))


def open_storage(url: str) -> BaseStorage:
    """Storage of a journal file's path, or of a database URL (sqlite:///..., postgresql://...)."""
    try:
        if "://" not in url:
            return JournalStorage(BatchedJournal(url))
        for scheme in (
            "postgresql://",
            "postgres://",
        ):  # SQLAlchemy's own choice of a driver depends on its version
            if url.startswith(scheme):
                url = f"postgresql+psycopg://{url.removeprefix(scheme)}"
        engine: dict[str, Any] = (
            {"connect_args": {"timeout": 60}}
            if url.startswith("sqlite")
            else {"pool_pre_ping": True, "pool_size": 2}
        )
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


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """One search per run folder; RunFolderError when another process holds it."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(
            f"{folder}: another search is running in this folder; wait for it or choose another --out"
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
    """The study in `url`, which proposes at random until it gets another sampler; a damaged or foreign storage gives one line."""
    if "://" not in url and create:
        repair_journal(
            Path(url)
        )  # only by the one that holds the run folder, before anybody else writes
    storage, sampler = open_storage(url), optuna.samplers.RandomSampler()
    try:
        if create:
            return optuna.create_study(
                study_name=name,
                storage=storage,
                sampler=sampler,
                directions=directions(objectives),
                load_if_exists=True,
            )
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    except OSError as error:
        raise disk_error(Path(url), error) from error
    except KeyError:
        raise RunFolderError(f"storage {url}: holds no study {name!r}") from None
    except (ValueError, AssertionError, AttributeError) as error:
        raise RunFolderError(
            f"storage {url}: damaged ({type(error).__name__}); restore it from a copy or move it away"
        ) from error


def study_of(model: str, url: str, name: str, objectives: Sequence[str]) -> optuna.Study:
    """The study of the model with that hash, made when it is not there; RunFolderError when it belongs to another model or goal."""
    study = open_study(url, name, objectives=objectives)
    if len(study.directions) != len(directions(objectives)):
        raise RunFolderError(
            f"storage {url}: study {name!r} has {len(study.directions)} objectives; choose another storage or name"
        )
    if study.user_attrs.get("model", model) != model:
        raise RunFolderError(
            f"storage {url}: study {name!r} belongs to another model; choose another storage or name"
        )
    study.set_user_attr("model", model)
    return study
