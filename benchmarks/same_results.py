"""Write what three short searches find, so that two states of this project can be compared.

    python -m benchmarks.same_results --tables TABLES --json before.json      # in one checkout
    python -m benchmarks.same_results --tables TABLES --against before.json   # in the other one

The built-in task, a residual CNN and a GRU; 15 trials each, on latency tables that the first call
measures. Compared are state, size and accuracy of each trial, and candidate and model.onnx
of each point that both fronts hold. Latencies are left out, because each run times its baseline
anew; which trials reach the front depends on them.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import autocompress as ac

COMPARED = ("number", "state", "size_bytes", "accuracy")


class Residual(nn.Module):
    """Map (n, 3, 16, 16) images to (n, 4) logits."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
            )
            for _ in range(2)
        )  # fmt: skip
        self.classifier = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module."""
        x = self.stem(x)
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.classifier(x.mean((2, 3)))


class Recurrent(nn.Module):
    """Map (n, 12, 16) sequences to (n, 4) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.classifier = nn.GRU(16, 48, batch_first=True), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module."""
        return self.classifier(self.gru(x)[0][:, -1])


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of correct classes."""
    return float((outputs.argmax(1) == targets).float().mean())


def planted(make: Callable[[], nn.Module], shape: tuple[int, ...], name: str) -> ac.Task:
    """Return a task on random inputs around four random centres, trained for 150 steps."""
    torch.manual_seed(0)
    centres, model = torch.randn(4, *shape), make()

    def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        labels = [torch.randint(4, (32,), generator=generator) for _ in range(count)]
        return [(centres[y] + 3 * torch.randn(32, *shape, generator=generator), y) for y in labels]

    train = batches(50, 1)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(150):
        inputs, labels = train[step % len(train)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return ac.Task(
        name,
        model.eval(),
        train[0][0][:1],
        batches(6, 2),
        accuracy,
        train=train,
        test=batches(4, 3),
    )


TASKS: dict[str, Callable[[], ac.Task]] = {
    "easy_vqa": lambda: ac.load_task("autocompress.tasks:easy_vqa", validation_images=100),
    "residual_cnn": lambda: planted(Residual, (3, 16, 16), "residual_cnn"),
    "gru": lambda: planted(Recurrent, (12, 16), "gru"),
}


def trials(folder: Path) -> list[dict[str, str]]:
    """Return the rows of trials.csv without what a clock says."""
    with open(folder / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in COMPARED} for row in rows]


def results(name: str, tables: Path, out: Path, n_trials: int, **options: Any) -> dict[str, Any]:
    """Search a task; return its trials, and candidate and file hash of each point by trial.

    `options` are further arguments of `ac.search`.
    """
    table = tables / f"{name}.json"
    if not table.exists():
        tables.mkdir(parents=True, exist_ok=True)
        ac.search(TASKS[name](), n_trials=1, out=out / "table", quiet=True, finalize_steps=0)
        table.write_bytes((out / "table" / "latency_table.json").read_bytes())
    run = out / "run"
    ac.search(TASKS[name](), n_trials=n_trials, out=run, target_table=table, quiet=True, **options)
    files = {}
    for point in json.loads((run / "front.json").read_text())["points"]:
        content = (run / point["artifact"] / "model.onnx").read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files[str(point["trial"])] = [point["candidate"], digest]
    return {"trials": trials(run), "files": files}


def differences(here: dict[str, Any], there: dict[str, Any]) -> tuple[int, int, int]:
    """Return (trials that differ, points of both fronts that differ, points of both fronts)."""
    rows = abs(len(here["trials"]) - len(there["trials"]))
    for mine, other in zip(here["trials"], there["trials"], strict=False):
        rows += mine != other
    both = here["files"].keys() & there["files"].keys()
    return rows, sum(here["files"][k] != there["files"][k] for k in both), len(both)


def main() -> None:
    """Search, and write or compare the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument(
        "--quick", action="store_true", help="the residual CNN, 5 trials, no training"
    )
    parser.add_argument("--only", nargs="*", default=list(TASKS))
    arguments = parser.parse_args()
    options: dict[str, Any] = {}
    if arguments.quick:
        arguments.only, arguments.trials = ["residual_cnn"], 5
        options = {"space": {"distillation": {"steps": 0}}, "finalize_steps": 0}
    torch.set_num_threads(1)
    here = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            here[name] = results(
                name, arguments.tables, Path(folder) / name, arguments.trials, **options
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(here, indent=1))
    if arguments.against is None:
        return
    before = json.loads(arguments.against.read_text())
    differ = False
    for name, mine in here.items():
        rows, files, both = differences(mine, before[name])
        print(f"{name}: {rows} of {len(mine['trials'])} trials and {files} of {both} files differ")
        differ |= bool(rows or files)
    sys.exit(differ)


if __name__ == "__main__":
    main()
