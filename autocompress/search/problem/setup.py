"""Keep the time of setting up a search: seconds by step, and an end when the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import ceil

from autocompress.errors import OutOfTimeError
from autocompress.targets.device.memory import release_memory

# A search of a few trials fits into this many times the seconds that setting up took.
MORE = 3
NAMED = 4  # steps that a message names


class Setup:
    """Report the steps of setting up, and measure them.

    While the float model was not measured, the end of the time is an error. Afterwards
    (`is_ready`) the search ends with what there is.

    Args:
        timeout_s: seconds for the whole search; None is unlimited.
        show: called with a step and the share of it that is done.
        stopped: returns True after Ctrl-C.
        now: a monotonic clock.
        started: when the search began, by `now`; None is now. What was done since then is counted
            as the step "starting".

    Attributes:
        started: when the search began, by `now`.
        seconds: of each step so far, in the order of the first reports.
        stopped: returns True after Ctrl-C.
        is_ready: True if the float model was measured, so that a search can start.
        has_files: False if the time has ended before the first file.
    """

    def __init__(
        self,
        timeout_s: float | None,
        show: Callable[[str, float], None],
        stopped: Callable[[], bool] = lambda: False,
        now: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self.seconds: dict[str, float] = {}
        self.is_ready = False
        self.has_files = True
        self.stopped = stopped
        self._show, self._now, self._is_short = show, now, False
        self.started = self._last = now() if started is None else started
        self._step = "" if started is None else "starting"

    def __call__(self, what: str, share: float) -> None:
        """Report progress of a step.

        Args:
            what: name of the step.
            share: share of it that is done, 0 to 1.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed, and nothing is there yet to finish with.
            OutOfTimeError: the time is over, and there is nothing to start a search from.
        """
        self._count()
        if what != self._step:
            release_memory()
        self._step = what
        self.look()
        self._show(what, share)

    def look(self) -> None:
        """Look at the clock, and for Ctrl-C, within a step; raises as a report does."""
        if self.stopped():
            raise KeyboardInterrupt
        if self.is_over and not self.is_ready:
            self._count()
            raise OutOfTimeError(self._ended())

    @property
    def is_over(self) -> bool:
        """Return True if the time is spent."""
        return self.timeout_s is not None and self._now() - self.started >= self.timeout_s

    def ends_before(self, seconds: float) -> bool:
        """Return True if less time is left than a trial takes; `words` says so from then on.

        Args:
            seconds: of the trial.
        """
        if self.timeout_s is None:
            return False
        left_s = self.timeout_s - (self._now() - self.started)
        self._is_short = left_s <= seconds
        return self._is_short

    def deadline(self, share: float, least: float = 0.0) -> float | None:
        """Return when a step of setting up ends.

        Args:
            share: of the whole time, since the search began.
            least: share of the whole time that the step has in any case, from now on.

        Returns:
            Time of the monotonic clock; None without a timeout.
        """
        if self.timeout_s is None:
            return None
        started, now = self.started, self._now()
        return max(started + share * self.timeout_s, now + least * self.timeout_s)

    def finish(self) -> Mapping[str, float]:
        """End the last step and return the seconds by step, rounded."""
        self._count()
        self._step = ""
        return {what: round(spent, 2) for what, spent in self.seconds.items()}

    @property
    def words(self) -> str:
        """One line: the whole time and the longest steps, or that the time is over."""
        if self.is_over or self._is_short:
            what = "no trial is made after the first files"
            if not self.has_files:
                what = (
                    "that is too short for the first compressed file, and the float file is all "
                    "there is; what was compressed is kept for the next run"
                )
            return (
                f"search: {self._spent()}: {what}; nearest timeout for a search: {self._enough()}"
            )
        return f"set up in {sum(self.seconds.values()):.0f} s: {self._longest()}"

    def _count(self) -> None:
        now = self._now()
        if self._step and now > self._last:
            self.seconds[self._step] = self.seconds.get(self._step, 0.0) + now - self._last
        self._last = now

    def _ended(self) -> str:
        return (
            f"search: {self._spent()}, before the first trial; what was exported and measured "
            f"is kept for the next run; nearest timeout: {self._enough()}"
        )

    def _spent(self) -> str:
        spent = sum(self.seconds.values())
        return f"setting up took {spent:.0f} of the {self.timeout_s:g} s ({self._longest()})"

    def _longest(self) -> str:
        steps = sorted(self.seconds.items(), key=lambda step: -step[1])[:NAMED]
        return ", ".join(f"{what} {spent:.1f} s" for what, spent in steps)

    def _enough(self) -> str:
        spent = sum(self.seconds.values())  # few where an earlier run has measured most
        seconds = max(MORE * spent, spent + (self.timeout_s or 0.0), 1.0)
        return f"{ceil(seconds)}s" if seconds < 60 else f"{ceil(seconds / 60)}m"
