"""Check that each form of integers holds what it says, and that its products fit where it is called
portable.
"""

from __future__ import annotations

import pytest
import torch

from autocompress.integer_form import IntegerForm

SIGNED, REDUCED, UNSIGNED = IntegerForm.SIGNED, IntegerForm.REDUCED, IntegerForm.UNSIGNED


def test_widths_and_largest_values() -> None:
    assert [form.bits for form in (SIGNED, REDUCED, UNSIGNED)] == [8, 7, 8]
    assert [form.largest for form in (SIGNED, REDUCED, UNSIGNED)] == [127, 63, 127]
    assert [form.portable for form in (SIGNED, REDUCED, UNSIGNED)] == [False, True, True]


def test_two_products_fit_16_bits_in_the_reduced_form_only() -> None:
    """Add two products with 255, as PMADDUBSW does in a saturating int16."""

    def sums(form: IntegerForm) -> tuple[int, int]:
        return 255 * 2 * (-form.largest - 1), 255 * 2 * form.largest

    assert -(2**15) <= sums(REDUCED)[0] < sums(REDUCED)[1] < 2**15
    assert sums(SIGNED)[0] < -(2**15)
    assert sums(SIGNED)[1] >= 2**15


@pytest.mark.parametrize(
    ("values", "forms"),
    [
        ([], {SIGNED, REDUCED, UNSIGNED}),
        ([0], {SIGNED, REDUCED, UNSIGNED}),
        ([63, -64], {SIGNED, REDUCED, UNSIGNED}),
        ([64, 0], {SIGNED, UNSIGNED}),
        ([-65, 0], {SIGNED, UNSIGNED}),
        ([127, -128], {SIGNED, UNSIGNED}),
    ],
)
def test_a_form_holds_the_integers_of_its_range(values: list[int], forms: set[IntegerForm]) -> None:
    integers = torch.tensor(values, dtype=torch.int8)
    assert {form for form in IntegerForm if form.holds(integers)} == forms


def test_forms_are_written_by_name() -> None:
    assert IntegerForm("reduced") is REDUCED
    assert f"{UNSIGNED}" == "unsigned"
