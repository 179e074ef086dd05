"""Load a task from the function that makes it, in a module or in a file.

The command line and the workers start here: they get the task as a text.
"""

from __future__ import annotations

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


def load_task(spec: str, **arguments: Any) -> Task:
    """Return the task that a function makes.

    Args:
        spec: "package.module:function" or "path/to/file.py:function".
        arguments: keyword arguments of the function.

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
    place, _, function_name = spec.rpartition(":")
    if not place:
        raise TaskError(
            f"task {spec!r}: expected package.module:function or path/to/file.py:function"
        )
    module = _load_file(Path(place), spec) if place.endswith(".py") else _load_module(place, spec)
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        functions = [name for name in functions if not name.startswith("_")]
        raise TaskError(
            f"task {spec!r}: {place} has no function {function_name!r}; "
            f"nearest: {nearest_name(function_name, functions)}"
        )
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
