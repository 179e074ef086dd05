"""Count kernels and what surrounds them by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_layout import MAP, MODULES, layout, module

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.integer_form import IntegerForm
from autocompress.targets.workload import Kernel, Layout, arithmetic, workload

INT8 = ModuleConfig(8, 8)
CONV, A, B, TABLE = MODULES


@pytest.mark.parametrize(
    ("module", "config", "form"),
    [
        (A, ModuleConfig(), "float"),
        (A, ModuleConfig(4), "float"),
        (A, INT8, "int8"),
        (A, replace(INT8, activation_mode="static"), "int8-static"),
        (A, replace(INT8, activation_mode="dynamic"), "int8"),
        (CONV, INT8, "int8"),
        (CONV, replace(INT8, activation_mode="static"), "int8"),
        (CONV, replace(INT8, activation_mode="dynamic"), "int8-dynamic"),
        (A, ModuleConfig(8, 16), "int16"),
        (TABLE, ModuleConfig(8, 16), "float"),
        (A, ModuleConfig(rank_ratio=0.25), "float-rank0.25"),
        (A, replace(INT8, rank_ratio=0.5), "int8-rank0.5"),
        (CONV, ModuleConfig(rank_ratio=0.5, decomposition="tucker"), "float-tucker0.5"),
        (CONV, ModuleConfig(rank_ratio=0.5, decomposition="spatial"), "float-spatial0.5"),
        (CONV, replace(INT8, rank_ratio=0.5), "float-rank0.5"),
        (A, ModuleConfig(sparsity=0.5), "float"),
    ],
)
def test_the_form_of_a_config(module, config: ModuleConfig, form: str) -> None:
    assert layout().form(module, config) == form


def test_unsigned_and_packed_kernels_have_their_own_forms() -> None:
    unsigned = layout(integer_form=lambda module: IntegerForm.UNSIGNED)
    assert unsigned.form(A, INT8) == "int8-unsigned"
    assert unsigned.form(A, replace(INT8, activation_mode="static")) == "int8-static-unsigned"
    packed = layout(packed=lambda module, config: config.weight_bits == 4)
    assert packed.form(A, ModuleConfig(4, group_size=32)) == "nbits4-32"
    assert packed.form(A, ModuleConfig(4, group_size=32, symmetric=False)) == "nbits4-32z"
    assert packed.form(A, ModuleConfig(4, group_size=32, rank_ratio=0.5)) == "nbits4-32-rank0.5"
    assert packed.form(A, ModuleConfig(8, group_size=32)) == "float"


def test_a_module_that_has_no_rank_keeps_its_form() -> None:
    grouped = replace(CONV, groups=2)
    assert layout().form(grouped, ModuleConfig(rank_ratio=0.5)) == "float"


def test_kernels_count_multiply_adds_of_rounded_widths() -> None:
    rounding = layout(multiples={"linear": 4})
    kernel = rounding.kernel(A, ModuleConfig(), 9, 5)
    assert kernel == Kernel("linear 16x8", 4, "float", 5, 9, 12.0 * 5)
    assert rounding.kernel(A, ModuleConfig(), 15, 8).amount == 16 * 8
    assert layout().kernel(A, ModuleConfig(), 9, 5).amount == 45
    assert layout().kernel(CONV, ModuleConfig(), 8, 3).amount == 8 * 3 * 9
    # The rank is half of 8: (4, 8) and (16, 4).
    assert layout().kernel(A, ModuleConfig(rank_ratio=0.5), 16, 8).amount == 32 + 64


def test_the_width_of_an_inner_dimension_is_not_rounded_beyond_the_weight() -> None:
    rounding = layout(multiples={"linear": 32})
    assert rounding.kernel(A, ModuleConfig(), 10, 8).amount == 16 * 8


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("int8-static", "int8"),
        ("nbits4-32", "nbits"),
        ("float-rank0.5", "float"),
        ("int16", "float"),
    ],
)
def test_the_arithmetic_of_a_form(form: str, kind: str) -> None:
    assert arithmetic(Kernel("", 1, form, 1, 1, 1.0)) == kind


def test_the_untouched_model() -> None:
    work = workload(layout(), Candidate())
    assert {name: k.form for name, k in work.kernels.items()} == dict.fromkeys(
        ("conv", "a", "b", "table"), "float"
    )
    assert work.surroundings == {
        "model": 1,
        "after conv float": 1,
        "elements after conv float": 16 * 8,
        "after linear float": 2,
        "elements after linear float": 4 * 16 + 4 * 8,
        "after embedding float": 1,
        "elements after embedding float": 4 * 100,
        "tensors rounded for linear": 0,
        "elements rounded for linear": 0,
        "from floats to floats": 2,
        "elements from floats to floats": 16 * 8,
    }


def test_integers_are_converted_where_they_meet_floats() -> None:
    work = workload(layout(), Candidate.of({"conv": INT8, "a": INT8, "b": INT8}))
    found = work.surroundings
    # The graph's input is read as floats by an integer convolution, whose integers a linear module
    # reads as floats.
    assert found["from floats to integers"] == 1
    assert found["elements from floats to integers"] == 0
    assert found["from integers to floats"] == 1
    assert found["elements from integers to floats"] == 16 * 8
    assert found["tensors rounded for linear"] == 2
    assert found["elements rounded for linear"] == 4 * 8 + 4 * 16


def test_a_tensor_that_two_modules_round_is_rounded_once() -> None:
    shared = layout(linear_inputs={"a": ("t",), "b": ("t",)})
    work = workload(shared, Candidate.of({"a": INT8, "b": INT8}))
    assert work.surroundings["tensors rounded for linear"] == 1


def test_pruned_channels_are_not_computed_and_dropped_modules_not_at_all() -> None:
    half = workload(layout(), Candidate.of({"a": ModuleConfig(pruning_ratio=0.5)}))
    assert half.kernels["a"][3:] == (8, 8, 64)
    assert half.kernels["b"][3:] == (8, 8, 64)
    gone = workload(layout(), Candidate.of({"a": ModuleConfig(pruning_ratio=1.0)}))
    assert set(gone.kernels) == {"conv", "table"}
    assert "after linear float" not in gone.surroundings
    assert gone.surroundings["from floats to floats"] == 2


def test_the_digest_is_of_the_structure() -> None:
    assert layout().digest == layout(multiples={"conv": 8}).digest
    others = [
        layout(module_map=replace(MAP, modules=MODULES[:3])),
        layout(signatures={**layout().signatures, "a": "linear 16x8 bias"}),
        layout(module_map=replace(MAP, modules=(*MODULES[:3], replace(TABLE, positions=5)))),
        layout(operators="of another graph"),
    ]
    assert len({layout().digest, *(other.digest for other in others)}) == 5


def test_integer_forms_are_named_by_module() -> None:
    form = lambda m: IntegerForm.REDUCED if m.kind == "conv" else IntegerForm.UNSIGNED  # noqa: E731
    found = layout(integer_form=form).integer_forms
    assert found == {"conv": "reduced", "a": "unsigned", "b": "unsigned", "table": "unsigned"}


QKV = tuple(module(name, "linear", rows, 8) for name, rows in (("q", 16), ("k", 8), ("v", 8)))
FOUR = ModuleConfig(4, group_size=32)


def packing(**changes: object) -> Layout:
    return layout(
        module_map=replace(MAP, modules=QKV),
        signatures={one.name: f"linear {one.weight_shape[0]}x8" for one in QKV},
        packed=lambda module, config: config.weight_bits < 16,
        edges=(),
        joined=(("q", "k", "v"),),
        **changes,
    )


def test_modules_of_one_packed_form_are_one_kernel() -> None:
    work = workload(packing(), Candidate.of(dict.fromkeys("qkv", FOUR)))
    signature = "linear 16x8 and linear 8x8 and linear 8x8"
    assert work.kernels == {"q": Kernel(signature, 4, "nbits4-32", 8, 32, 256.0)}
    assert work.surroundings["after linear nbits"] == 1
    assert work.surroundings["elements after linear nbits"] == 4 * 32


@pytest.mark.parametrize(
    "other",
    [
        replace(FOUR, weight_bits=8),
        replace(FOUR, group_size=64),
        replace(FOUR, symmetric=False),
        ModuleConfig(),
    ],
)
def test_modules_of_other_forms_are_kernels_of_their_own(other: ModuleConfig) -> None:
    work = workload(packing(), Candidate.of({"q": FOUR, "k": FOUR, "v": other}))
    assert set(work.kernels) == {"q", "k", "v"}


@pytest.mark.parametrize("config", [ModuleConfig(), replace(FOUR, rank_ratio=0.5)])
def test_only_whole_packed_weights_are_joined(config: ModuleConfig) -> None:
    work = workload(packing(), Candidate.of(dict.fromkeys("qkv", config)))
    assert set(work.kernels) == {"q", "k", "v"}


def test_what_is_joined_is_part_of_the_structure() -> None:
    assert packing().digest != replace(packing(), joined=()).digest
    assert layout().digest == layout(joined=()).digest
    own = {"linear 16x8", "linear 8x8"}
    assert packing().kernel_signatures == {*own, "linear 16x8 and linear 8x8 and linear 8x8"}


def test_what_one_kernel_has_is_divided_among_its_modules_by_their_weights() -> None:
    shown = packing()
    joined = workload(shown, Candidate.of(dict.fromkeys("qkv", FOUR))).kernels
    assert shown.divided({"q": 90.0, "k": 6.0, "v": 4.0}, joined) == {"q": 50, "k": 25, "v": 25}
    assert shown.divided({"q": 8.0}, joined) == {"q": 4, "k": 2, "v": 2}
    apart = workload(shown, Candidate.of({"q": FOUR})).kernels
    assert shown.divided({"q": 90.0, "k": 6.0}, apart) == {"q": 90, "k": 6}
