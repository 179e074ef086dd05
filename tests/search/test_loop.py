"""Whole searches on a newcomer's own models: files that run, limits, faults, resumption."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import optuna
import pytest
import yaml
from run_folder import rows

import autocompress as ac
from autocompress.candidate import Candidate
from autocompress.errors import LimitError, NotComputableError, RunFolderError
from autocompress.results import files
from autocompress.results.measurement import score_words
from autocompress.results.pareto import hypervolume, non_dominated
from autocompress.search import loop, opening
from autocompress.search.evaluate import judge as trial_module
from autocompress.search.evaluate.training_plan import TrainingPlan
from autocompress.search.finish import first_files, front_files
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.setup import Setup
from autocompress.search.propose.uniform import uniform_parameters
from autocompress.search.workers import worker
from autocompress.search.workers.lease import LEASE_S
from autocompress.search.workers.storage import open_study

pytestmark = pytest.mark.slow

SPACE = {
    "modules": [
        {"role": "head", "weight_bits": [8, 16], "activation_bits": [8, 32]},
        {
            "match": "*",
            "weight_bits": [4, 8],
            "activation_bits": [8, 32],
            "rank_ratio": [0.25, 1.0],
            "pruning_ratio": {"low": 0.0, "high": 0.5, "step": 0.25},
        },
    ],
    "distillation": {"alpha": {"low": 0.0, "high": 1.0}, "temperature": [1, 2], "steps": 5},
}


TEXT_SPACE = {**SPACE, "modules": [{"role": "embedding", "weight_bits": [4, 8]}, *SPACE["modules"]]}


@pytest.fixture(scope="module")
def finished(
    cnn_task, whole_tables, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ac.SearchResult, Path]:
    folder = tmp_path_factory.mktemp("run") / "cnn"
    with whole_tables():
        return ac.search(cnn_task, SPACE, n_trials=14, out=folder, quiet=True), folder


def test_the_run_folder_holds_what_is_promised(finished: tuple[ac.SearchResult, Path]) -> None:
    result, folder = finished
    assert {
        "run.json",
        "study.journal",
        "trials.csv",
        "sensitivity.csv",
        "front.json",
        "report.html",
        "front.csv",
        "models",
    } <= {p.name for p in folder.iterdir()}
    run = json.loads((folder / "run.json").read_text())
    assert {"task", "space", "target", "seed", "versions", "baseline"} <= set(run)
    assert run["latency_check"]["candidates"] >= 20
    assert [r["number"] for r in rows(folder)] == [str(i) for i in range(14)]
    assert list(rows(folder)[0]) == [
        "number",
        "state",
        "size_bytes",
        "latency_ms",
        "accuracy",
        "seconds",
        "cause",
    ]
    with (folder / "sensitivity.csv").open() as file:
        assert file.readline().strip() == "module,config,divergence,bytes,ms"
    assert run["library"]["reused"] > run["library"]["made"]
    assert {row["module"] for row in run["modules"]} == set(result.front.points[0].parts)
    assert len(result.front) >= 2


def test_every_point_is_a_file_that_was_run(
    finished: tuple[ac.SearchResult, Path], cnn_task
) -> None:
    result, folder = finished
    for point in result.front:
        place = folder / point.artifact
        assert {p.name for p in place.iterdir()} == {
            "model.onnx",
            "recipe.yaml",
            "model.safetensors",
            "README.md",
        }
        assert point.measured.size_bytes == (place / "model.onnx").stat().st_size
        assert point.predicted.size_bytes == pytest.approx(point.measured.size_bytes, rel=0.01)
        assert point.measured.verified
        assert point.measured.latency_ms > 0
        bytes_of_modules = sum(part.size_bytes for part in point.parts.values())
        assert 0.5 < bytes_of_modules / point.measured.size_bytes < 1
        times = [part.latency_ms for part in point.parts.values()]
        assert 0 < sum(times) < point.measured.latency_ms
        session = onnxruntime.InferenceSession(
            str(place / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        outputs = [
            session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
            for x, _ in cnn_task.validation
        ]
        answers = np.concatenate([y.numpy() for _, y in cnn_task.validation])
        assert point.measured.accuracy == pytest.approx(
            float((np.concatenate(outputs).argmax(1) == answers).mean())
        )
        assert point.measured.test_accuracy is not None
        assert point.marked == (abs(point.measured.accuracy - point.predicted.accuracy) > 0.005)
        recipe = yaml.safe_load((place / "recipe.yaml").read_text())
        assert Candidate.from_json(recipe["candidate"]) == point.candidate


def test_exported_points_are_copies(finished: tuple[ac.SearchResult, Path], tmp_path: Path) -> None:
    result, folder = finished
    point = result.front.smallest()
    place = ac.export(result, point, tmp_path / "best")
    assert (place / "model.onnx").read_bytes() == (
        folder / point.artifact / "model.onnx"
    ).read_bytes()


def test_a_transformer_of_ones_own(transformer_task, tmp_path: Path) -> None:
    result = ac.search(transformer_task, TEXT_SPACE, n_trials=8, out=tmp_path / "run", quiet=True)
    smallest = result.front.smallest()
    assert smallest.measured.size_bytes < result.front.baseline.size_bytes / 2
    assert smallest.measured.test_accuracy is None, "the task has no test split"


def test_the_same_seed_gives_the_same_trials_and_another_one_others(
    finished, cnn_task, tmp_path: Path
) -> None:
    def candidates(folder: Path) -> list[dict]:
        study = open_study(str(folder / "study.journal"))
        return [t.user_attrs["candidate"] for t in study.trials][:6]

    for seed in (0, 1):
        ac.search(
            cnn_task,
            SPACE,
            n_trials=6,
            seed=seed,
            out=tmp_path / str(seed),
            quiet=True,
            finalize_steps=0,
        )
    assert candidates(tmp_path / "0") == candidates(finished[1])
    assert candidates(tmp_path / "1") != candidates(finished[1])


def test_more_trials_continue_and_never_worsen_the_front(cnn_task, tmp_path: Path) -> None:
    from autocompress.results.pareto import hypervolume

    def volume(folder: Path) -> float:
        values = [
            (float(r["size_bytes"]), float(r["latency_ms"]), 1 - float(r["accuracy"]))
            for r in rows(folder)
            if r["state"] == "COMPLETE"
        ]
        return hypervolume(values, (1e6, 100.0, 1.0))

    ac.search(cnn_task, SPACE, n_trials=5, out=tmp_path, quiet=True)
    first, before = rows(tmp_path), volume(tmp_path)
    ac.search(cnn_task, SPACE, n_trials=8, out=tmp_path, quiet=True)
    assert rows(tmp_path)[:5] == first
    assert len(rows(tmp_path)) == 8
    assert volume(tmp_path) >= before


def test_what_is_over_budget_is_never_evaluated(
    finished, cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second proposal of every guided search is the uniform 8-bit model, here a byte larger
    than allowed.
    """
    uniform = int(rows(finished[1])[1]["size_bytes"])
    judged: list[int] = []
    original = trial_module.Judge._race
    monkeypatch.setattr(
        trial_module.Judge, "_race", lambda self, *given: judged.append(1) or original(self, *given)
    )
    result = ac.search(
        cnn_task, SPACE, n_trials=10, out=tmp_path, max_size=f"{uniform - 1}B", quiet=True
    )
    over = [r for r in rows(tmp_path) if r["cause"].startswith("over budget: max_size by")]
    assert "1" in [r["number"] for r in over]
    assert all(r["state"] == "PRUNED" and not r["accuracy"] for r in over)
    assert len(judged) <= 10 - len(over)
    assert all(p.measured.size_bytes < uniform for p in result.front)


def test_impossible_limits_are_said_early_and_missed_ones_give_the_nearest(
    cnn_task, tmp_path: Path
) -> None:
    with pytest.raises(LimitError, match="contradicts the search space, whose smallest file has"):
        ac.search(cnn_task, SPACE, n_trials=3, out=tmp_path / "a", max_size="100B", quiet=True)
    result = ac.search(
        cnn_task, SPACE, n_trials=4, out=tmp_path / "b", max_latency="0.001x", quiet=True
    )
    assert len(result.front) == 1, "nobody is left empty-handed"
    assert result.shortfall.startswith("no point meets the limits; the nearest has ")
    assert result.shortfall.endswith(" ms above the limit")


def test_limits_that_nothing_can_reach_are_said_before_the_first_trial(
    cnn_task, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    result = ac.search(
        cnn_task, SPACE, n_trials=2, out=tmp_path, max_latency="0.001x", finalize_steps=0
    )
    said = " ".join(capsys.readouterr().err.split())
    assert "limits: no candidate of the space is predicted to keep" in said
    assert "the nearest has" in said.partition("searching, 2 trials")[0]
    assert result.shortfall


def test_extra_metrics_are_limits(cnn_task, tmp_path: Path) -> None:
    """Here one that falls where accuracy need not: the mean margin between the two best classes."""

    def margin(outputs, targets) -> float:
        best = outputs.topk(2, dim=1).values
        return float((best[:, 0] - best[:, 1]).mean())

    task = replace(cnn_task, extra_metrics={"margin": margin})
    result = ac.search(
        task,
        SPACE,
        n_trials=12,
        out=tmp_path,
        min_metric={"margin": "100%"},
        quiet=True,
        finalize_steps=0,
    )
    floor = result.limits.floors["margin"]
    assert floor == pytest.approx(result.front.baseline.metrics["margin"])
    trials = [t for t in open_study(str(tmp_path / "study.journal")).trials if t.values]
    for trial in trials:
        missed = trial.constraints["min_metric margin"]
        assert missed == pytest.approx(floor - trial.user_attrs["metrics"]["margin"])
    assert any(t.constraints["min_metric margin"] > 0 for t in trials), (
        "the limit is one that some miss"
    )
    kept = [p for p in result.front if p.measured.metrics["margin"] >= floor - 0.02]
    assert len(kept) == len(result.front)
    with pytest.raises(
        LimitError, match="'margins' is no extra metric of the task; nearest: margin"
    ):
        ac.search(
            task, SPACE, n_trials=1, out=tmp_path / "b", min_metric={"margins": 0.5}, quiet=True
        )


def test_an_accuracy_that_nothing_can_keep_is_said_after_the_first_trial(
    cnn_task, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    few = {"modules": [{"match": "*", "weight_bits": [2, 3], "pruning_ratio": [0.5, 0.75]}]}
    ac.search(cnn_task, few, n_trials=2, out=tmp_path, max_accuracy_drop=0.001, finalize_steps=0)
    said = " ".join(capsys.readouterr().err.split())
    assert "limits: the candidate with the least predicted loss (" in said
    first = open_study(str(tmp_path / "study.journal")).trials[0]
    assert (
        f"misses max_accuracy_drop by {score_words(first.constraints['max_accuracy_drop'])}"
        in said.partition("trial 2/2")[0]
    )


def sharpness(outputs, targets) -> float:
    """Minus the mean probability of the right class's rivals times ten.

    Falls where accuracy need not.
    """
    return -10 * float(1 - outputs.softmax(1).gather(1, targets[:, None]).mean())


def test_extra_metrics_are_objectives(cnn_task, tmp_path: Path) -> None:
    """Then the front holds what nothing beats in size, latency, accuracy and them."""
    task = replace(cnn_task, extra_metrics={"sharpness": sharpness})
    space = {**SPACE, "objectives": ["sharpness"]}
    result = ac.search(task, space, n_trials=12, out=tmp_path / "a", quiet=True, finalize_steps=0)
    study = open_study(str(tmp_path / "a" / "study.journal"), objectives=["sharpness"])
    assert [d.name for d in study.directions] == ["MINIMIZE", "MINIMIZE", "MAXIMIZE", "MAXIMIZE"]
    told = [t for t in study.trials if t.values and not t.user_attrs.get("repeats")]
    assert all(t.values[3] == t.user_attrs["metrics"]["sharpness"] for t in told)
    assert not any(t.user_attrs["cause"].startswith("dominated") for t in study.trials), (
        "accuracy alone decides nothing"
    )
    assert result.front.objectives == ("sharpness",)
    points = [
        (
            p.measured.size_bytes,
            p.measured.latency_ms,
            -p.measured.accuracy,
            -p.measured.metrics["sharpness"],
        )
        for p in (*result.front.points, *result.front.dominated)
    ]
    assert sum(non_dominated(points)) == len(result.front)
    again = ac.read_front(tmp_path / "a")
    assert again.objectives == ("sharpness",)
    assert [p.trial for p in again] == [p.trial for p in result.front]
    assert (
        len(
            ac.search(
                task, space, n_trials=12, out=tmp_path / "a", quiet=True, finalize_steps=0
            ).front
        )
        >= 1
    ), "it resumes"
    with pytest.raises(RunFolderError, match="holds a search over another space"):
        ac.search(task, SPACE, n_trials=24, out=tmp_path / "a", quiet=True)
    with pytest.raises(
        LimitError, match="objective 'sharp': is no extra metric of the task; nearest: sharpness"
    ):
        ac.search(task, SPACE, n_trials=1, out=tmp_path / "b", objectives=["sharp"], quiet=True)


def test_a_run_of_other_first_candidates_keeps_its_files(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an earlier version, which had them in another order."""

    def search() -> dict[int, Candidate]:
        front = ac.search(
            cnn_task, SPACE, n_trials=3, out=tmp_path, quiet=True, finalize_steps=0
        ).front
        return {point.trial: point.candidate for point in (*front.points, *front.dominated)}

    with monkeypatch.context() as patch:
        for module in (loop, first_files):
            patch.setattr(
                module, "uniform_parameters", lambda bench: uniform_parameters(bench)[::-1]
            )
        before = search()
    assert len(before) == 3
    ran: list[int] = []
    run_file = front_files.run_file

    def counted(finalist, *parts):
        ran.append(finalist.number)
        return run_file(finalist, *parts)

    monkeypatch.setattr(front_files, "run_file", counted)
    assert search() == before
    assert ran == []


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_optunas_own_samplers_search_the_same_space(cnn_task, tmp_path: Path, sampler: str) -> None:
    result = ac.search(
        cnn_task, SPACE, n_trials=3, out=tmp_path, sampler=sampler, quiet=True, finalize_steps=0
    )
    ac.search(
        cnn_task, SPACE, n_trials=5, out=tmp_path, sampler=sampler, quiet=True, finalize_steps=0
    )
    found = [t.params for t in open_study(str(tmp_path / "study.journal")).trials]
    assert len({json.dumps(params, sort_keys=True) for params in found}) == 5, (
        "resumed, it does not draw the same numbers again"
    )
    assert len(result.front) >= 1
    with pytest.raises(LimitError, match="sampler 'gp' is unknown"):
        ac.search(cnn_task, SPACE, sampler="gp", out=tmp_path / "b", quiet=True)


def test_the_front_does_not_depend_on_the_order_of_telling(finished, cnn_task) -> None:
    """Whatever order trials are told in, the front holds the same points, and no trial more makes
    its hypervolume smaller.
    """
    result, folder = finished
    trials = [
        t
        for t in open_study(str(folder / "study.journal")).trials
        if t.values and all(v <= 0 for v in t.constraints.values())
    ]
    goal = Goal(result.front.baseline, result.limits)
    generator = np.random.default_rng(0)
    fronts = set()
    for _ in range(20):
        order = generator.permutation(len(trials))
        values = np.array([trials[i].values for i in order])
        keep = non_dominated(goal.losses(values))
        fronts.add(frozenset(map(tuple, values[keep])))
        volumes = [
            hypervolume(goal.losses(values[:n]), goal.reference_point)
            for n in range(1, len(values) + 1)
        ]
        assert all(b >= a - 1e-12 for a, b in itertools.pairwise(volumes))
    assert len(fronts) == 1


def test_a_failed_trial_is_recorded_and_the_search_goes_on(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trial_module.Judge.judge

    def fails_twice(self, study, number, candidate):
        if number in (1, 2):
            raise ZeroDivisionError("the metric divides by zero\nand says more")
        return original(self, study, number, candidate)

    monkeypatch.setattr(trial_module.Judge, "judge", fails_twice)
    ac.search(cnn_task, SPACE, n_trials=5, out=tmp_path, quiet=True)
    failed = [r for r in rows(tmp_path) if r["state"] == "FAIL"]
    assert [(r["number"], r["cause"]) for r in failed] == [
        (n, "ZeroDivisionError: the metric divides by zero") for n in "12"
    ]
    assert len(rows(tmp_path)) == 5


def test_a_repeated_candidate_is_answered_from_memory(cnn_task, tmp_path: Path) -> None:
    tiny = {"modules": [{"role": "head", "weight_bits": [8, 16]}]}
    ac.search(cnn_task, tiny, n_trials=8, out=tmp_path, quiet=True)
    causes = [r["cause"] for r in rows(tmp_path)]
    assert sum(not cause for cause in causes) == 2
    assert sum(cause.startswith("repeats trial") for cause in causes) == 6
    by_size = {r["size_bytes"]: r["accuracy"] for r in rows(tmp_path)}
    assert all(r["accuracy"] == by_size[r["size_bytes"]] for r in rows(tmp_path))


def test_metrics_that_return_nan(task_files: Path, tmp_path: Path) -> None:
    task = ac.load_task(f"{task_files}/cnn.py:nan_metric")
    with pytest.raises(
        NotComputableError, match="metric returned nan on 192 outputs; it must be a finite number"
    ):
        ac.search(task, SPACE, n_trials=1, out=tmp_path, quiet=True)


def test_folders_of_other_tasks_weights_and_spaces(finished, task_files: Path, cnn_task) -> None:
    _, folder = finished
    with pytest.raises(
        RunFolderError, match="is the run folder of task 'quarters', not of 'other'"
    ):
        ac.search(
            ac.load_task(f"{task_files}/cnn.py:named"), SPACE, n_trials=1, out=folder, quiet=True
        )
    with pytest.raises(RunFolderError, match="was made with other weights of task 'quarters'"):
        ac.search(
            ac.load_task(f"{task_files}/cnn.py:other_weights"),
            SPACE,
            n_trials=1,
            out=folder,
            quiet=True,
        )
    with pytest.raises(RunFolderError, match="holds a search over another space"):
        ac.search(cnn_task, None, n_trials=1, out=folder, quiet=True)


def test_a_full_disk_keeps_what_was_found(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = files.append_row
    calls: list[int] = []

    def full(path, columns, row):
        calls.append(1)
        if len(calls) == 4:
            raise files.disk_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        original(path, columns, row)

    monkeypatch.setattr(worker, "append_row", full)
    with pytest.raises(
        RunFolderError,
        match=r"trials\.csv: cannot be written \(No space left on device\); results up to here "
        r"are kept",
    ):
        ac.search(cnn_task, SPACE, n_trials=6, out=tmp_path, quiet=True)
    assert len(rows(tmp_path)) == 3
    monkeypatch.undo()
    ac.search(cnn_task, SPACE, n_trials=6, out=tmp_path, quiet=True)
    assert (tmp_path / "front.json").is_file()
    assert len(open_study(f"{tmp_path}/study.journal").trials) == 6
    assert [r["number"] for r in rows(tmp_path)] == [str(i) for i in range(6)], (
        "the row that did not fit is written later"
    )


def test_a_full_disk_while_the_journal_is_written(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.storages.journal import JournalFileBackend

    original = JournalFileBackend.append_logs

    def full(self, logs):
        if any("accuracy_before_recovery" in json.dumps(log) for log in logs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        ac.search(cnn_task, SPACE, n_trials=3, out=tmp_path, quiet=True)
    monkeypatch.undo()
    ac.search(cnn_task, SPACE, n_trials=3, out=tmp_path, quiet=True)
    assert (tmp_path / "front.json").is_file()


def test_folders_that_cannot_be_written(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file/run: cannot be written \(Not a directory\)"):
        ac.search(cnn_task, SPACE, n_trials=1, out=tmp_path / "file" / "run", quiet=True)
    monkeypatch.setattr(opening.os, "access", lambda path, mode: False)
    with pytest.raises(RunFolderError, match="Permission denied"):
        ac.search(cnn_task, SPACE, n_trials=1, out=tmp_path / "run", quiet=True)


def command(spec: str, folder: Path, trials: int) -> list[str]:
    space = folder.parent / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    return [
        sys.executable,
        "-m",
        "autocompress",
        "search",
        spec,
        "--space",
        str(space),
        "--trials",
        str(trials),
        "--out",
        str(folder),
    ]


def wait_for(folder: Path, count: int, process: subprocess.Popen) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        if (folder / "trials.csv").is_file() and len(rows(folder)) >= count:
            return
        time.sleep(0.02)
    raise AssertionError("the search did not get that far")


def test_kill_9_loses_at_most_the_trial_in_flight(cnn_spec: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(cnn_spec, folder, 40), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(folder, 3, process)
    process.kill()
    process.wait()
    before = rows(folder)
    done = subprocess.run(
        command(cnn_spec, folder, len(before) + 4),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rows(folder)[: len(before)] == before
    study = open_study(str(folder / "study.journal"))
    assert not [t for t in study.trials if t.state == optuna.trial.TrialState.RUNNING]
    assert sorted(int(r["number"]) for r in rows(folder)) == [t.number for t in study.trials]
    assert "report:" in done.stdout
    assert (folder / "front.json").is_file()


def test_ctrl_c_finishes_the_trial_and_the_front(cnn_spec: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(cnn_spec, folder, 400), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(folder, 3, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "report:" in output
    assert 3 <= len(rows(folder)) < 400
    assert json.loads((folder / "front.json").read_text())["points"]


def test_workers_share_a_study(cnn_spec: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    program, _, _, *rest = command(cnn_spec, folder, 10)
    waiting = [str(Path(__file__).parent / "workers" / "slow_worker.py"), "0", "2", str(LEASE_S)]
    done = subprocess.run(
        [program, *waiting, *rest, "--workers", "2", "--finalize-steps", "0"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    study = open_study(str(folder / "study.journal"))
    finished = [t for t in study.trials if t.state.is_finished()]
    assert 10 <= len(finished) <= 11
    assert len({t.user_attrs["worker"] for t in finished}) == 2


def front_file(folder: Path, process: subprocess.Popen, limit_s: float = 120) -> dict:
    """Return front.json as soon as there is one."""
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit and process.poll() is None:
        if (folder / "front.json").is_file():
            return json.loads((folder / "front.json").read_text())
        time.sleep(0.02)
    raise AssertionError("there was no file")


def check_files(folder: Path) -> list[int]:
    """Check that front.json names files with the numbers that it says; return their trials."""
    front = json.loads((folder / "front.json").read_text())
    for point in front["points"]:
        path = folder / point["artifact"] / "model.onnx"
        assert path.stat().st_size == point["size_bytes"]
        assert point["verified"]
    return [point["trial"] for point in front["points"]]


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGKILL"])
def test_a_stop_after_the_first_file_leaves_a_front_that_goes_on(
    cnn_spec: str, tmp_path: Path, signal_name: str
) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(cnn_spec, folder, 400), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = front_file(folder, process)
    assert not rows(folder), "no trial has ended"
    assert [point["trial"] for point in first["points"]] == [0]
    process.send_signal(signal.Signals[signal_name])
    output, errors = process.communicate(timeout=120)
    if signal_name == "SIGINT":
        assert process.returncode == 130, errors
        assert "report:" in output
    before = check_files(folder)
    assert before
    done = subprocess.run(
        command(cnn_spec, folder, 5), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert check_files(folder)
    study = open_study(str(folder / "study.journal"))
    assert [t.number for t in study.trials if "fixed_params" in t.system_attrs] == [0, 1, 2]
    points = json.loads((folder / "front.json").read_text())["points"]
    for point in points:
        if point["trial"] in before:
            assert (
                point["candidate"]["modules"]
                == study.trials[point["trial"]].user_attrs["candidate"]["modules"]
            ), "the trial is of the candidate whose file was made first"


def test_a_timeout_that_is_over_after_the_first_file_keeps_it(
    cnn_task, tmp_path: Path, monkeypatch
) -> None:
    real = loop.make_first_files

    def slow(*parts) -> int:
        made = real(*parts)
        monkeypatch.setattr(Setup, "is_over", True)
        return made

    monkeypatch.setattr(loop, "make_first_files", slow)
    result = ac.search(cnn_task, SPACE, n_trials=9, timeout_s=900, out=tmp_path, quiet=True)
    assert check_files(tmp_path)
    assert all(point.trial < 3 for point in result.front)
    assert not rows(tmp_path)
    assert (tmp_path / "report.html").is_file()


def test_timeout_ends_a_search_with_a_front(cnn_task, tmp_path: Path) -> None:
    result = ac.search(cnn_task, SPACE, n_trials=10_000, timeout_s=10, out=tmp_path, quiet=True)
    assert len(result.front) >= 1
    assert len(rows(tmp_path)) < 10_000
    before = {p.trial for p in result.front}
    again = ac.search(cnn_task, SPACE, n_trials=10_000, timeout_s=1, out=tmp_path, quiet=True)
    verified = {p.trial for p in (*again.front.points, *again.front.dominated)}
    assert verified & before, "what an earlier front had comes first when time is short"


@pytest.mark.parametrize(
    ("late_s", "step_s", "steps", "blocks", "pays", "ends"),
    [
        (1.0, 0.1, None, False, True, True),
        (-1.0, 0.1, None, False, True, False),
        (1.0, 0.1, None, False, False, False),
        (1.0, None, None, False, True, False),
        (1.0, 0.1, 80, False, True, False),
        (1.0, 0.1, None, True, True, False),
        (1.0, 0.001, None, False, True, False),  # all trainings fit into what is left
    ],
)
def test_trials_end_where_their_time_is_better_spent_on_training(
    monkeypatch: pytest.MonkeyPatch,
    late_s: float,
    step_s: float | None,
    steps: int | None,
    blocks: bool,
    pays: bool,
    ends: bool,
) -> None:
    now = time.monotonic()
    clock = SimpleNamespace(long_recovery_from=now - late_s, recovery_deadline=now + 100.0)
    recovery = SimpleNamespace(by_blocks=blocks)
    problem = SimpleNamespace(
        space=SimpleNamespace(recovery=recovery), float_files=SimpleNamespace(pass_s=0.1)
    )
    training = TrainingPlan((30,), step_s=step_s, long_steps=900)
    ready = SimpleNamespace(clock=clock, training=training, problem=problem)
    search = loop._Search(ready, SimpleNamespace(finalize_steps=steps), None, None, None, None)
    monkeypatch.setattr(loop, "hopes_of", lambda study, goal, steps: {0: steps / 1e6})
    asked: list[object] = []

    def training_pays(*parts: object) -> bool:
        asked.append(parts)
        return pays

    monkeypatch.setattr(loop, "training_pays", training_pays)
    study, goal = optuna.create_study(), SimpleNamespace()
    judge = SimpleNamespace(goal=goal, problem=problem)
    assert search._is_over(study, lambda: judge)(study) is ends
    if ends:
        assert asked == [(study, problem, goal, {0: pytest.approx(490 / 1e6, abs=2e-6)})]


def test_a_study_is_stale_when_its_latest_trials_were_all_stopped_early() -> None:
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    study.tell(study.ask(), [1.0, 1.0, 0.9])
    for _ in range(loop.STALE):
        assert not loop._is_stale(study, 0)
        study.tell(study.ask(), state=optuna.trial.TrialState.PRUNED)
    assert loop._is_stale(study, 0)
    assert not loop._is_stale(study, 2), "some are of an earlier run"
    study.tell(study.ask(), [1.0, 1.0, 0.9])
    assert not loop._is_stale(study, 0)
