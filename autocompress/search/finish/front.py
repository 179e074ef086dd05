"""The end of a search: recover, export and verify the front, and learn from it where the latency model was wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch

from autocompress.errors import AutocompressError
from autocompress.results.files import TABLE_FILE, TRIALS_FILE
from autocompress.results.front import ParetoFront, earlier_front
from autocompress.results.limits import Limits
from autocompress.search.evaluate.recovery import lessons
from autocompress.search.finish.finalists import Finalist, choose_finalists, recovered
from autocompress.search.finish.verify import verify_front
from autocompress.search.problem.bench import Bench
from autocompress.search.problem.clock import Clock
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.progress import SearchProgress
from autocompress.targets.latency_model.latency_table import prediction_errors
from autocompress.targets.workload import workload

PROMISE = 0.06  # mean error on the front beyond which the latency model is fitted again


def finish(
    study: optuna.Study,
    bench: Bench,
    limits: Limits,
    folder: Path,
    run: dict[str, Any],
    finalize_steps: int,
    clock: Clock,
    stop: Callable[[], bool],
    progress: SearchProgress,
) -> ParetoFront:
    """Recover, export and verify the front; adds the prediction errors on it and what was reused to `run`."""
    earlier = earlier_front(folder)
    before = [] if earlier is None else [point.trial for point in earlier.points]
    goal = Goal(bench.baseline, limits, bench.space.objectives)
    finalists = choose_finalists(study, bench, goal, before)
    if not finalists:
        raise AutocompressError(
            f"search: no trial finished; see the causes in {folder / TRIALS_FILE}"
        )
    finalists = recovered(
        study, finalists, bench, goal, folder, finalize_steps, stop, progress.phase
    )
    origin = {
        key: run[key] for key in ("task", "source", "model", "student_model", "seed", "versions")
    }
    origin["threads"] = torch.get_num_threads()  # sums of floats depend on them in the last bit
    origin["training_dtype"] = run["training_dtype"]
    origin["student"] = bench.space.recovery.student_lesson().to_json()
    front, run["front_check"] = verify_front(
        finalists, bench, folder, origin, clock, progress.phase
    )
    verified = {point.trial for point in (*front.points, *front.dominated)}
    if len(verified) < len(finalists):
        progress.line(
            f"{len(verified)} of {len(finalists)} points of the front were run before the time was up; the same command runs more"
        )
        finalists = [finalist for finalist in finalists if finalist.number in verified]
    error = run["front_check"].get("mape", 0.0)
    if "mape" in run["front_check"]:
        progress.line(
            f"latency model on the {len(finalists)} files of the front: mean error {error:.1%}, bias {run['front_check']['bias']:+.1%}"
        )
    if run["front_check"]["warning"]:
        progress.line(f"while the front was timed, {run['front_check']['warning']}")
    if error > PROMISE and bench.latency_source == "measured":
        run["refit"] = relearn(bench, finalists, front, folder)
        run["latency_note"] = bench.table.note
        known = {finalist.number for finalist in finalists}
        more = [
            finalist
            for finalist in choose_finalists(study, bench, goal)
            if finalist.number not in known
        ]
        progress.line(
            f"latency model: {error:.1%} wrong on the front, more than the {PROMISE:.0%} promised; fitted again to what was measured "
            f"({run['refit']['mape']:.1%} on the same points), which brings {len(more)} more trials to the front"
        )
        if more and not stop() and clock.has_room(2 * len(finalists)):
            finalists += recovered(
                study, more, bench, goal, folder, finalize_steps, stop, progress.phase
            )
            front, _ = verify_front(finalists, bench, folder, origin, clock, progress.phase)
    for words in front.left_out():
        progress.line(words)
    run["recovery"] = lessons(study)
    teacher = bench.trainer.teacher
    run["teacher"] = {"computed": teacher.computed, "read": teacher.read}
    run["library"] = {"made": bench.stitcher.library.made, "reused": bench.stitcher.library.reused}
    return front


def relearn(
    bench: Bench, finalists: list[Finalist], front: ParetoFront, folder: Path
) -> dict[str, Any]:
    """Fit the latency model to the verified points too, keep its table in the run folder, and return its errors on those points."""
    points = {point.trial: point.measured.latency_ms for point in (*front.points, *front.dominated)}
    measured = [points[finalist.number] for finalist in finalists]
    works = [workload(bench.layout, finalist.candidate) for finalist in finalists]
    bench.table = bench.table.with_front(
        works, [ms / bench.float_ms * bench.table_float_ms for ms in measured]
    )
    bench.table.save(folder / TABLE_FILE)
    return prediction_errors(
        [bench.latency_ms(finalist.candidate) for finalist in finalists], measured
    )
