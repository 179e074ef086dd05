"""Check that a task says where it comes from, and that loading its file leaves the import path
alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autocompress.errors import TaskError
from autocompress.task.source import as_task, load_task
from autocompress.task.user_code import UserCodeError

FILE = """
import torch
from autocompress import Task
import helper_of_the_task

NAME = "text"

def task(size=2):
    x = torch.zeros(1, size)
    return Task(helper_of_the_task.NAME, torch.nn.Linear(size, 1), x, [(x, None)], lambda o, t: 0.0)

def fails():
    return 1 / 0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "helper_of_the_task.py").write_text('NAME = "from the helper"')
    monkeypatch.delitem(sys.modules, "helper_of_the_task", raising=False)
    return tmp_path


def test_a_task_holds_the_absolute_path_and_arguments_that_make_it_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    task = load_task("mine.py:task", size=3)
    assert task.name == "from the helper", "files beside the task can be imported"
    assert task.example_inputs.shape == (1, 3)
    assert task.source == {"spec": f"{folder.resolve()}/mine.py:task", "arguments": {"size": 3}}
    monkeypatch.chdir("/")
    again = load_task(task.source["spec"], **task.source["arguments"])
    assert again.source == task.source


def test_a_module_keeps_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert load_task("mine:task").source == {"spec": "mine:task", "arguments": {}}


def test_the_import_path_is_as_before_even_when_the_file_fails(folder: Path) -> None:
    before = list(sys.path)
    load_task(f"{folder}/mine.py:task")
    assert sys.path == before
    (folder / "mine.py").write_text("raise KeyError('no data')")
    with pytest.raises(UserCodeError, match=r"mine.py fails to load: KeyError: 'no data'"):
        load_task(f"{folder}/mine.py:task")
    assert sys.path == before


def test_what_the_function_raises_has_its_line(folder: Path) -> None:
    line = FILE.splitlines().index("    return 1 / 0") + 1
    with pytest.raises(UserCodeError) as caught:
        load_task(f"{folder}/mine.py:fails")
    assert str(caught.value).endswith(
        f"fails fails: ZeroDivisionError: division by zero ({folder}/mine.py:{line})"
    )


def test_a_wrong_spec_is_told_with_what_would_do(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"has no function 'NAME'; nearest: fails, task$"):
        load_task(f"{folder}/mine.py:NAME")
    (folder / "made.py").write_text((folder / "mine.py").read_text() + "\nmade = task()\n")
    with pytest.raises(TaskError, match="no function 'made' but a Task of this name; nearest: a f"):
        load_task(f"{folder}/made.py:made")
    with pytest.raises(
        TaskError, match=r"no module 'autocompress.no_such'; expected an importable"
    ):
        load_task("autocompress.no_such:task")
    with pytest.raises(
        TaskError, match=r"^task: expected an autocompress\.Task or a text, got int"
    ):
        as_task(5)
    with pytest.raises(TaskError, match=r"no file .*/none/mine.py; nearest: none$"):
        load_task(f"{folder}/none/mine.py:task")
    with pytest.raises(TaskError, match=r"keyword argument 'sise'; it takes \(size=2\)$"):
        load_task(f"{folder}/mine.py:task", sise=3)


@pytest.mark.parametrize(
    ("spec", "near"),
    [("modell", "; nearest: {}/model"), ("mine.py", "; nearest: {}/mine.py:task"), ("x", "")],
)
def test_a_folder_or_file_that_is_not_there_has_a_nearest_one(
    folder: Path, spec: str, near: str
) -> None:
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text("{}")
    with pytest.raises(TaskError, match=r"expected package\.module:function") as caught:
        load_task(f"{folder}/{spec}")
    assert str(caught.value).partition("a model folder")[2] == near.format(folder)
