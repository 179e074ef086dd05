"""Turn finalists into files, run them, and keep what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from autocompress.compress.assemble.stitch import Trained
from autocompress.errors import NotComputableError
from autocompress.export.artifact import write_model, write_notes, write_recipe, write_weights
from autocompress.export.build import stitched_variants
from autocompress.measure.accuracy import evaluate_session
from autocompress.measure.robustness import corruptions_of, fragile_under
from autocompress.results.files import FRONT_FILE, MODEL_FILE, write_atomic, write_json
from autocompress.results.front import ParetoFront, earlier_front
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import Measurement
from autocompress.search.evaluate.recovery import read_recovered
from autocompress.search.finish.finalists import Finalist
from autocompress.search.problem.bench import Bench
from autocompress.search.problem.clock import Clock
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.device.timing import interleaved_timing
from autocompress.targets.latency import all_threads, compare
from autocompress.targets.latency_model.latency_table import prediction_errors
from autocompress.targets.runtime import weights_in_memory
from autocompress.task.batches import Batches
from autocompress.task.user_code import UserCodeError

ROUNDS = 60
TEST = "test"


@dataclass(frozen=True)
class FrontTiming:
    """Ratios of the files to the float file, how each file's session is opened, and tuned against default settings by file."""

    ratios: tuple[float, ...]
    settings: tuple[SessionSettings, ...]
    tuned_ratios: Mapping[str, float]
    baseline_ms: float
    warning: str


@dataclass(frozen=True)
class _Rest:
    """What a file scores beside the validation split, and why it does not where the metric fails, by what tables call the figure."""

    test: float | None
    disturbed: Mapping[str, float]
    left_out: Mapping[str, str]


def verify_front(
    finalists: list[Finalist],
    bench: Bench,
    folder: Path,
    origin: Mapping[str, Any],
    clock: Clock,
    report: Callable[[str, float], None],
) -> tuple[ParetoFront, dict[str, Any]]:
    """(front, prediction errors): export every finalist, run its file on validation and test, time it, write front.json.

    The first one always; the others as long as the `clock` has room for them.
    """
    paths, scores, problem = [], [], None
    judged: list[Finalist] = []
    baseline_path = folder / "models" / "baseline" / MODEL_FILE
    write_atomic(baseline_path, bench.reference)
    corrupted = corruptions_of(bench.task.validation, bench.task.batch_first)
    names = bench.builder.lowered.input_names
    baseline = _baseline(bench, folder, str(baseline_path), corrupted)
    for i, finalist in enumerate(finalists):
        if judged and not clock.has_room(len(judged)):
            break
        started = time.monotonic()
        report("exporting and verifying the front", i / len(finalists))
        place = folder / "models" / f"{finalist.number:04d}"
        size = _export(finalist, bench, place, folder)
        session = open_session(str(place / MODEL_FILE), all_threads(bench.settings))
        try:
            found, _ = evaluate_session(bench.task, session, names, bench.task.validation)
        except (NotComputableError, UserCodeError) as error:
            problem = error  # its outputs are not finite, say; the others are judged
            continue
        rest = _judge_rest(bench, str(place / MODEL_FILE), corrupted)
        scores.append((size, found, rest, weights_in_memory(str(place / MODEL_FILE))))
        clock.file_s = max(clock.file_s if judged else 0.0, time.monotonic() - started)
        paths.append(place)
        judged.append(finalist)
    if problem is not None and not judged:
        raise problem
    finalists = judged
    timing = _time_front(bench, baseline_path, [path / MODEL_FILE for path in paths], report)
    elsewhere = _time_elsewhere(
        bench, baseline_path, [path / MODEL_FILE for path in paths], timing.settings, report
    )
    baseline = replace(baseline, metrics={**baseline.metrics, **elsewhere[0]})
    points = []
    source = bench.latency_source
    for i, (finalist, place, (size, found, rest, memory)) in enumerate(
        zip(finalists, paths, scores, strict=True)
    ):
        latency_ms = (
            finalist.values[1] if source == "table" else timing.ratios[i] * baseline.latency_ms
        )
        metrics = {**found.metrics, **rest.disturbed, **elsewhere[1 + i]}
        measured = Measurement(
            size,
            latency_ms,
            found.accuracy,
            rest.test,
            metrics,
            True,
            memory,
            source,
            rest.left_out,
        )
        predicted = Measurement(int(finalist.values[0]), finalist.values[1], finalist.values[2])
        gap = found.accuracy - finalist.values[2]
        fragile = fragile_under(
            baseline.metrics, metrics, baseline.accuracy, baseline.accuracy - found.accuracy
        )
        point = FrontPoint(
            finalist.number,
            finalist.candidate,
            measured,
            predicted,
            f"models/{place.name}",
            gap,
            fragile,
        )
        trained, example = trained_of(folder, finalist), bench.task.example_inputs
        write_recipe(
            place,
            bench.builder,
            bench.stitcher,
            finalist.candidate,
            trained,
            example,
            origin,
            timing.settings[i],
        )
        write_notes(
            place,
            point,
            baseline,
            bench.builder.lowered.input_names,
            bench.target.name,
            timing.settings[i],
        )
        points.append(point)
    front = ParetoFront.of(baseline, points, bench.space.objectives)
    write_json(folder / FRONT_FILE, front.to_json())
    errors: dict[str, Any] = {}
    if len(points) > 1 and source != "table":
        errors = prediction_errors(
            [f.values[1] for f in finalists], [p.measured.latency_ms for p in points]
        )
    return front, {
        "baseline_ms_at_the_end": timing.baseline_ms,
        "tuned": dict(timing.tuned_ratios),
        "warning": timing.warning,
        **errors,
    }


def _baseline(
    bench: Bench, folder: Path, path: str, corrupted: Mapping[str, Batches]
) -> Measurement:
    """The float file's numbers, with those of the test split and of disturbed inputs."""
    rest = _judge_rest(bench, path, corrupted, _known_test(folder))
    return replace(
        bench.baseline,
        test_accuracy=rest.test,
        metrics={**bench.baseline.metrics, **rest.disturbed},
        memory_bytes=weights_in_memory(path),
        latency_source=bench.latency_source,
        left_out=rest.left_out,
    )


def _time_front(
    bench: Bench, baseline: Path, paths: Sequence[Path], report: Callable[[str, float], None]
) -> FrontTiming:
    """Every file in turn with the float one. Where settings were tuned, each file is first run under both, and one that the tuned
    settings slow down keeps the default ones."""
    feed = bench.builder.lowered.feed(bench.task.example_inputs)
    tuned, default = bench.settings, bench.target.settings

    def share(done: float) -> None:
        report("timing the front", done)

    if bench.latency_source == "table":  # what is fast here says nothing about the device
        return FrontTiming((), (tuned,) * len(paths), {}, bench.table.baseline_ms, "")
    if bench.target.figures is not None or tuned == default:
        timing = compare(
            str(baseline), [str(path) for path in paths], feed, bench.target, tuned, ROUNDS, share
        )
        return FrontTiming(
            timing.ratios, (tuned,) * len(paths), {}, timing.baseline_ms, timing.warning
        )
    chosen, ratios = {}, {}
    for i, path in enumerate((baseline, *paths)):
        report("timing the settings", i / (1 + len(paths)))
        pair = interleaved_timing(
            partial(open_session, str(path), default),
            [partial(open_session, str(path), tuned)],
            feed,
            ROUNDS // 2,
        )
        chosen[path] = default if pair.intervals[0][0] > 1 else tuned
        ratios[path.parent.name] = pair.ratios[0]
    openers = [partial(open_session, str(path), chosen[path]) for path in (baseline, *paths)]
    timing = interleaved_timing(openers[0], openers[1:], feed, ROUNDS, report=share)
    return FrontTiming(
        timing.ratios,
        tuple(chosen[path] for path in paths),
        ratios,
        timing.baseline_ms,
        timing.warning,
    )


def _time_elsewhere(
    bench: Bench,
    baseline: Path,
    paths: Sequence[Path],
    settings: Sequence[SessionSettings],
    report: Callable[[str, float], None],
) -> list[dict[str, float]]:
    """Milliseconds of the float file, and of each other file, at the task's `latency_inputs`, by what they are called in reports."""
    found: list[dict[str, float]] = [{} for _ in (baseline, *paths)]
    if bench.latency_source == "table":  # its device is not at hand
        return found
    for name, inputs in bench.task.latency_inputs.items():
        feed = bench.builder.lowered.feed(inputs)
        share = partial(report, f"timing the front at {name}")
        if bench.target.figures is not None:
            timing = compare(
                str(baseline),
                [str(path) for path in paths],
                feed,
                bench.target,
                bench.settings,
                ROUNDS,
                share,
            )
        else:
            openers = [
                partial(open_session, str(path), own)
                for path, own in zip(paths, settings, strict=True)
            ]
            timing = interleaved_timing(
                partial(open_session, str(baseline), bench.settings),
                openers,
                feed,
                ROUNDS,
                report=share,
            )
        for entry, ratio in zip(found, (1.0, *timing.ratios), strict=True):
            entry[f"latency at {name} (ms)"] = ratio * timing.baseline_ms
    return found


def trained_of(folder: Path, finalist: Finalist) -> Trained | None:
    """The weights that its recovery kept, or None when it is untrained."""
    kept = read_recovered(folder, finalist.number)
    return None if kept is None else kept.trained


def _export(finalist: Finalist, bench: Bench, place: Path, folder: Path) -> int:
    candidate, builder, stitcher = finalist.candidate, bench.builder, bench.stitcher
    trained = trained_of(folder, finalist)
    variants = {} if trained is not None else stitched_variants(builder, stitcher, candidate)
    size = write_model(place, builder.build(builder.recipe(candidate, variants, trained)))
    write_weights(place, stitcher, candidate, trained)
    return size


def _known_test(folder: Path) -> float | None:
    """The baseline's test accuracy from an earlier front of the same run: the test split is used once per model."""
    earlier = earlier_front(folder)
    return None if earlier is None else earlier.baseline.test_accuracy


def _judge_rest(
    bench: Bench, path: str, corrupted: Mapping[str, Batches], known_test: float | None = None
) -> _Rest:
    """The task's metric of a file on the test split, unless it is known, and on each corruption of the validation inputs."""
    session, names = (
        open_session(path, all_threads(bench.settings)),
        bench.builder.lowered.input_names,
    )
    judged, found, left_out = (
        replace(bench.task, extra_metrics={}),
        dict[str, float](),
        dict[str, str](),
    )
    test: Batches | None = bench.task.test if known_test is None else None
    for name, batches in {**({} if test is None else {TEST: test}), **corrupted}.items():
        try:
            found[name] = evaluate_session(judged, session, names, batches)[0].accuracy
        except (
            NotComputableError,
            UserCodeError,
        ) as error:  # it has no labels, say, or labels of one class, of which there is no AUC
            left_out[f"accuracy ({name.removeprefix('accuracy_').replace('_', ' ')})"] = " ".join(
                str(error).split()
            )
    return _Rest(found.pop(TEST, known_test), found, left_out)
