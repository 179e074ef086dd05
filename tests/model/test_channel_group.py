"""Check how many units of a group are kept, and what a group that is not prunable says."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.model.channel_group import ChannelGroup, all_of


def group(channels: int, unit_size: int = 1, multiple: int = 1) -> ChannelGroup:
    return ChannelGroup("g", "neurons", channels, unit_size, (), multiple=multiple)


def test_a_unit_has_unit_size_channels() -> None:
    assert group(12).units == 12
    assert group(12, unit_size=4).units == 3


@pytest.mark.parametrize(
    ("units", "ratio", "kept"),
    [(10, 0.0, 10), (10, 0.3, 7), (10, 0.34, 7), (10, 0.36, 6), (10, 0.99, 1), (1, 0.9, 1)],
)
def test_the_ratio_is_rounded_to_units_and_one_is_left(units: int, ratio: float, kept: int) -> None:
    assert group(units).kept_units(ratio) == kept
    assert group(units * 8, unit_size=8).kept_units(ratio) == kept, (
        "heads are counted, not channels"
    )


@pytest.mark.parametrize(
    ("units", "multiple", "ratio", "kept"),
    [
        (32, 16, 0.1, 32),  # 29 are rounded up
        (32, 16, 0.5, 16),
        (31, 16, 0.5, 16),  # a multiple of 8, since 31 spans 16 only once
        (31, 16, 0.1, 31),  # never more than there are
        (3, 16, 0.5, 1),  # no multiple fits twice into 3
        (48, 12, 0.5, 24),
    ],
)
def test_kept_counts_are_rounded_up_to_a_multiple(
    units: int, multiple: int, ratio: float, kept: int
) -> None:
    assert group(units, multiple=multiple).kept_units(ratio) == kept


def test_a_group_that_is_not_prunable_is_the_same_with_a_reason() -> None:
    found = group(8, 2, 4)
    marked = found.but("tied")
    assert (marked.reason, marked.channels, marked.unit_size, marked.multiple) == ("tied", 8, 2, 4)
    assert found.reason is None


def test_positions_are_counted_from_0() -> None:
    assert all_of(3).tolist() == [0, 1, 2]
    assert all_of(0).dtype == np.int64
