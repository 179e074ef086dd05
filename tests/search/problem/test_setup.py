"""Setting up within a timeout: a clock that is given says when, nothing here waits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.cli.tables import known_limits, print_front
from autocompress.errors import OutOfTimeError
from autocompress.export.subject import builder_for, layout_of, subject_of
from autocompress.model.modules import find_modules
from autocompress.search import loop
from autocompress.search.problem.setup import Setup
from autocompress.space.search_space import SearchSpace
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import all_forms, uniform_candidate
from autocompress.targets.latency_model.stored_tables import cached_table
from autocompress.targets.target import find_target

SPACE = {"modules": [{"match": "*", "weight_bits": [4, 8]}], "distillation": {"steps": 0}}


class Hands:
    """A clock that moves by hand."""

    def __init__(self) -> None:
        self.time = (
            -1e6
        )  # long before the machine's own clock, by which deadlines after setting up are judged

    def __call__(self) -> float:
        return self.time


def setup(timeout_s: float | None) -> tuple[Setup, Hands, list[str]]:
    hands, shown = Hands(), []
    return Setup(timeout_s, lambda what, share: shown.append(what), now=hands), hands, shown


def test_seconds_are_counted_by_step() -> None:
    steps, hands, shown = setup(None)
    for what, seconds in (("a", 2.0), ("b", 5.0), ("b", 1.0), ("a", 0.5)):
        steps(what, 0.0)
        hands.time += seconds
    assert steps.finish() == {"a": 2.5, "b": 6.0}
    hands.time += 100  # no step is open any more
    assert steps.finish() == {"a": 2.5, "b": 6.0}
    assert steps.words == "set up in 8 s: b 6.0 s, a 2.5 s"
    assert shown == ["a", "b", "b", "a"]
    assert steps.deadline(0.5) is None
    assert not steps.is_over


def test_time_that_is_too_short_for_a_trial_ends_the_search() -> None:
    steps, hands, _ = setup(100)
    steps("making the first files", 0.0)
    hands.time += 70
    assert not steps.ends_before(29)
    assert steps.ends_before(31)
    steps.finish()
    assert steps.words == (
        "search: setting up took 70 of the 100 s (making the first files 70.0 s): no trial is made "
        "after the first files; nearest timeout for a search: 4m"
    )
    assert not setup(None)[0].ends_before(1e9)
    steps.has_files = False
    assert (
        "(making the first files 70.0 s): that is too short for the first compressed file, and the "
        "float file is all there is;"
    ) in steps.words


def test_a_time_that_was_too_short_is_not_advised_again() -> None:
    steps, hands, _ = setup(100)
    steps("making the first files", 0.0)
    hands.time += 5  # an earlier run has measured the rest
    assert steps.ends_before(1e9)
    steps.finish()
    assert steps.words.endswith("nearest timeout for a search: 2m")


def test_the_end_of_the_time_names_steps_and_a_timeout_that_would_do() -> None:
    steps, hands, shown = setup(10)
    steps("exporting the model", 0.0)
    hands.time += 8
    steps("calibrating", 0.0)
    hands.time += 14
    with pytest.raises(OutOfTimeError) as caught:
        steps("evaluating the baseline", 0.0)
    assert str(caught.value) == (
        "search: setting up took 22 of the 10 s (calibrating 14.0 s, exporting the model 8.0 s), "
        "before the first trial; "
        "what was exported and measured is kept for the next run; nearest timeout: 2m"
    )
    assert shown == ["exporting the model", "calibrating"]


def test_what_was_done_before_is_counted_too() -> None:
    hands = Hands()
    steps = Setup(10, lambda what, share: None, now=hands, started=hands.time - 4)
    steps("a", 0.0)
    hands.time += 2
    assert steps.finish() == {"starting": 4.0, "a": 2.0}
    hands.time += 5
    assert steps.is_over


def test_what_is_ready_goes_on() -> None:
    steps, hands, shown = setup(10)
    steps.is_ready = True
    steps("a", 0.0)
    hands.time += 11
    steps("b", 0.0)
    hands.time += 1
    steps.finish()
    assert shown == ["a", "b"]
    assert steps.is_over
    assert "setting up took 12 of the 10 s" in steps.words
    assert steps.words.endswith(
        "no trial is made after the first files; nearest timeout for a search: 36s"
    )


def test_steps_end_at_a_share_of_the_whole_time_and_late_ones_get_the_least() -> None:
    steps, hands, _ = setup(100)
    begun = hands.time
    assert steps.deadline(0.2, 0.05) == pytest.approx(begun + 20)
    hands.time += 18
    assert steps.deadline(0.2, 0.05) == pytest.approx(begun + 23)
    hands.time += 40
    assert steps.deadline(0.2, 0.05) == pytest.approx(begun + 63)
    assert steps.deadline(0.2) == pytest.approx(begun + 58), "over: no time is left for it"


def slow(step: str, seconds: float, hands: Hands) -> Callable[..., Setup]:
    """Setups whose clock stands, but for `seconds` that pass when the step `step` is reported."""

    def made(
        timeout_s: float | None,
        show: Callable[[str, float], None],
        stopped: Callable[[], bool],
        started: float,
    ) -> Setup:
        def shown(what: str, share: float) -> None:
            hands.time += seconds if what == step and share == 0.0 else 0.0
            show(what, share)

        return Setup(timeout_s, shown, stopped, hands)

    return made


@pytest.mark.slow
def test_a_search_whose_setup_takes_too_long_says_so_and_goes_on_later(
    cnn_task, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(loop, "Setup", slow("exporting the model", 700.0, Hands()))
    with pytest.raises(
        OutOfTimeError,
        match=r"setting up took 700 of the 600 s \(exporting the model 700\.0 s.*nearest timeout: "
        r"35m",
    ):
        ac.search(cnn_task, SPACE, n_trials=2, timeout_s=600, out=tmp_path, quiet=True)
    monkeypatch.undo()
    result = ac.search(cnn_task, SPACE, n_trials=2, out=tmp_path, quiet=True)
    assert len(result.front) >= 1
    seconds = json.loads((tmp_path / "run.json").read_text())["setup_seconds"]
    assert {"checking the task", "exporting the model", "evaluating the baseline"} <= set(seconds)


@pytest.mark.slow
def test_a_time_that_ends_before_the_first_file_leaves_the_float_file(
    cnn_task, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loop, "Setup", slow("evaluating the baseline", 700.0, Hands()))
    out = tmp_path / "run"
    result = ac.search(cnn_task, SPACE, n_trials=3, timeout_s=600, out=out)
    assert "is too short for the first compressed file" in " ".join(capsys.readouterr().err.split())
    assert not result.front.points
    assert result.front.baseline.size_bytes == (out / "models/baseline/model.onnx").stat().st_size
    assert "there is no compressed file" in result.shortfall
    assert (out / "report.html").is_file()
    assert not (out / "trials.csv").exists()
    run = json.loads((out / "run.json").read_text())
    assert run["setup_seconds"]["evaluating the baseline"] >= 700
    print_front(result.front, known_limits(out, result.front))
    assert "float baseline" in capsys.readouterr().out
    monkeypatch.undo()
    again = ac.search(cnn_task, SPACE, n_trials=1, out=out, quiet=True, finalize_steps=0)
    assert again.front.points, "the same command goes on"


@pytest.mark.slow
def test_a_table_without_time_still_knows_every_form(cnn_task, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    target = find_target("onnxruntime-cpu")
    builder = builder_for(cnn_task, find_modules(cnn_task.model, cnn_task.example_inputs), target)
    space = SearchSpace.load(
        {"modules": [{"match": "*", "weight_bits": [4, 8], "activation_bits": [8, 32]}]}
    ).bind(builder.module_map, target)
    subject = subject_of(cnn_task, builder, layout_of(builder), space)
    table = cached_table(subject, target, limit_s=0.0)
    assert len(table.runs) == 2
    assert table.left_out > 2
    assert table.tuning == ()
    table.covers(subject.layout, [uniform_candidate(subject, form) for form in all_forms(subject)])
    assert table.check == {}
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json").left_out == table.left_out
    assert not list((tmp_path / "latency").glob("*")), (
        "what is not whole is not kept for other searches"
    )


class SlowModel(nn.Module):
    """Each call takes 100 s of a clock that moves by hand."""

    def __init__(self, hands: Hands) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
        self.hands = [hands]

    def __deepcopy__(self, memo: dict) -> SlowModel:
        made = SlowModel(self.hands[0])
        made.load_state_dict(self.state_dict())
        return made.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        self.hands[0].time += 100
        return self.b(torch.relu(self.a(x)))


class SlowLoader:
    """Each batch takes 100 s of a clock that moves by hand."""

    def __init__(self, batches: list, hands: Hands) -> None:
        self.batches, self.hands = batches, hands

    def __iter__(self) -> Iterator:
        for batch in self.batches:
            self.hands.time += 100
            yield batch


@pytest.mark.slow
@pytest.mark.parametrize("what", ["model", "student", "validation", "train"])
def test_the_clock_is_looked_at_between_calls_of_the_users_code(
    what: str, tmp_path: Path, monkeypatch
) -> None:
    """One call that is slow cannot be ended, but no other one is begun when the time is over."""
    hands = Hands()
    x = torch.randn(64, 8)
    data = [(part, part[:, :3].argmax(1)) for part in x.split(4)]
    task = ac.Task(
        "slow",
        nn.Sequential(nn.Linear(8, 3)),
        x[:1],
        data,
        lambda o, t: float((o.argmax(1) == t).float().mean()),
        train=data,
    )
    given = SlowModel(hands) if what in ("model", "student") else SlowLoader(data, hands)
    task = replace(task, **{what: given})
    monkeypatch.setattr(
        loop,
        "Setup",
        lambda timeout_s, show, stopped, started: Setup(timeout_s, show, stopped, hands),
    )
    began = hands.time
    with pytest.raises(
        OutOfTimeError, match=r"setting up took 300 of the 250 s \(checking the task 300\.0 s\)"
    ) as caught:
        ac.search(task, SPACE, n_trials=2, timeout_s=250, out=tmp_path, quiet=True)
    assert hands.time - began == 300
    assert "\n" not in str(caught.value)
