"""Check that files are written whole or not at all, and what is said when they cannot be."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from autocompress.errors import RunFolderError
from autocompress.results import files
from autocompress.results.files import (
    append_row,
    begin_rows,
    disk_error,
    read_json,
    write_atomic,
    write_json,
)
from autocompress.results.front import earlier_front


def test_a_file_is_replaced_whole_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.txt"
    write_atomic(path, "größer")
    assert path.read_bytes() == "größer".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644, "others may read it"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(RunFolderError) as caught:
        write_atomic(path, "new")
    assert str(caught.value) == (
        f"{path}: cannot be written (No space left on device); results up to here are kept, free "
        "the disk or choose another folder, then run the same command again"
    )
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file/a.txt: cannot be written"):
        write_atomic(tmp_path / "file" / "a.txt", "")
    with pytest.raises(RunFolderError, match=r"file/a.csv: cannot be written"):
        append_row(tmp_path / "file" / "a.csv", ("a",), {"a": 1})
    assert "(text)" in str(disk_error(tmp_path, OSError("text")))


def test_json_comes_back(tmp_path: Path) -> None:
    data = {"a": [1, 2.5, None, "ü"], "b": {}}
    write_json(tmp_path / "a.json", data)
    assert read_json(tmp_path / "a.json") == data
    assert (tmp_path / "a.json").read_text() == json.dumps(data, indent=1)


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe"])
def test_damaged_json_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(RunFolderError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: damaged (")
    assert str(caught.value).endswith("); remove it and run the same search again")


def test_json_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError) as caught:
        read_json(tmp_path / "run.json")
    assert str(caught.value) == (
        f"{tmp_path}/run.json: not found; {tmp_path} is not the folder of a finished search"
    )


def test_json_that_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunFolderError, match=rf"^{tmp_path}: cannot be read \(Is a directory\)$"):
        read_json(tmp_path)
    file = tmp_path / "front.json"
    file.write_text("{}")
    message = f"{file}/front.json: not found; {file} is a file, not the folder of a search"
    with pytest.raises(RunFolderError, match=f"^{message}$"):
        read_json(file / "front.json")

    def refused(path: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_text", refused)
    message = rf"^{file}: cannot be read \(Permission denied\)$"
    with pytest.raises(RunFolderError, match=message):
        read_json(file)
    with pytest.raises(RunFolderError, match=message):
        earlier_front(tmp_path)


def test_rows_have_one_header_and_all_columns(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    append_row(path, ("number", "cause"), {"cause": "a, b", "number": 1, "other": 3})
    append_row(path, ("number", "cause"), {"number": 2})
    assert path.read_text().splitlines() == ["number,cause", '1,"a, b"', "2,"]


def test_a_header_is_written_before_rows_and_once(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    begin_rows(path, ("a", "b"))
    assert path.read_bytes() == b"a,b\r\n"
    append_row(path, ("a", "b"), {"a": 1, "b": 2})
    begin_rows(path, ("a", "b"))
    assert path.read_bytes() == b"a,b\r\n1,2\r\n"


def test_an_empty_file_gets_a_header(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    path.touch()
    append_row(path, ("a",), {"a": 0})
    assert path.read_text().splitlines() == ["a", "0"]
