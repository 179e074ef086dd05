"""Which workers are alive, on every storage: each keeps counting, and trials of one that has stopped are given to another."""

from __future__ import annotations

import threading
import uuid

import optuna
from optuna.trial import TrialState

from autocompress.search.workers.storage import open_storage

LEASE_S = 60.0
COUNTS = 4
MAX_RETRIES = 2
GIVEN_UP = -1


class Lease:
    """Counts up in the storage `COUNTS` times per lease; needs its own storage handle, since it does so from a thread."""

    def __init__(self, url: str, study_name: str) -> None:
        self.worker = uuid.uuid4().hex[:12]
        self._stop = threading.Event()
        self._count = 0
        self._study = optuna.load_study(study_name=study_name, storage=open_storage(url))
        self._write(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _write(self, count: int) -> None:
        self._study.set_user_attr(f"lease:{self.worker}", count)

    def _run(self) -> None:
        while not self._stop.wait(LEASE_S / COUNTS):
            try:
                self._write(self._count + 1)
            except Exception:
                continue  # the storage is away; the others cannot read it either
            self._count += 1

    def close(self) -> None:
        """Stop counting and give the lease up, so that nobody waits for it."""
        self._stop.set()
        self._thread.join()
        try:
            self._write(GIVEN_UP)
        except Exception:
            return


class Reaper:
    """Fails the running trials whose worker is dead and queues their parameters again, at most MAX_RETRIES times.

    A worker is dead when its count has not moved while `own`, this process's, has moved by a whole lease: what no clock of a machine says,
    and what stands still for everybody while the storage is away. `own` None: no other worker can be alive (the run folder is locked by
    us), so that nobody's lease has to run out.
    """

    def __init__(self, study: optuna.Study, own: str | None) -> None:
        self._study = study
        self._own = own
        self._seen: dict[str, tuple[int | None, int]] = {}

    def reap(self) -> list[int]:
        """The numbers of the trials that were taken back."""
        counts = self._study.user_attrs
        reaped = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # A trial whose worker died before it could say who it is is watched by itself.
            worker = trial.user_attrs.get("worker", f"of trial {trial.number}")
            if self._own is not None and not self._dead(
                worker, counts.get(f"lease:{worker}"), counts[f"lease:{self._own}"]
            ):
                continue
            try:
                self._study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, RuntimeError):
                continue  # another worker was faster
            attempt = trial.user_attrs.get("attempt", 0) + 1
            # A worker says who it is once its proposal is whole; there is nothing to repeat before.
            if attempt <= MAX_RETRIES and "worker" in trial.user_attrs:
                self._study.enqueue_trial(
                    dict(trial.params), user_attrs={"attempt": attempt, "retry_of": trial.number}
                )
            reaped.append(trial.number)
        return reaped

    def _dead(self, worker: str, count: int | None, now: int) -> bool:
        known = self._seen.get(worker)
        if known is None or known[0] != count:
            self._seen[worker] = known = (count, now)
        return count == GIVEN_UP or now - known[1] > COUNTS
