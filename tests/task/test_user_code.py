"""Check which errors are told as the user's, with which place, and which stay as they are."""

from __future__ import annotations

import pytest
import torch

from autocompress.errors import LimitError, TaskError
from autocompress.task.batches import take_samples
from autocompress.task.user_code import UserCodeError, our_fault, out_of_memory, user_code


def fails(error: BaseException) -> None:
    raise error


def told(error: BaseException) -> str:
    with pytest.raises(UserCodeError) as caught, user_code("task: metric fails"):
        fails(error)
    assert caught.value.__cause__ is error
    return str(caught.value)


PLACE = f" ({__file__}:{fails.__code__.co_firstlineno + 1})"


def test_an_error_has_its_type_first_line_and_place() -> None:
    assert told(KeyError("a")) == f"task: metric fails: KeyError: 'a'{PLACE}"
    assert told(ValueError("\n  first \nsecond")) == f"task: metric fails: ValueError: first{PLACE}"
    assert told(ValueError()) == f"task: metric fails: ValueError{PLACE}"
    assert told(SystemExit(3)) == f"task: metric fails: SystemExit: 3{PLACE}"
    assert issubclass(UserCodeError, TaskError)


def calls_a_library() -> None:
    torch.nn.Sequential(torch.nn.Linear(3, 2))(torch.zeros(1, 5))


def test_the_innermost_line_of_the_user_is_named_rather_than_a_librarys() -> None:
    with pytest.raises(UserCodeError) as caught, user_code("task: metric fails"):
        calls_a_library()
    line = calls_a_library.__code__.co_firstlineno + 1
    assert str(caught.value).startswith("task: metric fails: RuntimeError: mat1 and mat2 shapes")
    assert str(caught.value).endswith(f" ({__file__}:{line})")


def test_an_error_of_a_loaders_process_has_the_place_in_that_process() -> None:
    caught = (
        "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback:\n"
        '  File "/lib/python3/site-packages/torch/utils/data/fetch.py", line 52, in fetch\n'
        '  File "/home/me/data.py", line 7, in __getitem__\nKeyError: 1'
    )
    assert told(KeyError(1)).startswith("task: metric fails: KeyError: 1")
    assert told(RuntimeError(caught)) == "task: metric fails: KeyError: 1 (/home/me/data.py:7)"


@pytest.mark.parametrize(
    "error",
    [
        LimitError("ours"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        KeyboardInterrupt(),
    ],
)
def test_our_errors_and_those_of_memory_stay(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, user_code("what"):
        fails(error)
    assert caught.value is error


def test_errors_in_frames_of_the_package_are_not_the_users() -> None:
    with pytest.raises(TypeError), user_code("what"):
        take_samples(None, 3)  # type: ignore[arg-type]


def test_a_fault_of_the_package_names_its_line() -> None:
    with pytest.raises(TypeError) as caught:
        take_samples(None, 3)  # type: ignore[arg-type]
    text = our_fault(caught.value)
    assert text.startswith("a fault of autocompress at autocompress/task/batches.py:")
    assert ": TypeError: 'NoneType' object is not iterable; please report it" in text
    assert our_fault(ValueError("two\n  lines " + "x" * 400)) == (
        f"a fault of autocompress: ValueError: two lines {'x' * 290}; "
        "please report it with what --debug shows"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_errors_of_memory_are_recognised(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected
