"""Take tiny models of Hugging Face families through the whole tool.

Inspect, search, files at other sizes, load, reproduce.

Prints a table of model x step; a step that fails prints its one-line reason. Every file of a front
is run at two other batch sizes and two other lengths, and compared there with the module that
`load` gives; the float file with the model itself.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import autocompress as ac
from benchmarks.bench import feed_of, model_output
from benchmarks.hugging_face import FAMILIES, Family, Inputs, family_task
from benchmarks.output import parser_of, write_figures

STEPS = ("inspect", "search", "other batch", "other length", "load", "reproduce")
BATCHES = (2, 7)
# of the largest output, where nothing is rounded to 8 bits in the file; there its ties count
TOLERANCE = 1e-3
ROUNDED = 0.05
RULE = {
    "match": "*",
    "weight_bits": [4, 8, 32],
    "activation_bits": [8, 32],
    "rank_ratio": [0.5, 1.0],
    "pruning_ratio": [0.0, 0.25, 0.5],
}
SPACE: dict[str, Any] = {"modules": [RULE], "distillation": {"steps": 0}}


@dataclass
class Row:
    """Hold the outcome of one family.

    Attributes:
        name: of the family.
        steps: by step, "ok" or the reason why it failed.
        covered: share of the parameters in modules that can be compressed.
        groups: number of channel groups that can be pruned, by kind.
        seconds: of all steps.
    """

    name: str
    steps: dict[str, str] = field(default_factory=dict)
    covered: float = 0.0
    groups: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Return True if every step went through."""
        return all(self.steps.get(step) == "ok" for step in STEPS)


def difference(output: np.ndarray[Any, Any], expected: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value; inf if shapes differ."""
    wanted = expected.detach().numpy()
    if output.shape != wanted.shape:
        return np.inf
    return float(np.abs(output - wanted).max() / max(1e-6, np.abs(wanted).max()))


def compare(session: Any, model: torch.nn.Module, inputs: Inputs, allowed: float) -> str:
    """Return "ok", or how much a file's first output differs from the model's."""
    expected = model_output(model, inputs)
    names = [value.name for value in session.get_inputs()]
    largest = difference(session.run(None, feed_of(inputs, names))[0], expected)
    return "ok" if largest <= allowed else f"differs by {largest:.1e}"


def covered_share(modules: Any) -> float:
    """Return the share of the parameters in `modules`, as `find_modules` returns them."""
    return sum(module.parameters for module in modules) / modules.total_parameters


def check_family(name: str, folder: Path, target: str, trials: int = 3, show: bool = False) -> Row:
    """Take one family through all steps in `folder`."""
    row, family, task = Row(name), FAMILIES[name], family_task(name)
    start = time.monotonic()

    def step(what: str, run: Callable[[], str]) -> bool:
        try:
            row.steps[what] = run()
        except Exception as error:  # a family that fails is a row of the table
            row.steps[what] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if show:
                traceback.print_exc()
        return row.steps[what] == "ok"

    def inspect() -> str:
        modules = ac.find_modules(task.model, task.example_inputs)
        row.covered = covered_share(modules)
        for group in modules.groups:
            if group.reason is None:
                row.groups[group.kind] = row.groups.get(group.kind, 0) + 1
        return "ok" if row.covered > 0.5 else f"covers {row.covered:.0%} of the parameters"

    results: list[ac.SearchResult] = []

    def search() -> str:
        results.append(
            ac.search(task, SPACE, target, trials, out=folder / "run", finalize_steps=0, quiet=True)
        )
        return "ok" if list(results[0].front) else "no point on the front"

    if step("inspect", inspect) and step("search", search):
        points = [
            ac.export(results[0], point, folder / f"point{i}")
            for i, point in enumerate(results[0].front)
        ]
        models = (
            [ac.load(point, task.model) for point in points]
            if step("load", lambda: _loads(points, task))
            else []
        )
        pairs = list(zip(points, models, strict=True)) if models else []
        for what, sizes in _sizes(family).items():
            step(
                what,
                lambda sizes=sizes: (
                    _at(pairs, [family.inputs(*size) for size in sizes]) if pairs else "not loaded"
                ),
            )
        step("reproduce", lambda: _reproduces(points, folder, task))
    row.seconds = time.monotonic() - start
    return row


def _sizes(family: Family) -> dict[str, list[tuple[int, int]]]:
    return {
        "other batch": [(batch, 0) for batch in BATCHES],
        "other length": [(4, length) for length in family.lengths],
    }


def _loads(points: list[Path], task: ac.Task) -> str:
    return _at([(point, ac.load(point, task.model)) for point in points], [task.example_inputs])


def _at(pairs: list[tuple[Path, torch.nn.Module]], inputs: list[Inputs]) -> str:
    for point, model in pairs:
        session = ac.open_session(point)
        rounded = "activation_bits: 8" in (point / "recipe.yaml").read_text()
        for given in inputs:
            said = compare(session, model, given, ROUNDED if rounded else TOLERANCE)
            if said != "ok":
                shape = [tuple(tensor.shape) for tensor in given.values()]
                return f"{point.name} at {shape} {said}"
    return "ok"


def _reproduces(points: list[Path], folder: Path, task: ac.Task) -> str:
    for point in points:
        ac.reproduce(point, folder / f"{point.name}_again", task)
    return "ok"


def main() -> None:
    """Print a row for each family."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="*", default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--debug", action="store_true", help="print the traceback of what fails")
    arguments = parser.parse_args()
    rows = []
    print(
        "model".ljust(16) + "".join(step.ljust(13) for step in STEPS) + "covered  prunable groups"
    )
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            row = check_family(name, Path(folder), arguments.target, show=arguments.debug)
        rows.append(row)
        cells = "".join(
            ("ok" if said == "ok" else "-" if not said else "FAILED").ljust(13)
            for said in map(row.steps.get, STEPS)
        )
        groups = ", ".join(f"{count} {kind}" for kind, count in row.groups.items())
        print(f"{name:16}{cells}{row.covered:6.1%}   {groups}  ({row.seconds:.0f} s)", flush=True)
        for step, said in row.steps.items():
            if said != "ok":
                print(f"    {step}: {said}", flush=True)
    passed = sum(row.passed for row in rows)
    print(f"{passed} of {len(rows)} families passed")
    write_figures(arguments.json, {"families_total": len(rows), "families_passed": passed})


if __name__ == "__main__":
    main()
