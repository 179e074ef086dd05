"""Tasks that are broken: one line that says what, and where in the user's file.

A fault of ours is called ours.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from autocompress.cli import search_commands
from autocompress.cli.main import main

pytestmark = pytest.mark.slow

SEARCH = [
    ("metric_raises", "task: metric fails: ValueError: metric broke ({file}:44)"),
    ("metric_string", "task: metric returned 'good'; it must be a finite number"),
    ("metric_tensor", "task: metric returned a tensor of shape (64,); it must be a finite number"),
    ("forward_second", "model.forward fails: RuntimeError: second batch broke ({file}:62)"),
    ("nan_rows", "of 16 samples of a batch are NaN; expected numbers"),
]
BOTH = [
    ("loader_raises", "task: validation cannot be read: OSError: file 2 is gone ({file}:78)"),
    (
        "wrong_dtype",
        "model.forward fails on validation: RuntimeError: mat1 and mat2 must have the same dtype",
    ),
    ("labels_out", "task: target 8 is none of the 3 classes"),
    ("empty", "task: validation is empty"),
    ("empty_batch", "task: validation yields a batch without samples; nearest: leave it out"),
    ("nan_outputs", "task: the model gives no finite number on the first validation batch"),
    (
        "string",
        "task: the model returns str; expected a tensor, .logits, or a tuple, dict or dataclass",
    ),
    ("only_none", "task: the model returns dict; expected a tensor"),
    (
        "integers",
        "task: the model gives int64 outputs; expected scores, nearest: logits, with argmax in "
        "the metric",
    ),
    ("exits", "model.forward fails on example_inputs: SystemExit: 3"),
    ("meta", "task t: model's a.weight is on device meta and has no values"),
    (
        "uncopyable",
        "task t: the model cannot be copied: TypeError: cannot pickle '_thread.lock' object",
    ),
    ("function", "task t: model is a function; expected a torch.nn.Module"),
    ("no_model", "task t: model is a NoneType; expected a torch.nn.Module"),
    (
        "nan_weight",
        "task t: model's a.weight holds NaN in 1 of 128 values; expected finite numbers",
    ),
    (
        "infinite_weight",
        "task t: model's b.weight holds infinity in 1 of 48 values; expected finite numbers",
    ),
    ("infinite_bias", "task t: model's b.bias holds infinity in 1 of 3 values"),
    ("infinite_half", "task t: model's a.weight holds infinity in 1 of 128 values"),
    ("beyond_float32", "task t: model's a.weight holds infinity in 1 of 128 values"),
    ("infinite_frozen", "task t: model's b.weight holds infinity in 1 of 48 values"),
    ("infinite_statistic", "task t: model's norm.running_var holds infinity in 1 of 8 values"),
    (
        "missing_file",
        "missing_file fails: FileNotFoundError: [Errno 2] No such file or directory: "
        "'/no/such/weights.pt' ({file}:221)",
    ),
    ("key", "key fails: KeyError: 'a'"),
]
EVALUATE = [*SEARCH[:3], BOTH[0], *BOTH[3:5], BOTH[-1]]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, task_files: Path) -> Path:
    """Return the file of the tasks, in a folder where runs are written."""
    return shutil.copy(task_files / "broken.py", tmp_path_factory.mktemp("broken") / "tasks.py")


@pytest.fixture(scope="module")
def file(tasks: Path) -> Path:
    """A file of the task that is not broken."""
    out = tasks.parent / "run"
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "search",
                f"{tasks}:ok",
                "--trials",
                "2",
                "--finalize-steps",
                "0",
                "--space",
                str(space(tasks)),
                "--out",
                str(out),
            ]
        )
    assert caught.value.code == 0
    return next(
        path for path in (out / "models").glob("*/model.onnx") if path.parent.name != "baseline"
    )


def space(tasks: Path) -> Path:
    path = tasks.parent / "space.yaml"
    path.write_text("modules: [{match: '*', weight_bits: [4, 8]}]\ndistillation: {steps: 0}\n")
    return path


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 1
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("autocompress: ")
    ]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(("task", "said"), [*SEARCH, *BOTH], ids=lambda value: value[:20])
def test_a_search_of_a_broken_task(
    task: str, said: str, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(
        capsys,
        "search",
        f"{tasks}:{task}",
        "--trials",
        2,
        "--space",
        space(tasks),
        "--out",
        tmp_path,
    )
    assert said.format(file=tasks) in error


@pytest.mark.parametrize(("task", "said"), BOTH, ids=lambda value: value[:20])
def test_an_inspection_of_a_broken_task(
    task: str, said: str, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said.format(file=tasks) in error_of(capsys, "inspect", f"{tasks}:{task}")


@pytest.mark.parametrize(("task", "said"), EVALUATE, ids=lambda value: value[:20])
def test_an_evaluation_by_a_broken_task(
    task: str, said: str, file: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said.format(file=tasks) in error_of(capsys, "evaluate", file, f"{tasks}:{task}")


@pytest.mark.parametrize("task", ["none_values", "masks"])
def test_what_is_no_fault_of_the_task_goes_through(task: str, tasks: Path, tmp_path: Path) -> None:
    """Values that are no tensors are not in the file.

    Masks of -inf and marks of NaN are no weights.
    """
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "search",
                f"{tasks}:{task}",
                "--trials",
                "2",
                "--space",
                str(space(tasks)),
                "--out",
                str(tmp_path),
            ]
        )
    assert caught.value.code == 0


def test_a_fault_of_ours_is_called_ours(
    tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*arguments: object) -> None:
        raise KeyError("nothing of\nthe user's")

    monkeypatch.setattr(search_commands, "inspect_task", wrong)
    error = error_of(capsys, "inspect", f"{tasks}:ok")
    assert error.startswith(
        "autocompress: a fault of autocompress at autocompress/cli/search_commands.py:"
    )
    assert "KeyError" in error
    assert error.endswith("please report it with what --debug shows")
