"""Tell before a search, and after its first trial, that limits cannot be met."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.trial import TrialState

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.errors import LimitError
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import CompressibleModule
from autocompress.results.limits import Limits
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.reach import (
    ANGLES,
    check_memory,
    check_size,
    out_of_reach,
    short_of,
)

MODULE = CompressibleModule("fc", "linear", (8, 8), False, 0, 1, "", "mlp", None)
# By weight bits: size and latency; a float model, a small slow one and a fast large one.
COSTS = {32: (1000, 4.0), 4: (200, 3.0), 8: (600, 1.0)}
BITS = (32, 4, 8)


class Offered:
    """An allocator of one module that takes 4 bits where size is dear, 8 where latency is."""

    features = (("fc", "quantized"),)

    def allocate(self, prices: np.ndarray, weights: np.ndarray) -> np.ndarray:
        assert prices.shape == (ANGLES, 2)
        np.testing.assert_allclose((prices**2).sum(1), 1.0)
        assert (weights > 0).all()
        return np.where(prices[:, :1] > prices[:, 1:], 1, 2)

    def parameters(self, choices: np.ndarray) -> dict[str, int]:
        return {"fc/weight_bits": int(choices[0])}


def bits_of(candidate: Candidate) -> int:
    return candidate.config("fc").weight_bits


BENCH = SimpleNamespace(
    space=SimpleNamespace(
        configs=lambda name: tuple(ModuleConfig(weight_bits=bits) for bits in BITS),
        numbers=lambda name, axis: (0.0,),
        candidate=lambda parameters: Candidate.of(
            {"fc": ModuleConfig(weight_bits=BITS[parameters["fc/weight_bits"]])}
        ),
    ),
    layout=SimpleNamespace(module_map=[MODULE], integer_form=lambda m: IntegerForm.SIGNED),
    size_bytes=lambda candidate: COSTS[bits_of(candidate)][0],
    latency_ms=lambda candidate: COSTS[bits_of(candidate)][1],
)


def test_a_size_below_the_smallest_file_is_refused_to_the_byte() -> None:
    check_size(BENCH, Limits())
    check_size(BENCH, Limits(200.0))
    with pytest.raises(LimitError) as caught:
        check_size(BENCH, Limits(199.0))
    assert str(caught.value) == (
        "limits: max_size 199 B contradicts the search space, whose smallest file has 200 B; "
        "nearest valid value: 200"
    )


@pytest.mark.parametrize(
    "limits", [Limits(), Limits(None, None, 0.0), Limits(200.0), Limits(700.0, 1.0)]
)
def test_limits_that_one_candidate_keeps_are_within_reach(limits: Limits) -> None:
    assert out_of_reach(BENCH, Offered(), limits) == ""


def test_limits_that_nothing_keeps_name_the_nearest() -> None:
    # 4 bits miss the latency by half, 8 bits the size by three times.
    assert out_of_reach(BENCH, Offered(), Limits(200.0, 2.0)) == (
        "limits: no candidate of the space is predicted to keep 200 B and 2 ms; the nearest has "
        "200 B and "
        "3 ms; the search goes on to come as near as it can"
    )
    assert "keep 0.5 ms; the nearest has 600 B and 1 ms" in out_of_reach(
        BENCH, Offered(), Limits(None, 0.5)
    )
    assert "keep 100 B; the nearest has 200 B and 3 ms" in out_of_reach(
        BENCH, Offered(), Limits(100.0)
    )


class Lean:
    """A model of two convolutions in a space of 8-bit inputs, floats and half of the channels.

    Attributes:
        asked: the candidates whose memory was asked for, as (bits of a, bits of b) of inputs.
    """

    def __init__(self, memory: dict[tuple[int, int], int]) -> None:
        self.memory, self.asked = memory, list[tuple[int, int]]()
        conv = replace(MODULE, kind="conv")
        self.layout = SimpleNamespace(
            module_map=[replace(conv, name="a"), replace(conv, name="b")],
            form=lambda module, config: "int8" if config.activation_bits == 8 else "float",
        )
        configs = (ModuleConfig(), ModuleConfig(weight_bits=8, activation_bits=8))
        self.space = SimpleNamespace(
            configs=lambda name: configs, numbers=lambda name, axis: (0.0, 0.5)
        )

    def activation_bytes(self, given: Candidate) -> int:
        assert {given.config(name).pruning_ratio for name in "ab"} == {0.5}
        bits = tuple(given.config(name).activation_bits for name in "ab")
        self.asked.append(bits)
        return self.memory[bits]


def test_a_memory_that_no_candidate_keeps_is_refused_with_the_least() -> None:
    memory = {(8, 8): 100, (32, 8): 90, (8, 32): 300, (32, 32): 80}
    lean = Lean(memory)
    check_memory(lean, Limits())
    assert lean.asked == [], "it takes no time without a limit"
    check_memory(lean, Limits(max_memory_bytes=100))
    assert set(lean.asked) == {(8, 8)}, "integers come first"
    check_memory(Lean(memory), Limits(max_memory_bytes=80))
    with pytest.raises(LimitError) as caught:
        check_memory(Lean(memory), Limits(max_memory_bytes=79))
    assert str(caught.value) == (
        "limits: max_memory 79 B is below the least memory of activations that a candidate of the "
        "search space was found to take, 80 B; nearest valid value: 80"
    )


def test_a_memory_that_floats_keep_together_alone_is_not_refused() -> None:
    """Each of them alone takes more than integers everywhere."""
    check_memory(
        Lean({(8, 8): 100, (32, 8): 120, (8, 32): 120, (32, 32): 50}), Limits(max_memory_bytes=60)
    )


def test_memory_that_is_out_of_reach_together_with_a_size_is_said() -> None:
    bench = SimpleNamespace(**vars(BENCH), activation_bytes=lambda c: 10 * bits_of(c))
    memory = SimpleNamespace(relieved=lambda choices, weights: choices)
    assert out_of_reach(bench, Offered(), Limits(200.0, max_memory_bytes=40), memory) == ""
    assert out_of_reach(bench, Offered(), Limits(max_memory_bytes=30), memory) == (
        "limits: no candidate of the space is predicted to keep 30 B of activations; the nearest "
        "has 200 B, 3 ms and 40 B of activations; the search goes on to come as near as it can"
    )


def first(state: TrialState = TrialState.COMPLETE, **constraints: float) -> TrialRecord:
    return TrialRecord(0, state, {}, 2000.0, 1.25, (0.8,), constraints)


def test_a_first_trial_that_misses_limits_says_by_how_much() -> None:
    found = short_of(first(max_size=-0.5, max_accuracy_drop=0.05, min_f1=0.01))
    assert found == (
        "limits: the candidate with the least predicted loss (2000 B, 1.25 ms, accuracy 0.8000) "
        "misses "
        "max_accuracy_drop by 0.0500, min_f1 by 0.0100; the search goes on to come as near as it "
        "can"
    )


def test_a_first_trial_that_keeps_them_or_has_not_ended_says_nothing() -> None:
    assert short_of(first()) == ""
    assert short_of(first(max_size=0.0, max_accuracy_drop=-0.1)) == ""
    assert short_of(first(TrialState.PRUNED, max_size=0.5)) == ""
