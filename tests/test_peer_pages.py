"""The pages hold the tables that the kept figures of `benchmarks.peers` make."""

from __future__ import annotations

import pytest

from benchmarks.peer_pages import (
    BEGIN,
    END,
    SHORT_HEAD,
    cells,
    filled,
    kept,
    model_part,
    pages,
    short_row,
)
from benchmarks.peer_rows import figures_of


def test_pages_hold_what_was_measured() -> None:
    assert kept(), "figures are kept"
    for path, text in pages().items():
        assert path.read_text() == text, "python -m benchmarks.peer_pages"


def test_kept_figures_are_those_of_the_rows() -> None:
    for name, content in kept().items():
        assert figures_of(name, content["tables"][name]) == content["figures"]


def test_each_file_has_a_row() -> None:
    for name, content in kept().items():
        part = model_part(name, content)
        for row in content["tables"][name]:
            assert f"| {' | '.join(cells(row))} |" in part


def test_only_the_part_between_the_markers_changes() -> None:
    page = f"a\n{BEGIN}\nold\n{END}\nb\n"
    assert filled(page, "new\n") == f"a\n{BEGIN}\nnew\n{END}\nb\n"
    assert filled(filled(page, "new\n"), "new\n") == filled(page, "new\n")
    with pytest.raises(ValueError, match="no part between"):
        filled("a", "new")


def test_a_failure_keeps_the_number_of_cells() -> None:
    failed = cells({"method": "tool", "reason": "Error: a | b <c>"})
    assert len(failed) == 8
    assert failed[1] == "none: Error: a / b &lt;c>"


def test_a_model_without_a_compared_file_has_a_row() -> None:
    rows = [{"method": "tool", "reason": "Error: a"}]
    found = short_row("resnet", {"figures": {"resnet_peers_failed": 1}, "tables": {"resnet": rows}})
    assert found == ["ResNet-20", "0", "", "", ""]
    assert len(found) == SHORT_HEAD.splitlines()[1].count("---")
