"""Read what the command line is given, and refuse the rest in one line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from importlib.metadata import version

import pytest

from autocompress.cli.arguments import build_parser
from autocompress.cli.values import count, duration, metric_floor, steps, task_argument


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1.5m", 90), ("0", 0), ("0.25h", 900)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "10 m", "-5s", "1d", "1.m", "5m3s", "10M"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        duration(text)
    assert str(caught.value) == f"expected a duration such as 90s, 10m or 2h, got {text!r}"


def test_whole_numbers() -> None:
    assert (count("1"), count("007"), steps("0"), steps("12")) == (1, 7, 0, 12)
    for text in ("0", "-1", "1.0", "", "x"):
        with pytest.raises(ArgumentTypeError, match=f"a whole number of at least 1, got '{text}'"):
            count(text)
    for text in ("-1", "1.0", ""):
        with pytest.raises(ArgumentTypeError, match=f"a whole number of at least 0, got '{text}'"):
            steps(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=3", 3),
        ("k=0.5", 0.5),
        ("k=[1, 2]", [1, 2]),
        ("k=true", True),
        ("k=text", "text"),
        ("k=a=b", "a=b"),
        ("k=", None),
    ],
)
def test_task_arguments_are_yaml(text: str, value: object) -> None:
    assert task_argument(text) == ("k", value)


def test_what_is_no_task_argument_or_floor() -> None:
    for text in ("k", "=3", "my-k=3", "3k=1"):
        with pytest.raises(ArgumentTypeError, match=f"expected name=value, got '{text}'"):
            task_argument(text)
    assert metric_floor("f1=99%") == ("f1", "99%")
    for text in ("f1", "f1=", "=0.9"):
        message = f"expected name=value, for example f1=0.9 or f1=99%, got '{text}'"
        with pytest.raises(ArgumentTypeError) as caught:
            metric_floor(text)
        assert str(caught.value) == message


def test_a_search_by_default() -> None:
    found = vars(build_parser().parse_args(["search", "task.py:make"]))
    assert found == {
        "debug": False,
        "command": "search",
        "task": "task.py:make",
        "task_arg": [],
        "space": None,
        "target": "onnxruntime-cpu",
        "portable": None,
        "target_table": None,
        "trials": 100,
        "timeout": None,
        "max_size": None,
        "max_latency": None,
        "max_accuracy_drop": None,
        "min_metric": [],
        "objective": [],
        "seed": 0,
        "strategy": "guided",
        "sampler": "guided",
        "finalize_steps": None,
        "storage": None,
        "workers": 1,
        "ray": None,
        "library_memory": "512MB",
        "device": None,
        "out": "reports/run",
        "json": False,
    }


def test_options_that_come_several_times_are_lists() -> None:
    words = (
        "search t --task-arg a=1 --task-arg b=x --objective f1 --objective auc --min-metric f1=0.9"
    )
    found = build_parser().parse_args(words.split())
    assert found.task_arg == [("a", 1), ("b", "x")]
    assert found.objective == ["f1", "auc"]
    assert found.min_metric == [("f1", "0.9")]


def test_portable_has_three_states() -> None:
    parse = build_parser().parse_args
    assert parse(["search", "t"]).portable is None
    assert parse(["search", "t", "--portable"]).portable is True
    assert parse(["search", "t", "--no-portable"]).portable is False


@pytest.mark.parametrize("words", ["--debug front d", "front --debug d", "front d --debug"])
def test_debug_may_stand_anywhere(words: str) -> None:
    assert build_parser().parse_args(words.split()).debug is True


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"autocompress {version('autocompress')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("serach t", "argument COMMAND: invalid choice: 'serach'"),
        (
            "search t --trials 0",
            "argument --trials: expected a whole number of at least 1, got '0'",
        ),
        ("search t --strategy greedy", "argument --strategy: invalid choice: 'greedy'"),
        ("export d", "the following arguments are required: --to"),
        ("export d --to e --pick best", "argument --pick: invalid choice: 'best'"),
        ("profile t", "the following arguments are required: --out"),
        ("worker t", "the following arguments are required: --storage"),
        ("evaluate m.onnx t --split all", "argument --split: invalid choice: 'all'"),
    ],
)
def test_bad_words_are_refused(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(words.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_other_commands_by_default() -> None:
    parse = build_parser().parse_args
    assert parse(["export", "d", "--to", "e"]).pick == "knee"
    assert parse(["bench", "m.onnx"]).rounds == 100
    assert parse(["bench", "m.onnx"]).threads is None
    assert parse(["evaluate", "m.onnx", "t"]).split == "validation"
    assert parse(["worker", "t", "--storage", "s"]).study == "autocompress"
    assert parse(["profile", "t", "--out", "f", "--merge", "a", "--merge", "b"]).merge == ["a", "b"]
