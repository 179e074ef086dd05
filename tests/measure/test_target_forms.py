"""Tell entries per sample from several targets, and refuse batches of different forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autocompress.errors import TaskError
from autocompress.measure.target_forms import by_position, check_forms, entries

FOUR, TWO = torch.zeros(4), torch.zeros(2)


def test_a_text_or_a_number_is_one_entry() -> None:
    assert entries("abc") == ["abc"]
    assert entries(b"abc") == [b"abc"]
    assert entries(3) == [3]
    assert entries(np.float32(3)) == [3]
    assert entries(torch.tensor(3)) == [torch.tensor(3)]
    assert entries(("a", "b")) == ["a", "b"]
    assert len(entries(np.zeros((3, 2)))) == 3


@pytest.mark.parametrize(
    ("targets", "sizes", "expected"),
    [
        ([[FOUR, FOUR], [FOUR, FOUR]], [4, 4], True),
        ([[FOUR, FOUR], [TWO, TWO]], [4, 2], True),
        ([(FOUR, ["a", "b", "c", "d"])], [4], True),
        ([[FOUR]], [4], True),
        ([[TWO, TWO]], [2], False),  # may be the entries of two samples
        ([[FOUR, FOUR]], [2], False),
        ([[FOUR, TWO, TWO]], [2], False),
        ([["a", "b"], ["c"]], [2, 1], False),
        ([[[], []]], [2], False),
        ([FOUR, FOUR], [4, 4], False),
    ],
)
def test_several_targets_have_an_entry_per_row_each(
    targets: list[Any], sizes: list[int], expected: bool
) -> None:
    assert by_position(targets, sizes) is expected


@pytest.mark.parametrize(
    ("targets", "sizes", "words"),
    [
        (
            [[FOUR, FOUR], [TWO]],
            [4, 2],
            "is a list of 1 in batch 1 of the split (from 0) and a list of 2 in batch 0; expected",
        ),
        ([[FOUR, FOUR], TWO], [4, 2], "is a Tensor in batch 1 of the split (from 0) and a list"),
        ([[FOUR, FOUR], [TWO, FOUR]], [4, 2], "nearest: a dict with the same names"),
    ],
)
def test_several_targets_in_some_batches_only_are_refused(
    targets: list[Any], sizes: list[int], words: str
) -> None:
    with pytest.raises(TaskError) as caught:
        by_position(targets, sizes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([FOUR, None], "is None in batch 1 of the split (from 0) and a Tensor in batch 0;"),
        ([None, ["a"], None], "is None in batch 0 of the split (from 0) and a list of 1 in batch"),
        ([None, {"a": FOUR}], "is None in batch 0 of the split (from 0) and a dict in batch 1;"),
        ([FOUR, {"a": FOUR}], "is a dict in batch 1 of the split (from 0) and a Tensor in batch"),
    ],
)
def test_none_and_mappings_are_not_mixed_with_others(targets: list[Any], words: str) -> None:
    with pytest.raises(TaskError) as caught:
        check_forms(targets)
    assert words in str(caught.value)
    check_forms([None, None])
    check_forms([{"a": FOUR}, {"b": FOUR}])
    check_forms([FOUR, ["a"], "b"])
