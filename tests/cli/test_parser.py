"""Refuse wrong options in one line, with exit code 2, before a task is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.cli.main import main

WRONG = [
    ("", "autocompress: the following arguments are required: COMMAND"),
    ("serach t", "autocompress: unknown command 'serach'; nearest: search"),
    ("--verson", "autocompress: the following arguments are required: COMMAND"),
    ("search", "autocompress search: the following arguments are required: TASK"),
    ("search t u", "autocompress search: unexpected argument 'u'"),
    ("search t --trails 5", "autocompress search: unknown option --trails; nearest: --trials"),
    ("search t --trails=5", "autocompress search: unknown option --trails; nearest: --trials"),
    ("search t --max-size", "autocompress search: --max-size: expected a value (2MB|25%)"),
    ("search t --max-size -5MB", "autocompress search: --max-size: expected a value (2MB|25%)"),
    (
        "search t --max-size big",
        "autocompress search: --max-size: expected a value such as 2MB or 25%, got 'big'; "
        "nearest: 2MB",
    ),
    (
        "search t --max-latency 3msec",
        "autocompress search: --max-latency: expected a value such as 3ms or 0.5x, got '3msec'; "
        "nearest: 3ms",
    ),
    (
        "search t --max-accuracy-drop x",
        "autocompress search: --max-accuracy-drop: expected a number such as 0.005 or 1%, got "
        "'x'; nearest: 0.005",
    ),
    (
        "search t --min-metric f1=x",
        "autocompress search: --min-metric: expected a number such as 0.9 or 99%, got 'x'; "
        "nearest: 0.9",
    ),
    (
        "search t --timeout soon",
        "autocompress search: --timeout: expected a duration such as 90s, 10m or 2h, got 'soon'; "
        "nearest: 10m",
    ),
    (
        "search t --workers a",
        "autocompress search: --workers: expected a whole number of at least 1, got 'a'; "
        "nearest: 1",
    ),
    (
        "search t --seed -1",
        "autocompress search: --seed: expected a whole number from 0 to 4294967295, got '-1'; "
        "nearest: 0",
    ),
    (
        "search t --latency mix:30%",
        "autocompress search: --latency: latency must be decode, prefill or mix:SHARE with a share "
        "between 0 and 1, got 'mix:30%'; nearest: mix:0.3",
    ),
    (
        "search t --target onnxruntime-cpp",
        "autocompress search: --target: target 'onnxruntime-cpp' is unknown; nearest: "
        "onnxruntime-cpu; valid: litert-cpu, litert-micro, ",
    ),
    (
        "search t --space defualt",
        "autocompress search: --space: defualt: no such file; nearest: default; shipped spaces: ",
    ),
    ("search t --sampler tp", "autocompress search: --sampler: 'tp' is unknown; nearest: tpe"),
    ("search t --device gpu", "autocompress search: --device: 'gpu' is unknown; nearest: cpu"),
    (
        "search t --strategy greedy",
        "autocompress search: --strategy: 'greedy' is unknown; nearest: guided",
    ),
    ("search t --strategy", "autocompress search: --strategy: expected a value (guided, progress"),
    (
        "search t --ray auto",
        "autocompress search: ray places the other workers; workers must be at least 2, got 1; ",
    ),
    (
        "search t --strategy progressive --workers 2",
        "autocompress search: the progressive strategy takes one step after another; workers must "
        "be 1, got 2",
    ),
    (
        "search t --library-memory lots",
        "autocompress search: --library-memory: expected a value such as 512MB, got 'lots'; "
        "nearest: 512MB",
    ),
    (
        "search t --target-table {folder}/tabel.json",
        "autocompress search: --target-table: {folder}/tabel.json: no such file; nearest: "
        "{folder}/table.json",
    ),
    (
        "inspect t --target-table {folder}",
        "autocompress inspect: --target-table: {folder}: is a folder; expected a file",
    ),
    ("profile t", "autocompress profile: the following arguments are required: --out"),
    (
        "profile t --out {folder}",
        "autocompress profile: --out: {folder}: is a folder; expected a file",
    ),
    (
        "profile t --out {folder}/table.json/new/table.json",
        "autocompress profile: --out: {folder}/table.json/new/table.json: {folder}/table.json is a "
        "file; nearest: a path in {folder}",
    ),
    *(
        (
            f"{words} --to {{folder}}/table.json",
            f"autocompress {words.split()[0]}: --to: {{folder}}/table.json: {{folder}}/table.json "
            "is a file; nearest: a path in {folder}",
        )
        for words in ("export d", "export-probes t", "reproduce d")
    ),
    ("profile t --out f --space no", "autocompress profile: --space: no: no such file; "),
    ("worker t", "autocompress worker: the following arguments are required: --storage"),
    ("export d", "autocompress export: the following arguments are required: --to"),
    ("export d --to e --pick fast", "autocompress export: --pick: 'fast' is unknown; nearest: fas"),
    (
        "export d --to e --max-size big",
        "autocompress export: --max-size: expected a value such as 2MB or 25%, got 'big'; ",
    ),
    ("evaluate m.onnx t --split tset", "autocompress evaluate: --split: 'tset' is unknown; near"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_options_are_one_line(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The task `t` does not exist: an error that names it would show that it was loaded."""
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(SystemExit) as caught:
        main(words.format(folder=tmp_path).split())
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith(message.format(folder=tmp_path))
    program = message.split(":")[0]
    assert error.endswith(f" (see {program} --help)\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (
            "inspect",
            "--space {folder}/space.yaml",
            "unknown key 'weigth_bits'; nearest: weight_bits",
        ),
        (
            "search",
            "--space {folder}/space.yaml",
            "unknown key 'weigth_bits'; nearest: weight_bits",
        ),
        (
            "profile",
            "--space {folder}/space.yaml",
            "unknown key 'weigth_bits'; nearest: weight_bits",
        ),
        (
            "search",
            "--target {folder}/device.yaml",
            "runtime 'onnx' is unknown; nearest: onnxruntime",
        ),
        (
            "inspect",
            "--target {folder}/device.yaml",
            "runtime 'onnx' is unknown; nearest: onnxruntime",
        ),
        ("search", "--storage foo://db", "storage foo://db: cannot be opened (Can't load plugin: "),
    ],
)
def test_wrong_content_is_told_before_the_task_is_loaded(
    command: str,
    words: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "space.yaml").write_text("modules: [{match: '*', weigth_bits: [8]}]")
    (tmp_path / "device.yaml").write_text("runtime: onnx")
    out = ["--out", str(tmp_path / "out")] if command != "inspect" else []
    with pytest.raises(SystemExit) as caught:
        main([command, "no_such_task:make", *words.format(folder=tmp_path).split(), *out])
    error = capsys.readouterr().err
    assert caught.value.code == 1
    assert message in error
    assert error.count("\n") == 1
