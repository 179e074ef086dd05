"""Load a task from the function that makes it, in a module or in a file.

The command line and the workers start here: they get the task as a text.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.argument_types import shown
from autocompress.errors import TaskError, nearest_name
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError, user_code

# The function that makes tasks of model folders; it is imported when a folder is loaded.
PRETRAINED = "autocompress.huggingface.pretrained:from_pretrained"
HUB = "hf://"  # begins the name of a model folder on a hub
DATA = ("data", "validation", "test")  # arguments that are paths


def is_model_folder(spec: str) -> bool:
    """Return True if a text names a model folder.

    Args:
        spec: what `load_task` takes.

    Returns:
        True for folders and for names on a hub.
    """
    return spec.startswith(HUB) or Path(spec).is_dir()


def model_folder_arguments(folder: str | os.PathLike[str], **arguments: Any) -> dict[str, Any]:
    """Return the arguments with which any process on this machine makes the same task.

    Args:
        folder: model folder, or its name on a hub.
        arguments: of `from_pretrained`; those that are None are left out.

    Returns:
        The arguments, with absolute paths.
    """
    values = {name: value for name, value in arguments.items() if value is not None}
    values["folder"] = str(folder)
    for name in ("folder", *DATA):
        value = values.get(name)
        if isinstance(value, (str, os.PathLike)) and not str(value).startswith(HUB):
            values[name] = str(Path(value).resolve())
    return values


def load_task(spec: str, **arguments: Any) -> Task:
    """Return the task that a function makes.

    Args:
        spec: "package.module:function", "path/to/file.py:function", or a model folder.
        arguments: keyword arguments of the function; of `from_pretrained` for a model folder.

    Returns:
        The task, with `source` set so that a worker can load it again.

    Raises:
        TaskError: there is no such module, file or function, or it does not return a Task.
        UserCodeError: the file or the function fails.
    """
    if not isinstance(spec, str):
        near = f"{os.fspath(spec)!r}" if isinstance(spec, os.PathLike) else "'path/to/file.py:task'"
        raise TaskError(
            f"task: expected a text such as package.module:function, got {shown(spec)}; "
            f"nearest: {near}"
        )
    if is_model_folder(spec):
        return load_task(PRETRAINED, **model_folder_arguments(spec, **arguments))
    place, _, function_name = spec.rpartition(":")
    if not place:
        raise TaskError(
            f"task {spec!r}: expected package.module:function, path/to/file.py:function or a model "
            f"folder{_near(Path(spec))}"
        )
    module = _load_file(Path(place), spec) if place.endswith(".py") else _load_module(place, spec)
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        functions = [name for name in functions if not name.startswith("_")]
        begin = f"task {spec!r}: {place} has no function {function_name!r}"
        if isinstance(function, Task):
            raise TaskError(f"{begin} but a Task of this name; nearest: a function that returns it")
        raise TaskError(f"{begin}; nearest: {nearest_name(function_name, functions)}")
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise TaskError(f"task {spec!r}: {error}; it takes {inspect.signature(function)}") from None
    with user_code(f"task {spec!r}: {function_name} fails"):
        task = function(**arguments)
    if not isinstance(task, Task):
        raise TaskError(
            f"task {spec!r}: {function_name} returned {type(task).__name__}; "
            "it must return autocompress.Task"
        )
    where = str(Path(place).resolve()) if place.endswith(".py") else place
    return replace(task, source={"spec": f"{where}:{function_name}", "arguments": arguments})


def as_task(task: Task | str) -> Task:
    """Return a task as it is, or load the one that a text names.

    Args:
        task: a task, or what `load_task` takes.

    Returns:
        The task.

    Raises:
        TaskError: it is neither, or cannot be loaded.
    """
    if isinstance(task, str):
        return load_task(task)
    if not isinstance(task, Task):
        raise TaskError(
            f"task: expected an autocompress.Task or a text, got {type(task).__name__}; "
            "nearest: Task(model, ...) or path/to/file.py:function"
        )
    return task


def _load_module(name: str, spec: str) -> Any:
    try:
        with user_code(f"task {spec!r}: {name} fails to load"):
            return importlib.import_module(name)
    except UserCodeError as failure:
        error = failure.__cause__
        if not isinstance(error, ModuleNotFoundError):
            raise
        raise TaskError(
            f"task {spec!r}: no module {error.name!r}; expected an importable module or a path "
            "that ends in .py, for example autocompress.tasks:easy_vqa"
        ) from None


def _load_file(path: Path, spec: str) -> Any:
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise TaskError(
            f"task {spec!r}: no file {path}; nearest: {nearest_name(path.name, siblings) or 'none'}"
        )
    name = f"autocompress_task_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        with user_code(f"task {spec!r}: {path} fails to load"):
            module_spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def _near(path: Path) -> str:
    """Return words on the model folder or the task file beside a path that is not there."""
    if path.suffix == ".py":
        return f"; nearest: {path}:task" if path.is_file() else ""
    try:
        folders = [config.parent.name for config in path.parent.glob("*/config.json")]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, folders, n=1)
    return f"; nearest: {path.parent / close[0]}" if close else ""
