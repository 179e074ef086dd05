"""Search a ResNet-20 and a MobileNetV2, beside torch-pruning and ONNX Runtime's int8 quantization.

    python -m benchmarks.convolutional --data images.npz --json figures.json
    python -m benchmarks.convolutional --data images.npz --against ../before  # another checkout too
    python -m benchmarks.convolutional --data images.npz --only resnet --minutes 5

The networks are trained here first (`benchmarks.image_task`). A search gets --minutes for
everything. torch-pruning removes channels by the norms of their groups (Fang et al. 2023,
"DepGraph") until its file is twice as fast, and fine-tunes with labels for as many minutes. All
files are timed in turn with the float file. docs/benchmarks/convolutional.md explains the keys. Run
nothing else on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import nn

from autocompress import Task, read_front
from autocompress.results.files import MODEL_FILE
from benchmarks import image_task
from benchmarks.against_onnxruntime import quantize_static
from benchmarks.anytime import BEFORE, HERE, check_state
from benchmarks.bench import compressor_of, feed_of, file_accuracy, open_session
from benchmarks.bench_latency import timed
from benchmarks.output import parser_of, write_figures
from benchmarks.watch import search

NETWORKS = tuple(image_task.RECIPES)
HALF_POINT, SMALLER, FASTER = 0.005, 6, 2  # drop of accuracy; the point that is looked for
MANY = 1000  # trials, so that only the time ends a search
RATE = 0.02  # largest learning rate of fine-tuning
CALIBRATION = 8  # batches of ONNX Runtime's calibration
HALVINGS = 7  # of the pruning ratio that makes a file twice as fast


@dataclass
class Row:
    """Hold one file.

    Attributes:
        method: what made it.
        path: of the file.
        test: accuracy on the test split.
        time: latency as a share of the float file's.
    """

    method: str
    path: Path
    test: float
    time: float = 1.0

    @property
    def size(self) -> int:
        """Return its bytes."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Measured:
    """Hold the float file of a network, and what files are compared on.

    Attributes:
        task: the network and its data.
        float_file: path.
        folder: of further files.
        rounds: of each timing.
    """

    task: Task
    float_file: Path
    folder: Path
    rounds: int

    @property
    def feed(self) -> Mapping[str, Any]:
        """Return the inputs that latency is measured for, by name."""
        names = tuple(value.name for value in open_session(str(self.float_file)).get_inputs())
        return feed_of(self.task.example_inputs, names)

    def row(self, method: str, path: Path) -> Row:
        """Return the row of a file, not timed yet."""
        return Row(method, path, file_accuracy(self.task, str(path), list(self.task.test or ())))

    def times(self, paths: list[Path]) -> tuple[float, ...]:
        """Return the latency of files as shares of the float file's."""
        return timed(str(self.float_file), list(map(str, paths)), self.feed, self.rounds).ratios


def searched(
    state: Path, name: str, data: Path, folder: Path, minutes: float
) -> tuple[dict[str, Path], int]:
    """Search a network with the package of a checkout.

    Returns:
        The files of the chosen points by what they are, and the number of trials.
    """
    # The task of here needs the networks of here, whatever the checkout has.
    joined = folder / "checkout"
    joined.mkdir(parents=True)
    (joined / "autocompress").symlink_to(state / "autocompress")
    (joined / "benchmarks").symlink_to(HERE)
    task = f"{HERE / 'image_task.py'}:{name}"
    more = ["--trials", str(MANY), "--task-arg", f"data={data}"]
    watched = search(joined, folder / "search", task, 60 * minutes, more)
    front = read_front(watched.folder)
    base = front.baseline
    small, fast = base.size_bytes / SMALLER, base.latency_ms / FASTER
    near = {"max_accuracy_drop": HALF_POINT}
    picks = {
        "within half a point": front.pick("fastest", **near, max_size_bytes=small),
        "smallest within half a point": front.pick("smallest", **near),
        f"{FASTER}x faster": front.pick("accurate", max_latency_ms=fast),
        "fastest": front.pick("fastest"),
    }
    files = {}
    for what, pick in picks.items():
        print(f"    {what}: trial {pick.point.trial} {pick.shortfall}", flush=True)
        files[what] = watched.folder / pick.point.artifact / MODEL_FILE
    return files, len(watched.ended())


def pruned(task: Task, ratio: float) -> nn.Module:
    """Return the network without a share of its channels, those of the smallest group norms."""
    model = copy.deepcopy(task.model)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_pruning.pruner.BasePruner(
            model,
            task.example_inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=head,
        ).step()
    return model


def written(task: Task, model: nn.Module, path: Path) -> Path:
    """Write the float file of a network that takes the place of the task's."""
    path.write_bytes(compressor_of(replace(task, model=model)).builder.baseline)
    return path


def torch_pruning_row(measured: Measured, minutes: float) -> Row:
    """Return the row of torch-pruning with the least ratio that is FASTER times as fast."""
    task, path = measured.task, measured.folder / "torch_pruning.onnx"
    low, high = 0.0, 0.95
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        (time_share,) = measured.times([written(task, pruned(task, ratio), path)])
        low, high = (ratio, high) if time_share > 1 / FASTER else (low, ratio)
    started = time.monotonic()
    model = image_task.train(
        pruned(task, high),
        task.train,
        RATE,
        lambda step: (time.monotonic() - started) / (60 * minutes),
    )
    return measured.row(f"torch-pruning, ratio {high:.2f}", written(task, model, path))


def quantized_row(measured: Measured) -> Row:
    """Return the row of ONNX Runtime's static quantization."""
    path, names = measured.folder / "static.onnx", tuple(measured.feed)
    batches = islice(measured.task.train or (), CALIBRATION)
    quantize_static(measured.float_file, path, (feed_of(inputs, names) for inputs, _ in batches))
    return measured.row("onnxruntime static int8", path)


def measure(
    name: str, states: Mapping[str, Path], data: Path, folder: Path, minutes: float, rounds: int
) -> dict[str, float]:
    """Print the table of a network; return its figures."""
    task = image_task.task(name, data)
    folder.mkdir(parents=True)
    float_file = written(task, task.model, folder / "float.onnx")
    measured = Measured(task, float_file, folder, rounds)
    rows, figures = [measured.row("float", float_file), quantized_row(measured)], {}
    picks: dict[str, Row] = {}
    for suffix, state in states.items():
        place = folder / f"state{suffix}"
        files, figures[f"{name}_trials{suffix}"] = searched(state, name, data, place, minutes)
        for what, path in files.items():
            picks[what + suffix] = measured.row(f"search{suffix}, {what}", path)
    rows += [*picks.values(), torch_pruning_row(measured, minutes)]
    for row, share in zip(rows, measured.times([row.path for row in rows]), strict=True):
        row.time = share
    print(f"{name}\n{'file':50}{'bytes':>10}{'smaller':>9}{'faster':>9}{'test accuracy':>15}")
    for row in rows:
        smaller = rows[0].size / row.size
        print(f"{row.method:50}{row.size:10d}{smaller:8.2f}x{1 / row.time:8.2f}x{row.test:15.4f}")
    for suffix in states:
        near, fast = picks[f"within half a point{suffix}"], picks[f"{FASTER}x faster{suffix}"]
        figures |= {
            f"{name}_faster_at_half_point{suffix}": 1 / near.time,
            f"{name}_smaller_at_half_point{suffix}": rows[0].size / near.size,
            f"{name}_test_drop_at_half_point{suffix}": rows[0].test - near.test,
            f"{name}_faster_at_2x{suffix}": 1 / fast.time,
            f"{name}_gain_over_torch_pruning_2x{suffix}": fast.test - rows[-1].test,
        }
    return figures


def arguments_of() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="NumPy file with the images")
    parser.add_argument("--only", choices=NETWORKS, help="one network")
    parser.add_argument("--minutes", type=float, help="of a search; default: 20, with --quick 4")
    parser.add_argument("--against", type=Path, help="another checkout, searched in turn")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder that keeps all runs")
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    arguments = arguments_of()
    torch.set_num_threads(os.cpu_count() or 1)
    minutes = arguments.minutes or (4 if arguments.quick else 20)
    states = {"": HERE.parent}
    if arguments.against is not None:
        states[BEFORE] = arguments.against.resolve()
    for state in states.values():
        check_state(state)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = (arguments.out or Path(temporary)).resolve()
        for name in [arguments.only] if arguments.only else NETWORKS:
            rounds = 20 if arguments.quick else 100
            data = arguments.data.resolve()
            figures |= measure(name, states, data, out / name, minutes, rounds)
    for suffix in states:
        end = f"_gain_over_torch_pruning_2x{suffix}"
        gains = [value for key, value in figures.items() if key.endswith(end)]
        figures[end.removeprefix("_")] = min(gains)
    for key, value in figures.items():
        print(f"  {key} {value:.4f}")
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
