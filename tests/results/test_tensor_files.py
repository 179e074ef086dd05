from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from autocompress.errors import DamagedFileError, RunFolderError
from autocompress.results import files, tensor_files
from autocompress.results.tensor_files import read_state, read_tensors, write_state, write_tensors

TENSORS = {
    "a": torch.randn(3, 4).half(),
    "empty": torch.zeros(0),
    "scalar": torch.tensor(2.5),
    "b": torch.arange(6, dtype=torch.int8)[::2],
}


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    write_tensors(tmp_path / "new" / "t.safetensors", TENSORS, {"note": "x"})
    tensors, notes = read_tensors(tmp_path / "new" / "t.safetensors")
    assert notes == {"note": "x"}
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_a_changed_bit_and_a_torn_end_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS)
    whole = path.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2], b"", whole[:-3]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"t\.safetensors: damaged"):
            read_tensors(path)
    path.unlink()
    with pytest.raises(DamagedFileError):
        read_tensors(path)


def test_a_missing_permission_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tensor_files, "safe_open", refused)
    with pytest.raises(RunFolderError, match=r"t: cannot be read \(Permission denied\)$") as caught:
        read_tensors(tmp_path / "t")
    assert not isinstance(caught.value, DamagedFileError)


def test_states_of_optimizers(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(4))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.square().sum().backward()
    optimizer.step()
    write_state(
        tmp_path / "state",
        {"optimizer": optimizer.state_dict(), "best": None, "progress": [3, 1, float("inf"), 0]},
    )
    found = read_state(tmp_path / "state", torch.device("cpu"))
    assert found["best"] is None
    assert found["progress"] == [3, 1, float("inf"), 0]
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(4))], fused=True)
    other.load_state_dict(found["optimizer"])
    assert torch.equal(
        other.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.ones(3)})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        write_tensors(path, {"a": torch.zeros(3)})
    monkeypatch.undo()
    assert torch.equal(read_tensors(path)[0]["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
