"""Repair and batch the journal file of a study."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from autocompress.errors import RunFolderError
from autocompress.search.workers.journal import BatchedJournal, batched, repair_journal
from autocompress.search.workers.storage import open_study


def test_a_torn_tail_is_dropped_and_the_study_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = open_study(str(path))
    study.tell(study.ask(), [1.0, 2.0, 3.0])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "tri')
    again = open_study(str(path))
    assert [t.values for t in again.trials] == [[1.0, 2.0, 3.0]]
    again.tell(again.ask(), [4.0, 5.0, 6.0])
    assert len(open_study(str(path)).trials) == 2


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = open_study(str(path))
    study.tell(study.ask(), [1.0, 2.0, 3.0])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"garbage\n", *lines[1:]]))
    before = path.read_bytes()
    with pytest.raises(
        RunFolderError, match=r"study\.journal: line 2 is damaged; restore the file"
    ) as caught:
        open_study(str(path))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before, "what can still be rescued is not touched"


def test_repair_of_nothing(tmp_path: Path) -> None:
    repair_journal(tmp_path / "missing")


def test_a_disk_that_is_full_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(f"{tmp_path}/study.journal")
    trial = study.ask()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def in_a_batch() -> None:
        with batched(study):
            trial.set_user_attr("a", 1)

    monkeypatch.setattr(os, "fsync", full)
    words = r"study\.journal: cannot be written \(No space left on device\); results up to here"
    for write in (
        lambda: study.set_user_attr("plan", "x"),
        in_a_batch,
        lambda: open_study(f"{tmp_path}/study.journal", "another"),
    ):
        with pytest.raises(RunFolderError, match=f"^{tmp_path}/{words}") as caught:
            write()
        assert str(caught.value).count("cannot be written") == 1


def test_a_batch_is_one_write_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(f"{tmp_path}/study.journal")
    trial = study.ask()
    syncs: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: syncs.append(1) or sync(handle))
    with batched(study):
        for i in range(20):
            trial.suggest_int(f"x{i}", 0, 9)
            trial.set_user_attr(f"a{i}", i)
    assert len(syncs) == 1
    study.tell(trial, [1.0, 2.0, 3.0])
    (again,) = open_study(f"{tmp_path}/study.journal").trials
    assert again.params == trial.params
    assert again.user_attrs == {f"a{i}": i for i in range(20)}


def test_a_whole_journal_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(b'{"a": 1}\n{"b": 2}\n')
    path.chmod(0o400)
    stamp = path.stat().st_mtime_ns
    repair_journal(path)
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'
    assert path.stat().st_mtime_ns == stamp


def test_a_journal_of_one_torn_record_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(b'{"op_code": 0')
    repair_journal(path)
    assert path.read_bytes() == b""


def test_records_of_a_batch_are_kept_back_and_written_in_order_even_after_an_error(
    tmp_path: Path,
) -> None:
    journal, reader = (BatchedJournal(str(tmp_path / "j")) for _ in range(2))

    def interrupted() -> None:
        with journal.batch():
            fill()
            raise KeyError("inside")

    def fill() -> None:
        journal.append_logs([{"n": 0}])
        journal.append_logs([{"n": 1}, {"n": 2}])
        assert list(journal.read_logs(0)) == []
        assert list(reader.read_logs(0)) == []

    with pytest.raises(KeyError, match="inside"):
        interrupted()
    assert list(reader.read_logs(0)) == [{"n": 0}, {"n": 1}, {"n": 2}]
    journal.append_logs([{"n": 3}])
    assert list(reader.read_logs(2)) == [{"n": 2}, {"n": 3}]
