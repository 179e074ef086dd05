"""Show how a search goes: phases, a bar with the time left, the front, notes on setting up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

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
from autocompress.search.problem.goal import NEAR_DROP, signs
from autocompress.search.problem.problem import Problem

EVERY = 10  # trials between two lines where there is no live bar


class SearchProgress:
    """Print a live bar on a terminal, or one line per phase elsewhere.

    Args:
        quiet: True prints nothing.
    """

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
        """Show a phase.

        Args:
            what: name of the phase.
            share: share of it that is done, 0 to 1.
        """
        if what != self._phase:
            self._phase = what
            self._progress.reset(self._bar, description=what, total=1.0, note="")
            if not self._live:
                self._console.print(what)
        self._progress.update(self._bar, completed=share)

    def trials(
        self, done: int, total: int, values: Sequence[Sequence[float]], baseline: Measurement
    ) -> None:
        """Show the trials so far.

        Args:
            done: number of finished trials.
            total: number of trials that are wanted.
            values: (n, objectives) size, latency and qualities of the feasible complete trials.
            baseline: numbers of the float file.
        """
        note = best_points(values, baseline) if done else ""  # first files are no trials yet
        if self._phase != "searching":
            self._phase = "searching"
            self._progress.reset(self._bar, description="searching", total=float(total), note="")
        self._progress.update(self._bar, completed=done, total=float(total), note=note)
        if not self._live and done == 0:
            self._console.print(f"searching, {total} trials are asked for")
        elif not self._live and (done % EVERY == 0 or done == total):
            text = f"trial {done}/{total}"
            if done > total:
                text = f"{done} trials are done already, {total} are asked for"
            self._console.print(f"{text}: {note}", soft_wrap=True)

    def line(self, text: str) -> None:
        """Print one line above the bar.

        Args:
            text: the line.
        """
        self._console.print(text, highlight=False, soft_wrap=True)


def best_points(values: Sequence[Sequence[float]], baseline: Measurement) -> str:
    """Describe the front so far in a few words.

    Args:
        values: (n, objectives) size, latency and qualities of the feasible complete trials.
        baseline: numbers of the float file.

    Returns:
        Its size, and how much smaller and faster points are that lose little accuracy.
    """
    if not values:
        return "front 0"
    array = np.array(values)
    objectives = [""] * (array.shape[1] - 3)
    text = f"front {int(non_dominated(array * signs(objectives)).sum())}"
    lost = NEAR_DROP * baseline.accuracy_scale
    near = array[array[:, 2] >= baseline.accuracy - lost]
    if len(near):
        smaller = baseline.size_bytes / near[:, 0].min()
        faster = baseline.latency_ms / near[:, 1].min()
        text += (
            f"; within {lost:.2g} of the float accuracy: smallest {smaller:.1f}x smaller; "
            f"fastest {faster:.2f}x as fast (predicted)"
        )
    return text


def plan_words(trial_s: float, trials: int, finish_s: float) -> str:
    """Say how long the rest of a search takes.

    Args:
        trial_s: seconds of a trial so far.
        trials: trials that are left.
        finish_s: seconds of the files of the front.
    """
    minutes = (trial_s * max(0, trials) + finish_s) / 60
    about = f"{minutes:.0f} min" if minutes >= 1.5 else f"{60 * minutes:.0f} s"
    return (
        f"about {about} for {trials} more trials and their files on this machine, without "
        "recovery of the front; --timeout ends a search earlier, and Ctrl-C keeps what there is"
    )


def check_words(check: Mapping[str, Any]) -> str:
    """Describe the errors of a latency model on candidates that it has not seen.

    Args:
        check: `LatencyTable.check`.

    Returns:
        One line.
    """
    if not check:
        return "latency model: not checked on unseen candidates yet; its errors on files are said"
    tau = check["kendall_tau"]
    return (
        f"latency model fitted to {check['models']} models, on {check['candidates']} random "
        "unseen candidates: "
        f"mean error {check['mape']:.1%}, 95th percentile {check['p95']:.1%}, "
        f"bias {check['bias']:+.1%}, Kendall tau "
        + ("not defined" if tau is None else f"{tau:.2f}")
    )


def setup_lines(problem: Problem, time: Mapping[str, Any]) -> list[str]:
    """Tell what a user should know before the first trial.

    Args:
        problem: the problem.
        time: where the time of the float model goes.

    Returns:
        Lines: errors of the latency model, its coverage, session settings, fixed dimensions of
        files, and choices that the target cannot execute.
    """
    table, modules = problem.table, time["modules_share"]
    lines = [check_words(table.check)]
    if table.note:
        lines.append(f"latency model: {table.note}")
    lines.append(
        f"time of the float model: {modules:.0%} in modules, {1 - modules:.0%} in other operators"
    )
    if table.left_out:
        measured = sum(run.role != "front" for run in table.runs)
        lines.append(
            f"latency table: {measured} of {measured + table.left_out} models were measured "
            "in the time that there was"
        )
    if table.warning:
        lines.append(f"latency table: {table.warning}")
    if problem.float_files.warning:
        lines.append(f"float file: {problem.float_files.warning}")
    disabled = table.settings.disabled_optimizers
    if table.settings != problem.target.settings:
        without = f", without {', '.join(disabled)}" if disabled else ""
        lines.append(f"session settings: {table.settings.threads} threads{without}")
    if problem.latency_source == "table":
        lines.append(
            "latency table: of another machine; the latency of files is predicted for it, "
            "not measured here"
        )
    if problem.race.ragged:
        lines.append(
            "outputs differ in shape among batches: metrics get lists of samples, "
            "or are averaged where they are means over samples"
        )
    if problem.race.ordered:
        lines.append(
            "a metric may depend on the order of its batches: candidates are compared on the "
            "first batches of the split, not on random ones"
        )
    lines += [f"export: {words}" for words in problem.builder.lowered.fixed]
    target = problem.target.name
    for words in problem.space.left_out:
        lines.append(f"left out, since {target} cannot execute it: {words}")
    lines += [f"space: {words}" for words in problem.space.without_effect]
    return lines
