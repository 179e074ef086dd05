"""Standard deviations follow from how the kernels of a candidate are known."""

from __future__ import annotations

import pytest

from autocompress.targets.latency_model.fitting.fit import LatencyModel
from autocompress.targets.latency_model.fitting.uncertainty import (
    ESTIMATED,
    INTERPOLATED,
    MEASURED,
    deviation_us,
    whole_deviation,
)
from autocompress.targets.workload import Kernel, Work

WIDTHS = (64, 32)


def kernel(form: str, width: int = 64, signature: str = "linear a") -> Kernel:
    return Kernel(signature, 8, form, width, 64, float(width * 64))


def model(**changes: object) -> LatencyModel:
    grid = {kernel("float", width)[:5]: (100.0, width * 64.0) for width in WIDTHS}
    grid[kernel("float", 64, "linear b")[:5]] = (100.0, 4096.0)
    return LatencyModel(grid, {}, {}, 0.0, **changes)


def spread(given: LatencyModel, *kernels: Kernel) -> float:
    """Return the relative standard deviation, without that of the whole model."""
    work = Work({f"m{i}": one for i, one in enumerate(kernels)}, {})
    us = given.predict_us(work)
    return float((deviation_us(given, work) ** 2 - (whole_deviation(given) * us) ** 2) ** 0.5) / us


def test_more_models_make_a_kernel_more_certain() -> None:
    place = kernel("float")[:5]
    assert spread(model(), kernel("float")) == pytest.approx(MEASURED)
    assert spread(model(seen={place: 4}), kernel("float")) == pytest.approx(MEASURED / 2)


def test_interpolated_and_estimated_kernels_are_less_certain() -> None:
    assert spread(model(), kernel("float", 48)) == pytest.approx(INTERPOLATED)
    rough = model(estimated=frozenset({("linear a", "int8")}))
    assert spread(rough, kernel("int8")) == pytest.approx(ESTIMATED)
    assert ESTIMATED > INTERPOLATED > MEASURED


def test_errors_of_one_measurement_add_up_and_others_do_not() -> None:
    same = spread(model(), kernel("float"), kernel("float"))
    apart = spread(model(), kernel("float"), kernel("float", 64, "linear b"))
    assert same == pytest.approx(MEASURED)
    assert apart == pytest.approx(MEASURED / 2**0.5)


def test_more_runs_make_the_whole_more_certain() -> None:
    assert whole_deviation(model(runs=16)) == pytest.approx(whole_deviation(model()) / 4)
