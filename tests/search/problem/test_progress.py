"""Print what a search found so far, and what is known before its first trial."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from autocompress.results.measurement import Measurement
from autocompress.search.problem.progress import (
    SearchProgress,
    best_points,
    check_words,
    plan_words,
    setup_lines,
)
from autocompress.targets.device.sessions import SessionSettings

BASE = Measurement(1000, 4.0, 0.9)


def test_the_best_points_are_those_that_lose_at_most_a_hundredth() -> None:
    values = [[500.0, 2.0, 0.89], [250.0, 3.0, 0.895], [100.0, 1.0, 0.5], [600.0, 2.5, 0.88]]
    assert best_points(values, BASE) == (
        "front 3; within 0.01 of the float accuracy: smallest 4.0x smaller; "
        "fastest 2.00x as fast (predicted)"
    )


def test_points_of_a_perplexity_are_near_by_its_hundredth() -> None:
    values = [[500.0, 2.0, -55.5], [250.0, 3.0, -55.9]]
    assert best_points(values, Measurement(1000, 4.0, -55.0)) == (
        "front 2; within 0.55 of the float accuracy: smallest 2.0x smaller; "
        "fastest 2.00x as fast (predicted)"
    )


def test_points_that_lose_more_are_only_counted() -> None:
    assert best_points([], BASE) == "front 0"
    assert best_points([[100.0, 1.0, 0.5]], BASE) == "front 1"
    assert best_points([[100.0, 1.0, 0.5]] * 2, BASE) == "front 1", "equal points are one"


def test_more_objectives_are_maximised_too() -> None:
    values = [[100.0, 1.0, 0.5, 0.1], [100.0, 1.0, 0.5, 0.2], [100.0, 1.0, 0.4, 0.3]]
    assert best_points(values, BASE) == "front 2"


def test_elsewhere_than_on_a_terminal_each_phase_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SearchProgress() as progress:
        for share in (0.0, 0.5, 1.0):
            progress.phase("exporting", share)
        progress.line("a line")
        progress.phase("calibrating", 0.0)
    assert capsys.readouterr().err.splitlines() == ["exporting", "a line", "calibrating"]


def test_every_tenth_trial_and_the_last_one_are_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SearchProgress() as progress:
        for done in range(1, 13):
            progress.trials(done, 12, [[500.0, 2.0, 0.9]], BASE)
    assert capsys.readouterr().err.splitlines() == [
        f"trial {done}/12: front 1; within 0.01 of the float accuracy: smallest 2.0x smaller; "
        "fastest 2.00x as fast (predicted)"
        for done in (10, 12)
    ]


def test_before_the_first_trial_no_trial_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchProgress() as progress:
        progress.line("models/0000/model.onnx: 4.3x smaller")
        progress.trials(0, 20, [], BASE)
    assert capsys.readouterr().err.splitlines()[1:] == ["searching, 20 trials are asked for"]


def test_more_trials_than_asked_for_are_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchProgress() as progress:
        progress.trials(200, 8, [], BASE)
    assert capsys.readouterr().err == "200 trials are done already, 8 are asked for: front 0\n"


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchProgress(quiet=True) as progress:
        progress.phase("exporting", 0.0)
        progress.trials(10, 10, [], BASE)
        progress.line("a line")
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "")


CHECK = {
    "candidates": 24,
    "models": 40,
    "mape": 0.0312,
    "p95": 0.087,
    "bias": -0.014,
    "kendall_tau": 0.913,
}
WORDS = (
    "latency model fitted to 40 models, on 24 random unseen candidates: mean error 3.1%, "
    "95th percentile 8.7%, bias -1.4%, Kendall tau 0.91"
)


def problem(**changes: object) -> SimpleNamespace:
    """A problem of which nothing is unusual."""
    default = SessionSettings()
    parts: dict[str, object] = {
        "check": CHECK,
        "note": "",
        "left_out": 0,
        "warning": "",
        "runs": [],
        "settings": default,
        "source": "measured",
        "ragged": False,
        "ordered": False,
        "fixed": (),
        "offered": (),
        "busy": "",
    }
    assert set(changes) <= set(parts)
    parts |= changes
    names = ("check", "note", "left_out", "warning", "runs", "settings")
    return SimpleNamespace(
        table=SimpleNamespace(**{name: parts[name] for name in names}),
        target=SimpleNamespace(name="onnxruntime-cpu", settings=default),
        float_files=SimpleNamespace(warning=parts["busy"]),
        latency_source=parts["source"],
        race=SimpleNamespace(ragged=parts["ragged"], ordered=parts["ordered"]),
        builder=SimpleNamespace(lowered=SimpleNamespace(fixed=parts["fixed"])),
        space=SimpleNamespace(left_out=parts["offered"], without_effect=()),
    )


def said(**changes: object) -> list[str]:
    return setup_lines(problem(**changes), {"modules_share": 0.8})


def test_the_errors_of_the_latency_model_are_words() -> None:
    assert check_words(CHECK) == WORDS
    constant = check_words({**CHECK, "kendall_tau": None})
    assert constant == WORDS.replace("tau 0.91", "tau not defined")
    assert check_words({}) == (
        "latency model: not checked on unseen candidates yet; its errors on files are said"
    )


ALWAYS = [WORDS, "time of the float model: 80% in modules, 20% in other operators"]


def test_where_all_is_well_two_lines_are_said() -> None:
    assert said() == ALWAYS
    assert said(check={})[0] == check_words({})


def test_what_is_not_as_usual_is_said_once_each() -> None:
    runs = [SimpleNamespace(role=role) for role in ("profiled", "checked", "front")]
    found = said(
        note="predictions are rough (mean error 20%)",
        left_out=5,
        runs=runs,
        warning="the machine was busy",
        busy="the machine was busy, too",
        settings=SessionSettings(threads=2, disabled_optimizers=("A", "B")),
        source="table",
        ragged=True,
        ordered=True,
        fixed=("x: dimension 1 (length) is fixed",),
        offered=("4-bit activations",),
    )
    assert found == [
        ALWAYS[0],
        "latency model: predictions are rough (mean error 20%)",
        ALWAYS[1],
        "latency table: 2 of 7 models were measured in the time that there was",
        "latency table: the machine was busy",
        "float file: the machine was busy, too",
        "session settings: 2 threads, without A, B",
        "latency table: of another machine; the latency of files is predicted for it, "
        "not measured here",
        "outputs differ in shape among batches: metrics get lists of samples, or are "
        "averaged where they are means over samples",
        "a metric may depend on the order of its batches: candidates are compared on the "
        "first batches of the split, not on random ones",
        "export: x: dimension 1 (length) is fixed",
        "left out, since onnxruntime-cpu cannot execute it: 4-bit activations",
    ]
    assert said(settings=SessionSettings(threads=4))[2:] == ["session settings: 4 threads"]


def test_the_rest_of_a_search_is_planned() -> None:
    assert plan_words(6.0, 96, 24.0).startswith("about 10 min for 96 more trials")
    assert plan_words(0.1, 96, 24.0).startswith("about 34 s for 96 more trials")
