"""Say on the terminal what is known before the first trial."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from autocompress.search.problem.describe import say_setup

from autocompress.search.problem.progress import check_words
from autocompress.targets.device.sessions import SessionSettings

CHECK = {"candidates": 24, "mape": 0.0312, "p95": 0.087, "bias": -0.014, "kendall_tau": 0.913}
WORDS = (
    "latency model on 24 random candidates it has not seen: mean error 3.1%, 95th percentile 8.7%, "
    "bias -1.4%, Kendall tau 0.91"
)


def bench(**changes: object) -> SimpleNamespace:
    """A bench on which nothing needs to be said but how good its latency model is."""
    default = SessionSettings()
    parts: dict[str, object] = {
        "check": CHECK,
        "note": "",
        "left_out": 0,
        "warning": "",
        "runs": [],
        "settings": default,
        "source": "measured",
        "teacher": torch.zeros(2, 3),
        "fixed": (),
        "offered": (),
    }
    assert set(changes) <= set(parts)
    parts |= changes
    names = ("check", "note", "left_out", "warning", "runs", "settings")
    return SimpleNamespace(
        table=SimpleNamespace(**{name: parts[name] for name in names}),
        target=SimpleNamespace(name="onnxruntime-cpu", settings=default),
        latency_source=parts["source"],
        race=SimpleNamespace(teacher=parts["teacher"]),
        builder=SimpleNamespace(lowered=SimpleNamespace(fixed=parts["fixed"])),
        space=SimpleNamespace(left_out=parts["offered"]),
    )


def said(**changes: object) -> list[str]:
    lines: list[str] = []
    say_setup(bench(**changes), {"modules_share": 0.8}, SimpleNamespace(line=lines.append))
    return lines


def test_the_errors_of_the_latency_model_are_words() -> None:
    assert check_words(CHECK) == WORDS
    assert check_words({}) == (
        "latency model: the space is too small to check it on candidates that it has not seen"
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
        settings=SessionSettings(threads=2, disabled_optimizers=("A", "B")),
        source="table",
        teacher=[torch.zeros(3)],
        fixed=("x: dimension 1 (length) is fixed",),
        offered=("4-bit activations",),
    )
    assert found == [
        ALWAYS[0],
        "latency model: predictions are rough (mean error 20%)",
        ALWAYS[1],
        "latency table: 2 of 7 models were measured in the time that there was",
        "latency table: the machine was busy",
        "session settings: 2 threads, without A, B",
        "latency table: of another machine; the latency of files is predicted for it, not "
        "measured here",
        "outputs differ in shape among batches: metrics get lists of samples, or are averaged "
        "where they are means over them",
        "export: x: dimension 1 (length) is fixed",
        "left out, since onnxruntime-cpu cannot execute it: 4-bit activations",
    ]
    assert said(settings=SessionSettings(threads=4))[2:] == ["session settings: 4 threads"]
