"""Read what the command line is given, and refuse the rest in one line."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentTypeError
from importlib.metadata import version
from pathlib import Path

import pytest

from autocompress.cli.arguments import SHELLS, build_parser, completion_command
from autocompress.cli.folder_options import OPTIONS
from autocompress.cli.main import COMMANDS, PIPE
from autocompress.cli.values import count, duration, metric_floor, seed, steps, task_argument


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1.5m", 90), ("0", 0), ("0.25h", 900)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("", "10m"),
        ("m", "10m"),
        ("10 m", "10m"),
        ("-5s", "5s"),
        ("1d", "10m"),
        ("1.m", "10m"),
        ("5m3s", "5m"),
        ("10M", "10m"),
        ("9" * 400, "10m"),
    ],
)
def test_what_is_no_duration(text: str, near: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        duration(text)
    expected = f"expected a duration such as 90s, 10m or 2h, got {text!r}; nearest: {near}"
    assert str(caught.value) == expected


def test_whole_numbers() -> None:
    assert (count("1"), count("007"), steps("0"), steps("12")) == (1, 7, 0, 12)
    for text, near in (("0", 1), ("-1", 1), ("1.0", 1), ("2.6", 3), ("", 1), ("x", 1), ("inf", 1)):
        with pytest.raises(ArgumentTypeError) as caught:
            count(text)
        expected = f"expected a whole number of at least 1, got {text!r}; nearest: {near}"
        assert str(caught.value) == expected
    for text in ("-1", "0.4", ""):
        with pytest.raises(ArgumentTypeError, match=f"at least 0, got '{text}'; nearest: 0$"):
            steps(text)
    assert seed("4294967295") == 2**32 - 1
    with pytest.raises(ArgumentTypeError, match=r"got '4294967296'; nearest: 4294967295$"):
        seed("4294967296")


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
    for text, near in (("k", "k=1"), ("=3", "name=1"), ("my-k=3", "name=1"), ("3k=1", "name=1")):
        with pytest.raises(ArgumentTypeError) as caught:
            task_argument(text)
        assert str(caught.value) == f"expected name=value, got {text!r}; nearest: {near}"
    with pytest.raises(
        ArgumentTypeError, match=r"got 'k=\[1', whose value is not YAML \(.*\); near"
    ):
        task_argument("k=[1")
    assert metric_floor("f1=99%") == ("f1", "99%")
    for text, near in (("f1", "f1=0.9"), ("f1=", "f1=0.9"), ("=0.9", "f1=0.9")):
        with pytest.raises(ArgumentTypeError) as caught:
            metric_floor(text)
        expected = f"expected name=value, for example f1=0.9 or f1=99%, got {text!r}"
        assert str(caught.value) == f"{expected}; nearest: {near}"
    with pytest.raises(
        ArgumentTypeError, match=r"^expected a number such as 0\.9 or 99%, got 'x'; "
    ):
        metric_floor("f1=x")


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
        "max_memory": None,
        "max_accuracy_drop": None,
        "latency": None,
        "min_metric": [],
        "objective": [],
        "seed": 0,
        "strategy": "guided",
        "sampler": "guided",
        "finalize_steps": None,
        "storage": None,
        "workers": 1,
        "ray": None,
        "library_memory": "64MB",
        "device": None,
        "out": "reports/run",
        "json": False,
        **{f"folder_{name}": None for name in OPTIONS.values()},
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


def test_other_commands_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).touch()
    parse = build_parser().parse_args
    assert parse(["export", "d", "--to", "e"]).pick == "knee"
    assert parse(["bench", "m.onnx"]).rounds == 100
    assert parse(["bench", "m.onnx"]).threads is None
    assert parse(["evaluate", "m.onnx", "t"]).split == "validation"
    assert parse(["worker", "t", "--storage", "s"]).study == "autocompress"
    assert parse(["profile", "t", "--out", "f", "--merge", "a", "--merge", "b"]).merge == ["a", "b"]


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_commands_and_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completion_command(build_parser().parse_args(["completion", shell])) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "max-accuracy-drop", "progressive"):
        assert word in script


def test_bash_completes_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    completion_command(build_parser().parse_args(["completion", "bash"]))
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    lines = [
        f"source {script}",
        "COMP_WORDS=(autocompress exp) COMP_CWORD=1",
        "_shtab_autocompress",
        'echo "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["export-probes", "export"]


def test_a_reader_that_ends_early_is_no_error() -> None:
    command = [sys.executable, "-m", "autocompress", "completion", "bash"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()  # as `head` does
        assert process.stderr is not None
        errors = process.stderr.read()
    assert errors == b""
    assert process.returncode == PIPE
