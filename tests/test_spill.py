"""Keep large tensors in a temporary file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autocompress import spill
from autocompress.spill import Spilled, SpilledRows


@dataclass(frozen=True)
class Pair:
    large: Tensor
    small: Tensor
    count: int


def pairs() -> dict[str, Pair]:
    generator = torch.Generator().manual_seed(0)

    def large() -> Tensor:
        return torch.rand(3, 400, 500, generator=generator)

    # The second one is not contiguous.
    return {"a": Pair(large(), torch.ones(2), 1), "b": Pair(large().mT, torch.zeros(2), 2)}


def equal(one: Pair, other: Pair) -> bool:
    tensors = torch.equal(one.large, other.large) and torch.equal(one.small, other.small)
    return tensors and one.count == other.count


def test_items_are_read_as_they_were_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    items = pairs()
    spilled = Spilled(items.items())
    assert list(spilled) == ["a", "b"]
    assert "a" in spilled
    assert spilled.get("c") is None
    assert all(equal(spilled[name], items[name]) for name in items)
    assert spilled["a"].large is not spilled["a"].large, "it is not kept in memory"
    assert spilled["a"].small is items["a"].small
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_on_the_disk_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    items = pairs()
    write, left = os.pwrite, [items["a"].large.nbytes + 1000]

    def full(file: int, content: memoryview, at: int) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        written = write(file, content[: left[0]], at)
        left[0] -= written
        return written

    monkeypatch.setattr(spill.os, "pwrite", full)
    spilled = Spilled(items.items())
    assert all(equal(spilled[name], items[name]) for name in items)
    assert spilled["b"].large is items["b"].large


def test_a_folder_that_cannot_be_made_costs_memory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "file" / "below"))
    items = pairs()
    assert all(equal(Spilled(items.items())[name], item) for name, item in items.items())


def test_items_are_replaced_in_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    items = pairs()
    spilled: Spilled[Pair] = Spilled()
    places = []
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *call: places.append(call[2]) or write(*call))
    for name in ("a", "b", "a"):
        spilled.put(name, items[name])
    assert places[2] == places[0] < places[1]
    spilled.put("a", items["b"])
    assert equal(spilled["a"], items["b"])
    assert equal(spilled["b"], items["b"])
    smaller = Pair(torch.rand(700, 400), torch.ones(1), 3)
    spilled.put("b", smaller)
    assert equal(spilled["b"], smaller)
    assert equal(spilled["a"], items["b"]), "another size takes another place"
    spilled.drop("a")
    assert list(spilled) == ["b"]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> tuple[SpilledRows[str], Tensor]:
    """Return rows in four parts, of which one is in memory and one is not kept, and all rows."""
    monkeypatch.setattr(spill, "ROWS_IN_MEMORY", 4 * 10 * 4)
    monkeypatch.setattr(spill, "ROWS_BYTES", 9 * 10 * 4)
    table = torch.arange(120.0).view(12, 10)
    kept: SpilledRows[str] = SpilledRows(lambda source: torch.tensor([float(source)]))
    for part in table.split([4, 3, 2, 3]):
        kept.add(part.clone())
    return kept, table


def test_rows_are_read_in_any_order_from_memory_and_disk(
    rows: tuple[SpilledRows[str], Tensor],
) -> None:
    kept, table = rows
    assert len(kept) == 12
    for places in ([0, 1, 2], [5], [3, 4, 5, 6, 7], [8, 2, 3, 7, 4, 4], list(range(9))):
        assert torch.equal(kept.take(places, ""), table[places])


def test_rows_above_the_limit_are_computed_again(rows: tuple[SpilledRows[str], Tensor]) -> None:
    assert rows[0].take([9], "5").tolist() == [5.0]
    assert rows[0].take([0, 11], "6").tolist() == [6.0]


def test_only_the_rows_that_are_asked_for_are_read(
    rows: tuple[SpilledRows[str], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, read = [], os.preadv

    def counted(file: int, buffers: list[memoryview], at: int) -> int:
        sizes.append(sum(map(len, buffers)))
        return read(file, buffers, at)

    monkeypatch.setattr(os, "preadv", counted)
    rows[0].take([0, 5, 6], "")
    assert sizes == [2 * 10 * 4]


def test_rows_that_find_no_room_on_the_disk_are_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spill, "ROWS_IN_MEMORY", 0)
    monkeypatch.setattr(spill, "RESERVE_BYTES", 1 << 62)
    kept: SpilledRows[int] = SpilledRows(lambda source: torch.full((1, 3), source))
    kept.add(torch.ones(2, 3))
    assert len(kept) == 2
    assert kept.take([0], 7).tolist() == [[7, 7, 7]]
