"""Open the storage of a study, and lock a run folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage

from autocompress.errors import RunFolderError
from autocompress.results.files import disk_error
from autocompress.search.problem.goal import directions
from autocompress.search.problem.options import STUDY_NAME
from autocompress.search.workers.journal import BatchedJournal, repair_journal

MODEL = "model"  # study attribute: hash of the model
TRIES, AGAIN_S = 5, 0.5  # to open a database whose tables another process makes, and between them


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
        # SQLAlchemy takes longer to import than the rest of this folder.
        from autocompress.search.workers.database import PatientStorage

        # SQLAlchemy's own choice of a driver depends on its version.
        for scheme in ("postgresql://", "postgres://"):
            if url.startswith(scheme):
                url = f"postgresql+psycopg://{url.removeprefix(scheme)}"
        engine: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 2}
        if url.startswith("sqlite"):
            engine = {"connect_args": {"timeout": 60}}
        for _ in range(TRIES):
            try:
                return PatientStorage(url, engine)
            except Exception as error:
                if not _is_being_made(error):
                    raise
                time.sleep(AGAIN_S)
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


def _is_being_made(error: Exception) -> bool:
    """Return True if another process makes the tables of a database at the same moment."""
    return type(error).__name__ == "IntegrityError" or "already exists" in str(error)


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
    except RunFolderError:
        raise
    except OSError as error:
        raise disk_error(Path(url), error) from error
    except KeyError:
        raise RunFolderError(f"storage {url}: holds no study {name!r}") from None
    except (ValueError, AssertionError, AttributeError) as error:
        raise RunFolderError(
            f"storage {url}: damaged ({type(error).__name__}); "
            "restore it from a copy, or choose another storage and another --out"
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
