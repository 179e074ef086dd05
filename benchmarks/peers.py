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
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autocompress import read_front
from autocompress.results.files import FLOAT_FILE, MODEL_FILE
from benchmarks.anytime import HERE, check_state, said
from benchmarks.bench import feed_of, file_accuracy, open_session
from benchmarks.bench_latency import timed
from benchmarks.output import parser_of, write_figures
from benchmarks.peer_files import PEERS, Subject, Write
from benchmarks.peer_models import MODELS, Loaded
from benchmarks.watch import search

MANY = 1000  # trials, so that only the time ends a search
SAMPLES = 2000  # of the test split
POINTS = 12  # of our front, evenly by size
EQUAL = 0.002  # an accuracy that is lower by at most this share of the float model's is equal
FLOAT, OURS, REASON = "float", "ours", 90  # characters of a reason


@dataclass
class Row:
    """Hold one file, or why there is none.

    Attributes:
        method: what made it.
        path: of the file.
        minutes: that it took to make.
        reason: why it was not written, or does not load or run; "" if it runs.
        test: metric on the test samples; higher is better.
        time: latency as a share of the float file's.
    """

    method: str
    path: Path
    minutes: float = 0.0
    reason: str = ""
    test: float = float("nan")
    time: float = float("nan")

    @property
    def size(self) -> int:
        """Return its bytes, with those of the weights that lie beside it."""
        beside = self.path.with_name(self.path.name + ".data")
        return self.path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def reason_of(error: BaseException) -> str:
    """Return an error as one short line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:REASON]


def made(method: str, write: Write, subject: Subject, folder: Path) -> Row:
    """Return the row of a tool's file; it is made where no earlier run has made it, or failed."""
    name = "".join(c if c.isalnum() else "_" for c in method)
    row, record = Row(method, folder / f"{name}.onnx"), folder / f"{name}.json"
    if record.exists():
        known = json.loads(record.read_text())
        row.minutes, row.reason = known["minutes"], known["reason"]
        return row
    print(f"  {method}", flush=True)
    started = time.monotonic()
    try:
        write(subject, row.path)
    except (Exception, SystemExit) as error:  # some tools exit
        row.reason = reason_of(error)
    row.minutes = (time.monotonic() - started) / 60
    record.write_text(json.dumps({"minutes": row.minutes, "reason": row.reason}))
    return row


def our_rows(run: Path, minutes: float) -> list[Row]:
    """Return the rows of some points of a front, evenly by size."""
    points = sorted(read_front(run).points, key=lambda point: point.measured.size_bytes)
    chosen = np.unique(np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int))
    rows = []
    for point in (points[i] for i in chosen):
        path = run / point.artifact / MODEL_FILE
        rows.append(Row(f"{OURS}, trial {point.trial}", path, minutes))
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
            open_session(str(row.path)).run(None, feed)
            row.test = file_accuracy(task, str(row.path), test)
        except Exception as error:
            row.reason = f"does not run: {reason_of(error)}"
    running = [row for row in rows if not row.reason]
    shares = timed(baseline, [str(row.path) for row in running], feed, rounds).ratios
    for row, share in zip(running, shares, strict=True):
        row.time = share


def dominates(a: Row, b: Row) -> bool:
    """Return True if a file is nowhere worse than another, and somewhere better."""
    first, second = (np.array((row.size, row.time, -row.test)) for row in (a, b))
    return bool((first <= second).all() and (first < second).any())


def against(peer: Row, ours: Sequence[Row], scale: float) -> tuple[float, float]:
    """Return how many times smaller and faster our files of at least equal accuracy are; or 0."""
    equal = [row for row in ours if row.test >= peer.test - EQUAL * scale]
    if not equal:
        return 0.0, 0.0
    return peer.size / min(r.size for r in equal), peer.time / min(r.time for r in equal)


def report(name: str, rows: Sequence[Row]) -> dict[str, float]:
    """Print the table of a model; return its figures."""
    base = rows[0]
    ours = [row for row in rows if row.method.startswith(OURS) and not row.reason]
    print(f"\n{name}\n{'file':30}{'bytes':>12}{'smaller':>9}{'faster':>9}{'test':>10}{'min':>7}")
    figures: dict[str, float] = {}
    beaten, gains = [], []
    for row in rows:
        if row.reason:
            print(f"{row.method:30}{'fails':>12}  {row.reason}")
            continue
        words = f"{row.method:30}{row.size:12d}{base.size / row.size:8.2f}x{1 / row.time:8.2f}x"
        words += f"{row.test:10.4f}{row.minutes:7.1f}"
        if row is not base and row not in ours and ours:
            beaten.append(any(dominates(our, row) for our in ours))
            gains.append(against(row, ours, abs(base.test)))
            words += f"  ours: {gains[-1][0]:.2f}x smaller, {gains[-1][1]:.2f}x faster"
            words += ", dominates" if beaten[-1] else ""
        print(words, flush=True)
    if gains:
        figures[f"{name}_ours_dominates"] = float(np.mean(beaten))
        figures[f"{name}_smaller_at_equal_accuracy"] = min(gain[0] for gain in gains)
        figures[f"{name}_faster_at_equal_accuracy"] = min(gain[1] for gain in gains)
    figures[f"{name}_peers_failed"] = sum(bool(row.reason) for row in rows)
    return figures


def searched(loaded: Loaded, folder: Path, minutes: float) -> Path:
    """Return the folder of a search, started as a user starts it where there is none yet."""
    if not (folder / "run" / "front.json").exists():
        options = ["--trials", str(MANY), *loaded.options]
        said("search", search(HERE.parent, folder, loaded.spec, 60 * minutes, options))
    return folder / "run"


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Print the table of a model; return its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    model, minutes = MODELS[name], arguments.minutes
    loaded = model.load(folder, arguments.images)
    run = arguments.run or searched(loaded, folder / "search", minutes)
    float_file = run / FLOAT_FILE
    subject = Subject(loaded.task, float_file, minutes, model.rate, model.is_transformer)
    rows = [Row(FLOAT, float_file), *our_rows(run, minutes)]
    for library in arguments.peers:
        for method, write in PEERS[library].items():
            rows.append(made(method, write, subject, folder))
    quick = arguments.quick
    judge(rows, loaded, SAMPLES // 8 if quick else SAMPLES, 20 if quick else 100)
    return report(name, rows)


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
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = (arguments.out or Path(temporary)).resolve()
        for name in [arguments.only] if arguments.only else MODELS:
            figures |= measure(name, out / name, arguments)
    for key, value in figures.items():
        print(f"  {key} {value:.4f}")
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
