"""Lists of labels: classes, or yes and no for each class."""

from __future__ import annotations

from typing import Any

import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.reading.multi_hot import are_multi_hot, yes_or_no


def read(classes: int, *lists: list[Any]) -> bool:
    return are_multi_hot([(entries, f"a line {i}") for i, entries in enumerate(lists)], classes)


@pytest.mark.parametrize(
    ("classes", "lists", "hot"),
    [
        (3, [[0, 0, 1], [0.0, 1.0, 0.0]], True),
        (3, [[True, False, False], ["0", "1", "0"]], True),
        (2, [[0, 1], [1, 0]], True),  # both readings fit
        (2, [[0, 1], [1, 1]], True),
        (2, [[0, 1], [1]], False),
        (3, [[0, 2], [1]], False),
        (3, [[], [0]], False),
        (3, [["a", "b", "c"]], False),
        (3, [[0.0, 2.0]], False),
        (3, [[0, 1, 2]], False),
        (3, [], False),
    ],
)
def test_both_ways(classes: int, lists: list[list[Any]], hot: bool) -> None:
    assert read(classes, *lists) is hot


def test_files_that_mix_both_ways_are_refused() -> None:
    with pytest.raises(TaskError, match=r"^a line 1: labels \['b'\] are a list of classes, but "):
        read(3, [0, 0, 1], ["b"])
    with pytest.raises(TaskError, match=r"\[1\.0, 0\.0\] of a line 0 say yes or no for each of 2"):
        read(2, [1.0, 0.0], [1])


def test_numbers_of_a_multi_hot_list() -> None:
    assert yes_or_no([True, "0", 1.0, 0, "1"]) == [1.0, 0.0, 1.0, 0.0, 1.0]
