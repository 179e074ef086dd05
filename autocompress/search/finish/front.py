"""Make the front at the end of a search: recover, export and measure the finalists.

Where the latency model is wrong on these files, it is fitted to them too, and the front is chosen
again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch

from autocompress.candidate import Candidate
from autocompress.errors import AutocompressError
from autocompress.results.files import FRONT_FILE, TRIALS_FILE, write_json
from autocompress.results.front import ParetoFront, earlier_front
from autocompress.results.limits import Limits
from autocompress.search.evaluate.attribution import with_tower_losses
from autocompress.search.evaluate.training_choice import least_s
from autocompress.search.evaluate.training_plan import FIRST_POINTS, LongPlan
from autocompress.search.finish.finalists import (
    Finalist,
    by_use,
    choose_finalists,
    choose_hopefuls,
    hopes_of,
    recover_finalists,
    without_disappointing,
)
from autocompress.search.finish.front_files import FrontFiles
from autocompress.search.finish.learning import PROMISE, errors_on, relearn
from autocompress.search.finish.long_recovery import lessons
from autocompress.search.problem.clock import Clock
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.problem.run_record import RunRecord
from autocompress.targets.device.memory import release_memory
from autocompress.task.task import Task


@dataclass(frozen=True)
class FrontMaker:
    """Make the front of one search.

    Attributes:
        study: with all trials.
        problem: task, target and space.
        limits: absolute limits.
        folder: the run folder.
        files: the files that were made so far.
        plan: how long the points are trained; 0 steps train nothing.
        clock: says how many files there is time for.
        stop: True ends the recovery.
        progress: shows the steps.
    """

    study: optuna.Study
    problem: Problem
    limits: Limits
    folder: Path
    files: FrontFiles
    plan: LongPlan
    clock: Clock
    stop: Callable[[], bool]
    progress: SearchProgress

    @property
    def goal(self) -> Goal:
        """Objectives and limits."""
        return Goal(self.problem.baseline, self.limits, self.problem.space.objectives)

    def make(self, run: RunRecord) -> tuple[ParetoFront, RunRecord]:
        """Recover, export and measure the front.

        Args:
            run: the record so far.

        Returns:
            (front, the record with its errors and with what was reused).

        Raises:
            AutocompressError: no trial finished.
        """
        earlier = earlier_front(self.folder)
        before = [] if earlier is None else [point.trial for point in earlier.points]
        finalists = choose_finalists(self.study, self.problem, self.goal, before)
        if not finalists and earlier is not None and before:
            return earlier, run
        if not finalists:
            raise AutocompressError(
                f"search: no trial finished; see the causes in {self.folder / TRIALS_FILE}"
            )
        finalists = self._with_hopefuls(finalists)
        self.problem.stitcher.apply(Candidate())  # weights of the last candidate leave the memory
        release_memory()
        front, check = self._measured(finalists, run)
        finalists = self._verified(finalists, front)
        _say_errors(check, self.progress)
        run = replace(run, front_check=check, refit={})
        if check.get("mape", 0.0) > PROMISE and self.problem.latency_source == "measured":
            front, run = self._made_again(finalists, front, run, check["mape"])
        front = self._attributed(front)
        for words in front.left_out():
            self.progress.line(words)
        teacher, library = self.problem.trainer.teacher, self.problem.stitcher.library
        return front, replace(
            run,
            recovery=lessons(self.study),
            training_dtype=str(self.problem.trainer.arithmetic).removeprefix("torch."),
            teacher={"computed": teacher.computed, "read": teacher.read},
            library={"made": library.made, "reused": library.reused},
        )

    def _attributed(self, front: ParetoFront) -> ParetoFront:
        """Measure what each tower of the recommended points loses, and write it to front.json."""
        if self.stop():
            return front
        limits = self.limits.against(front.baseline.latency_ms)
        clock, given = self.clock, limits.pick_limits()
        # The report recommends points within a small loss, where the user gave no other limit.
        near = min(given["max_accuracy_drop"] or math.inf, self.goal.near)
        both = [given, {**given, "max_accuracy_drop": near}]
        known = with_tower_losses(front, self.problem, both, lambda: clock.left_before_report_s)
        if known is not front:
            write_json(self.folder / FRONT_FILE, known.to_json())
        return known

    def _made_again(
        self, finalists: list[Finalist], front: ParetoFront, run: RunRecord, error: float
    ) -> tuple[ParetoFront, RunRecord]:
        """Choose the front again, after the latency model was fitted to its files.

        The record's check is of the last timing, as front.json is; `refit` keeps the error before.
        """
        points = [*front.points, *front.dominated]
        problem = relearn(self.problem, points, self.folder)
        wrong = (
            f"latency model: {error:.1%} wrong on the front, more than the promised {PROMISE:.0%}; "
        )
        if problem is self.problem:
            self.progress.line(f"{wrong}a fit to what was measured is no better")
            return front, run
        refit = {**errors_on(problem, points), "before": error}
        run = replace(run, refit=refit, latency_note=problem.table.note)
        again = replace(self, problem=problem)
        numbers = {finalist.number for finalist in finalists}
        chosen = choose_finalists(self.study, problem, again.goal)
        more = [finalist for finalist in chosen if finalist.number not in numbers]
        self.progress.line(
            f"{wrong}fitted again to what was measured ({refit['mape']:.1%} on the same points), "
            f"which brings {len(more)} more trials to the front"
        )
        if (
            more
            and not self.stop()
            and self.clock.has_room(2 * len(finalists), self.clock.next_file_s)
        ):
            everyone = [*finalists, *again._recovered(more)]
            front, check = again._measured(everyone, run)
            self._verified(everyone, front)
            _say_errors(check, self.progress)
            if "mape" in check:  # else no file was timed again
                run = replace(run, front_check=check)
        return front, run

    def _with_hopefuls(self, finalists: list[Finalist]) -> list[Finalist]:
        """Return recovered finalists, and trials that recovery has brought to the front.

        Those are trained first that a user would take after their recovery.
        """
        if self.plan.steps == 0:
            return self._recovered(finalists)
        hopes = hopes_of(self.study, self.goal, self.plan.next_steps(FIRST_POINTS))
        hopefuls = choose_hopefuls(self.study, self.problem, self.goal, finalists, hopes)
        everyone = by_use([*finalists, *hopefuls], self.goal, hopes)
        return without_disappointing(self._recovered(everyone), self.goal)

    def _recovered(self, finalists: list[Finalist]) -> list[Finalist]:
        late, training_s = self.clock.recovery_deadline, least_s(self.problem.float_files.pass_s)
        has_time = late is None or time.monotonic() + training_s <= late
        return recover_finalists(
            finalists,
            self.problem,
            self.study,
            self.goal,
            self.folder,
            self.plan if has_time else LongPlan(0),
            self.stop,
            self.progress.phase,
        )

    def _verified(self, finalists: list[Finalist], front: ParetoFront) -> list[Finalist]:
        """Return the finalists whose files were run, and say why others were not."""
        verified = {point.trial for point in (*front.points, *front.dominated)}
        run = [finalist for finalist in finalists if finalist.number in verified]
        refused = {
            finalist.number: self.files.refused[finalist.number]
            for finalist in finalists
            if finalist.number in self.files.refused and finalist.number not in verified
        }
        for number, why in refused.items():
            self.progress.line(f"trial {number}: left out of the front: {why}")
        if len(run) + len(refused) < len(finalists):
            self.progress.line(
                f"{len(run)} of {len(finalists)} points of the front were run before the time was "
                "up; the same command runs more"
            )
        return run

    def _measured(
        self, finalists: list[Finalist], run: RunRecord
    ) -> tuple[ParetoFront, dict[str, Any]]:
        return self.files.finish(finalists, self.problem, origin_of(run, self.problem))


def origin_of(run: RunRecord, problem: Problem) -> Mapping[str, Any]:
    """Return what a recipe says of its search, so that the file can be reproduced.

    Args:
        run: the record of the search.
        problem: has the space.
    """
    return {
        "task": run.task,
        "source": run.source,
        "pretrained": _model_folder(problem.task),
        "model": run.model,
        "student_model": run.student_model,
        "seed": run.seed,
        "versions": run.versions,
        "threads": torch.get_num_threads(),  # the last bit of sums of floats depends on them
        "student_threads": run.student_threads or torch.get_num_threads(),
        "student_seed": run.seed if run.student_seed is None else run.student_seed,
        "student_dtype": run.student_dtype,
        "activation_range": problem.space.activation_range,
        "training_dtype": str(problem.trainer.arithmetic).removeprefix("torch."),
        "student": problem.space.recovery.student_lesson().to_json(),
    }


def _model_folder(task: Task) -> Mapping[str, Any] | None:
    """Return what an export reads of the model folder of a task; None if it was made of none."""
    known = task.pretrained
    if known is None:
        return None
    return {name: getattr(known, name) for name in ("folder", "task", "metric", "files")}


def _say_errors(check: dict[str, Any], progress: SearchProgress) -> None:
    if "mape" in check:
        progress.line(
            f"latency model on the {check['candidates']} files of the front that it predicted: "
            f"mean error {check['mape']:.1%}, bias {check['bias']:+.1%}"
        )
    if check["warning"]:
        progress.line(f"while the front was timed, {check['warning']}")
