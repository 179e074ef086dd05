"""The fit finds again what made the times, and does not trust one disturbed profile."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from autocompress.targets.latency_model.fitting.fit import LatencyModel
from autocompress.targets.latency_model.run import REST, SURROUNDINGS, Known, Run, profiler_overhead
from autocompress.targets.workload import Kernel, Work

OVERHEAD = 1.5
COST = {("a", "float"): 40.0, ("a", "int8"): 15.0, ("b", "float"): 90.0, ("b", "int8"): 30.0}
BORDER = 6.0


def kernel(signature: str, form: str, width: int = 64, rows: int = 8) -> Kernel:
    return Kernel(f"linear {signature}", rows, form, width, 64, float(width * 64))


def run(forms: str, disturbance: float = 1.0, role: str = "profiled") -> Run:
    """A chain of modules; each change of form costs a conversion between them."""
    named = [
        ("a" if i % 2 == 0 else "b", {"f": "float", "i": "int8"}[form])
        for i, form in enumerate(forms)
    ]
    changes = sum(one != other for one, other in pairwise(forms))
    wall = sum(COST[one] for one in named) + BORDER * changes + 3.0
    kernels = {f"m{i}": kernel(*one) for i, one in enumerate(named)}
    spent = {f"m{i}": (disturbance * COST[one] + OVERHEAD, 1) for i, one in enumerate(named)}
    spent[REST] = (disturbance * (BORDER * changes + 3.0) + OVERHEAD * (1 + changes), 1 + changes)
    return Run(
        role,
        Work(kernels, {"model": 1.0, "changes": float(changes)}),
        wall / 1e3,
        (wall / 1e3, wall / 1e3),
        spent,
    )


MIXTURES = ["ffff", "iiii", "fifi", "iiff", "fiif", "iffi", "ffii"]


def test_the_cost_of_profiling_is_taken_out() -> None:
    assert profiler_overhead([run(forms) for forms in MIXTURES]) == pytest.approx(
        OVERHEAD, abs=0.01
    )


def test_kernels_and_conversions_are_found_again() -> None:
    model = LatencyModel.of([run(forms) for forms in MIXTURES])
    for (signature, form), cost in COST.items():
        assert model.kernel_us(kernel(signature, form)) == pytest.approx(cost, rel=0.02)
    for forms in ("ifif", "fffi", "iiif"):
        assert model.predict_us(run(forms).work) == pytest.approx(
            run(forms).milliseconds * 1e3, rel=0.02
        )


def test_a_profile_that_was_disturbed_is_held_to_the_wall_time() -> None:
    model = LatencyModel.of(
        [run(forms, 1.6 if i == 2 else 1.0) for i, forms in enumerate(MIXTURES)]
    )
    assert model.predict_us(run("ifif").work) == pytest.approx(
        run("ifif").milliseconds * 1e3, rel=0.05
    )


def test_time_follows_the_steps_of_a_kernel_not_a_line() -> None:
    """Widths up to a multiple of 16 take the time of the multiple.

    One width is slower than the next larger.
    """
    times = {16: 30.0, 32: 22.0, 48: 33.0, 64: 44.0}
    runs = []
    for width, us in times.items():
        work = Work({"m": kernel("a", "int8", width)}, {"model": 1.0})
        runs.append(
            Run("profiled", work, (us + 1) / 1e3, (0.0, 0.0), {"m": (us, 1), REST: (1.0, 1)})
        )
    model = LatencyModel.of(runs)
    found = [model.kernel_us(kernel("a", "int8", width)) for width in times]
    assert found == pytest.approx(list(times.values()), rel=0.02)
    rounded = kernel("a", "int8", 40)._replace(amount=48.0 * 64)
    assert not model.measured(rounded)
    assert model.kernel_us(rounded) == pytest.approx(times[48], rel=0.02)


def test_rows_between_two_tables_are_interpolated() -> None:
    runs = []
    for rows, us in ((8, 20.0), (64, 132.0)):
        work = Work({"m": kernel("a", "float", rows=rows)}, {"model": 1.0})
        runs.append(
            Run("profiled", work, (us + 1) / 1e3, (0.0, 0.0), {"m": (us, 1), REST: (1.0, 1)})
        )
    assert LatencyModel.of(runs).kernel_us(kernel("a", "float", rows=36)) == pytest.approx(
        76.0, rel=0.02
    )
    with pytest.raises(KeyError, match="int8"):
        LatencyModel.of(runs).kernel_us(kernel("a", "int8"))


def test_whole_models_correct_what_the_parts_miss() -> None:
    """Everything on integers takes 10 % longer in a whole model than its profile says, as when
    caches are shared.
    """
    runs = []
    for forms in MIXTURES:
        one = run(forms)
        extra = 0.1 * sum(
            COST[k.signature.split()[1], k.form]
            for k in one.work.kernels.values()
            if k.form == "int8"
        )
        ms = one.milliseconds + extra / 1e3
        runs.append(Run("profiled", one.work, ms, (ms, ms), one.spent))
    model = LatencyModel.of(runs)
    errors = [model.predict_us(r.work) / (r.milliseconds * 1e3) - 1 for r in runs]
    assert np.abs(errors).max() < 0.03


def test_known_kernels_are_taken_at_the_speed_of_the_runs() -> None:
    """The machine is half as fast as it was when the known kernels were measured."""
    known = {
        kernel(*one)[:5]: Known(cost / 2, 4096.0, 3)
        for one, cost in COST.items()
        if one != ("b", "int8")
    }
    narrow = kernel("a", "int8", 32)
    known[narrow[:5]] = Known(COST["a", "int8"] / 4, 2048.0, 1)
    model = LatencyModel.of([run("ffff"), run("ifif"), run("fiff")], known=known)
    assert model.kernel_us(narrow) == pytest.approx(COST["a", "int8"] / 2, rel=0.05)
    assert model.measured(narrow)
    assert model.kernel_us(kernel("b", "float")) == pytest.approx(COST["b", "float"], rel=0.05)
    assert model.seen[narrow[:5]] == 1
    assert model.seen[kernel("b", "float")[:5]] == 3 + 3


def test_a_form_without_a_time_is_estimated_where_that_is_allowed() -> None:
    runs = [run(forms) for forms in ("ffff", "ifif", "ffif")]
    missing = kernel("b", "int8")
    with pytest.raises(KeyError, match="int8"):
        LatencyModel.of(runs).kernel_us(missing)
    model = LatencyModel.of(runs, estimated=[("linear b", "int8")])
    assert not model.shows(missing)
    assert 0.5 * COST["a", "int8"] < model.kernel_us(missing) < 2 * COST["b", "float"]
    assert model.kernel_us(kernel("a", "int8")) == pytest.approx(COST["a", "int8"], rel=0.1)


def test_verified_files_alone_make_a_model() -> None:
    front = [replace(run(forms, role="front"), spent={}) for forms in MIXTURES]
    model = LatencyModel.of(front)
    for one in front:
        assert model.predict_us(one.work) == pytest.approx(one.milliseconds * 1e3, rel=0.1)


def test_a_form_that_only_a_verified_file_has_is_estimated() -> None:
    front = replace(run("fifi", role="front"), spent={})
    model = LatencyModel.of([run("ffff"), front])
    assert model.predict_us(front.work) < model.predict_us(run("ffff").work)


def test_known_surroundings_count_where_the_runs_do_not_show_them() -> None:
    """No run changes its form, so that only older models tell what a conversion costs."""
    runs = [run("ffff"), run("iiii")]
    known = {(SURROUNDINGS, 0, "changes", 0, 0): Known(BORDER, 1.0, 9)}
    wanted = run("fifi")
    without, with_it = (LatencyModel.of(runs, known=times) for times in ({}, known))
    assert with_it.predict_us(wanted.work) - without.predict_us(wanted.work) > 2 * BORDER
    assert with_it.predict_us(wanted.work) == pytest.approx(wanted.milliseconds * 1e3, rel=0.05)
