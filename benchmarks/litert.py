"""Put searches for .tflite files beside the files of LiteRT's own quantizer.

    python -m benchmarks.litert --json figures.json
    python -m benchmarks.litert --only keywords --out ../litert   # keeps all files; goes on there

Each network is searched with the target litert-cpu and the default space. ai-edge-quantizer makes
two files of the same float file: integers throughout, and dynamic range. All files run in LiteRT,
and are timed in turn with the float file. Points are chosen by validation accuracy; gaps are of the
test split. docs/benchmarks/litert.md explains the keys. Run nothing else on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from autocompress import ParetoFront, Task, read_front, search
from autocompress.results.files import FLOAT_FOLDER, RUN_FILE, TRIALS_FILE, model_path
from benchmarks.bench import LITERT, feed_of, file_accuracy, open_session
from benchmarks.bench_latency import timed_in_litert
from benchmarks.litert_networks import NETWORKS
from benchmarks.litert_peers import RECIPES, write
from benchmarks.output import parser_of, require, require_installed, write_figures

TARGET = "litert-cpu"
TRIALS, QUICK_TRIALS = 20, 4
CALIBRATION = 128  # samples for the quantizer
SAMPLES = 2000  # of the test split


@dataclass
class File:
    """Hold what is measured of one file.

    Attributes:
        name: of its maker.
        path: of the file.
        size: bytes.
        validation: accuracy on the validation split, by which points are chosen.
        test: accuracy on the test split, which is reported.
        time: latency as a share of the float file's.
    """

    name: str
    path: Path
    size: int
    validation: float
    test: float
    time: float = 1.0


def chosen(ours: Sequence[File], peer: File) -> tuple[File, File]:
    """Return the points of a search that are put beside a file.

    Args:
        ours: points of the front.
        peer: the file.

    Returns:
        (the smallest, the fastest) of the points that are smaller than the file and at least as
        accurate on the validation split. Where there is none, both are the most accurate of the
        smaller points; where none is smaller, the smallest point.
    """
    smaller = [file for file in ours if file.size < peer.size]
    equal = [file for file in smaller if file.validation >= peer.validation]
    if equal:
        return min(equal, key=lambda f: f.size), min(equal, key=lambda f: f.time)
    nearest = (
        max(smaller, key=lambda f: (f.validation, -f.size))
        if smaller
        else min(ours, key=lambda f: f.size)
    )
    return nearest, nearest


def figures_of(name: str, ours: Sequence[File], peers: Mapping[str, File]) -> dict[str, float]:
    """Return the figures of the points of a search beside other files.

    Args:
        name: of the network.
        ours: points of the front.
        peers: the other files by method.
    """
    figures: dict[str, float] = {}
    for method, peer in peers.items():
        small, fast = chosen(ours, peer)
        beaten = small.size < peer.size and small.validation >= peer.validation
        figures[f"{name}_beaten_{method}"] = float(beaten)
        figures[f"{name}_bytes_ratio_{method}"] = small.size / peer.size
        figures[f"{name}_acc_gap_{method}"] = peer.test - small.test
        figures[f"{name}_time_ratio_{method}"] = small.time / peer.time
        figures[f"{name}_fastest_time_ratio_{method}"] = fast.time / peer.time
    return figures


def checks_of(
    name: str, front: ParetoFront, unseen: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Return how well a search had predicted the files of its points.

    Args:
        name: of the network.
        front: its verified points, also those that others dominate.
        unseen: check of its latency model on random candidates, as run.json has it.
    """
    points = [*front.points, *front.dominated]
    sizes = [p.predicted.size_bytes / p.measured.size_bytes - 1 for p in points]
    figures = {
        f"{name}_files": len(points),
        f"{name}_points": len(front.points),
        f"{name}_verified": float(np.mean([p.measured.verified for p in points])),
        f"{name}_deployed_gap": max(abs(p.deployed_gap) for p in points),
        f"{name}_size_error": max(map(abs, sizes)),
    }
    timed = [p for p in points if p.was_predicted]
    if len(timed) > 1:
        predicted = np.array([p.predicted.latency_ms for p in timed])
        measured = np.array([p.measured.latency_ms for p in timed])
        figures[f"{name}_latency_mape"] = float(np.mean(np.abs(predicted / measured - 1)))
        figures[f"{name}_latency_tau"] = float(kendalltau(predicted, measured).statistic)
    if unseen:
        figures[f"{name}_unseen_mape"] = unseen["mape"]
        figures[f"{name}_unseen_tau"] = unseen["kendall_tau"]
    return figures


def record_of(run: Path, trials: int = 0) -> dict[str, Any]:
    """Return the run.json of a search that has ended, else nothing.

    Args:
        run: its folder, which may be missing.
        trials: that it must have made; one that was stopped has fewer.
    """
    path, made = run / RUN_FILE, run / TRIALS_FILE
    record = json.loads(path.read_text()) if path.is_file() else {}
    if record.get("seconds") is None:
        return {}
    rows = made.read_text().splitlines()[1:] if made.is_file() else []
    return record if len(rows) >= trials else {}


def samples_of(task: Task, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return calibration inputs in parts of the example's length.

    Args:
        task: the network and its data.
        names: of the inputs of the file.
    """
    length = len(next(iter(feed_of(task.example_inputs, names).values())))
    parts = []
    for inputs, _ in task.first_samples(task.calibration_batches(), CALIBRATION):
        feed = feed_of(inputs, names)
        count = len(next(iter(feed.values())))
        for start in range(0, count - length + 1, length):
            parts.append({key: array[start : start + length] for key, array in feed.items()})
    return parts


def measure(name: str, folder: Path, trials: int, rounds: int) -> dict[str, float]:
    """Search a network, print a table of all files, and return its figures.

    Args:
        name: of `NETWORKS`.
        folder: of the run and the files; a search of as many trials that has ended there is taken
            as it is.
        trials: of the search.
        rounds: of the timing.
    """
    task, run = NETWORKS[name](), folder / f"run{trials}"
    folder.mkdir(parents=True, exist_ok=True)
    if not record_of(run, trials):
        search(task, target=TARGET, n_trials=trials, out=run)
    front, float_file = read_front(run), model_path(run / FLOAT_FOLDER)
    names = tuple(one.name for one in open_session(str(float_file), LITERT).get_inputs())
    paths = {"float": float_file}
    feeds = samples_of(task, names)
    for method in RECIPES:
        silent = io.StringIO()  # it reports its progress
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            paths[method] = write(float_file, feeds, method, folder / f"{method}.tflite")
    for point in front:
        paths[f"trial {point.trial}"] = model_path(run / point.artifact)
    test = task.first_samples(task.test or task.validation, SAMPLES)
    files = {}
    for key, path in paths.items():
        splits = (list(task.validation), test)
        scores = [file_accuracy(task, str(path), split, in_litert=True) for split in splits]
        files[key] = File(key, path, path.stat().st_size, *scores)
    feed = feed_of(task.example_inputs, names)
    models = [str(path) for path in paths.values()]
    timing = timed_in_litert(models[0], models, feed, 1, rounds)
    print(f"\n{name}: float {timing.baseline_ms:.3f} ms {timing.warning}")
    print(f"{'file':12}{'bytes':>10}{'smaller':>9}{'time':>8}{'validation':>12}{'test':>8}")
    for file, share in zip(files.values(), timing.ratios, strict=True):
        file.time, smaller = share, files["float"].size / file.size
        words = f"{file.name:12}{file.size:10d}{smaller:8.2f}x{file.time:8.3f}"
        print(f"{words}{file.validation:12.4f}{file.test:8.4f}", flush=True)
    peers = {method: files[method] for method in RECIPES}
    ours = [files[f"trial {point.trial}"] for point in front]
    figures = {
        f"{name}_float_bytes": files["float"].size,
        f"{name}_float_ms": timing.baseline_ms,
        f"{name}_float_test": files["float"].test,
        **{f"{name}_{method}_bytes": peer.size for method, peer in peers.items()},
        **{f"{name}_{method}_time": peer.time for method, peer in peers.items()},
        **{f"{name}_{method}_test": peer.test for method, peer in peers.items()},
    }
    return {
        **figures,
        **figures_of(name, ours, peers),
        **checks_of(name, front, record_of(run).get("latency_check")),
    }


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=list(NETWORKS), help="one network")
    parser.add_argument("--out", type=Path, help="folder that keeps runs and files")
    arguments = parser.parse_args()
    require("ai_edge_litert", "litert")
    require_installed("ai_edge_quantizer", "'ai-edge-quantizer>=0.10'")
    trials, rounds = (QUICK_TRIALS, 5) if arguments.quick else (TRIALS, 30)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.out or Path(place)
        for name in [arguments.only] if arguments.only else NETWORKS:
            figures |= measure(name, folder / name, trials, rounds)
            write_figures(arguments.json, figures, settings=LITERT)  # a later network may fail
    for key, value in figures.items():
        print(f"{key:44}{value:.5g}")


if __name__ == "__main__":
    main()
