"""Keep kernel times for all models of this machine: made-up runs, real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.targets.device.sessions import DEFAULT, SessionSettings
from autocompress.targets.latency_model.fitting.fit import LatencyModel
from autocompress.targets.latency_model.kernel_store import joined, keep_kernels, known_kernels
from autocompress.targets.latency_model.run import REST, SURROUNDINGS, Known, Run
from autocompress.targets.workload import Kernel, Work

SIGNATURES = tuple(f"linear {letter}" for letter in "abcd")
A, B, C, D = (Kernel(signature, 8, "float", 64, 64, 4096.0) for signature in SIGNATURES)


MODEL = LatencyModel({}, {"model": 3.0}, {}, 0.0)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    return tmp_path / "latency_kernels"


def run(times: dict[Kernel, float], role: str = "profiled") -> Run:
    named = {f"m{i}": kernel for i, kernel in enumerate(times)}
    spent = {name: (times[kernel], 1.0) for name, kernel in named.items()}
    ms = (sum(times.values()) + 5) / 1e3
    spent[REST] = (5.0, 1.0)
    return Run(role, Work(named, {"model": 1.0}), ms, (ms, ms), spent)


def test_kernels_are_known_to_the_next_model() -> None:
    assert known_kernels(DEFAULT, SIGNATURES) == {}
    keep_kernels(DEFAULT, [run({A: 10.0, B: 20.0})], MODEL)
    assert known_kernels(DEFAULT, SIGNATURES) == {
        A[:5]: Known(pytest.approx(10.0), 4096.0, 1),
        B[:5]: Known(pytest.approx(20.0), 4096.0, 1),
    }
    assert list(known_kernels(DEFAULT, ["linear b"])) == [B[:5]]
    assert known_kernels(SessionSettings(threads=2), SIGNATURES) == {}


def test_models_add_up_to_a_mean() -> None:
    keep_kernels(DEFAULT, [run({A: 10.0})], MODEL)
    keep_kernels(DEFAULT, [run({A: 40.0}), run({A: 40.0})], MODEL)
    assert known_kernels(DEFAULT, SIGNATURES)[A[:5]] == Known(pytest.approx(30.0), 4096.0, 3)


def test_runs_without_a_profile_tell_nothing(folder: Path) -> None:
    timed = Run("checked", Work({"m": A}, {}), 1.0, (1.0, 1.0))
    keep_kernels(DEFAULT, [timed], MODEL)
    assert not folder.exists()


def test_a_slower_machine_does_not_make_the_known_kernels_slower() -> None:
    """Three kernels that both have show that everything took twice as long."""
    older = {one[:5]: Known(us, 4096.0, 1) for one, us in zip((A, B, C), (10, 20, 30), strict=True)}
    slower = {place: known._replace(microseconds=2 * known[0]) for place, known in older.items()}
    fresh = {**slower, D[:5]: Known(80.0, 4096.0, 1)}
    times = {place: known.microseconds for place, known in joined(older, fresh).items()}
    assert times == pytest.approx({A[:5]: 10, B[:5]: 20, C[:5]: 30, D[:5]: 40})


def test_an_old_mean_follows_the_machine() -> None:
    place = A[:5]
    new = joined({place: Known(10.0, 4096.0, 1000)}, {place: Known(19.0, 4096.0, 1)})[place]
    assert new == Known(pytest.approx(11.0), 4096.0, 1001)


def test_a_damaged_store_is_begun_again(folder: Path) -> None:
    keep_kernels(DEFAULT, [run({A: 10.0})], MODEL)
    (path,) = folder.glob("*.json")
    path.write_text('{"format": 1, "kernels": [[1, 2]]}')
    assert known_kernels(DEFAULT, SIGNATURES) == {}
    keep_kernels(DEFAULT, [run({B: 20.0})], MODEL)
    assert list(known_kernels(DEFAULT, SIGNATURES)) == [B[:5]]


def test_costs_of_surroundings_are_kept_but_not_those_of_one_model() -> None:
    one = run({A: 10.0})
    one = replace(one, work=one.work._replace(surroundings={"model": 1.0, "rounded": 2.0}))
    model = LatencyModel({}, {"model": 3.0, "rounded": 0.5, "elsewhere": 7.0}, {}, 0.0)
    keep_kernels(DEFAULT, [one, one], model)
    known = known_kernels(DEFAULT, [])
    assert known == {(SURROUNDINGS, 0, "rounded", 0, 0): Known(0.5, 1.0, 2)}
