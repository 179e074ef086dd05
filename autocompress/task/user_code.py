"""Errors that the user's code raises, told in one line as theirs, with the place in their file."""

from __future__ import annotations

import contextlib
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from autocompress.errors import AutocompressError, TaskError

OURS = str(Path(__file__).resolve().parents[1])
TASKS = str(Path(OURS) / "tasks")  # the built-in tasks stand where a user's do
PASSING = (
    __file__,
    str(Path(__file__).with_name("float_copy.py")),
)  # what only passes on what the user's code raises
LIBRARIES = tuple(
    dict.fromkeys(
        sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")
    )
)
WORKER_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


class UserCodeError(TaskError):
    """The model, the metric, the loss, the divergence or a loader of the task raises."""


LOOK: ContextVar[Callable[[], None]] = ContextVar("look", default=lambda: None)


@contextlib.contextmanager
def looking(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` before each call of the user's code inside the block, so that what is slow can be ended between two calls."""
    token = LOOK.set(look)
    try:
        yield
    finally:
        LOOK.reset(token)


@contextlib.contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turn what the block raises into a UserCodeError: `what`, the error's type and first line, and the user's file and line.

    Errors of this package stay as they are, and so do those that begin in its own frames and those of memory that is short.
    """
    LOOK.get()()
    try:
        yield
    except (AutocompressError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        text = str(error)
        if "out of memory" in text or "can't allocate memory" in text:
            raise
        frames = [
            (frame.filename, frame.lineno or 0)
            for frame in traceback.extract_tb(error.__traceback__)
        ]
        called = [frame for frame in frames if frame[0] not in PASSING][1:]
        if any(name.startswith(OURS) and not name.startswith(TASKS) for name, _ in called):
            raise
        raise UserCodeError(f"{what}: {_first_line(error)}{place(called, text)}") from error


def our_fault(error: Exception) -> str:
    """One line for what is nobody's fault but ours: what it is, and the last of our lines that it passed."""
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(OURS)
    ]
    place = (
        f" at {Path(ours[-1].filename).relative_to(Path(OURS).parent)}:{ours[-1].lineno}"
        if ours
        else ""
    )
    words = " ".join(str(error).split())[:300]
    return f"a fault of autocompress{place}: {type(error).__name__}: {words}; please report it with what --debug shows"


def _first_line(error: BaseException) -> str:
    """The type and the first line of an error; of one that a loader's process caught, its own type and line."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    if len(lines) > 1 and "in DataLoader worker process" in lines[0]:
        return lines[-1].strip()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def place(frames: list[tuple[str, int]], text: str = "") -> str:
    """The innermost line of a file that is no library, in brackets; else the innermost one outside PyTorch."""
    frames = frames + [(name, int(line)) for name, line in WORKER_FRAME.findall(text)]
    frames = [
        frame
        for frame in frames
        if not frame[0].startswith(("<frozen", OURS)) or frame[0].startswith(TASKS)
    ]
    theirs = [frame for frame in frames if not frame[0].startswith(LIBRARIES)]
    others = [frame for frame in frames if f"{Path('/torch')}/" not in frame[0]]
    for name, line in reversed(theirs or others):
        return f" ({name}:{line})"
    return ""
