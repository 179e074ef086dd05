"""Learn from the files of a front where the latency model was wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autocompress import Candidate, FrontPoint, Measurement, ModuleConfig, ParetoFront
from autocompress.errors import AutocompressError
from autocompress.results.files import write_json
from autocompress.results.limits import Limits
from autocompress.search.evaluate.training_plan import LongPlan
from autocompress.search.finish import front as finishing
from autocompress.search.finish.finalists import Finalist
from autocompress.search.finish.front import FrontMaker
from autocompress.search.finish.learning import PROMISE
from autocompress.search.problem.problem import Baseline
from autocompress.search.problem.run_record import RunRecord

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


RECOVERY = SimpleNamespace(student_lesson=lambda: Candidate().distillation)


FLOAT_FILES = Baseline(BASE, 2.0, 1.0)
SPACE = SimpleNamespace(activation_range="squared_error", objectives=(), recovery=RECOVERY)
TRAINER = SimpleNamespace(teacher=SimpleNamespace(computed=3, read=4), arithmetic=torch.float32)
STITCHER = SimpleNamespace(library=SimpleNamespace(made=5, reused=6), apply=lambda candidate: None)


@dataclass(frozen=True)
class MadeUpProblem:
    """A problem whose float model takes 2 ms in this run and 3 ms by its table."""

    table: Table = Table()
    latency_source: str = "measured"
    layout: None = None
    table_float_ms: float = 3.0
    float_files: Baseline = FLOAT_FILES
    baseline: Measurement = BASE
    space: SimpleNamespace = field(default_factory=lambda: SPACE)
    trainer: SimpleNamespace = field(default_factory=lambda: TRAINER)
    stitcher: SimpleNamespace = field(default_factory=lambda: STITCHER)
    task: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(pretrained=None, towers=None)
    )

    def latency_ms(self, candidate: Candidate) -> float:
        if self.table.told:
            return dict(self.table.told)[candidate] * 2.0 / 3.0
        return float(candidate.config("a").weight_bits)


FINALISTS = [
    Finalist(3, candidate(8), 500, 1.0, (0.9,)),
    Finalist(5, candidate(4), 400, 1.0, (0.9,)),
]


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Make a front of made-up measurements, with finalists before and after a refit."""
    lines, verified = [], []

    def run(
        error: float | None,
        again: tuple[Finalist, ...] = (),
        room: bool = True,
        source: str = "measured",
        first: list[Finalist] = FINALISTS,
        timed: int = 2,
        refused: dict[int, str] | None = None,
        late: tuple[int, ...] = (),
        is_better: bool = True,
    ) -> RunRecord:
        problem, answers = MadeUpProblem(latency_source=source), iter([list(first), list(again)])
        refitted = replace(problem, table=Table(told=((None, 1.0),), note="fitted again"))

        def finish(finalists, *_):
            verified.append([f.number for f in finalists])
            missing = {*(refused or {}), *late}
            made = [f for f in finalists if f.number not in missing]
            points = [point(f.number, f.size_bytes, 1.0) for f in made]
            check = {"warning": "", "candidates": len(finalists)}
            if error is not None and len(verified) <= timed:
                check |= {"mape": error / len(verified), "bias": error}
            return ParetoFront.of(BASE, points), check

        monkeypatch.setattr(finishing, "choose_finalists", lambda *_: next(answers))
        monkeypatch.setattr(finishing, "recover_finalists", lambda finalists, *_: finalists)
        monkeypatch.setattr(finishing, "relearn", lambda *_: refitted if is_better else problem)
        monkeypatch.setattr(finishing, "errors_on", lambda *_: {"mape": 0.01})
        monkeypatch.setattr(finishing, "lessons", lambda study: [])
        progress = SimpleNamespace(line=lines.append, phase=None)
        clock = SimpleNamespace(
            has_room=lambda count, seconds: room, next_file_s=1.0, recovery_deadline=None
        )
        files = SimpleNamespace(finish=finish, refused=refused or {})
        parts = (
            None,
            problem,
            Limits(),
            tmp_path,
            files,
            LongPlan(0),
            clock,
            lambda: False,
            progress,
        )
        maker = FrontMaker(*parts)
        _, record = maker.make(RunRecord(task="t", model="m"))
        return record

    run.lines, run.verified = lines, verified
    return run


def test_a_file_that_was_refused_is_not_said_to_be_late(finished) -> None:
    finished(None, refused={3: "outputs are not finite"})
    assert finished.lines == ["trial 3: left out of the front: outputs are not finite"]
    finished.lines.clear()
    finished(None, refused={3: "outputs are not finite"}, late=(5,))
    assert finished.lines == [
        "trial 3: left out of the front: outputs are not finite",
        "0 of 2 points of the front were run before the time was up; the same command runs more",
    ]


OTHER = Finalist(7, candidate(3), 300, 1.0, (0.9,))


def test_predictions_that_hold_are_kept(finished) -> None:
    record = finished(PROMISE)
    assert finished.verified == [[3, 5]]
    assert record.refit == {}, "that of an earlier run is not told as of this one"
    assert record.teacher == {"computed": 3, "read": 4}
    assert record.library == {"made": 5, "reused": 6}
    assert finished.lines == [
        "latency model on the 2 files of the front that it predicted: mean error 6.0%, bias +6.0%"
    ]


def test_a_wrong_model_is_fitted_again_and_brings_more_trials(finished) -> None:
    record = finished(0.2, (FINALISTS[0], OTHER))
    assert finished.verified == [[3, 5], [3, 5, 7]]
    assert record.refit == {"mape": 0.01, "before": 0.2}
    assert record.latency_note == "fitted again"
    assert finished.lines[-2:] == [
        "latency model: 20.0% wrong on the front, more than the promised 6%; fitted again to "
        "what was measured (1.0% on the same points), which brings 1 more trials to the front",
        "latency model on the 3 files of the front that it predicted: mean error 10.0%, "
        "bias +20.0%",
    ]
    assert record.front_check == {
        "warning": "",
        "candidates": 3,
        "mape": 0.1,
        "bias": 0.2,
    }, "of the timing that front.json holds"


def test_a_fit_that_is_no_better_is_said_and_left_out(finished) -> None:
    record = finished(0.2, is_better=False)
    assert finished.verified == [[3, 5]]
    assert record.refit == {}
    assert finished.lines[-1] == (
        "latency model: 20.0% wrong on the front, more than the promised 6%; a fit to what was "
        "measured is no better"
    )


def test_the_first_check_stays_if_nothing_was_timed_again(finished) -> None:
    record = finished(0.2, (FINALISTS[0], OTHER), timed=1)
    assert finished.verified == [[3, 5], [3, 5, 7]]
    assert record.front_check["candidates"] == 2


def test_without_time_no_more_files_are_made(finished) -> None:
    finished(0.2, (OTHER,), room=False)
    assert finished.verified == [[3, 5]]


def test_a_model_of_another_machine_is_not_fitted_here(finished) -> None:
    assert finished(0.2, source="analytic").refit == {}
    finished.verified.clear()
    assert finished(None).refit == {}


def test_a_search_in_which_nothing_finished_keeps_the_first_files(finished, tmp_path: Path) -> None:
    front = ParetoFront.of(BASE, [point(0, 500, 1.0)])
    write_json(tmp_path / "front.json", front.to_json())
    assert finished(0.0, first=[]).front_check is None
    assert finished.verified == []


def test_a_search_in_which_nothing_finished_names_the_causes(finished, tmp_path: Path) -> None:
    with pytest.raises(AutocompressError) as caught:
        finished(0.0, first=[])
    assert str(caught.value) == (
        f"search: no trial finished; see the causes in {tmp_path / 'trials.csv'}"
    )
