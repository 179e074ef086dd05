"""Export the file of one finalist, and run it on the validation and test splits.

The test split and disturbed inputs may take much longer than the validation split, so files that
are made while a search goes on are run on them at its end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autocompress.candidate.candidate import Candidate
from autocompress.compress.assemble.trained import Trained
from autocompress.errors import ExportError, NotComputableError, TaskError
from autocompress.export.artifact import read_recipe, write_file, write_weights
from autocompress.export.float_graph.large_files import digest_of
from autocompress.export.genai.generation import check_generation
from autocompress.export.genai.package import write_package
from autocompress.export.litert.parts import flat_bytes_by_module
from autocompress.export.litert.translate import owners_of
from autocompress.export.parts.modules import bytes_by_module
from autocompress.measure.accuracy import evaluate_session
from autocompress.measure.robustness import corruptions, corruptions_of
from autocompress.measure.tally import Scores
from autocompress.results.files import WEIGHTS_FILE, model_path
from autocompress.results.front import ParetoFront, earlier_front
from autocompress.results.front_point import FrontPoint
from autocompress.search.evaluate.recovery import Recovered, read_recovered
from autocompress.search.finish.finalists import Finalist
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.problem import Problem
from autocompress.targets.device.sessions import open_session, size_of
from autocompress.targets.latency import all_threads
from autocompress.targets.runtime import bytes_in_memory
from autocompress.task.batches import spread_batches
from autocompress.task.user_code import UserCodeError

TEST = "test"
AS_SIMULATED = "greedy tokens as simulated"  # share of those that a package generates
LATE = "not run before the time was up; the same command runs it"


@dataclass(frozen=True)
class OtherScores:
    """Hold what a file scores beside the validation split.

    Attributes:
        test: metric on the test split; None if there is none or it is not computable.
        disturbed: metric by kind of disturbed inputs, where it is computable.
        left_out: reason of each figure that is not computable, by its name in tables.
        test_share: part of the batches of the test split that `test` is of.
    """

    test: float | None
    disturbed: Mapping[str, float]
    left_out: Mapping[str, str]
    test_share: float = 1.0

    @property
    def has_no_test(self) -> bool:
        """Return True if it was not run on the test split, such as before there was one."""
        return self.test is None and self.left_out.get(figure_of(TEST), LATE) == LATE


@dataclass(frozen=True)
class MeasuredFile:
    """Hold the file of one finalist and what was measured from it, but not its latency.

    Attributes:
        finalist: the trial.
        folder: holds the file.
        size_bytes: of the file.
        scores: on the validation split.
        rest: scores beside the validation split; None before it was run on them.
        memory_bytes: weights as a session holds them, or None.
        pass_s: seconds of a pass over the validation split; None in a resumed run.
        was_predicted: True if its latency was predicted before it was measured.
        measured_ms: latency that an earlier run has measured; None if it has not.
        module_bytes: bytes of each module in the file; empty if an earlier version wrote it.
        activation_bytes: memory of its activations, or None.
    """

    finalist: Finalist
    folder: Path
    size_bytes: int
    scores: Scores
    rest: OtherScores | None
    memory_bytes: int | None
    pass_s: float | None
    was_predicted: bool
    measured_ms: float | None = None
    module_bytes: Mapping[str, int] = field(default_factory=dict)
    activation_bytes: int | None = None

    @property
    def path(self) -> Path:
        """Path of the model's file."""
        return model_path(self.folder)

    def measured_finalist(self, goal: Goal) -> Finalist:
        """Return the finalist with the size and the qualities that were measured.

        Args:
            goal: names the qualities.
        """
        qualities = goal.qualities(self.scores)
        return replace(self.finalist, size_bytes=self.size_bytes, qualities=qualities, hoped=None)


def recovered_of(folder: Path, finalist: Finalist) -> Recovered | None:
    """Read the weights that recovery kept.

    Args:
        folder: the run folder.
        finalist: the trial.

    Returns:
        The weights; None where it is untrained, or the trial has other weights by now.
    """
    candidate = finalist.candidate
    if candidate.distillation.steps == 0:
        return None
    recovered = read_recovered(folder, finalist.number, candidate)
    if recovered is None or recovered.distillation != candidate.distillation:
        return None
    return recovered


def with_kept_weights(folder: Path, finalist: Finalist) -> Finalist:
    """Return a finalist with the weights that recovery has kept of its trial meanwhile.

    Args:
        folder: the run folder.
        finalist: the trial as its file was made.

    Returns:
        The same object if there are no other weights.
    """
    recovered = read_recovered(folder, finalist.number, finalist.candidate)
    if recovered is None or recovered.distillation == finalist.candidate.distillation:
        return finalist
    candidate = replace(finalist.candidate, distillation=recovered.distillation)
    qualities = (recovered.scores.accuracy, *finalist.qualities[1:])
    return replace(finalist, candidate=candidate, qualities=qualities)


def run_file(
    finalist: Finalist, problem: Problem, place: Path, folder: Path, is_limited: bool = False
) -> MeasuredFile:
    """Export a finalist and run its file on the validation split.

    Args:
        finalist: the trial.
        problem: task, target and builder.
        place: folder of the file.
        folder: the run folder, which holds recovered weights.
        is_limited: True if the memory of activations has a limit.

    Returns:
        What was measured.

    Raises:
        NotComputableError: the outputs of the file are not finite.
        UserCodeError: the metric fails on them.
    """
    candidate, recovered = finalist.candidate, recovered_of(folder, finalist)
    trained = None if recovered is None else recovered.trained
    size, module_bytes = _written(place, candidate, trained, problem)
    write_weights(place, problem.stitcher, candidate, trained)
    problem.stitcher.apply(Candidate())  # the weights of the candidate leave the memory
    path, names = str(model_path(place)), problem.builder.lowered.input_names
    session = open_session(path, all_threads(problem.settings))
    started = time.monotonic()
    scores, _ = evaluate_session(problem.task, session, names, problem.task.validation)
    pass_s = time.monotonic() - started
    if problem.target.decoder:
        more = _generated(finalist, problem, place, session, trained)
        scores = replace(scores, metrics={**scores.metrics, **more})
    del session  # the next one opens the same file
    memory = bytes_in_memory(path, problem.settings)
    activations = problem.file_activations(path, is_limited)
    parts = (scores, None, memory, pass_s, not finalist.is_uniform, None, module_bytes)
    return MeasuredFile(finalist, place, size, *parts, activations)


def _written(
    place: Path, candidate: Candidate, trained: Trained | None, problem: Problem
) -> tuple[int, dict[str, int]]:
    """Write the file of a candidate; return its bytes, and those of each module."""
    graph, owners = problem.builder.build_owned(problem.compressor.recipe(candidate, trained))
    names = [module.name for module in problem.module_map]
    size = write_file(place, problem.builder, graph)
    if problem.builder.flat_shapes is None:
        return size, bytes_by_module(graph, owners, names)
    flat = problem.builder.flat(graph)
    return size, flat_bytes_by_module(flat.content, owners_of(flat, owners), names)


def _generated(
    finalist: Finalist, problem: Problem, place: Path, session: Any, trained: Trained | None
) -> dict[str, float]:
    """Generate with the package of a file; return how many tokens are those of the simulation."""
    builder, stitcher, task = problem.builder, problem.stitcher, problem.task
    write_package(place, builder.lowered.papers, task.pretrained, problem.settings)
    model, inputs = stitcher.apply(finalist.candidate, trained), task.first_batch[0]
    try:
        generated = check_generation(place, session, model, inputs, builder.lowered.feed)
    finally:
        stitcher.apply(Candidate())  # the weights of the candidate leave the memory
    return {AS_SIMULATED: generated.equal / generated.tokens}


def known_files(folder: Path, front: ParetoFront) -> dict[int, MeasuredFile]:
    """Return the files of an earlier run, with their numbers from its front.

    Args:
        folder: the run folder.
        front: of the earlier run.

    Returns:
        Files by trial. One that is not whole, or that the numbers are not of, is left out.
    """
    files = {}
    for point in (*front.points, *front.dominated):
        place, measured, predicted = folder / point.artifact, point.measured, point.predicted
        if not _is_of(place, point):
            continue
        qualities = [predicted.accuracy]
        qualities += [measured.metrics.get(name, math.nan) for name in front.objectives]
        parts = (predicted.size_bytes, predicted.latency_ms, tuple(qualities))
        finalist = Finalist(point.trial, point.candidate, *parts, is_uniform=point.is_uniform)
        scores = Scores(measured.accuracy, measured.metrics)
        left_out = {name: why for name, why in measured.left_out.items() if why != LATE}
        late = len(left_out) < len(measured.left_out)
        rest = (
            None if late else OtherScores(measured.test_accuracy, {}, left_out, measured.test_share)
        )
        numbers = (measured.size_bytes, scores, rest, measured.memory_bytes, None)
        was_measured = measured.latency_source == "measured"
        files[point.trial] = MeasuredFile(
            finalist,
            place,
            *numbers,
            point.was_predicted,
            measured.latency_ms if was_measured else None,
            {name: part.size_bytes for name, part in point.parts.items()},
            measured.activation_bytes,
        )
    return files


def _is_of(place: Path, point: FrontPoint) -> bool:
    """Return True if a folder holds the whole file of a point, as its recipe says.

    A kill after a new file was moved to its place leaves the numbers of the file before.
    """
    path = model_path(place)
    if not path.is_file():
        return False
    if not (place / WEIGHTS_FILE).is_file():
        return False
    try:
        recipe = read_recipe(place)
        candidate = Candidate.from_json(recipe["candidate"])
    except (ExportError, KeyError, TypeError, ValueError):
        return False
    if candidate != point.candidate or size_of(str(path)) != point.measured.size_bytes:
        return False
    return bool(recipe.get("sha256") == digest_of(path))


def known_test(folder: Path) -> tuple[float | None, float]:
    """Return what an earlier front of a run has of the float file on the test split.

    Args:
        folder: the run folder.

    Returns:
        (metric, share of the split that it is of); (None, 1) if it has none.
    """
    earlier = earlier_front(folder)
    if earlier is None or earlier.baseline.test_accuracy is None:
        return None, 1.0
    return earlier.baseline.test_accuracy, earlier.baseline.test_share


def other_scores(
    problem: Problem, path: str, test_share: float, known_test: float | None = None
) -> OtherScores:
    """Run a file on the test split and on disturbed inputs.

    Args:
        problem: has the splits.
        path: of the file.
        test_share: part of the batches of the test split, in (0, 1].
        known_test: the metric on that part, which is used once per model; None runs it.

    Returns:
        The metrics, and reasons of those that cannot be computed.
    """
    session = open_session(path, all_threads(problem.settings))
    judged, names = replace(problem.task, extra_metrics={}), problem.builder.lowered.input_names
    special = () if judged.pretrained is None else judged.pretrained.special_tokens
    parts = (judged.validation, judged.batch_first, special, judged.typos)
    splits = corruptions_of(*parts)
    if known_test is None and problem.task.test is not None:
        splits = {TEST: spread_batches(problem.task.test, test_share), **splits}
    accuracies: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, batches in splits.items():
        # Without labels, or with samples of one class only, some metrics cannot be computed. Files
        # of fixed shapes do not take all batches.
        try:
            accuracies[name] = evaluate_session(judged, session, names, batches)[0].accuracy
        except (NotComputableError, TaskError, UserCodeError) as error:
            left_out[figure_of(name)] = " ".join(str(error).split())
    return OtherScores(accuracies.pop(TEST, known_test), accuracies, left_out, test_share)


def figure_of(split: str) -> str:
    """Return the name in tables of the accuracy on a split, such as "accuracy (test)".

    Args:
        split: "test", or the metric's name of a kind of disturbed inputs.
    """
    return f"accuracy ({split.removeprefix('accuracy_').replace('_', ' ')})"


def other_splits(problem: Problem) -> list[str]:
    """Return the names of what a file is run on beside the validation split.

    It reads a batch.

    Args:
        problem: says whether there is a test split, and how inputs can be disturbed.
    """
    task = problem.task
    kinds = corruptions(task.validation, task.batch_first, task.typos)
    return kinds if task.test is None else [TEST, *kinds]


def not_run(splits: Sequence[str], test: float | None = None, share: float = 1.0) -> OtherScores:
    """Return the scores of a file that was run on the validation split only.

    Args:
        splits: from `other_splits`.
        test: metric on the test split, where an earlier run has it.
        share: of the test split that it is of.
    """
    late = [split for split in splits if split != TEST or test is None]
    return OtherScores(test, {}, {figure_of(split): LATE for split in late}, share)
