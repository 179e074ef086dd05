"""Measure how soon a search gives files, how good they are over time, and what it takes.

    python -m benchmarks.anytime --json figures.json --plot curves.html
    python -m benchmarks.anytime --against ../before       # another checkout, in turn
    python -m benchmarks.anytime --against ../before --at-once --only demo --demo-minutes 25
    python -m benchmarks.anytime --only hv_demo_5m,trials_encoder_20m

Searches are started as a user starts them, each with empty caches: the built-in task as `make demo`
does, and the encoders of `benchmarks.encoder_task`. docs/benchmarks/anytime.md explains the keys.
Run nothing else on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from torch import nn

from benchmarks import encoder_task
from benchmarks.curves import Curve, least_lead, plot
from benchmarks.output import parser_of, write_figures
from benchmarks.watch import Watched, search

HERE = Path(__file__).resolve().parent
DEMO, SPACE = "autocompress.tasks:easy_vqa", "search_spaces/multimodal.yaml"
IMAGES, TRIALS, STEPS, DEMO_MINUTES = 100, 20, 80, 5  # of `make demo`
MANY = 1000  # trials, so that only the time ends a search
BUDGETS = (1, 2, 5, 10)  # minutes
QUOTA_MINUTES = 5
LARGE_MINUTES = 4
FREE_BYTES = 600e6  # memory of the libraries, which does not depend on the model
BEFORE = "_before"  # ends the keys of --against


@dataclass(frozen=True)
class Run:
    """Hold how one state of the code is measured.

    Attributes:
        state: the checkout.
        suffix: of the keys.
        out: folder of the runs.
        demo_min: minutes of the demo.
        encoder_min: minutes of the trained encoder.
        processors: that its searches are bound to; none binds them to none.
    """

    state: Path
    suffix: str
    out: Path
    demo_min: float
    encoder_min: float
    processors: tuple[int, ...] = ()

    def demo(self, minutes: float, trials: int = MANY, half: bool = False) -> Watched:
        """Search the built-in task."""
        name = f"demo_{minutes:g}m" + ("_half" if half else "") + self.suffix
        if trials == TRIALS:
            name = f"make_{name}"
        more = ["--space", str(self.state / SPACE), "--trials", str(trials)]
        more += ["--finalize-steps", str(STEPS), "--task-arg", f"validation_images={IMAGES}"]
        return self.searched(name, DEMO, minutes, more, half)

    def encoder(self, function: str, minutes: float) -> Watched:
        """Search an encoder with the default space."""
        name = f"{function}_{minutes:g}m{self.suffix}"
        task = f"{HERE / 'encoder_task.py'}:{function}"
        return self.searched(name, task, minutes, [])

    def searched(
        self, name: str, task: str, minutes: float, more: list[str], half: bool = False
    ) -> Watched:
        """Search into a folder of this name, and say what was seen."""
        place = self.out / name
        return said(
            name, search(self.state, place, task, 60 * minutes, more, half, self.processors)
        )


@dataclass(frozen=True)
class Found:
    """Hold figures, and the curves of hypervolume, by key."""

    figures: dict[str, float]
    curves: dict[str, Curve]


def said(name: str, watched: Watched) -> Watched:
    """Print what was seen of a search, and return it."""
    first = watched.first_file_s
    print(
        f"{name}: first file {'never' if first is None else f'{first:.0f} s'}, first guided trial "
        f"after {watched.setup_share():.0%} of the time, {len(watched.ended())} trials, "
        f"{watched.points} points, hypervolume {watched.volume:.4f}, {watched.seconds:.0f} s of "
        f"{watched.budget_s:.0f} s, peak {watched.peak_bytes / 1e9:.2f} GB, exit code "
        f"{watched.exit_code}",
        flush=True,
    )
    steps = sorted(watched.setup_seconds().items(), key=lambda step: -step[1])
    for step, seconds in steps:
        print(f"    {step}: {seconds:.1f} s", flush=True)
    return watched


def shared_figures(watched: Watched, name: str, minutes: float) -> dict[str, float]:
    """Return the figures that demo and encoder share; a file that never came has no figure."""
    figures = {
        f"setup_share_{name}": watched.setup_share(),
        f"trials_{name}_{minutes:g}m": len(watched.ended()),
        f"hv_{name}_{minutes:g}m": watched.volume,
        f"overrun_{name}": watched.overrun,
        f"files_{name}": watched.points,
    }
    if watched.first_file_s is not None:
        figures[f"first_file_s_{name}"] = watched.first_file_s
    return figures


def demo(run: Run) -> Found:
    """Measure what `make demo` does."""
    watched = run.demo(run.demo_min, TRIALS if run.demo_min <= DEMO_MINUTES else MANY)
    figures = shared_figures(watched, "demo", run.demo_min)
    return Found(figures, {f"hv_demo_{run.demo_min:g}m": watched.curve})


def encoder(run: Run) -> Found:
    """Measure a search of the trained encoder."""
    watched = run.encoder("encoder", run.encoder_min)
    figures = shared_figures(watched, "encoder", run.encoder_min)
    model = encoder_task.trained()
    figures["peak_over_model_encoder"] = over_model(watched, model)
    seconds = watched.untrained_seconds()
    if seconds and not run.processors:  # a pass on all processors would be disturbed
        figures["trial_vs_forward_encoder"] = statistics.median(seconds) / forward_s(model)
    return Found(figures, {f"hv_encoder_{run.encoder_min:g}m": watched.curve})


def overrun(run: Run) -> Found:
    """Measure by how much searches of the built-in task take longer than their timeout."""
    figures = {}
    for minutes in BUDGETS:
        figures[f"overrun_{minutes}m"] = run.demo(minutes).overrun
    figures["overrun_half_cpu"] = run.demo(QUOTA_MINUTES, half=True).overrun
    return Found({**figures, "overrun_worst": max(figures.values())}, {})


def memory(run: Run) -> Found:
    """Measure the memory of a search of an encoder of 110 M parameters."""
    watched = run.encoder("large", LARGE_MINUTES)
    ratio = over_model(watched, encoder_task.bert_base())
    return Found({"peak_over_model_100m": ratio, "overrun_100m": watched.overrun}, {})


def over_model(watched: Watched, model: nn.Module) -> float:
    """Return the peak memory beyond that of the libraries, as a multiple of the float model."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return (watched.peak_bytes - FREE_BYTES) / size


def forward_s(model: nn.Module, passes: int = 3) -> float:
    """Return the median seconds of a pass over the encoder's validation split, on all processors.

    Args:
        model: the float model.
        passes: timed passes; one more comes before them.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    split, seconds = encoder_task.encoder().validation, []
    for _ in range(1 + passes):
        started = time.perf_counter()
        with torch.no_grad():
            for inputs, _ in split:
                model(**inputs)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


# Part -> how it is measured, and the beginnings of its keys.
PARTS = {
    "demo": (demo, ("first_file_s_demo", "setup_share_demo", "trials_demo", "hv_demo")),
    "encoder": (
        encoder,
        (
            "first_file_s_encoder",
            "setup_share_encoder",
            "trials_encoder",
            "hv_encoder",
            "trial_vs_forward_encoder",
            "peak_over_model_encoder",
        ),
    ),
    "memory": (memory, ("peak_over_model_100m",)),
    "overrun": (overrun, ("overrun_worst",)),
}


def parts_of(keys: str | None, quick: bool) -> list[str]:
    """Return the parts that give some keys.

    Args:
        keys: keys or parts, separated by commas; None is all.
        quick: True leaves only the demo, unless keys are given.
    """
    if keys is None:
        return ["demo"] if quick else list(PARTS)
    parts = []
    for key in keys.split(","):
        fitting = [
            part
            for part, (_, starts) in PARTS.items()
            if key == part or any(key.startswith(start) for start in starts)
        ]
        if not fitting:
            raise SystemExit(f"--only {key}: unknown; valid: {', '.join(PARTS)}, and their keys")
        parts += fitting
    return list(dict.fromkeys(parts))


def shares_of(states: int) -> list[tuple[int, ...]]:
    """Divide the processors of this machine among checkouts that are measured at once."""
    processors = sorted(os.sched_getaffinity(0))
    if states == 1 or len(processors) < states:
        raise SystemExit(
            f"--at-once: needs --against and a processor for each checkout; {states} checkouts and "
            f"{len(processors)} processors came"
        )
    each = len(processors) // states
    return [tuple(processors[i * each : (i + 1) * each]) for i in range(states)]


def check_state(state: Path) -> None:
    """Stop if a checkout's package is not the one that is imported."""
    command = [sys.executable, "-c", "import autocompress; print(autocompress.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(state)}
    with tempfile.TemporaryDirectory() as elsewhere:
        answer = subprocess.run(
            command, env=environment, cwd=elsewhere, check=True, capture_output=True, text=True
        )
    place = Path(answer.stdout.strip()).resolve()
    if state not in place.parents:
        raise SystemExit(f"{state}: holds no package autocompress; {place} would be used")


def measured(runs: Sequence[Run], parts: Iterable[str], at_once: bool) -> Found:
    """Measure all states part by part, in turn or all of them at once."""
    found = Found({}, {})
    for part in parts:
        with ThreadPoolExecutor(len(runs) if at_once else 1) as threads:
            new_ones = list(threads.map(PARTS[part][0], runs))
        for run, new in zip(runs, new_ones, strict=True):
            for key, value in new.figures.items():
                found.figures[key + run.suffix] = value
                print(f"  {key + run.suffix} {value:.4f}", flush=True)
            for key, curve in new.curves.items():
                found.curves[key + run.suffix] = curve
    for key, curve in found.curves.items():
        if key + BEFORE in found.curves:
            found.figures[f"{key}_least_lead"] = least_lead(curve, found.curves[key + BEFORE])
    return found


def arguments_of() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    here = HERE.parent
    parser.add_argument("--state", type=Path, default=here, help="checkout to measure")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    parser.add_argument(
        "--at-once", action="store_true", help="with --against: both, each on half the processors"
    )
    parser.add_argument("--only", metavar="KEY,...", help="keys or parts: " + ", ".join(PARTS))
    parser.add_argument("--demo-minutes", type=float, help="default: 5, with --quick 1")
    parser.add_argument("--encoder-minutes", type=float, help="default: 20, with --quick 2")
    parser.add_argument("--plot", type=Path, metavar="FILE.html", help="curves of hypervolume")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder that keeps all runs")
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parts = parts_of(arguments.only, arguments.quick)
    demo_min = arguments.demo_minutes or (1 if arguments.quick else DEMO_MINUTES)
    encoder_min = arguments.encoder_minutes or (2 if arguments.quick else 20)
    states = {"": arguments.state.resolve()}
    if arguments.against is not None:
        states[BEFORE] = arguments.against.resolve()
    for state in states.values():
        check_state(state)
    if arguments.at_once and "overrun" in parts:  # half a processor is a quota of its own
        raise SystemExit("--at-once: overruns are measured in turn; leave them out with --only")
    shares: list[tuple[int, ...]] = [()] * len(states)
    if arguments.at_once:
        shares = shares_of(len(states))
    if "encoder" in parts:
        encoder_task.trained()  # trains it now, if that was never done
    with tempfile.TemporaryDirectory() as temporary:
        out = (arguments.out or Path(temporary)).resolve()
        runs = [
            Run(state, end, out, demo_min, encoder_min, bound)
            for (end, state), bound in zip(states.items(), shares, strict=True)
        ]
        found = measured(runs, parts, arguments.at_once)
    if arguments.plot is not None:
        plot(found.curves, arguments.plot)
    write_figures(arguments.json, found.figures, {"curves": found.curves})


if __name__ == "__main__":
    main()
