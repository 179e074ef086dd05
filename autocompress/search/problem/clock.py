"""Divide the time of a search: sensitivities, trials, recovery of the front, files to run."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from autocompress.targets.device.timing import LONG_S, PASSES, enough_rounds

MOST_FILES = 12
# Shares of the whole time at which a step of setting up ends, and the least that a late one gets.
FIRST_FILES_END, TABLE_END, SENSITIVITY_END = 0.1, 0.13, 0.165
LEAST_SHARE = 0.03
RECOVERY_SHARE = 0.15  # of what is left when trials begin
LONG_SHARE = 0.4  # of it, where there is no time to train trials, so that all training comes last
FILES_SHARE = 0.3  # at most, where files take long
EXPORT_S, OPEN_S, REPORT_S = 0.3, 0.1, 2.5  # of one small file; of timing one; of the report
S_PER_BYTE = 1e-8  # of the float file, in addition to EXPORT_S and OPEN_S
# Runs of a file and of the float one while they are timed in turn, and under two settings before.
# Those that take LONG_S are run a third as often, slow ones as often as `enough_rounds` says.
RUNS, RUNS_OF_TWO = 250, 600
ROUNDS = 60  # of each file with the float one, at the end of a search
FASTER = 0.7  # mean of the latencies of a file and of the float one, relative to the latter
FEW_FILES = 6  # files whose test split fits into the time, if need be a part of it


@dataclass
class Clock:
    """Compute deadlines by the monotonic clock; they are None without a timeout.

    Attributes:
        started: when the search began.
        timeout_s: seconds for everything; None is unlimited.
        recovers: True if the front is trained at the end.
        file_s: seconds of exporting one file and running it on the validation split, estimated.
        pass_s: seconds of a pass of a compressed file over the validation split, estimated.
        float_pass_s: the same of the float file.
        rest_passes: passes over the validation split that take as long as the test split and the
            disturbed inputs.
        is_tuned: True if files are timed under two settings.
        latency_s: seconds of one inference of the float model, at the input that decides.
        open_s: seconds of opening a file to time it.
        ready: when setting up ended.
        test_share: part of the test split that there is time for.
        recovery_share: part of `left_s` for training the front.
        further_s: the same at each further input.
    """

    started: float
    timeout_s: float | None
    recovers: bool
    file_s: float
    pass_s: float
    float_pass_s: float
    rest_passes: float
    is_tuned: bool
    latency_s: float
    open_s: float
    ready: float
    test_share: float = 1.0
    recovery_share: float = RECOVERY_SHARE
    further_s: tuple[float, ...] = ()
    _slowest_s: float | None = field(default=None, init=False)
    _slower: float = field(default=1.0, init=False)

    @property
    def left_s(self) -> float:
        """Seconds that setting up has left."""
        if self.timeout_s is None:
            return 0.0
        return max(0.0, self.started + self.timeout_s - self.ready)

    @property
    def end(self) -> float | None:
        """Deadline of everything."""
        return None if self.timeout_s is None else self.started + self.timeout_s

    def file_took(self, seconds: float) -> None:
        """Replace the estimate of `file_s` by the slowest file so far.

        Args:
            seconds: of exporting one file and running it on the validation split.
        """
        self._slowest_s = max(self._slowest_s or 0.0, seconds)

    @property
    def next_file_s(self) -> float:
        """Seconds of exporting and running one more file: of the slowest so far."""
        return self.file_s if self._slowest_s is None else self._slowest_s

    def rest_s(self, pass_s: float | None = None) -> float:
        """Return the seconds of a file on the test split and disturbed inputs.

        Args:
            pass_s: of the file; None takes the estimate of all files.
        """
        return self._slower * self.rest_passes * (self.pass_s if pass_s is None else pass_s)

    def rest_took(self, expected_s: float, seconds: float) -> None:
        """Lengthen `rest_s` if a file took longer than expected.

        Args:
            expected_s: by `rest_s`.
            seconds: that it took.
        """
        if expected_s > 0:
            self._slower = max(self._slower, self._slower * seconds / expected_s)

    def timing_s(self, files: int) -> float:
        """Return the seconds of timing files in turn with the float one, and of the report.

        Args:
            files: number of files.
        """
        runs_s = _runs_s(self.latency_s, RUNS_OF_TWO if self.is_tuned else RUNS)
        runs_s += sum(_runs_s(run_s, RUNS) for run_s in self.further_s)
        return REPORT_S + files * (self.open_s + runs_s)

    def after_recovery_s(self, files: int) -> float:
        """Return the seconds of everything after the recovery of the front.

        Args:
            files: number of files; the float one is one more to run.
        """
        one_s = self.next_file_s + self.rest_s()
        return files * one_s + self.rest_s(self.float_pass_s) + self.timing_s(files)

    @property
    def files(self) -> int:
        """Number of files for which time is set aside, at least 1.

        More are run where there is time left.
        """
        if self.timeout_s is None:
            return MOST_FILES
        count = 1
        for files in range(1, MOST_FILES + 1):
            if self.after_recovery_s(files) <= FILES_SHARE * self.left_s:
                count = files
        return count

    @property
    def search_deadline(self) -> float | None:
        """Deadline of the last trial."""
        late = self.recovery_deadline
        if late is None or self.timeout_s is None:
            return None
        return late - (self.recovery_share * self.left_s if self.recovers else 0.0)

    @property
    def long_recovery_from(self) -> float | None:
        """Time from which trainings at the end may take LONG_SHARE, where they pay for it."""
        late = self.recovery_deadline
        return None if late is None or not self.recovers else late - LONG_SHARE * self.left_s

    @property
    def recovery_deadline(self) -> float | None:
        """Deadline of the last step of training."""
        return None if self.end is None else self.end - self.after_recovery_s(self.files)

    @property
    def left_before_report_s(self) -> float:
        """Seconds from now until the report is drawn."""
        return math.inf if self.end is None else self.end - REPORT_S - time.monotonic()

    def has_room(self, files: int, seconds: float) -> bool:
        """Return True if a step fits in before files are timed.

        Args:
            files: number of files that are timed then.
            seconds: of the step.
        """
        return self.end is None or time.monotonic() + seconds + self.timing_s(files) <= self.end


def _runs_s(run_s: float, runs: float) -> float:
    """Return the seconds of timing one file in turn with the float one, at one input.

    Args:
        run_s: of the float file.
        runs: of both, where a run is fast.
    """
    if run_s >= LONG_S:
        runs /= 3
    runs *= (enough_rounds(ROUNDS, run_s) + PASSES) / (ROUNDS + PASSES)  # each pass warms up
    return 2 * FASTER * run_s * runs
