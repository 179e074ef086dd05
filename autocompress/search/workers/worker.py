"""One process's part of a study: ask, judge, tell, write the row; until it is full, late or interrupted."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from autocompress.candidate import Candidate
from autocompress.errors import RunFolderError
from autocompress.results.files import (
    TRIAL_COLUMNS,
    TRIALS_FILE,
    append_row,
    disk_error,
    write_atomic,
)
from autocompress.search.evaluate.judge import Judge, Outcome
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.propose.reach import short_of
from autocompress.search.propose.sampler import PriceSampler, distributions
from autocompress.search.workers.journal import batched
from autocompress.search.workers.lease import Lease, Reaper
from autocompress.space.search_space import BoundSpace

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Interrupt:
    """First Ctrl-C: stop after the trial in flight and finalise. Second: stop now."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM inside the block; outside the main thread nothing is handled."""

        def handle(number: int, frame: Any) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True

        try:
            previous = {
                number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@dataclass
class Worker:
    """One process's part of a study."""

    study: optuna.Study
    judge: Judge
    folder: Path
    alone: bool
    finished: Callable[[optuna.Study], bool] = lambda study: False

    def run(
        self,
        n_trials: int,
        deadline: float | None,
        interrupt: Interrupt,
        url: str,
        progress: SearchProgress,
    ) -> None:
        """Trials until the study holds `n_trials` finished ones, the strategy is at its end, the deadline passes, or an interrupt comes."""
        lease = Lease(url, self.study.study_name)
        reaper = Reaper(self.study, None if self.alone else lease.worker)
        reaper.reap()
        if self.alone:
            complete_trials_file(self.study, self.folder / TRIALS_FILE)
        try:
            while not interrupt.requested:
                # What a killed worker left is tried again, and does not count.
                finished = [
                    t
                    for t in self.study.get_trials(deepcopy=False, states=FINISHED)
                    if _ended_itself(t)
                ]
                progress.trials(
                    len(finished), n_trials, _feasible(finished), self.judge.bench.baseline
                )
                late = deadline is not None and time.monotonic() + _next_s(finished) > deadline
                # However short the time, one trial is made, so that there is something to export.
                if (
                    len(finished) >= n_trials
                    or self.finished(self.study)
                    or (late and any(t.state == TrialState.COMPLETE for t in finished))
                ):
                    break
                self._one(lease, progress)
                if not self.alone:
                    reaper.reap()
        finally:
            lease.close()

    def _one(self, lease: Lease, progress: SearchProgress) -> None:
        started = time.monotonic()
        trial = ask(self.study, self.judge.bench.space)
        row: dict[str, Any] = {"number": trial.number}
        try:
            row = judged(self.study, trial, self.judge, lease.worker, started)
        except (KeyboardInterrupt, RunFolderError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise disk_error(self.folder, error) from error
            cause = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            row |= {
                "state": "FAIL",
                "cause": cause,
                "seconds": round(time.monotonic() - started, 3),
            }
            with suppress(
                ValueError, UpdateFinishedTrialError
            ):  # another worker took the trial over
                trial.set_user_attr("row", row)
                self.study.tell(trial, state=TrialState.FAIL)
            progress.line(f"trial {trial.number} failed: {cause}")
        append_row(self.folder / TRIALS_FILE, TRIAL_COLUMNS, row)
        if (
            trial.number == 0
            and isinstance(self.study.sampler, PriceSampler)
            and (words := short_of(self.study.trials[0]))
        ):
            progress.line(words)


def judged(
    study: optuna.Study, trial: Trial, judge: Judge, worker: str, started: float
) -> dict[str, Any]:
    """Judge and tell one trial; its row of trials.csv. Raises what the model or the metric raises."""
    candidate = judge.bench.space.candidate(trial.params)
    about = {"worker": worker, "candidate": candidate.to_json(), "key_full": candidate.digest}
    with batched(study):
        for name, value in {**about, "key": Candidate(candidate.modules).digest}.items():
            trial.set_user_attr(name, value)
    outcome = judge.judge(study, trial.number, candidate)
    row = {"number": trial.number, **_row_of(outcome, started)}
    _tell(study, trial, outcome, row)
    return row


def ask(study: optuna.Study, space: BoundSpace) -> Trial:
    """A new trial with all parameters of the space."""
    trial = study.ask()
    # The proposal is made before anything is held back. (And without this NSGA-II would not take enqueued trials for parents.)
    _ = trial.relative_params
    with batched(study):
        for name, distribution in distributions(space).items():
            if isinstance(distribution, FloatDistribution):
                trial.suggest_float(name, distribution.low, distribution.high)
            elif isinstance(distribution, IntDistribution):
                trial.suggest_int(name, distribution.low, distribution.high)
    return trial


def _ended_itself(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether its worker told how it ended: one that was killed while it did so has left a row of another state."""
    return bool(trial.user_attrs.get("row", {}).get("state") == trial.state.name)


def _next_s(finished: list[optuna.trial.FrozenTrial]) -> float:
    """Seconds that the next trial may take: nine of ten of the last twenty took less."""
    last = [t.duration.total_seconds() for t in finished[-20:] if t.duration]
    return float(np.quantile(last, 0.9)) if last else 0.0


def _row_of(outcome: Outcome, started: float) -> dict[str, Any]:
    return {
        "state": (TrialState.COMPLETE if outcome.values is not None else TrialState.PRUNED).name,
        "size_bytes": outcome.size_bytes,
        "latency_ms": round(outcome.latency_ms, 6),
        "accuracy": "" if outcome.values is None else round(outcome.values[2], 6),
        "seconds": round(time.monotonic() - started, 3),
        "cause": outcome.cause,
    }


def _tell(study: optuna.Study, trial: Trial, outcome: Outcome, row: dict[str, Any]) -> None:
    """Tell the study; the row of trials.csv goes with the trial, so that a kill between the two loses nothing."""
    try:
        with batched(study):
            for name, share in outcome.violations.items():
                trial.set_constraint(name, share)
            for name, value in {**outcome.attributes, "cause": outcome.cause, "row": row}.items():
                trial.set_user_attr(name, value)
        if outcome.values is not None:
            study.tell(trial, list(outcome.values))
        else:
            study.tell(trial, state=TrialState.PRUNED)
    except (ValueError, UpdateFinishedTrialError):
        row |= {
            "state": "FAIL",
            "cause": "another worker took the trial over while this one was slow",
        }


def complete_trials_file(study: optuna.Study, path: Path) -> None:
    """Add to trials.csv the finished trials that a kill or a full disk kept out of it, and drop a torn last line."""
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise disk_error(path, error) from error
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_atomic(path, whole)
    written = {line.split(b",")[0] for line in whole.splitlines()}
    for trial in study.get_trials(deepcopy=False, states=FINISHED):
        if str(trial.number).encode() not in written:
            killed = {
                "number": trial.number,
                "state": trial.state.name,
                "cause": "its process was killed; its parameters are tried again",
            }
            append_row(
                path, TRIAL_COLUMNS, trial.user_attrs["row"] if _ended_itself(trial) else killed
            )


def _feasible(trials: list[optuna.trial.FrozenTrial]) -> list[list[float]]:
    return [
        t.values
        for t in trials
        if t.state == TrialState.COMPLETE and all(v <= 0 for v in t.constraints.values())
    ]
