"""Learn from the files of a front where the latency model was wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autocompress import Candidate, FrontPoint, Measurement, ModuleConfig, ParetoFront
from autocompress.errors import AutocompressError
from autocompress.search.finish import front as finishing
from autocompress.search.finish.finalists import Finalist
from autocompress.search.finish.front import PROMISE, finish, relearn

BASE = Measurement(1000, 4.0, 0.9)


def candidate(bits: int) -> Candidate:
    return Candidate.of({"a": ModuleConfig(weight_bits=bits)})


def point(trial: int, size: int, ms: float) -> FrontPoint:
    measured = Measurement(size, ms, 0.9)
    return FrontPoint(trial, candidate(8), measured, measured, "")


@dataclass(frozen=True)
class Table:
    """A table that predicts a millisecond per bit until it was told something."""

    told: tuple = ()
    note: str = "fitted again"
    saved: list[Path] = field(default_factory=list)

    def with_front(self, works, milliseconds) -> Table:
        return replace(self, told=(*zip(works, milliseconds, strict=True),))

    def save(self, path: Path) -> None:
        self.saved.append(path)


def bench() -> SimpleNamespace:
    found = SimpleNamespace(table=Table(), layout=None, float_ms=2.0, table_float_ms=3.0)
    found.latency_ms = lambda c: (
        dict(found.table.told)[c] * 2.0 / 3.0
        if found.table.told
        else float(c.config("a").weight_bits)
    )
    found.latency_source = "measured"
    found.space = SimpleNamespace(
        objectives=(), recovery=SimpleNamespace(student_lesson=lambda: Candidate().distillation)
    )
    found.baseline = BASE
    found.trainer = SimpleNamespace(teacher=SimpleNamespace(computed=3, read=4))
    found.stitcher = SimpleNamespace(library=SimpleNamespace(made=5, reused=6))
    return found


FINALISTS = [Finalist(3, candidate(8), (500, 1.0, 0.9)), Finalist(5, candidate(4), (400, 1.0, 0.9))]


def test_measured_points_are_told_in_the_tables_own_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(finishing, "workload", lambda layout, c: c)
    given = bench()
    front = ParetoFront.of(BASE, [point(5, 400, 1.5), point(3, 500, 1.0), point(9, 900, 9.0)])
    errors = relearn(given, FINALISTS, front, tmp_path)
    assert given.table.told == ((candidate(8), 1.5), (candidate(4), 2.25)), "times 3 / 2"
    assert given.table.saved == [tmp_path / "latency_table.json"]
    assert errors["mape"] == pytest.approx(0.0), "the errors are those of the new table"


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Finish with a made-up end: `error` of the predictions, finalists before and after a refit."""
    lines, verified = [], []

    def run(
        error: float | None,
        again: tuple[Finalist, ...] = (),
        room: bool = True,
        source: str = "measured",
        first: list[Finalist] = FINALISTS,
    ) -> dict:
        given, answers = bench(), iter([list(first), list(again)])
        given.latency_source = source

        def verify(finalists, *_):
            verified.append([f.number for f in finalists])
            points = [point(f.number, int(f.values[0]), 1.0) for f in finalists]
            check = {"warning": ""} | ({} if error is None else {"mape": error, "bias": error})
            return ParetoFront.of(BASE, points), check

        monkeypatch.setattr(finishing, "choose_finalists", lambda *_: next(answers))
        monkeypatch.setattr(finishing, "recovered", lambda study, finalists, *_: finalists)
        monkeypatch.setattr(finishing, "verify_front", verify)
        monkeypatch.setattr(finishing, "relearn", lambda *_: {"mape": 0.01})
        monkeypatch.setattr(finishing, "lessons", lambda study: [])
        record = {
            "task": "t", "source": None, "model": "m", "seed": 0, "versions": {},
            "training_dtype": "f",
        }  # fmt: skip
        progress = SimpleNamespace(line=lines.append, phase=None)
        clock = SimpleNamespace(has_room=lambda count: room)
        finish(None, given, None, tmp_path, record, 0, clock, lambda: False, progress)
        return record

    run.lines, run.verified = lines, verified
    return run


OTHER = Finalist(7, candidate(3), (300, 1.0, 0.9))


def test_predictions_that_hold_are_kept(finished) -> None:
    record = finished(PROMISE)
    assert finished.verified == [[3, 5]]
    assert "refit" not in record
    assert record["teacher"] == {"computed": 3, "read": 4}
    assert record["library"] == {"made": 5, "reused": 6}
    assert finished.lines == [
        "latency model on the 2 files of the front: mean error 6.0%, bias +6.0%"
    ]


def test_a_wrong_model_is_fitted_again_and_brings_more_trials(finished) -> None:
    record = finished(0.2, (FINALISTS[0], OTHER))
    assert finished.verified == [[3, 5], [3, 5, 7]]
    assert record["refit"] == {"mape": 0.01}
    assert record["latency_note"] == "fitted again"
    assert finished.lines[-1] == (
        "latency model: 20.0% wrong on the front, more than the 6% promised; fitted again to what "
        "was measured "
        "(1.0% on the same points), which brings 1 more trials to the front"
    )


def test_without_time_no_more_files_are_made(finished) -> None:
    finished(0.2, (OTHER,), room=False)
    assert finished.verified == [[3, 5]]


def test_a_model_of_another_machine_is_not_fitted_here(finished) -> None:
    assert "refit" not in finished(0.2, source="analytic")
    assert "refit" not in finished(None)


def test_a_search_in_which_nothing_finished_names_the_causes(finished, tmp_path: Path) -> None:
    with pytest.raises(AutocompressError) as caught:
        finished(0.0, first=[])
    assert str(caught.value) == (
        f"search: no trial finished; see the causes in {tmp_path / 'trials.csv'}"
    )
