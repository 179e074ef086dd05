"""Tell which workers are alive, and give the trials of dead ones to others.

Each worker keeps counting in the storage. This works on every storage.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from autocompress.search.problem.trial_record import TrialRecord, records_of
from autocompress.search.workers.storage import open_storage

LEASE_S = 60.0
COUNTS = 4
MAX_RETRIES = 2
GIVEN_UP = -1
LEASE = "lease:"  # study attribute, with the id of the worker


class Lease:
    """Count up in the storage, `COUNTS` times per lease, from a thread.

    Args:
        url: of the storage; the thread needs a handle of its own.
        study_name: of the study.

    Attributes:
        worker: id of this worker.
    """

    def __init__(self, url: str, study_name: str) -> None:
        self.worker = uuid.uuid4().hex[:12]
        self._stop = threading.Event()
        self._count = 0
        self._study = optuna.load_study(study_name=study_name, storage=open_storage(url))
        self._write(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _write(self, count: int) -> None:
        self._study.set_user_attr(f"{LEASE}{self.worker}", count)

    def _run(self) -> None:
        while not self._stop.wait(LEASE_S / COUNTS):
            try:
                self._write(self._count + 1)
            except Exception:
                continue  # the storage is away, for the other workers too
            self._count += 1

    def close(self) -> None:
        """Stop counting and give the lease up, so that nobody waits for it."""
        self._stop.set()
        self._thread.join()
        try:
            self._write(GIVEN_UP)
        except Exception:
            return


class Watch:
    """Tell which workers are dead.

    A worker is dead when its counter stands still while this worker's advances by a whole lease.
    No wall clocks are compared. While the storage is down no counter advances, so no worker is
    declared dead.

    Args:
        own: id of this worker, whose lease is counting.
    """

    def __init__(self, own: str) -> None:
        self._own = own
        self._seen: dict[str, tuple[int | None, int]] = {}

    def is_dead(self, worker: str, counts: Mapping[str, Any]) -> bool:
        """Return True if a worker is dead, or has given its lease up.

        Args:
            worker: its id.
            counts: attributes of the study, as they are now.
        """
        count, now = counts.get(f"{LEASE}{worker}"), counts[f"{LEASE}{self._own}"]
        known = self._seen.get(worker)
        if known is None or known[0] != count:
            self._seen[worker] = known = (count, now)
        return bool(count == GIVEN_UP or now - known[1] > COUNTS)


class Reaper:
    """Fail the running trials of dead workers and queue their parameters again.

    A trial is queued again at most `MAX_RETRIES` times.

    Args:
        study: the study.
        own: id of this worker. None: no other worker can be alive, since this process holds the
            run folder; all running trials are then taken.
    """

    def __init__(self, study: optuna.Study, own: str | None) -> None:
        self._study = study
        self._watch = None if own is None else Watch(own)

    def reap(self) -> list[int]:
        """Take back the trials of dead workers and return their numbers."""
        numbers, running = [], records_of(self._study, (TrialState.RUNNING,))
        counts = self._study.user_attrs if running and self._watch is not None else {}
        for trial in running:
            # A worker that died before it wrote its id is watched by its trial.
            worker = trial.worker or f"of trial {trial.number}"
            if self._watch is not None and not self._watch.is_dead(worker, counts):
                continue
            try:
                self._study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, RuntimeError):
                continue  # another worker was faster
            self._retry(trial)
            numbers.append(trial.number)
        return numbers

    def _retry(self, trial: TrialRecord) -> None:
        # A worker writes its id once its proposal is whole; before, there is nothing to repeat.
        if trial.attempt < MAX_RETRIES and trial.worker is not None:
            attributes = trial.retry_attributes()
            self._study.enqueue_trial(dict(trial.params), user_attrs=attributes)
