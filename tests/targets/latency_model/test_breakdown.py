"""Divide the time of a profiled model by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from small_layout import MAP, MODULES, layout

from autocompress.candidate import Candidate
from autocompress.targets.latency_model.breakdown import module_shares, where_time_goes
from autocompress.targets.latency_model.run import REST, Run
from autocompress.targets.workload import Kernel, Work

A, B = MODULES[1:3]
SMALL = layout(module_map=replace(MAP, modules=(A, B)))
KERNELS = {
    "a": Kernel("linear 16x8", 4, "float", 8, 16, 128.0),
    "b": Kernel("linear 8x16", 4, "float", 16, 8, 128.0),
}
# Three operators of the rest and one of each module; profiling costs 2 us each.
SPENT = {"a": (32.0, 1.0), "b": (12.0, 1.0), REST: (46.0, 3.0)}
RUN = Run(
    "profiled",
    Work(KERNELS, {"model": 1.0}),
    0.16,
    (0.1, 0.2),
    SPENT,
    {"Softmax": 30.0, "Add": 16.0},
)
GRID = {
    ("linear 16x8", 4, "float", 8, 16): (30.0, 128.0),
    ("linear 16x8", 4, "int8", 8, 16): (6.0, 128.0),
    ("linear 16x8", 4, "int8", 8, 8): (3.0, 64.0),
    ("linear 16x8", 5, "int8", 8, 16): (9.0, 128.0),
}


def table(doubt: str = "", runs: tuple[Run, ...] = (RUN,)) -> SimpleNamespace:
    model = SimpleNamespace(
        profiler_us=2.0,
        grid=GRID,
        kernel_us=lambda kernel: {"linear 16x8": 20.0, "linear 8x16": 5.0}[kernel.signature],
        around_us=lambda amounts: 15.0 * amounts["model"],
    )
    return SimpleNamespace(
        runs=runs,
        doubt=doubt,
        model=model,
        note="a note",
        is_of=lambda layout: len(layout.module_map) == 2,
        predict=lambda work: 0.2,
    )


def test_the_profilers_own_cost_is_taken_out_and_shares_add_up() -> None:
    found = where_time_goes(table(), SMALL)
    # 30 and 10 us of modules, 40 us around them, 160 us on the wall.
    assert found["milliseconds"] == 0.16
    assert found["modules_share"] == pytest.approx(0.5)
    assert [(r["module"], r["share"], r["milliseconds"]) for r in found["modules"]] == [
        ("a", pytest.approx(0.375), pytest.approx(0.06)),
        ("b", pytest.approx(0.125), pytest.approx(0.02)),
    ]
    assert [(r["operator"], r["share"]) for r in found["operators"]] == [
        ("Softmax", pytest.approx(0.5 * 30 / 46)),
        ("Add", pytest.approx(0.5 * 16 / 46)),
    ]
    assert found["note"] == "a note"


def test_other_forms_are_those_of_the_whole_module_at_its_rows() -> None:
    found = where_time_goes(table(), SMALL)
    assert {row["module"]: row["forms"] for row in found["modules"]} == {
        "a": {"float": 0.03, "int8": 0.006},
        "b": {},
    }


def test_an_operator_shorter_than_the_profilers_cost_keeps_a_part() -> None:
    spent = {"a": (1.0, 1.0), "b": (10.0, 1.0), REST: (5.0, 3.0)}
    found = where_time_goes(table(runs=(replace(RUN, spent=spent),)), SMALL)
    shares = {row["module"]: row["share"] for row in found["modules"]}
    total = 0.02 + 8.0 + 0.1
    assert shares == pytest.approx({"a": 0.02 / total, "b": 8 / total})


def test_the_first_profiled_run_is_the_untouched_model() -> None:
    timed, later = replace(RUN, spent={}), replace(RUN, milliseconds=9.0)
    assert where_time_goes(table(runs=(timed, RUN, later)), SMALL)["milliseconds"] == 0.16


def test_where_the_profile_is_doubted_the_model_says_the_shares() -> None:
    found = where_time_goes(table("2 % of the time is found"), SMALL)
    assert [(row["module"], row["share"]) for row in found["modules"]] == [
        ("a", pytest.approx(0.5)),
        ("b", pytest.approx(0.125)),
    ]
    assert [(row["operator"], row["share"]) for row in found["operators"]] == [
        ("all operators", pytest.approx(0.375))
    ]


def test_with_a_table_of_another_model_all_is_predicted() -> None:
    more = replace(MODULES[1], name="c")
    larger = layout(
        module_map=replace(MAP, modules=(A, B, more)),
        signatures={**SMALL.signatures, "c": SMALL.signatures["a"]},
        edges=(),
    )
    found = where_time_goes(table(), larger)
    # 20, 20 and 5 us of modules and 15 us around them, of 0.2 ms.
    assert found["milliseconds"] == 0.2
    assert found["modules_share"] == pytest.approx(0.75)
    assert {row["module"]: row["milliseconds"] for row in found["modules"]} == pytest.approx(
        {"a": 0.2 / 3, "c": 0.2 / 3, "b": 0.2 / 12}
    )
    assert [row["operator"] for row in found["operators"]] == ["all operators"]


def test_shares_of_a_candidate_are_predicted_and_leave_room_for_the_rest() -> None:
    around = SimpleNamespace(
        kernel_us=lambda kernel: {"linear 16x8": 20.0, "linear 8x16": 5.0}[kernel.signature],
        around_us=lambda amounts: 15.0,
    )
    plain = replace(SMALL, edges=())  # those of conv lead elsewhere
    shares = module_shares(SimpleNamespace(model=around), plain, Candidate())
    assert shares == pytest.approx({"a": 0.5, "b": 0.125})


def test_without_a_time_of_a_form_nothing_is_divided() -> None:
    def unknown(kernel: Kernel) -> float:
        raise KeyError(kernel.form)

    model = SimpleNamespace(kernel_us=unknown, around_us=lambda amounts: 0.0)
    assert module_shares(SimpleNamespace(model=model), replace(SMALL, edges=()), Candidate()) == {}
