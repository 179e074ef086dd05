"""Start the other workers of a search while it is set up, and tell them when trials begin."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

import optuna

from autocompress.search.evaluate.training_plan import TrainingPlan
from autocompress.search.propose.estimate.probe_board import ProbeBoard
from autocompress.search.workers.launch import Running
from autocompress.search.workers.lease import Lease
from autocompress.search.workers.plan import LEADER, RUN, STOPPED, WorkerPlan

Launch = Callable[[str], list[Running]]
WAIT_S = 0.2  # between two looks for Ctrl-C while other workers run
PATIENCE_S = 5.0  # for workers to end, after each signal


@dataclass
class Team:
    """Hold the other workers of a search.

    As a context it ends them if trials do not begin inside. Workers of other commands then see that
    this one has given its lease up.

    Attributes:
        study: of the search.
        url: of its storage.
        plan: what the workers need to know.
        launch: starts the other workers, given the URL of the storage; None starts none.
        alone: True if no other worker can take part.
    """

    study: optuna.Study
    url: str
    plan: WorkerPlan
    launch: Launch | None
    alone: bool
    _others: list[Running] = field(default_factory=list)
    _lease: Lease | None = None
    _has_begun: bool = False

    def __enter__(self) -> Team:
        # A worker that sees the plan must not take an earlier, dead leader for its own.
        if not self.alone:
            self._lease = Lease(self.url, self.study.study_name)
            self.study.set_user_attr(LEADER, self._lease.worker)
        self.study.set_user_attr(STOPPED, False)
        self.study.set_user_attr(RUN, self.plan.to_json())
        try:
            self._others = [] if self.launch is None else self.launch(self.url)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._has_begun:
            return
        with suppress(Exception):  # the storage may be why the search ends
            self.study.set_user_attr(STOPPED, True)
        self._close()
        for worker in self._others:
            worker.terminate()
        waiting = self._waiting()
        waiting.join(PATIENCE_S)
        if not waiting.is_alive():
            return
        # The first signal asks a worker to end after its step, the second one ends it at once.
        for worker in self._others:
            worker.terminate()
        waiting.join(PATIENCE_S)

    def _close(self) -> None:
        if self._lease is not None:
            self._lease.close()

    @property
    def board(self) -> ProbeBoard | None:
        """Return the board on which measurements are divided; None for a search that is alone."""
        return None if self._lease is None else ProbeBoard(self.study, self._lease.worker)

    def begin(self, deadline: float | None, training: TrainingPlan) -> None:
        """Let the workers begin with trials.

        Args:
            deadline: of the last trial by this process's monotonic clock, or None.
            training: plan of the trainings.
        """
        plan = self.plan.with_trials(deadline, training)
        self.study.set_user_attr(RUN, plan.to_json())
        self._has_begun = True
        self._close()  # trials have leases of their own

    def wait(self, is_stopped: Callable[[], bool]) -> None:
        """Wait for the other workers.

        Args:
            is_stopped: returns True after Ctrl-C. They are then told to stop after their trials in
                flight.
        """
        waiting, told = self._waiting(), False
        while waiting.is_alive():
            if is_stopped() and not told:
                self.study.set_user_attr(STOPPED, True)
                told = True
            waiting.join(WAIT_S)

    def _waiting(self) -> threading.Thread:
        """Return a thread that ends when all other workers have ended."""
        waiting = threading.Thread(target=lambda: [one.wait() for one in self._others], daemon=True)
        waiting.start()
        return waiting
