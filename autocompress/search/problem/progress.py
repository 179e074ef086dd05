"""What the user sees while a search runs: phases, a bar with the time left, front size and best points."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from autocompress.results.measurement import Measurement
from autocompress.results.pareto import non_dominated


class SearchProgress:
    """A live bar on a terminal, one line per phase elsewhere; silent when `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._live = self._console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._live,
        )
        self._bar = self._progress.add_task("starting", total=1.0, note="")
        self._phase = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def phase(self, what: str, share: float) -> None:
        """`share` of phase `what` is done."""
        if what != self._phase:
            self._phase = what
            self._progress.reset(self._bar, description=what, total=1.0, note="")
            if not self._live:
                self._console.print(what)
        self._progress.update(self._bar, completed=share)

    def trials(
        self, done: int, total: int, values: list[list[float]], baseline: Measurement
    ) -> None:
        """`done` of `total` trials; `values` of the feasible complete ones."""
        note = best_points(values, baseline)
        if self._phase != "searching":
            self._phase = "searching"
            self._progress.reset(self._bar, description="searching", total=float(total), note="")
        self._progress.update(self._bar, completed=done, total=float(total), note=note)
        if not self._live and (done % 10 == 0 or done == total):
            self._console.print(f"trial {done}/{total}: {note}")

    def line(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)


def best_points(values: list[list[float]], baseline: Measurement) -> str:
    """Front size, and the smallest and fastest among the points that lose at most 0.01."""
    if not values:
        return "front 0"
    array = np.array(values)
    text = (
        f"front {int(non_dominated(array * np.array([1, 1] + [-1] * (array.shape[1] - 2))).sum())}"
    )
    good = array[array[:, 2] >= baseline.accuracy - 0.01]
    if len(good):
        text += f", within 0.01: {baseline.size_bytes / good[:, 0].min():.1f}x smaller, {baseline.latency_ms / good[:, 1].min():.2f}x faster"
    return text
