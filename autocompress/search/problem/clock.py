"""How the time that a search was given is divided: sensitivity, trials, recovery of the front, and files that are run."""

from __future__ import annotations

import time
from dataclasses import dataclass

MOST_FILES = 12
TABLE_SHARE = 0.3  # of what is left when the latency table is begun
SENSITIVITY_SHARE = 0.2  # at most, from when it begins
SENSITIVITY_PART = 0.4  # of what is left then, where that is less
RECOVERY_SHARE = 0.15  # of what is left when trials begin
FILES_SHARE = 0.3  # at most, where files take long
EXPORT_S, OPEN_S, REPORT_S = 1.0, 0.8, 4.0  # of one file; of timing one; of the report
RUNS = (
    600  # of a short model while it is timed under two settings; a long one is run RUNS / 3 times
)
LONG_S = 0.02


@dataclass
class Clock:
    """Deadlines by the monotonic clock; None everywhere without a timeout.

    Attributes:
        started: when the search began; `ready`: when everything but sensitivities was measured.
        timeout_s: what it was given.
        recovers: whether the front is trained at the end.
        file_s: of exporting and running one file on its splits: an estimate until one was made, then the slowest.
        latency_s: of one inference of the float model.
    """

    started: float
    timeout_s: float | None
    recovers: bool
    file_s: float
    latency_s: float
    ready: float

    @property
    def left_s(self) -> float:
        """What setting up has left of the time."""
        return (
            0.0 if self.timeout_s is None else max(0.0, self.started + self.timeout_s - self.ready)
        )

    @property
    def end(self) -> float | None:
        """When everything is to be done."""
        return None if self.timeout_s is None else self.started + self.timeout_s

    def timing_s(self, files: int) -> float:
        """Of timing that many files in turn with the float one, and of the report."""
        return REPORT_S + files * (
            OPEN_S + 2 * self.latency_s * (RUNS if self.latency_s < LONG_S else RUNS / 3)
        )

    def finish_s(self, files: int) -> float:
        """Of everything after the recovery; the float file is one more to run."""
        return (files + 1) * self.file_s + self.timing_s(files)

    @property
    def files(self) -> int:
        """For as many time is set aside, at least for one; more are run where there is time left."""
        if self.timeout_s is None:
            return MOST_FILES
        return max(
            [
                1,
                *(
                    n
                    for n in range(1, MOST_FILES + 1)
                    if self.finish_s(n) <= FILES_SHARE * self.left_s
                ),
            ]
        )

    def sensitivity_deadline(self, now: float) -> float | None:
        """When what is left of the sensitivities is taken from the estimate."""
        if self.timeout_s is None or self.end is None:
            return None
        return now + min(
            SENSITIVITY_SHARE * self.timeout_s, SENSITIVITY_PART * max(0.0, self.end - now)
        )

    @property
    def search_deadline(self) -> float | None:
        """When the last trial is to be over."""
        late = self.recovery_deadline
        if late is None or self.timeout_s is None:
            return None
        return late - (RECOVERY_SHARE * self.left_s if self.recovers else 0.0)

    @property
    def recovery_deadline(self) -> float | None:
        """When the last step of training is to be over."""
        return None if self.end is None else self.end - self.finish_s(self.files)

    def has_room(self, files: int) -> bool:
        """Whether one more file than the `files` that were run can be run and timed in time."""
        return (
            self.end is None
            or time.monotonic() + self.file_s + self.timing_s(files + 1) <= self.end
        )
