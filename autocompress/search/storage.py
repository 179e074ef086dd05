"""Where the study lives: opening, repairing, locking it, and taking back trials of workers that died."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from autocompress.errors import RunFolderError
from autocompress.files import disk_error

LEASE_S = 60.0
LOCK_S = 10  # after which a lock that a killed process left is taken
MAX_RETRIES = 2
DIRECTIONS: tuple[Literal["minimize", "maximize"], ...] = ("minimize", "minimize", "maximize")  # size_bytes, latency_ms, accuracy
STUDY_NAME = "autocompress"


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

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Write everything of the block at its end."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held:
                super().append_logs(held)


@contextmanager
def batched(study: optuna.Study) -> Iterator[None]:
    """Parameters and attributes set inside the block are written together where the storage is a journal."""
    backend = getattr(study._storage, "_backend", None)
    with backend.batch() if isinstance(backend, BatchedJournal) else nullcontext():
        yield


def open_storage(url: str) -> BaseStorage:
    """Storage of a journal file's path, or of a database URL (sqlite:///..., postgresql://...)."""
    try:
        if "://" not in url:
            return JournalStorage(BatchedJournal(url))
        engine = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True, "pool_size": 2}
        return RDBStorage(url, engine_kwargs=engine)
    except OSError as error:
        raise disk_error(Path(url), error) from error
    except ImportError as error:
        raise RunFolderError(f"storage {url}: {error}") from None
    except Exception as error:
        first = str(error).split("\n")[0]
        raise RunFolderError(f"storage {url}: cannot be opened ({type(error).__name__}: {first})") from error


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """One search per run folder; RunFolderError when another process holds it."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(f"{folder}: another search is running in this folder; wait for it or choose another --out") from None
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def open_study(url: str, name: str = STUDY_NAME, create: bool = True) -> optuna.Study:
    """The study in `url`, which proposes at random until it gets another sampler; a damaged or foreign storage gives one line."""
    if "://" not in url and create:
        repair_journal(Path(url))  # only by the one that holds the run folder, before anybody else writes
    storage, sampler = open_storage(url), optuna.samplers.RandomSampler()
    try:
        if create:
            return optuna.create_study(study_name=name, storage=storage, sampler=sampler, directions=list(DIRECTIONS), load_if_exists=True)
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    except OSError as error:
        raise disk_error(Path(url), error) from error
    except KeyError:
        raise RunFolderError(f"storage {url}: holds no study {name!r}") from None
    except (ValueError, AssertionError, AttributeError) as error:
        raise RunFolderError(f"storage {url}: damaged ({type(error).__name__}); restore it from a copy or move it away") from error


class Lease:
    """Tells the other workers every quarter of the lease that this one is alive; needs its own storage handle."""

    def __init__(self, url: str, study_name: str) -> None:
        self.worker = uuid.uuid4().hex[:12]
        self._stop = threading.Event()
        self._study = optuna.load_study(study_name=study_name, storage=open_storage(url))
        self._beat()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        self._study.set_user_attr(f"lease:{self.worker}", time.time())

    def _run(self) -> None:
        while not self._stop.wait(LEASE_S / 4):
            try:
                self._beat()
            except Exception:
                continue  # the storage is away for a moment; the lease outlasts three missed beats

    def close(self) -> None:
        """Stop beating and give the lease up, so that nobody waits for it."""
        self._stop.set()
        self._thread.join()
        try:
            self._study.set_user_attr(f"lease:{self.worker}", 0.0)
        except Exception:
            return


def reap(study: optuna.Study, alone: bool) -> list[int]:
    """Fail the running trials whose worker is dead and queue their parameters again; returns their numbers.

    `alone`: no other worker can be alive (the run folder is locked by us), so that nobody's lease has to run out.
    """
    attributes = study.user_attrs
    reaped = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get("worker")
        started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        if not alone and time.time() - attributes.get(f"lease:{worker}", started) < LEASE_S:
            continue
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, RuntimeError):
            continue  # another worker was faster
        attempt = trial.user_attrs.get("attempt", 0) + 1
        if attempt <= MAX_RETRIES and trial.params:
            study.enqueue_trial(dict(trial.params), user_attrs={"attempt": attempt, "retry_of": trial.number})
        reaped.append(trial.number)
    return reaped


def study_of(model: str, url: str, name: str) -> optuna.Study:
    """The study of the model with that hash, made when it is not there; RunFolderError when it belongs to another model."""
    study = open_study(url, name)
    if study.user_attrs.get("model", model) != model:
        raise RunFolderError(f"storage {url}: study {name!r} belongs to another model; choose another storage or name")
    study.set_user_attr("model", model)
    return study
