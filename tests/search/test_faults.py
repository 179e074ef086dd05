"""kill -9 in every phase of a search, Ctrl-C, damaged files.

The same command goes on, and nothing that was found is lost.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import yaml
from optuna.trial import TrialState
from run_folder import rows

import autocompress as ac
from autocompress.errors import RunFolderError
from autocompress.results import files
from autocompress.search.workers.journal import repair_journal
from autocompress.search.workers.storage import folder_lock, open_study

pytestmark = pytest.mark.slow

SPACE = {
    "modules": [
        {"role": "head", "weight_bits": [8, 16]},
        {
            "match": "*",
            "weight_bits": [3, 4, 8],
            "activation_bits": [8, 32],
            "pruning_ratio": {"low": 0.0, "high": 0.5, "step": 0.25},
        },
    ],
    "distillation": {"steps": 4},
}
KILLS = (
    *[
        "exporting the model",
        "evaluating the baseline",
        "making the first files",
        "measuring whole models",
        "estimating sensitivity",
        "measuring sensitivity",
    ],
    *["searching"] * 6,
    *["recovering the front"] * 2,
    *["exporting and verifying the front"] * 3,
    "timing the front",
    *["writing the report"] * 2,
)


def finished(folder: Path) -> dict[int, tuple[str, tuple[float, ...] | None]]:
    """State and values by number of the trials that the journal holds, read as a resumed search
    reads it.
    """
    path = folder / "study.journal"
    if not path.is_file():
        return {}
    try:
        repair_journal(path)
        trials = open_study(str(path), create=False).trials
    except RunFolderError:
        return {}  # killed before there was a study
    return {
        t.number: (t.state.name, None if t.values is None else tuple(t.values))
        for t in trials
        if t.state.is_finished()
    }


def check_artifacts(folder: Path) -> None:
    """Whatever has its final name is whole."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    for path in folder.rglob("recipe.yaml"):
        assert yaml.safe_load(path.read_text())["candidate"]
    for path in folder.rglob("model.onnx"):
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if (folder / "report.html").is_file():
        assert (folder / "report.html").read_text().rstrip().endswith("</html>")
    if (folder / "front.json").is_file():
        for point in ac.read_front(folder):
            assert (
                folder / point.artifact / "model.onnx"
            ).stat().st_size == point.measured.size_bytes


def test_kill_9_at_twenty_moments_loses_at_most_the_trial_in_flight(
    cnn_spec: str, cnn_task, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(Path(__file__).with_name("kill_searches.py")),
        cnn_spec,
        str(folder),
        json.dumps(SPACE),
        json.dumps(KILLS),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    before: dict[int, tuple[str, tuple[float, ...] | None]] = {}
    killed = 0
    for phase in KILLS:
        line = process.stdout.readline()
        assert line, f"nothing came before {phase}"
        outcome = json.loads(line)
        killed += outcome["killed"]
        assert outcome["killed"] or outcome["code"] == 0, outcome
        found = finished(folder)
        assert before.items() <= found.items(), f"a finished trial was lost {phase}"
        told = [t for t in found.values() if t[0] != "FAIL"]
        assert len(found) - len(told) <= killed, "one trial at most was in flight at each kill"
        before = found
        check_artifacts(folder)
        process.stdin.write("\n")
        process.stdin.flush()
    process.communicate(timeout=60)
    assert killed >= 14, "a phase may be over before the signal comes"
    # The same command, left alone.
    count = len([t for t in before.values() if t[0] != "FAIL"]) + 2
    environment["AUTOCOMPRESS_CACHE"] = os.environ["AUTOCOMPRESS_CACHE"]
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "autocompress",
            "search",
            cnn_spec,
            "--space",
            str(space),
            "--trials",
            str(count),
            "--out",
            str(folder),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    after = finished(folder)
    assert before.items() <= after.items()
    assert len([t for t in after.values() if t[0] != "FAIL"]) == count
    assert sorted(int(r["number"]) for r in rows(folder)) == sorted(after)
    check_artifacts(folder)
    assert len(ac.read_front(folder)) >= 1


def test_a_second_ctrl_c_stops_at_once_and_the_folder_resumes(
    cnn_spec: str, tmp_path: Path
) -> None:
    folder, space = tmp_path / "run", tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    command = [
        sys.executable,
        "-m",
        "autocompress",
        "search",
        cnn_spec,
        "--space",
        str(space),
        "--out",
        str(folder),
        "--trials",
    ]
    process = subprocess.Popen(
        [*command, "4000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while len(rows(folder)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped; all results so far are saved" in errors
    assert time.monotonic() - started < 30
    before = finished(folder)
    done = subprocess.run(
        [*command, str(len(before) + 1)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert before.items() <= finished(folder).items()


def test_two_commands_on_one_folder(cnn_task, tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path),
        pytest.raises(
            RunFolderError,
            match="another search is running in this folder; wait for it or choose another",
        ),
    ):
        ac.search(cnn_task, SPACE, n_trials=1, out=tmp_path, quiet=True)


def test_a_disk_that_is_full_for_the_cache_costs_time_and_no_result(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    original, refused = files.tempfile.mkstemp, []

    def full(*given, dir, **named):
        if "variants" in str(dir):
            refused.append(dir)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*given, dir=dir, **named)

    monkeypatch.setattr(files.tempfile, "mkstemp", full)
    result = ac.search(
        cnn_task, SPACE, n_trials=3, out=tmp_path / "run", quiet=True, finalize_steps=0
    )
    assert refused
    assert len(result.front) >= 1
    assert not list((tmp_path / "cache").rglob("variants/**/*.safetensors"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 64 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip("mounting a file system is not allowed here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_full_ends_in_a_line_and_the_search_goes_on_when_there_is_room(
    cnn_task, disk: Path, tmp_path: Path
) -> None:
    folder, copy = disk / "run", tmp_path / "copy"
    copy.mkdir()
    before: dict[int, tuple[str, tuple[float, ...] | None]] = {}
    said: list[str] = []
    for kilobytes in (64, 160, 256, 352, 1 << 16):
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)
        try:
            result = ac.search(
                cnn_task, SPACE, n_trials=10, out=folder, quiet=True, finalize_steps=0
            )
        except ac.AutocompressError as error:
            said.append(str(error))
        if (folder / "study.journal").exists():
            shutil.copy(folder / "study.journal", copy)
        found = finished(copy)
        assert before.items() <= found.items()
        before = found
        check_artifacts(folder)
    assert len(said) >= 3, "the disk was full in several phases"
    assert all("No space left on device" in text and "\n" not in text for text in said), said
    assert len([t for t in before.values() if t[0] != "FAIL"]) == 10
    assert len(result.front) >= 1


def test_damaged_files_are_made_again_or_named(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"

    def search(count: int) -> ac.SearchResult:
        return ac.search(cnn_task, SPACE, n_trials=count, out=folder, quiet=True, finalize_steps=0)

    first = search(4)
    variants = sorted((tmp_path / "cache").rglob("variants/**/*.safetensors"))
    assert variants
    for path in variants:  # one bit of the weights
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    for name in ("latency_table.json", "sensitivity.csv", "front.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(RunFolderError, match=r"front\.json: damaged .*run the same search again"):
        ac.read_front(folder)
    again = search(4)
    assert {p.trial for p in first.front} & {p.trial for p in again.front}
    for a in first.front:
        for b in again.front:
            if a.trial == b.trial:
                assert (a.measured.size_bytes, a.measured.accuracy) == (
                    b.measured.size_bytes,
                    b.measured.accuracy,
                )
    (folder / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"run\.json: damaged"):
        search(5)
    assert len(finished(folder)) == 4
    assert all(
        state in (TrialState.COMPLETE.name, TrialState.PRUNED.name)
        for state, _ in finished(folder).values()
    )


def test_variants_of_several_writers_are_whole(tmp_path: Path) -> None:
    """Three processes that make the same variants in one folder.

    Atomic renames leave one whole file of each.
    """
    script = """
import os, sys, torch
from pathlib import Path
from autocompress.results.tensor_files import write_tensors, read_tensors
children = []
for _ in range(3):
    children.append(os.fork())
    if children[-1] == 0:
        for i in range(150):
            path = Path(sys.argv[1]) / f"{i % 10}.safetensors"
            write_tensors(path, {"a": torch.full((2000,), float(i % 10))})
            assert read_tensors(path)[0]["a"][0] == i % 10
        os._exit(0)
print([os.waitpid(child, 0)[1] for child in children])
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[0, 0, 0]\n", done.stderr
    assert len(list(tmp_path.iterdir())) == 10
