"""Run trials in one process: ask, judge, tell, write the row of trials.csv.

Trials go on until the study is full, the deadline passes, or Ctrl-C is pressed.
"""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from autocompress.errors import RunFolderError
from autocompress.results.files import (
    TRIAL_COLUMNS,
    TRIALS_FILE,
    append_row,
    disk_error,
    write_atomic,
)
from autocompress.results.limits import are_kept
from autocompress.search.evaluate.judge import Judge
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.problem.trial_record import TrialRecord, records_of
from autocompress.search.propose.reach import short_of
from autocompress.search.propose.sampler import PriceSampler, distributions
from autocompress.search.workers.journal import batched
from autocompress.search.workers.lease import Lease, Reaper
from autocompress.space.search_space import BoundSpace

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
LAST, QUANTILE = 20, 0.9  # the next trial is expected to take this quantile of the last ones


class Interrupt:
    """Stop after the trial in flight at the first Ctrl-C, and at once at the second.

    Attributes:
        requested: True after the first Ctrl-C.
    """

    def __init__(self) -> None:
        self.requested = False

    def is_requested(self) -> bool:
        """Return True after the first Ctrl-C."""
        return self.requested

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM inside the block; in the main thread only."""

        def handle(number: int, frame: Any) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True

        signals = (signal.SIGINT, signal.SIGTERM)
        try:
            previous = {number: signal.signal(number, handle) for number in signals}
        except ValueError:
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@dataclass
class Worker:
    """Run one process's part of a study.

    Attributes:
        study: the study.
        judge: judges candidates.
        folder: the run folder.
        alone: True if no other worker can be alive.
        is_over: returns True when the strategy has no step left.
        between: called after each trial; returns a problem with a new latency model, or None.
        has_front: True if there are files already, so that no trial is needed to export something.
    """

    study: optuna.Study
    judge: Judge
    folder: Path
    alone: bool
    is_over: Callable[[optuna.Study], bool] = lambda study: False
    between: Callable[[Problem], Problem | None] = lambda problem: None
    has_front: bool = False

    def run(
        self,
        n_trials: int,
        deadline: float | None,
        interrupt: Interrupt,
        url: str,
        progress: SearchProgress,
    ) -> None:
        """Run trials until the study is full, or another end comes.

        Args:
            n_trials: finished trials that the study shall hold.
            deadline: by the monotonic clock; None is unlimited.
            interrupt: Ctrl-C.
            url: of the storage, for the lease.
            progress: shows the trials.
        """
        lease = Lease(url, self.study.study_name)
        reaper = Reaper(self.study, None if self.alone else lease.worker)
        reaper.reap()
        if self.alone:
            complete_trials_file(self.study, self.folder / TRIALS_FILE)
        try:
            while not interrupt.requested:
                # A trial of a killed worker is tried again, and does not count.
                finished = [t for t in records_of(self.study, FINISHED) if t.ended_itself]
                problem = self.judge.problem
                base = problem.baseline
                values = []
                for t in finished:
                    parts = (self.judge.limits, base.accuracy, problem.activation_bytes)
                    if t.is_complete and are_kept(t.missed(*parts)):
                        values.append(t.values)
                progress.trials(len(finished), n_trials, values, base)
                if self._is_at_end(finished, n_trials, deadline):
                    break
                self._one(lease, progress)
                learned = None if interrupt.requested else self.between(self.judge.problem)
                if learned is not None:
                    self.judge = self.judge.with_problem(learned)
                if not self.alone:
                    reaper.reap()
        finally:
            lease.close()

    def _is_at_end(
        self, finished: Sequence[TrialRecord], n_trials: int, deadline: float | None
    ) -> bool:
        if len(finished) >= n_trials or self.is_over(self.study):
            return True
        # The first trial takes at least as long as the original takes for the race.
        next_s = _next_s(finished) if finished else self.judge.problem.race.pass_s
        late = deadline is not None and time.monotonic() + next_s > deadline
        # However short the time, one trial is made, so that there is something to export.
        return late and (self.has_front or any(t.is_complete for t in finished))

    def _one(self, lease: Lease, progress: SearchProgress) -> None:
        started = time.monotonic()
        trial = ask(self.study, self.judge.problem.space)
        try:
            record = judged(self.study, trial, self.judge, lease.worker, started)
        except (KeyboardInterrupt, RunFolderError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise disk_error(self.folder, error) from error
            record = self._failed(trial, error, time.monotonic() - started)
            progress.line(f"trial {trial.number} failed: {record.cause}")
        append_row(self.folder / TRIALS_FILE, TRIAL_COLUMNS, record.row or {})
        sampler = self.study.sampler
        if isinstance(sampler, PriceSampler) and trial.number == sampler.first:
            words = short_of(records_of(self.study)[trial.number])
            if words:
                progress.line(words)

    def _failed(self, trial: Trial, error: Exception, seconds: float) -> TrialRecord:
        """Tell the study that a trial failed."""
        message = str(error).strip()
        cause = f"{type(error).__name__}: {message.splitlines()[0] if message else ''}"
        record = TrialRecord(trial.number, cause=cause).ended(TrialState.FAIL, seconds)
        # Another worker may have taken the trial over.
        with suppress(ValueError, UpdateFinishedTrialError):
            for name, value in record.attributes_failed().items():
                trial.set_user_attr(name, value)
            self.study.tell(trial, state=TrialState.FAIL)
        return record


def judged(
    study: optuna.Study, trial: Trial, judge: Judge, worker: str, started: float
) -> TrialRecord:
    """Judge one trial and tell the study; exceptions of the model and the metric pass through.

    Args:
        study: the study.
        trial: with all parameters of the space.
        judge: judges candidates.
        worker: id of this worker.
        started: when the trial began, by the monotonic clock.

    Returns:
        The record, with its row of trials.csv.
    """
    candidate = judge.problem.space.candidate(trial.params)
    with batched(study):
        before = TrialRecord.of(trial.number, candidate, worker).attributes_before()
        for name, value in before.items():
            trial.set_user_attr(name, value)
    record = judge.judge(study, trial.number, candidate)
    state = TrialState.COMPLETE if record.qualities else TrialState.PRUNED
    return _told(study, trial, record.ended(state, time.monotonic() - started))


def ask(study: optuna.Study, space: BoundSpace) -> Trial:
    """Ask for a trial with all parameters of the space.

    Args:
        study: the study.
        space: the search space.

    Returns:
        A running trial.
    """
    trial = study.ask()
    # The proposal is made before the batch begins. (NSGA-II needs this to take enqueued trials
    # for parents.)
    _ = trial.relative_params
    with batched(study):
        for name, distribution in distributions(space).items():
            if isinstance(distribution, FloatDistribution):
                trial.suggest_float(name, distribution.low, distribution.high)
            elif isinstance(distribution, IntDistribution):
                trial.suggest_int(name, distribution.low, distribution.high)
    return trial


def _next_s(finished: Sequence[TrialRecord]) -> float:
    """Return the seconds that the next trial may take."""
    last = [t.seconds for t in finished[-LAST:] if t.seconds]
    return float(np.quantile(last, QUANTILE)) if last else 0.0


def _told(study: optuna.Study, trial: Trial, record: TrialRecord) -> TrialRecord:
    """Tell the study; the row of trials.csv goes along, so that a kill meanwhile loses nothing."""
    try:
        with batched(study):
            for name, missed in record.violations.items():
                trial.set_constraint(name, missed)
            for name, value in record.attributes_after().items():
                trial.set_user_attr(name, value)
        if record.is_complete:
            study.tell(trial, list(record.values))
        else:
            study.tell(trial, state=record.state)
    except (ValueError, UpdateFinishedTrialError):
        return record.taken_over()
    return record


def complete_trials_file(study: optuna.Study, path: Path) -> None:
    """Add the finished trials that trials.csv lacks after a kill or a full disk.

    A torn last line and repeated headers are dropped.

    Args:
        study: the study.
        path: of trials.csv.

    Raises:
        RunFolderError: the disk refuses.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise disk_error(path, error) from error
    header, *lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True) or [b""]
    whole = b"".join([header, *(line for line in lines if line != header)])
    if whole != content:
        write_atomic(path, whole)
    written = {line.split(b",")[0] for line in whole.splitlines()}
    for trial in records_of(study, FINISHED):
        if str(trial.number).encode() not in written:
            record = trial if trial.ended_itself else trial.killed()
            append_row(path, TRIAL_COLUMNS, record.row or {})
