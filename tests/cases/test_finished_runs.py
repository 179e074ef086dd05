"""What is done with a finished run.

Weights that have changed since, and limits that no point keeps, are one line.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.cli.main import main
from autocompress.errors import ExportError, RunFolderError

pytestmark = pytest.mark.slow

SPACE = {"modules": [{"match": "*", "weight_bits": [3, 4, 8]}], "distillation": {"steps": 0}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, task_files: Path) -> Path:
    """A finished run in a folder beside the task's file."""
    place = tmp_path_factory.mktemp("finished")
    shutil.copy(task_files / "seeded.py", place / "task.py")
    (place / "seed").write_text("0")
    ac.search(f"{place / 'task.py'}:task", SPACE, n_trials=3, out=place / "run", quiet=True)
    return place / "run"


def said(
    capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int | str | None, str, str]:
    """(exit code, standard output, standard error) of a command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code, *capsys.readouterr()


def labelled(net: nn.Module, **more: object) -> ac.Task:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        data = [(part, net(part).argmax(1)) for part in x.split(32)]
    return ac.Task("t", net, x[:1], data, top1, train=data, **more)  # type: ignore[arg-type]


def top1(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def test_weights_that_changed_since_the_search_are_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "export", run, "--to", tmp_path / "best")[0] == 0
    code, out, _ = said(capsys, "reproduce", tmp_path / "best", "--to", tmp_path / "same")
    assert code == 0
    assert "the same file, byte for byte" in out
    (run.parent / "seed").write_text("1")
    try:
        code, _, error = said(capsys, "reproduce", tmp_path / "best", "--to", tmp_path / "again")
    finally:
        (run.parent / "seed").write_text("0")
    assert code == 1
    assert len(error.splitlines()) == 1
    assert "best: the model's weights differ from those of the search" in error
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("what", ["one value", "buffer", "precision"])
def test_every_change_of_weights_is_noticed(what: str, steps: int, tmp_path: Path) -> None:
    """Also of what training has stored, and of weights that are not compressed."""
    net = nn.Sequential(*network(), nn.BatchNorm1d(3)).eval()
    task = labelled(net)
    space = {"modules": [{"match": "*", "weight_bits": [3]}], "distillation": {"steps": steps}}
    result = ac.search(
        task, space, n_trials=2, out=tmp_path / "run", quiet=True, finalize_steps=steps
    )
    folder = ac.export(result, result.front.smallest(), tmp_path / "best")
    assert ac.reproduce(folder, tmp_path / "same", task).is_file()
    with torch.no_grad():
        if what == "one value":
            net[0].weight[0, 0] += 1e-3
        elif what == "buffer":
            net[3].running_mean += 0.1
        else:
            net.double()[0].weight += 1e-3
    with pytest.raises(ExportError, match="the model's weights differ from those of the search"):
        ac.reproduce(folder, tmp_path / "again", task)


def test_weights_of_a_student_that_changed_are_said(tmp_path: Path) -> None:
    task = labelled(network())
    task = replace(task, student=nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)))
    result = ac.search(task, SPACE, n_trials=2, out=tmp_path / "run", quiet=True)
    folder = ac.export(result, result.front.smallest(), tmp_path / "best")
    assert ac.reproduce(folder, tmp_path / "same", task).is_file()
    with torch.no_grad():
        task.student[0].weight += 0.1  # type: ignore[index]
    with pytest.raises(ExportError, match="the student's weights differ from those of the search"):
        ac.reproduce(folder, tmp_path / "again", task)
    with pytest.raises(
        RunFolderError, match="was made with other weights of the student of task 't'"
    ):
        ac.search(task, SPACE, n_trials=3, out=tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("limit", "misses"),
    [
        (("--max-size", "1"), " B above the limit"),
        (("--max-size", "0.01%"), " B above the limit"),
        (("--max-latency", "1us"), " ms above the limit"),
        (("--max-latency", "0.0001x"), " ms above the limit"),
        (("--min-metric", "share=1.5"), "share 1.0000, 0.5000 below the limit"),
        (("--min-metric", "share=150%"), "share 1.0000, 0.5000 below the limit"),
        (("--max-size", "1", "--max-latency", "1us"), " B above the limit; "),
    ],
)
@pytest.mark.parametrize("pick", ["smallest", "knee"])
def test_limits_that_no_point_keeps_export_the_nearest(
    limit: tuple[str, ...],
    misses: str,
    pick: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, error = said(
        capsys, "export", run, "--pick", pick, *limit, "--to", tmp_path / "best"
    )
    assert (code, error) == (0, "")
    words = " ".join(out.split())
    assert "(no point meets the limits; the nearest has " in words
    assert misses in words
    assert (tmp_path / "best" / "model.onnx").exists()


def test_limits_that_a_point_keeps_export_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front = ac.read_front(run)
    size = max(point.measured.size_bytes for point in front)
    code, out, _ = said(
        capsys,
        "export",
        run,
        "--pick",
        "accurate",
        "--max-size",
        f"{size}B",
        "--to",
        tmp_path / "best",
    )
    assert code == 0
    assert f"trial {front.most_accurate(max_size_bytes=size).trial}, " in out
