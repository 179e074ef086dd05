"""Put a search beside other tools: same models, data and machine, all files timed in turn.

    python -m benchmarks.peers --only built_in --minutes 4 --json figures.json
    python -m benchmarks.peers --only resnet --images images.npz --run ../run   # a finished search
    python -m benchmarks.peers --only encoder --out ../peers     # keeps all files; goes on there

The tools: onnxruntime.quantization, NNCF, torchao with torch.onnx.export, torch-pruning with
fine-tuning for as many minutes as the search, Olive and Optimum. What a tool does not write, or
what does not load or run, is a row with its reason. docs/benchmarks/peers.md explains the keys. It
needs Linux and `pip install -e '.[peers]'`. Run nothing else on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import autocompress
from autocompress import read_front
from autocompress.results.files import FLOAT_FILE, MODEL_FILE, RUN_FILE
from benchmarks.anytime import HERE, check_state, said
from benchmarks.bench import feed_of, file_accuracy, open_session
from benchmarks.bench_latency import timed
from benchmarks.output import parser_of, write_figures
from benchmarks.peer_files import PEERS, Subject, Write
from benchmarks.peer_models import MODELS, Loaded
from benchmarks.peer_rows import FLOAT, MISSING, OURS, Row, as_records, figures_of, print_table
from benchmarks.watch import search

MANY = 1000  # trials, so that only the time ends a search
SAMPLES = 2000  # of the test split
POINTS = 12  # of our front, evenly by size
REASON = 90  # characters of a reason
SMALLER = 0.98  # of the float file's bytes: a larger file of a tool has lost nothing
# Names that differ from those of the packages.
PACKAGES = {"olive": "olive-ai", "optimum": "optimum-onnx"}


def reason_of(error: BaseException) -> str:
    """Return an error as one short line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:REASON]


def version_of(library: str) -> str:
    """Return package and version of a tool; "" if it is not installed."""
    package = PACKAGES.get(library, library)
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def made(method: str, write: Write, subject: Subject, folder: Path, version: str) -> Row:
    """Return the row of a tool's file; it is made where no earlier run has made it, or failed.

    Args:
        method: name of the row.
        write: writes the file.
        subject: what the tool is given.
        folder: of the files.
        version: package and version of the tool; "" if it is not installed.
    """
    name = "".join(c if c.isalnum() else "_" for c in method)
    row, record = Row(method, folder / f"{name}.onnx"), folder / f"{name}.json"
    if record.exists():
        known = json.loads(record.read_text())
        row.minutes, row.reason = known["minutes"], known["reason"]
        row.version = known["version"]
        return row
    if not version:
        row.reason = MISSING
        return row
    print(f"  {method}", flush=True)
    started, row.version = (time.monotonic(), time.process_time()), version
    try:
        write(subject, row.path)
    except (Exception, SystemExit) as error:  # some tools exit
        row.reason = reason_of(error)
    # The lesser one is what it takes on a machine where nothing else runs.
    row.minutes = min(time.monotonic() - started[0], time.process_time() - started[1]) / 60
    known = {"minutes": row.minutes, "reason": row.reason, "version": version}
    record.write_text(json.dumps(known))
    return row


def our_rows(run: Path) -> list[Row]:
    """Return the rows of some points of a front, evenly by size; the search made all of them."""
    version = f"autocompress {autocompress.__version__}"
    minutes = json.loads((run / RUN_FILE).read_text())["seconds"] / 60
    points = sorted(read_front(run).points, key=lambda point: point.measured.size_bytes)
    chosen = np.unique(np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int))
    rows = []
    for point in (points[i] for i in chosen):
        path = run / point.artifact / MODEL_FILE
        rows.append(Row(f"{OURS}, trial {point.trial}", path, minutes, version=version))
    return rows


def judge(rows: Sequence[Row], loaded: Loaded, samples: int, rounds: int) -> None:
    """Run all files on the same test samples, then time them in turn with the first one."""
    task = loaded.task
    test = task.first_samples(task.test or task.validation, samples)
    baseline = str(rows[0].path)
    names = tuple(value.name for value in open_session(baseline).get_inputs())
    feed = feed_of(task.example_inputs, names)
    for row in rows:
        if row.reason:
            continue
        try:
            if row is not rows[0] and row.size > SMALLER * rows[0].size:
                row.reason = f"compresses nothing: {row.size} bytes, float {rows[0].size}"
                continue
            open_session(str(row.path)).run(None, feed)
            row.test = file_accuracy(task, str(row.path), test)
        except Exception as error:
            row.reason = f"does not run: {reason_of(error)}"
    running = [row for row in rows if not row.reason]
    timing = timed(baseline, [str(row.path) for row in running], feed, rounds)
    if timing.warning:
        print(timing.warning, flush=True)
    for row, share, interval in zip(running, timing.ratios, timing.intervals, strict=True):
        row.time, row.interval = share, interval


def searched(loaded: Loaded, folder: Path, minutes: float) -> Path:
    """Return the folder of a search, started as a user starts it where there is none yet."""
    run = folder / "run"
    if not (run / RUN_FILE).exists() or not json.loads((run / RUN_FILE).read_text()).get("seconds"):
        shutil.rmtree(folder, ignore_errors=True)  # a search that was stopped had another time
        options = ["--trials", str(MANY), *loaded.options]
        said("search", search(HERE.parent, folder, loaded.spec, 60 * minutes, options))
    return run


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return all files of a model as records; print their table."""
    folder.mkdir(parents=True, exist_ok=True)
    model, minutes = MODELS[name], arguments.minutes
    loaded = model.load(folder, arguments.images)
    run = arguments.run or searched(loaded, folder / "search", minutes)
    float_file = run / FLOAT_FILE
    subject = Subject(loaded.task, float_file, minutes, model.rate, model.is_transformer)
    rows = [Row(FLOAT, float_file), *our_rows(run)]
    for library in arguments.peers:
        version = version_of(library)
        for method, write in PEERS[library].items():
            rows.append(made(method, write, subject, folder, version))
    quick = arguments.quick
    judge(rows, loaded, SAMPLES // 8 if quick else SAMPLES, 20 if quick else 100)
    records = as_records(rows)
    print_table(name, records)
    return records


def arguments_of() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=list(MODELS), help="one model")
    parser.add_argument("--minutes", type=float, help="of a search; default: 5, with --quick 1")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--run", type=Path, metavar="DIR", help="a finished search of --only")
    parser.add_argument("--images", type=Path, help="NumPy file of images, for resnet")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keeps all files; goes on there")
    arguments = parser.parse_args()
    if arguments.run is not None and arguments.only is None:
        parser.error("--run: of which model? nearest: --only built_in")
    arguments.minutes = arguments.minutes or (1 if arguments.quick else 5)
    return arguments


def main() -> None:
    """Print the tables."""
    arguments = arguments_of()
    torch.set_num_threads(os.cpu_count() or 1)
    check_state(HERE.parent)
    tables: dict[str, list[dict[str, Any]]] = {}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = (arguments.out or Path(temporary)).resolve()
        for name in [arguments.only] if arguments.only else MODELS:
            tables[name] = measure(name, out / name, arguments)
            figures |= figures_of(name, tables[name])
    for key, value in figures.items():
        print(f"  {key} {value:.4f}")
    write_figures(arguments.json, figures, {"tables": tables})


if __name__ == "__main__":
    main()
