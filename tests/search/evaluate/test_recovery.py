"""Recovery inside a search.

Rungs, the long recovery of the front, what is kept, students, and losses that are no numbers.
"""

from __future__ import annotations

import csv
import json
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import optuna
import pytest
import torch
from fixture import Fixture, trainer_of
from torch import nn

import autocompress as ac
from autocompress import Candidate, Distillation, ModuleConfig
from autocompress.candidate import UNTRAINED
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.prune.masks import Masks
from autocompress.compress.recover import cycle as train
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.cycle import Cycle
from autocompress.compress.recover.recover import recover
from autocompress.errors import TaskError
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.tally import Scores
from autocompress.results.limits import Limits
from autocompress.results.tensor_files import read_tensors, write_tensors
from autocompress.search.evaluate import recovery as recovery_module
from autocompress.search.evaluate.recovery import (
    ended_at,
    read_recovered,
    recover_candidate,
    recovered_path,
    untrained,
)
from autocompress.search.evaluate.training_choice import MIN_LOSS
from autocompress.search.evaluate.training_plan import LongPlan
from autocompress.search.finish import long_recovery
from autocompress.search.finish.long_recovery import LONG_RECOVERY, recover_front
from autocompress.search.problem.goal import Goal
from autocompress.search.workers.storage import open_study
from autocompress.space.recovery import RecoverySpace

SPACE = {
    "modules": [
        {
            "match": "*",
            "weight_bits": [2, 3, 8],
            "activation_bits": [8, 32],
            "algorithm": "nearest",
            "pruning_ratio": [0.0, 0.5],
        },
    ],
    "distillation": {
        "alpha": {"low": 0.0, "high": 1.0},
        "temperature": [1, 2],
        "steps": [0, 6, 20],
        "learning_rate": 0.002,
    },
}
# The smallest of its candidates lose a lot, however the task's own training went.
DEEP = {
    **SPACE,
    "modules": [
        {**SPACE["modules"][0], "weight_range": "min_max", "pruning_ratio": [0.0, 0.5, 0.875]}
    ],
}


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return open_study(str(folder / "study.journal")).trials


@pytest.fixture(scope="module")
def finished(cnn_task, tmp_path_factory: pytest.TempPathFactory) -> tuple[ac.SearchResult, Path]:
    folder = tmp_path_factory.mktemp("run") / "cnn"
    return ac.search(cnn_task, DEEP, n_trials=16, out=folder, quiet=True, finalize_steps=40), folder


@pytest.mark.slow
def test_survivors_of_each_rung_go_on_and_the_beaten_stop(
    finished: tuple[ac.SearchResult, Path],
) -> None:
    trials = [t for t in trials_of(finished[1]) if t.user_attrs.get("trained")]
    assert trials
    for trial in trials:
        rungs = trial.user_attrs["rungs"]
        assert list(rungs) in (["0", "6"], ["0", "6", "20"])
        assert rungs["0"] == trial.user_attrs["accuracy_before_recovery"]
        assert trial.values[2] == max(rungs["0"], list(rungs.values())[-1])
        if len(rungs) == 2:
            earlier = [
                t
                for t in trials
                if t.number < trial.number
                and t.values[0] <= trial.values[0]
                and t.values[1] <= trial.values[1]
            ]
            lossless = rungs["6"] >= finished[0].front.baseline.accuracy - MIN_LOSS
            assert lossless or any(
                t.user_attrs["rungs"].get("6", -1) >= rungs["6"] for t in earlier
            )


@pytest.mark.parametrize(
    ("steps", "as_recorded"),
    [
        (3, Distillation(0.5, 2.0, 3, planned_steps=4)),
        (4, Distillation(0.5, 2.0, 4)),
        (7, Distillation(0.5, 2.0, 7, restarts=(4,), planned_steps=9)),
        (9, Distillation(0.5, 2.0, 9, restarts=(4,))),
    ],
    ids=["in the first cycle", "at its end", "in the last cycle", "whole"],
)
def test_a_training_that_ended_early_is_repeated_from_its_record(
    cnn_task, monkeypatch: pytest.MonkeyPatch, steps: int, as_recorded: Distillation
) -> None:
    looks = iter(range(10**6))  # each finds a better model than the last
    monkeypatch.setattr(Trainer, "divergence", lambda trainer, student: 1.0 / (1 + next(looks)))
    fixture = Fixture(cnn_task)
    meant = Distillation(0.5, 2.0, 9, restarts=(4,))
    at = replace(fixture.uniform(weight_bits=3), distillation=meant)
    trainer, done, update = trainer_of(cnn_task, fixture.stitcher), [], Cycle._update

    def counted(cycle: Cycle, optimizer: torch.optim.Optimizer) -> None:
        done.append(cycle.step)
        update(cycle, optimizer)

    monkeypatch.setattr(Cycle, "_update", counted)
    trained, reached = recover(trainer, fixture.stitcher, at, stop=lambda: len(done) >= steps)
    assert reached == steps
    assert ended_at(meant, reached) == as_recorded
    again, repeated = recover(trainer, fixture.stitcher, replace(at, distillation=as_recorded))
    assert repeated == steps
    assert ended_at(as_recorded, repeated) == as_recorded
    for name, value in again.to_tensors().items():
        assert torch.equal(value, trained.to_tensors()[name]), name


@pytest.mark.slow
def test_points_say_how_long_their_weights_were_trained(
    finished: tuple[ac.SearchResult, Path],
) -> None:
    result, folder = finished
    study = open_study(str(folder / "study.journal"))
    final = {
        int(name.split("/")[1]): found
        for name, found in study.user_attrs.items()
        if name.startswith("finalized/")
    }
    assert final, "something was lost, so something is recovered"
    for point in (*result.front.points, *result.front.dominated):
        kept = read_recovered(folder, point.trial, point.candidate)
        distillation = point.candidate.distillation
        trial = trials_of(folder)[point.trial]
        assert point.predicted.accuracy >= trial.values[2], (
            "no point is worse than the search had it"
        )
        if kept is None:
            assert distillation.steps == 0
            assert point.predicted.accuracy == trial.user_attrs["accuracy_before_recovery"]
        else:
            assert distillation == kept.distillation
            assert point.predicted.accuracy == kept.scores.accuracy
        if point.trial in final:
            assert final[point.trial]["steps"] == 40
            assert (distillation.steps == 40) == final[point.trial]["improved"]
    assert not [path for path in (folder / "recovered").iterdir() if path.is_dir()], (
        "no checkpoint is left behind"
    )


@pytest.mark.slow
def test_the_long_recovery_lifts_a_point_once(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = Fixture(cnn_task)
    plain = ModuleConfig(2, importance="l2", algorithm="nearest", reconstruction=False)
    modules = fixture.builder.module_map
    ratios = {m.name: 0.5 if m.name in fixture.roots else 0.0 for m in modules}
    at = Candidate.of(
        {m.name: replace(plain, pruning_ratio=ratios[m.name]) for m in modules},
        Distillation(0.5, 2.0, 6, learning_rate=2e-3),
    )
    cpu = torch.device("cpu")

    def accuracy(model: nn.Module) -> float:
        return evaluate_model(cnn_task, model, cnn_task.validation, cpu)[0].accuracy

    baseline = ac.Measurement(1_000, 1.0, accuracy(fixture.stitcher.teacher))
    bench = SimpleNamespace(
        task=cnn_task,
        stitcher=fixture.stitcher,
        device=cpu,
        trainer=trainer_of(cnn_task, fixture.stitcher),
        space=SimpleNamespace(recovery=RecoverySpace()),
    )
    before = accuracy(fixture.stitcher.apply(at))
    assert before < baseline.accuracy - 0.05
    study = optuna.create_study()
    goal = Goal(baseline, Limits())
    given = (
        study,
        {3: (at, Scores(before, {}))},
        bench,
        goal,
        tmp_path,
        LongPlan(80),
        lambda: False,
        lambda what, share: None,
    )
    recover_front(*given)
    kept = read_recovered(tmp_path, 3, at)
    assert kept is not None
    assert kept.distillation == replace(at.distillation, steps=80)
    reached = kept.scores.accuracy
    assert reached > before + 0.3 * (baseline.accuracy - before)
    assert accuracy(fixture.stitcher.apply(at, kept.trained)) == reached
    assert study.user_attrs["finalized/3"] == {
        "steps": 80,
        "before": before,
        "reached": reached,
        "improved": True,
        "cause": "",
    }

    def never(cycle: Cycle) -> int:
        raise AssertionError("trained again")

    monkeypatch.setattr(Cycle, "run", never)
    recover_front(*given)


@pytest.mark.slow
def test_robustness_stands_beside_clean_accuracy(finished: tuple[ac.SearchResult, Path]) -> None:
    result, folder = finished
    data = json.loads((folder / "front.json").read_text())
    names = {"accuracy_gaussian_noise", "accuracy_contrast"}
    assert names <= set(data["baseline"]["metrics"])
    for point in data["points"]:
        assert names <= set(point["metrics"])
        assert isinstance(point["fragile"], list)
    notes = (folder / result.front.points[0].artifact / "README.md").read_text()
    assert "accuracy gaussian noise" in notes


@pytest.mark.slow
def test_the_front_is_not_recovered_twice(
    finished: tuple[ac.SearchResult, Path], cnn_task, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, folder = finished
    study = open_study(str(folder / "study.journal"))
    done = {int(name.split("/")[1]) for name in study.user_attrs if name.startswith(LONG_RECOVERY)}
    assert done
    recovered = []

    def only_new(problem, place, number, *rest, **options):
        recovered.append(number)
        return recover_candidate(problem, place, number, *rest, **options)

    # The latency table may have learned since, and may bring other trials to the front.
    monkeypatch.setattr(long_recovery, "recover_candidate", only_new)
    again = ac.search(cnn_task, DEEP, n_trials=16, out=folder, quiet=True, finalize_steps=40)
    assert not done & set(recovered)

    def everything(front: ac.ParetoFront) -> dict[int, tuple[float, Distillation | None]]:
        trained = {}
        for p in (*front.points, *front.dominated):
            recovery = p.candidate.distillation  # means nothing where no step was made
            trained[p.trial] = (p.measured.accuracy, recovery if recovery.steps > 0 else None)
        return trained

    found, before = everything(again.front), everything(result.front)
    assert {trial: of for trial, of in found.items() if trial in before}.items() <= before.items()
    assert {point.trial for point in result.front.points} <= set(found), (
        "what was on the front is verified again"
    )


@pytest.mark.slow
def test_a_training_that_was_cut_off_goes_on_from_its_checkpoint(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAVE_S", 0.0)
    space = {
        **SPACE,
        "modules": [{**SPACE["modules"][0], "weight_bits": [2, 3]}],
        "distillation": {"steps": [0, 30]},
    }
    update, done = Cycle._update, []

    def dying(cycle: Cycle, optimizer: torch.optim.Optimizer) -> None:
        done.append(cycle.step)
        if len(done) == 20:
            raise KeyboardInterrupt
        update(cycle, optimizer)

    monkeypatch.setattr(Cycle, "_update", dying)
    with pytest.raises(KeyboardInterrupt):
        ac.search(cnn_task, space, n_trials=3, out=tmp_path / "cut", quiet=True, finalize_steps=0)
    cut = [t for t in trials_of(tmp_path / "cut") if t.state == optuna.trial.TrialState.RUNNING]
    assert len(cut) == 1
    ac.search(cnn_task, space, n_trials=4, out=tmp_path / "cut", quiet=True, finalize_steps=0)
    assert 19 in [step for before, step in pairwise(done[19:]) if step != before + 1], (
        "a training goes on with the step that was lost"
    )
    again = [
        t for t in trials_of(tmp_path / "cut") if t.user_attrs.get("retry_of") == cut[0].number
    ]
    ac.search(cnn_task, space, n_trials=4, out=tmp_path / "whole", quiet=True, finalize_steps=0)
    whole = [
        t
        for t in trials_of(tmp_path / "whole")
        if t.user_attrs.get("candidate") == again[0].user_attrs["candidate"]
    ]
    assert again[0].user_attrs["rungs"] == whole[0].user_attrs["rungs"]


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_the_long_recovery(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Cycle._update

    def interrupting(cycle: Cycle, optimizer: torch.optim.Optimizer) -> None:
        if cycle.distillation.steps == 500 and cycle.step == 10:
            signal.raise_signal(signal.SIGINT)
        update(cycle, optimizer)

    monkeypatch.setattr(Cycle, "_update", interrupting)
    space = {
        **SPACE,
        "modules": [{**SPACE["modules"][0], "weight_bits": [2, 3]}],
        "distillation": {"steps": [0, 5]},
    }
    result = ac.search(
        cnn_task, space, n_trials=4, out=tmp_path / "run", quiet=True, finalize_steps=500
    )
    assert len(result.front) >= 1
    study = open_study(str(tmp_path / "run" / "study.journal"))
    assert not [name for name in study.user_attrs if name.startswith("finalized/")], (
        "what was cut short is done the next time"
    )
    assert [path for path in (tmp_path / "run" / "recovered").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_training_that_makes_it_worse_is_not_kept(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The looks on the way would notice; without them every training ends in ruins.
    generator = np.random.default_rng(0)
    monkeypatch.setattr(Trainer, "divergence", lambda trainer, student: -float(generator.random()))
    space = {**SPACE, "distillation": {"steps": 6, "learning_rate": 0.9}}
    result = ac.search(
        cnn_task, space, n_trials=6, out=tmp_path / "run", quiet=True, finalize_steps=0
    )
    trained = [t for t in trials_of(tmp_path / "run") if t.user_attrs.get("trained")]
    worse = [t for t in trained if not t.user_attrs["recovered"]]
    assert worse
    for trial in worse:
        assert trial.values[2] == trial.user_attrs["accuracy_before_recovery"]
        assert list(trial.user_attrs["rungs"].values())[-1] <= trial.values[2]
        candidate = Candidate.from_json(trial.user_attrs["candidate"])
        assert read_recovered(tmp_path / "run", trial.number, candidate) is None
    assert all(
        p.candidate.distillation.steps == 0
        for p in result.front
        if p.trial in {t.number for t in worse}
    )


@pytest.mark.slow
def test_a_loss_that_is_no_number_leaves_the_search_alive(cnn_task, tmp_path: Path) -> None:
    task = replace(
        cnn_task,
        loss=lambda outputs, target: outputs.sum() * float("nan"),
        divergence=cnn_task.output_divergence,
    )
    space = {**SPACE, "modules": [{**SPACE["modules"][0], "weight_bits": [2, 3]}]}
    result = ac.search(
        task,
        {**space, "distillation": {"alpha": 0.5, "steps": 6}},
        n_trials=6,
        out=tmp_path / "run",
        quiet=True,
        finalize_steps=0,
    )
    with (tmp_path / "run" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    broken = [row for row in rows if "recovery: loss is nan at step 0" in row["cause"]]
    assert broken
    assert all(
        row["state"] == "COMPLETE" and "the weights before it are kept" in row["cause"]
        for row in broken
    )
    assert len(result.front) >= 1
    assert all(p.candidate.distillation.steps == 0 for p in result.front)


@pytest.mark.slow
def test_without_labels_alpha_is_no_parameter(cnn_task, tmp_path: Path) -> None:
    bare = replace(cnn_task, train=[(inputs, None) for inputs, _ in cnn_task.train])
    # The seed alone decides what a random sampler proposes.
    made = {"sampler": "random", "quiet": True, "finalize_steps": 0}
    ac.search(bare, DEEP, n_trials=10, out=tmp_path / "run", **made)
    for trial in trials_of(tmp_path / "run"):
        assert "distillation/alpha" not in trial.params
        assert "distillation/temperature" in trial.params
        assert trial.user_attrs["candidate"]["distillation"]["alpha"] == 0.0
    assert any(t.user_attrs.get("recovered") for t in trials_of(tmp_path / "run")), (
        "the teacher is enough"
    )


@pytest.mark.slow
def test_sequences_are_refused_before_anything_takes_long(cnn_task, tmp_path: Path) -> None:
    space = {**SPACE, "distillation": {"steps": 5, "sequences": 0.5}}
    with pytest.raises(TaskError, match="sequences are distilled only"):
        ac.search(cnn_task, space, n_trials=2, out=tmp_path / "run", quiet=True)


class Small(nn.Module):
    """Another architecture, with another name for its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
        )
        self.answer = nn.Linear(256, 4)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.answer(torch.relu(self.second(torch.relu(self.first(picture)))).flatten(1))


@pytest.mark.slow
def test_a_student_is_taught_and_searched_in_the_models_place(cnn_task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = Small()
    untouched = {name: value.clone() for name, value in student.state_dict().items()}
    task = replace(cnn_task, student=student, matched_modules={"second": "body.2"})
    space = {
        **SPACE,
        "distillation": {**SPACE["distillation"], "student_steps": 150, "features": [0.0, 0.5]},
    }
    folder = tmp_path / "run"
    result = ac.search(task, space, n_trials=8, out=folder, quiet=True, finalize_steps=20)
    baseline = result.front.baseline
    assert baseline.size_bytes == (folder / "models/baseline/model.onnx").stat().st_size
    assert baseline.size_bytes > 4 * sum(p.numel() for p in cnn_task.model.parameters()), (
        "the original is the baseline"
    )
    best = result.front.most_accurate()
    assert best.measured.accuracy > 0.6, (
        "a student that knew nothing has learned from its teacher (chance: 0.25)"
    )
    assert {name for p in result.front for name, _ in p.candidate.modules} <= {
        "first",
        "second",
        "answer",
    }
    assert all(torch.equal(value, untouched[name]) for name, value in student.state_dict().items())
    assert (folder / "student.safetensors").is_file()
    gap = [abs(np.log(p.measured.latency_ms / p.predicted.latency_ms)) for p in result.front]
    assert np.median(gap) < np.log(2.0), "predictions are relative to the original as well"
    ac.export(result, best, tmp_path / "best")
    module_ = ac.load(tmp_path / "best", Small())
    outputs = torch.cat([module_(x) for x, _ in task.validation])
    targets = torch.cat([y for _, y in task.validation])
    assert task.metric(outputs, targets) == pytest.approx(best.measured.accuracy, abs=0.02)
    assert ac.reproduce(tmp_path / "best", tmp_path / "again", task).is_file()
    more = ac.search(task, space, n_trials=10, out=folder, quiet=True, finalize_steps=20)
    assert len(more.front) >= 1
    assert more.front.baseline.latency_ms == baseline.latency_ms


@pytest.mark.slow
def test_a_student_that_fails_is_named(cnn_task, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"student.forward fails on example_inputs"):
        ac.search(
            replace(cnn_task, student=nn.Linear(3, 4)),
            SPACE,
            n_trials=1,
            out=tmp_path / "run",
            quiet=True,
        )
    with pytest.raises(
        TaskError, match=r"matched_modules names 'secnd', which is no module; nearest: second"
    ):
        ac.search(
            replace(cnn_task, student=Small(), matched_modules={"secnd": "body.2"}),
            SPACE,
            n_trials=1,
            out=tmp_path / "run",
            quiet=True,
        )


class TwoHeads(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.brightness = body, nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"quarter": self.body(x), "brightness": self.brightness(x.flatten(1))}


@pytest.mark.slow
def test_all_outputs_of_a_model_are_recovered_and_exported(cnn_task, tmp_path: Path) -> None:
    def labelled(batches):
        return [
            (x, {"quarter": y, "brightness": x.flatten(1).mean(1, keepdim=True)})
            for x, y in batches
        ]

    def minus_error(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return -float((outputs - targets).abs().mean())

    torch.manual_seed(0)
    model = TwoHeads(cnn_task.model)
    with torch.no_grad():
        model.brightness.weight.fill_(1 / 64)
        model.brightness.bias.zero_()
    task = replace(
        cnn_task,
        name="two",
        model=model.eval(),
        validation=labelled(cnn_task.validation),
        train=labelled(cnn_task.train),
        test=None,
        metric=lambda outputs, targets: cnn_task.metric(outputs, targets["quarter"]),
        output_weights={"quarter": 1.0, "brightness": 10.0},
        extra_metrics={"minus_error": ac.OutputMetric("brightness", minus_error)},
    )
    space = {**SPACE, "modules": [{**SPACE["modules"][0], "weight_bits": [2, 3]}]}
    result = ac.search(
        task,
        space,
        n_trials=8,
        out=tmp_path / "run",
        objectives=["minus_error"],
        quiet=True,
        finalize_steps=0,
    )
    assert any(t.user_attrs.get("trained") for t in trials_of(tmp_path / "run")), (
        "a loss over both outputs was trained on"
    )
    assert result.front.baseline.metrics["minus_error"] == pytest.approx(0.0, abs=1e-4), (
        "it is exact in float"
    )
    for trial in trials_of(tmp_path / "run"):
        assert not trial.values or trial.values[3] == trial.user_attrs["metrics"]["minus_error"]
    for point in (*result.front.points, *result.front.dominated):
        session = onnxruntime.InferenceSession(
            str(tmp_path / "run" / point.artifact / "model.onnx"),
            providers=["CPUExecutionProvider"],
        )
        x, target = task.validation[0]
        answers, brightness = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert answers.shape == (32, 4)
        assert point.candidate.config("brightness").weight_bits < 8, (
            "the second head is compressed too"
        )
        assert np.abs(brightness - target["brightness"].numpy()).mean() < 0.05
        found = [
            minus_error(
                torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[1]),
                t["brightness"],
            )
            for x, t in task.validation
        ]
        assert point.measured.metrics["minus_error"] == pytest.approx(np.mean(found), rel=1e-4), (
            "judged from the second output of the file"
        )


def test_candidates_keep_how_they_were_trained() -> None:
    at = Candidate.of(
        {}, Distillation(0.25, 4.0, 60, restarts=(6, 20), features=0.5, learning_rate=1e-3)
    )
    assert Candidate.from_json(json.loads(json.dumps(at.to_json()))) == at
    assert at.to_json()["distillation"] == {
        "alpha": 0.25,
        "temperature": 4.0,
        "steps": 60,
        "restarts": [6, 20],
        "features": 0.5,
        "learning_rate": 0.001,
    }
    assert UNTRAINED.to_json() == {"alpha": 0.5, "temperature": 2.0, "steps": 0}
    assert Candidate(at.modules).digest != at.digest


def test_recovery_raises_all_objectives() -> None:
    """Half of what may be lost of one of two qualities is a quarter of the whole."""
    baseline = ac.Measurement(1, 1.0, 0.9, metrics={"f": 2.0})
    both = Goal(baseline, Limits(max_accuracy_drop=0.1, floors={"f": 1.6}), ("f",))
    assert both.worth(Scores(0.95, {"f": 2.5})) == pytest.approx(0.9), (
        "more than the float model is nothing to train for"
    )
    assert both.worth(Scores(0.9, {"f": 1.8})) == pytest.approx(0.875)
    assert both.worth(Scores(0.85, {"f": 1.8})) == pytest.approx(0.85)
    assert Goal(baseline, Limits()).worth(Scores(0.95, {"f": 0.0})) == 0.95


def test_a_recipe_says_how_normalisations_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe with fewer steps would try them for fewer steps, and might decide otherwise."""
    kept: list[Distillation] = []

    def train(trainer: object, stitcher: object, given: Candidate, place: Path, *_: object):
        (place / "batch_norm0.json").write_text(json.dumps({"trains": True}))
        return None, 100

    monkeypatch.setattr(recovery_module, "recover", train)
    monkeypatch.setattr(recovery_module, "evaluate_model", lambda *_: (Scores(0.8, {}), None))
    monkeypatch.setattr(
        recovery_module, "_write", lambda *parts: kept.append(parts[3].distillation)
    )
    parts = {"task": SimpleNamespace(validation=None), "device": None}
    stitcher = SimpleNamespace(apply=lambda *_: None)
    trainer = SimpleNamespace(divergence=lambda model: 0.1, seed=3, arithmetic=torch.float32)
    problem = SimpleNamespace(stitcher=stitcher, trainer=trainer, **parts)
    lesson = Distillation(steps=300, restarts=(30, 100), batch_norm="auto")
    goal = Goal(ac.Measurement(1000, 2.0, 0.9), Limits())
    given = Candidate.of({"a": ModuleConfig(4)}, lesson)
    assert recover_candidate(problem, tmp_path, 0, given, Scores(0.5, {}), goal, MIN_LOSS).improved
    assert kept == [replace(lesson, steps=100, restarts=(30,), batch_norm="train")]


@pytest.mark.parametrize(
    ("before", "after", "improved"),
    [
        ({"recall": 0.91}, {"recall": 0.89}, False),
        ({"recall": 0.91}, {"recall": 0.90}, True),
        ({"recall": 0.85}, {"recall": 0.84}, True),
    ],
)
def test_weights_that_keep_a_floor_are_not_replaced_by_weights_that_miss_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, float],
    after: dict[str, float],
    improved: bool,
) -> None:
    monkeypatch.setattr(recovery_module, "recover", lambda *_: (None, 10))
    monkeypatch.setattr(recovery_module, "evaluate_model", lambda *_: (Scores(0.91, after), None))
    monkeypatch.setattr(recovery_module, "_write", lambda *parts: None)
    stitcher = SimpleNamespace(apply=lambda *_: None)
    trainer = SimpleNamespace(divergence=lambda model: 0.1, seed=3, arithmetic=torch.float32)
    task = SimpleNamespace(validation=None)
    problem = SimpleNamespace(stitcher=stitcher, trainer=trainer, task=task, device=None)
    goal = Goal(ac.Measurement(1000, 2.0, 0.95), Limits(floors={"recall": 0.9}))
    given = Candidate.of({"a": ModuleConfig(4)}, Distillation(steps=10))
    parts = (problem, tmp_path, 0, given, Scores(0.9, before), goal, MIN_LOSS)
    assert recover_candidate(*parts).improved == improved


def test_weights_of_another_candidate_are_not_those_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another study in the run folder has other candidates under the same numbers."""
    at = Candidate.of({"a": ModuleConfig(4)}, Distillation(steps=10))
    trained = Trained({}, {"a": torch.ones(2)}, {}, Masks({}))
    monkeypatch.setattr(recovery_module, "recover", lambda *_: (trained, 10))
    monkeypatch.setattr(recovery_module, "evaluate_model", lambda *_: (Scores(0.8, {}), None))
    parts = {"task": SimpleNamespace(validation=None), "device": None}
    stitcher = SimpleNamespace(apply=lambda *_: None)
    trainer = SimpleNamespace(divergence=lambda model: 0.1, seed=3, arithmetic=torch.float32)
    problem = SimpleNamespace(stitcher=stitcher, trainer=trainer, **parts)
    goal = Goal(ac.Measurement(1000, 2.0, 0.9), Limits())
    assert recover_candidate(problem, tmp_path, 7, at, Scores(0.5, {}), goal, MIN_LOSS).improved
    other = Candidate.of({"a": ModuleConfig(3)}, at.distillation)
    assert read_recovered(tmp_path, 7, other) is None
    for same in (at, untrained(at)):
        kept = read_recovered(tmp_path, 7, same)
        assert kept is not None
        assert kept.scores.accuracy == 0.8
        assert kept.origin == {"seed": 3, "training_dtype": "float32"}
    path = recovered_path(tmp_path, 7)
    tensors, notes = read_tensors(path)
    del notes["modules"]
    write_tensors(path, tensors, notes)
    assert read_recovered(tmp_path, 7, other) is not None, "an earlier version does not say"
