"""Turn errors of the user's code into errors of one line that name the place in their file.

Every call of a model, metric, loss, divergence or loader stands in a `user_code` block.
"""

from __future__ import annotations

import contextlib
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

import torch

from autocompress.errors import AutocompressError, TaskError

OURS = str(Path(__file__).resolve().parents[1])
TASKS = str(Path(OURS) / "tasks")  # the built-in tasks stand where a user's do
# Frames of these files only pass on what the user's code raises.
PASSING = (__file__, str(Path(OURS) / "model" / "float_copy.py"))
PATHS = sysconfig.get_paths()
LIBRARIES = (PATHS["stdlib"], PATHS["platstdlib"], PATHS["purelib"], PATHS["platlib"])
WORKER_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


class UserCodeError(TaskError):
    """Say that the task's model, metric, loss, divergence or loader fails."""


LOOK: ContextVar[Callable[[], None]] = ContextVar("look", default=lambda: None)


@contextlib.contextmanager
def looking(look: Callable[[], None]) -> Iterator[None]:
    """Call a function before each call of the user's code inside the block.

    Slow work can so be ended between two calls.

    Args:
        look: raises what ends the work.
    """
    token = LOOK.set(look)
    try:
        yield
    finally:
        LOOK.reset(token)


@contextlib.contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turn an error inside the block into a UserCodeError.

    The text is `what`, the error's type and first line, and the user's file and line. Errors of
    this package stay as they are, and so do errors that begin in its own frames or say that memory
    is short.

    Args:
        what: how the text begins, such as "task: metric fails".

    Raises:
        UserCodeError: the user's code fails.
    """
    LOOK.get()()
    try:
        yield
    except (AutocompressError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        text = str(error)
        if out_of_memory(error):
            raise
        stack = traceback.extract_tb(error.__traceback__)
        frames = [(frame.filename, frame.lineno or 0) for frame in stack]
        called = [frame for frame in frames if frame[0] not in PASSING][1:]
        if any(name.startswith(OURS) and not name.startswith(TASKS) for name, _ in called):
            raise
        raise UserCodeError(f"{what}: {_first_line(error)}{place(called, text)}") from error


def out_of_memory(error: BaseException) -> bool:
    """Return True if an allocation failed, on a GPU or in main memory.

    Args:
        error: an error of torch or Python.
    """
    text = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def our_fault(error: Exception) -> str:
    """Return the line that reports an error of this package.

    Args:
        error: with its traceback.

    Returns:
        The error's type and text, and the last line of this package that it passed.
    """
    stack = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in stack if frame.filename.startswith(OURS)]
    line = ""
    if ours:
        file = Path(ours[-1].filename).relative_to(Path(OURS).parent)
        line = f" at {file}:{ours[-1].lineno}"
    words = " ".join(str(error).split())[:300]
    return (
        f"a fault of autocompress{line}: {type(error).__name__}: {words}; "
        "please report it with what --debug shows"
    )


def _first_line(error: BaseException) -> str:
    """Return the type and first line of an error.

    An error that a loader's process caught gives its own type and line.
    """
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    if len(lines) > 1 and "in DataLoader worker process" in lines[0]:
        return lines[-1].strip()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def place(frames: list[tuple[str, int]], text: str = "") -> str:
    """Return the innermost line of the user's files, in brackets.

    Args:
        frames: (file, line) from the outermost to the innermost.
        text: of the error, in which a loader's process quotes further frames.

    Returns:
        " (file:line)"; the innermost line outside PyTorch if only libraries are there; else "".
    """
    frames = frames + [(name, int(line)) for name, line in WORKER_FRAME.findall(text)]
    foreign = []
    for name, line in frames:
        if not name.startswith(("<frozen", OURS)) or name.startswith(TASKS):
            foreign.append((name, line))
    theirs = [frame for frame in foreign if not frame[0].startswith(LIBRARIES)]
    others = [frame for frame in foreign if f"{Path('/torch')}/" not in frame[0]]
    if not (theirs or others):
        return ""
    name, line = (theirs or others)[-1]
    return f" ({name}:{line})"
