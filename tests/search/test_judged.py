from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch

import autocompress as ac
from autocompress.errors import RunFolderError
from autocompress.measure.tally import Scores
from autocompress.results.front_point import FrontPoint
from autocompress.search import judged
from autocompress.search.judged import check_judged, check_study, judged_by
from autocompress.search.problem.race import open_race
from autocompress.search.problem.run_record import RunRecord
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.task.loading import settled

CPU = torch.device("cpu")


def batches(seed: int, count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        x = torch.randn(8, 4, generator=draw)
        found.append((x, (x[:, 0] > 0).long()))
    return found


def top1(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


def half(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return 0.5 * top1(outputs, targets)


TARGET = SimpleNamespace(integers_only=False)


def problem(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2).eval()
    given = {"validation": batches(0), "metric": top1, **changes}
    task = ac.Task("t", model, batches(0)[0][0], **given)
    return SimpleNamespace(
        task=task, race=open_race(task, model, CPU, seed), device=CPU, target=TARGET
    )


def record_of(found: Any) -> RunRecord:
    return RunRecord(judged=judged_by(found))


def test_the_same_data_and_metric_go_on_whatever_the_seed(tmp_path: Path) -> None:
    before = record_of(problem())
    check_judged(tmp_path, before, problem(seed=1))
    check_judged(tmp_path, RunRecord.from_json(before.to_json()), problem())
    check_judged(tmp_path, None, problem())
    check_judged(tmp_path, RunRecord(), problem())  # of an earlier version


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"validation": batches(1)},
            "was searched on another validation split \\(24 samples, now 24\\)",
        ),
        (
            {"validation": batches(0, 2)},
            "was searched on another validation split \\(24 samples, now 16\\)",
        ),
        ({"test": batches(3)}, "has figures of another test split"),
        ({"test": batches(2, 2)}, "has figures of another test split"),
        (
            {"metric": half},
            "was searched with another metric or other data: accuracy of the model itself was",
        ),
        ({"extra_metrics": {"half": half}}, "was searched with other metrics \\(accuracy\\)"),
    ],
)
def test_other_data_or_another_metric_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    before = record_of(problem(test=batches(2)))
    with pytest.raises(RunFolderError, match=f"{message}.*; choose another --out$"):
        check_judged(tmp_path, before, problem(**{"test": batches(2), **changes}))


def test_a_test_split_may_come_later_or_be_left_out_for_a_while(tmp_path: Path) -> None:
    without, first, other = problem(), problem(test=batches(2)), problem(test=batches(3))
    check_judged(tmp_path, record_of(without), first)
    check_judged(tmp_path, record_of(first), first)
    check_judged(tmp_path, record_of(first), without)
    kept = RunRecord(judged=judged_by(without, record_of(first)))
    check_judged(tmp_path, kept, first)
    with pytest.raises(RunFolderError, match="has figures of another test split"):
        check_judged(tmp_path, kept, other)
    early = {name: of for name, of in judged_by(first).items() if name != "test"}
    check_judged(tmp_path, RunRecord(judged=early), other)  # of an earlier version


def test_a_test_split_that_cannot_be_read_is_left_to_its_figures(tmp_path: Path) -> None:
    def broken():
        yield from batches(2, 1)
        raise OSError("gone")

    split = settled(broken(), "test", batches(0)[0][0], 1 << 30, False)
    found = problem()
    found.task = replace(found.task, test=split)
    assert judged_by(found)["test"] == ""


def test_another_processor_may_judge_one_sample_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = problem()
    accuracy = before.race.scores.accuracy

    def moved(by: float, device: str = "cpu") -> Any:
        race = replace(before.race, scores=Scores(accuracy - by, {}))
        return SimpleNamespace(
            task=before.task, race=race, device=torch.device(device), target=TARGET
        )

    record = record_of(before)
    with pytest.raises(RunFolderError, match="another metric or other data"):
        check_judged(tmp_path, record, moved(1 / 24))
    check_judged(tmp_path, record, moved(1 / 24, "cuda"))
    with pytest.raises(RunFolderError, match="another metric or other data"):
        check_judged(tmp_path, record, moved(2 / 24, "cuda"))
    monkeypatch.setattr(judged, "versions", lambda: {"processor": "another"})
    check_judged(tmp_path, record, moved(1 / 24))
    check_judged(tmp_path, record, moved(0.0005))


def test_what_is_not_in_memory_is_compared_by_its_scores(tmp_path: Path) -> None:
    before = problem()
    now = SimpleNamespace(
        task=before.task, race=replace(before.race, split=""), device=CPU, target=TARGET
    )
    check_judged(tmp_path, record_of(before), now)


def test_files_of_another_study_are_not_mixed_with_those_of_this_one(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="one", directions=["minimize", "minimize", "maximize"])
    for bits in (8, 4, 3):
        trial = study.ask()
        record = TrialRecord.of(trial.number, ac.Candidate.of({"a": ac.ModuleConfig(bits)}))
        for name, value in record.attributes_before().items():
            trial.set_user_attr(name, value)
        study.tell(trial, [1.0, 1.0, 1.0])

    def point(number: int, bits: int, is_uniform: bool = False) -> FrontPoint:
        numbers = ac.Measurement(100, 1.0, 0.9)
        candidate = ac.Candidate.of({"a": ac.ModuleConfig(bits)}, ac.Distillation(steps=9))
        return FrontPoint(number, candidate, numbers, numbers, "a", is_uniform=is_uniform)

    check_study(tmp_path, [], study)
    check_study(tmp_path, [point(0, 6, is_uniform=True)], study)
    check_study(tmp_path, [point(1, 4), point(2, 3)], study)
    check_study(tmp_path, [point(1, 4), point(7, 3)], study)  # restored from an earlier copy
    for others in ([point(1, 3)], [point(7, 4)], [point(0, 8, is_uniform=True), point(2, 4)]):
        with pytest.raises(RunFolderError, match=r"of another study than 'one'; choose another"):
            check_study(tmp_path, others, study)


def test_files_in_integers_throughout_are_not_mixed_with_those_of_before(tmp_path: Path) -> None:
    given = problem()
    given.target = SimpleNamespace(integers_only=True)
    now = judged_by(given)
    assert now["simulation"] == 2
    check_judged(tmp_path, RunRecord(judged=now), given)
    before = {name: value for name, value in now.items() if name != "simulation"}
    with pytest.raises(RunFolderError, match="simulated other roundings"):
        check_judged(tmp_path, RunRecord(judged=before), given)
