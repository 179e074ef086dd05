"""Make files of the best candidates between trials, so that the front grows with the search.

Each file is also a measurement that the latency model can be fitted to (`learning`). Where all
finalists have files, the one whose latency is most uncertain is profiled instead.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import optuna

from autocompress.errors import NotComputableError
from autocompress.results.files import TABLE_FILE
from autocompress.search.finish.finalists import (
    Finalist,
    choose_finalists,
    volume,
    with_best_weights,
)
from autocompress.search.finish.first_files import point_words
from autocompress.search.finish.front import origin_of
from autocompress.search.finish.front_files import FrontFiles
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.problem.run_record import RunRecord
from autocompress.targets.latency_model.growth import grown
from autocompress.task.user_code import UserCodeError

SHARE = 0.2  # of the time since the first trial, for files that are made between trials


@dataclass
class GapFiles:
    """Make one file at a time between the trials of one process.

    Attributes:
        study: with all trials.
        goal: objectives and limits.
        folder: the run folder.
        files: takes the points.
        run: the record of the search, for recipes.
        deadline: of the last trial, by the monotonic clock; None is unlimited.
        progress: shows the points.
    """

    study: optuna.Study
    goal: Goal
    folder: Path
    files: FrontFiles
    run: RunRecord
    deadline: float | None
    progress: SearchProgress
    _begun: float = field(default_factory=time.monotonic)
    _spent_s: float = 0.0
    _left_out: set[int] = field(default_factory=set)

    def make_one(self, problem: Problem, file_s: float) -> bool:
        """Make the file of the best candidate that has none, if there is time for it.

        Args:
            problem: task, target and latency model.
            file_s: seconds that a file takes.

        Returns:
            True if a file was made.
        """
        now = time.monotonic()
        if self._spent_s + file_s > SHARE * (now - self._begun):
            return False
        if self.deadline is not None and now + file_s > self.deadline:
            return False
        try:
            finalist = self._next(problem)
            if finalist is None:
                return False
            point = self.files.add(finalist, problem, origin_of(self.run, problem))
        except (NotComputableError, UserCodeError):
            if finalist is not None:
                self._left_out.add(finalist.number)  # the end of the search says it
            return False
        finally:
            self._spent_s += time.monotonic() - now
        self.progress.line(point_words(point, problem))
        return True

    def grow(self, problem: Problem, file_s: float) -> Problem | None:
        """Measure the finalist whose latency is most uncertain, if there is time for it.

        Time that a file waits for is not taken.

        Args:
            problem: target and latency model.
            file_s: seconds that a file takes.

        Returns:
            The problem with a larger latency table; None if nothing was measured.
        """
        now = time.monotonic()
        left_s = SHARE * (now - self._begun) - self._spent_s
        if self.deadline is not None:
            left_s = min(left_s, self.deadline - now)
        finalists = choose_finalists(self.study, problem, self.goal, or_nearest=False)
        if self._comes(file_s, now) and self._without_file(finalists) is not None:
            return None
        candidates = [finalist.candidate for finalist in finalists]
        table = grown(problem.table, problem.subject, problem.target, candidates, left_s)
        self._spent_s += time.monotonic() - now
        if table is problem.table:
            return None
        table.save(self.folder / TABLE_FILE)
        return replace(problem, table=table)

    def _comes(self, file_s: float, now: float) -> bool:
        """Return True if the time will allow for one more file before the last trial."""
        if self.deadline is None:
            return True
        most_s = SHARE * (self.deadline - file_s - self._begun)
        return now + file_s <= self.deadline and self._spent_s + file_s <= most_s

    def _next(self, problem: Problem) -> Finalist | None:
        """Return the finalist with the largest gain of hypervolume that was not run yet."""
        finalists = choose_finalists(self.study, problem, self.goal, or_nearest=False)
        return self._without_file(finalists)

    def _without_file(self, finalists: Sequence[Finalist]) -> Finalist | None:
        """Return the finalist that was not run yet and adds most to those that were.

        The first one is the best of equals.
        """
        made: list[Finalist] = []
        missing: list[Finalist] = []
        for finalist in finalists:
            best = with_best_weights(finalist, self.goal, self.folder)
            if self.files.has(best):
                made.append(best)
            elif finalist.number not in self._left_out:
                missing.append(best)
        values = [finalist.values for finalist in made]

        def gain(finalist: Finalist) -> float:
            return volume([*values, finalist.values], self.goal)

        return max(missing, key=gain, default=None)
