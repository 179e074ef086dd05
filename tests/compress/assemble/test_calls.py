"""Check which call of a module is which, in a pass and in the recomputation of a part of it."""

from __future__ import annotations

import pytest

from autocompress.compress.assemble.calls import Calls


def test_calls_are_counted_by_module_and_the_last_plan_goes_on() -> None:
    calls = Calls()
    assert [calls.next("a", 2), calls.next("b", 3), calls.next("a", 2), calls.next("b", 3)] == [
        0,
        0,
        1,
        1,
    ]
    assert [calls.next("a", 2), calls.next("a", 2)] == [1, 1]
    calls.restart("model", ("inputs",))
    assert calls.next("a", 2) == 0


def test_one_plan_is_followed_in_all_calls_and_none_in_no_call() -> None:
    calls = Calls()
    assert [calls.next("a", 1) for _ in range(3)] == [0, 0, 0]
    assert [calls.next("b", 0) for _ in range(2)] == [None, None]


def test_a_block_that_is_computed_again_makes_the_same_calls() -> None:
    calls = Calls()
    calls.next("a", 9)
    first, again = calls.recomputing()
    with first:
        assert [calls.next("a", 9), calls.next("b", 9)] == [1, 0]
    assert calls.next("a", 9) == 2
    with again:
        assert [calls.next("a", 9), calls.next("b", 9)] == [1, 0]
    assert calls.next("a", 9) == 3, "behind the block counting goes on as before"


def test_counting_goes_on_after_an_error_inside() -> None:
    calls = Calls()
    calls.next("a", 9)
    _, again = calls.recomputing()
    calls.next("a", 9)

    def fails() -> None:
        with again:
            assert calls.next("a", 9) == 1
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fails()
    assert calls.next("a", 9) == 2
