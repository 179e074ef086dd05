"""Tensors that are alive at once, counted by hand."""

from __future__ import annotations

from autocompress.targets.memory.lifetimes import Step, lifetimes, peak_bytes


def test_tensors_live_from_their_writer_to_their_last_reader() -> None:
    steps = [Step(("x",), ("a",)), Step(("a",), ("b",)), Step(("a", "b"), ("c", "unused"))]
    alive = lifetimes(steps, ["x"], ["c"])
    assert alive == {"x": (0, 0), "a": (0, 2), "b": (1, 2), "c": (2, 3), "unused": (2, 2)}
    sizes = {"x": 100, "a": 10, "b": 20, "c": 30, "unused": 5}
    assert peak_bytes(alive, sizes, 3) == 100 + 10
    assert peak_bytes(alive, {**sizes, "x": 1}, 3) == 10 + 20 + 30 + 5
    assert peak_bytes(alive, {"c": 4}, 3) == 4, "constants take none"


def test_without_operators_inputs_that_are_outputs_count_once() -> None:
    assert peak_bytes(lifetimes([], ["x"], ["x"]), {"x": 8}, 0) == 8
    assert peak_bytes({}, {}, 0) == 0
