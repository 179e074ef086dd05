"""Predict kernels of unmeasured forms from their class: made-up times."""

from __future__ import annotations

import pytest

from autocompress.targets.latency_model.fitting.roofline import (
    kernel_class,
    roofline_us,
    rooflines,
)
from autocompress.targets.workload import Kernel


def kernel(form: str, inputs: int, outputs: int, kind: str = "linear") -> Kernel:
    return Kernel(f"{kind} shape", 16, form, inputs, outputs, float(inputs * outputs))


def us(one: Kernel) -> float:
    """Return 2 us and a rate of 1000 multiply-adds per microsecond, or 4000 on integers."""
    return 2 + one.rows * one.amount / (1000 if one.form == "float" else 4000)


def test_a_class_is_a_kind_and_an_arithmetic() -> None:
    assert kernel_class(kernel("int8-rank0.5", 8, 8)) == "linear int8"
    assert kernel_class(kernel("nbits4-32", 8, 8)) == "linear nbits"
    assert kernel_class(kernel("int16", 8, 8, "conv")) == "conv float"


def test_a_kernel_is_predicted_from_others_of_its_class() -> None:
    shapes = [(64, 64), (64, 256), (256, 64), (256, 256), (512, 128)]
    known = [kernel(form, *shape) for form in ("float", "int8") for shape in shapes]
    costs = rooflines({one: us(one) for one in known})
    for form in ("float", "int8-rank0.25"):
        wanted = kernel(form, 384, 384)
        expected = us(wanted._replace(form=form.split("-")[0]))
        assert roofline_us(costs, wanted) == pytest.approx(expected, rel=0.1)


def test_the_float_kernels_of_a_kind_stand_for_another_arithmetic() -> None:
    linear, conv = kernel("float", 64, 64), kernel("float", 64, 64, "conv")
    costs = rooflines({linear: 10.0, conv: 90.0})
    assert roofline_us(costs, kernel("int8", 64, 64, "conv")) > 40
    assert roofline_us(costs, kernel("nbits4-32", 64, 64)) < 12
    assert roofline_us(costs, kernel("float", 64, 64, "recurrent")) > 0
    with pytest.raises(KeyError, match="int8"):
        roofline_us({}, kernel("int8", 64, 64))


def test_a_lookup_moves_its_rows_and_multiplies_nothing() -> None:
    small, large = (kernel("float", n, 64, "embedding") for n in (100, 100_000))
    costs = rooflines({small: 3.0})
    assert roofline_us(costs, large) == pytest.approx(roofline_us(costs, small))
