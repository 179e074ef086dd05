"""Check the hints in error messages, and that each error is also the built-in one that callers
expect.
"""

from __future__ import annotations

import pytest

from autocompress import errors
from autocompress.errors import AutocompressError, nearest_name, nearest_number


def test_the_most_similar_name_is_named() -> None:
    assert nearest_name("weigth_bits", ["group_size", "weight_bits", "activation_bits"]) == (
        "weight_bits"
    )
    assert nearest_name("b", ["b"]) == "b"
    assert nearest_name("bits", ["weight_bits", "rank_ratio"]) == "weight_bits", "part of a name"


def test_all_names_are_listed_in_order_when_none_is_similar() -> None:
    assert nearest_name("xyz", ["beta", "alpha"]) == "alpha, beta"
    assert nearest_name("xyz", []) == ""
    eight = list("abcdefgh")
    assert nearest_name("123", eight) == "a, b, c, d, e, f, g, h"
    assert nearest_name("123", [*eight, "i"]) == "a, b, c, d, e, f, g, h, ..."


def test_the_nearest_number_has_the_smallest_distance() -> None:
    assert nearest_number(9, (2, 4, 8, 16)) == 8
    assert nearest_number(-5, (-1, 0)) == -1
    assert nearest_number(3, (2, 4)) == 2, "the first of two that are equally near"
    assert nearest_number(0.4, (7,)) == 7


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ArgumentError", TypeError),
        ("TaskError", ValueError),
        ("SpaceError", ValueError),
        ("LimitError", ValueError),
        ("OutOfTimeError", TimeoutError),
        ("TargetError", ValueError),
        ("RunFolderError", OSError),
        ("DamagedFileError", errors.RunFolderError),
        ("ExportError", RuntimeError),
        ("NotComputableError", RuntimeError),
    ],
)
def test_each_error_can_be_caught_by_both_of_its_bases(name: str, builtin: type) -> None:
    kind = getattr(errors, name)
    for base in (AutocompressError, builtin):
        with pytest.raises(base, match=r"^one line$"):
            raise kind("one line")
