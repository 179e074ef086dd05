"""The cache: concurrent writers, full and read-only disks, damaged entries, the bound."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import autocompress
from autocompress.cache import ABANDONED_S, Cache, cache_folder, key_of

PACKAGE = str(Path(autocompress.__file__).parent)
# Runs without the package's __init__, which takes seconds to import.
WRITER = """
import json, sys, types
from pathlib import Path
package = types.ModuleType("autocompress")
package.__path__ = [sys.argv[3]]
sys.modules["autocompress"] = package
from autocompress.cache import Cache

def load(path):
    return json.loads(path.read_text())

def check(entry):
    assert entry is None or entry == [entry[0]] * 20_000, "half of a file was read"

folder, number = Path(sys.argv[1]), int(sys.argv[2])
cache = Cache(folder)
for turn in range(100):
    cache.write("shared.json", json.dumps([number] * 20_000))
    check(cache.read("shared.json", load))
    cache.update(
        "merged.json", load, lambda known: json.dumps({**(known or {}), f"{number}.{turn}": turn})
    )
"""


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def test_two_processes_write_one_entry_at_a_time(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), number, PACKAGE])
        for number in ("1", "2")
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    cache = Cache(tmp_path)
    assert cache.read("shared.json", load) in ([1] * 20_000, [2] * 20_000)
    merged = cache.read("merged.json", load)
    assert len(merged) == 2 * 100, "no process loses what another has added"
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_keys_follow_from_all_parts() -> None:
    assert key_of("a", b"b") == key_of("ab")
    assert key_of("a") != key_of("b")


@pytest.mark.parametrize("damage", [b"", b'{"a": ', b"\xff\xfe", b"[1, 2]"])
def test_a_damaged_entry_is_as_if_it_were_not_there(tmp_path: Path, damage: bytes) -> None:
    cache = Cache(tmp_path)
    cache.write("x.json", json.dumps({"value": 3}))

    def value(path: Path) -> int:
        return int(load(path)["value"])

    assert cache.read("x.json", value) == 3
    (tmp_path / "x.json").write_bytes(damage)
    assert cache.read("x.json", value) is None
    assert not (tmp_path / "x.json").exists()
    cache.update("x.json", value, lambda known: json.dumps({"value": 4 if known is None else 5}))
    assert cache.read("x.json", value) == 4


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    cache = Cache(tmp_path)
    cache.write("old.json", "1")
    refused = []

    def refuse(*arguments: object, **options: object) -> int:
        refused.append(arguments)
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    cache.write("old.json", "2")
    cache.update("new.json", load, lambda known: "3")
    assert cache.read("old.json", load) == 1, "what was there can still be read"
    assert cache.read("new.json", load) is None
    assert len(refused) == 3


def test_a_disk_that_fills_up_leaves_no_part_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    cache.write("x.json", "1")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    cache.write("x.json", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert cache.read("x.json", load) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write("x.json", "1")
    (tmp_path / "damaged.json").write_text("{")
    tmp_path.chmod(0o500)
    try:
        cache.write("y.json", "2")
        cache.update("x.json", load, lambda known: "2")
        assert cache.read("x.json", load) == 1
        assert cache.read("y.json", load) is None
        assert cache.read("damaged.json", load) is None
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_place_of_the_folder_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache")
    cache.write("x.json", "1")
    cache.update("x.json", load, lambda known: "1")
    assert cache.read("x.json", load) is None


def test_without_a_folder_nothing_is_kept() -> None:
    cache = Cache(None)
    cache.write("x.json", "1")
    cache.update("x.json", load, lambda known: "1")
    assert cache.read("x.json", load) is None


def test_the_least_recently_used_entries_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=8000)
    stored = json.dumps("x" * 998)
    for number in range(7):
        cache.write(f"{number}/x.json", stored)
        os.utime(tmp_path / str(number) / "x.json", (number + 1, number + 1))
    assert cache.read("0/x.json", load) is not None, "reading counts as use"
    for number in range(7, 40):
        cache.write(f"{number}/x.json", stored)
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.json")) <= 8000
        assert (tmp_path / str(number) / "x.json").exists()
        if number == 10:
            assert (tmp_path / "0" / "x.json").exists()
            assert not (tmp_path / "1" / "x.json").exists()
    assert not (tmp_path / "0" / "x.json").exists()


def test_the_first_write_trims_what_earlier_runs_left(tmp_path: Path) -> None:
    for number in range(20):
        Cache(tmp_path).write(f"{number}.json", "1" * 1000)
    (tmp_path / "notes.txt").write_text("1" * 9000)
    for name, age_s in (("dead", ABANDONED_S + 60), ("alive", 0.0)):
        path = tmp_path / f".x.json.{name}"
        path.write_text("half")
        os.utime(path, (time.time() - age_s,) * 2)
    Cache(tmp_path, limit_bytes=5000).write("new.json", "1")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"new.json", "notes.txt", ".x.json.alive"} <= names
    assert ".x.json.dead" not in names
    assert sum(path.stat().st_size for path in tmp_path.glob("*.json")) <= 5000


def test_the_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", "/some/where")
    assert cache_folder() == Path("/some/where")
    monkeypatch.delenv("AUTOCOMPRESS_CACHE")
    assert cache_folder().name == "autocompress"
