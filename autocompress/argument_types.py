"""Check the types of arguments of public functions, before anything is loaded or computed.

Each error is one line: the function, the argument, the value that came and the nearest valid one.
"""

from __future__ import annotations

import math
import os
import reprlib
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from autocompress.errors import ArgumentError, AutocompressError

_LONGEST = 80  # characters of a value in an error
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _LONGEST


def shown(value: Any) -> str:
    """Return a value as an error shows it: in one short line.

    Args:
        value: any object.
    """
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= 2 * _LONGEST else text[: 2 * _LONGEST] + "..."


def whole_number(
    where: str,
    name: str,
    value: Any,
    near: int = 1,
    error: type[AutocompressError] = ArgumentError,
) -> int:
    """Return a whole number as an int.

    Args:
        where: the function, for the error.
        name: of the argument.
        value: what came; bool is no number.
        near: nearest valid value of what holds no number.
        error: class of the error.

    Raises:
        AutocompressError: of class `error`, if it is no whole number.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    raise _wrong(where, name, "a whole number", value, _number_of(value, near, round), error)


def number(
    where: str,
    name: str,
    value: Any,
    near: float = 1.0,
    error: type[AutocompressError] = ArgumentError,
) -> float:
    """Return a finite number as an int or a float.

    Args:
        where: the function, for the error.
        name: of the argument.
        value: what came; bool is no number.
        near: nearest valid value of what holds no number.
        error: class of the error.

    Raises:
        AutocompressError: of class `error`, if it is no finite number.
    """
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The comparison is False for NaN; an int may be too large for a float.
    if is_number and abs(value) <= sys.float_info.max:
        plain: float = value
        return plain
    raise _wrong(where, name, "a number", value, _number_of(value, near, float), error)


def switch(
    where: str, name: str, value: Any, error: type[AutocompressError] = ArgumentError
) -> bool:
    """Return True or False as it is.

    Args:
        where: the function, for the error.
        name: of the argument.
        value: what came.
        error: class of the error.

    Raises:
        AutocompressError: of class `error`, if it is neither.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    near = str(value).strip().lower() not in ("0", "false", "no", "off", "none", "")
    raise _wrong(where, name, "True or False", value, near, error)


def text(
    where: str,
    name: str,
    value: Any,
    near: str,
    error: type[AutocompressError] = ArgumentError,
) -> str:
    """Return a text as it is.

    Args:
        where: the function, for the error.
        name: of the argument.
        value: what came.
        near: nearest valid value of what is no path.
        error: class of the error.

    Raises:
        AutocompressError: of class `error`, if it is no text.
    """
    if isinstance(value, str):
        return value
    near = str(value) if isinstance(value, os.PathLike) else near
    raise _wrong(where, name, "a text", value, repr(near), error)


def path(where: str, name: str, value: Any, near: str) -> str | os.PathLike[str]:
    """Return a path as it is.

    Args:
        where: the function, for the error.
        name: of the argument.
        value: what came.
        near: nearest valid value.

    Raises:
        ArgumentError: it is neither a text nor a path, or an empty text.
    """
    if isinstance(value, (str, os.PathLike)) and str(value):
        return value
    raise _wrong(where, name, "a path", value, repr(near), ArgumentError)


def texts(where: str, name: str, value: Any, near: str) -> Sequence[str]:
    """Return a list or tuple of texts as a tuple.

    Args:
        where: the function, for the error.
        name: of the argument.
        value: what came; one text is no list.
        near: nearest valid text.

    Raises:
        ArgumentError: it is no list or tuple of texts.
    """
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    words = [str(item) for item in value] if isinstance(value, (list, tuple, set)) else [near]
    nearest = repr([value] if isinstance(value, str) else words)
    raise _wrong(where, name, "a list of texts", value, nearest, ArgumentError)


def set_typed(config: Any, error: type[AutocompressError]) -> None:
    """Check the fields of a frozen dataclass by the types of their defaults.

    Whole numbers and numbers of NumPy become int and float. A field whose default is a tuple holds
    whole numbers.

    Args:
        config: a new instance, every field of which has a default.
        error: class of the error.

    Raises:
        AutocompressError: of class `error`, for the first field of a wrong type.
    """
    where = type(config).__name__
    for field in fields(config):
        name, value, near = field.name, getattr(config, field.name), field.default
        if type(value) is type(near) and not isinstance(near, (float, tuple)):
            continue
        typed: Any
        if isinstance(near, bool):
            typed = switch(where, name, value, error)
        elif isinstance(near, int):
            typed = whole_number(where, name, value, near, error)
        elif isinstance(near, float):
            typed = float(number(where, name, value, near, error))
        elif isinstance(near, str):
            typed = text(where, name, value, near, error)
        elif isinstance(value, (list, tuple)):
            typed = tuple(whole_number(where, name, item, error=error) for item in value)
        else:
            raise _wrong(where, name, "a tuple of whole numbers", value, near, error)
        object.__setattr__(config, name, typed)


def _wrong(
    where: str, name: str, rule: str, value: Any, near: Any, error: type[AutocompressError]
) -> AutocompressError:
    return error(f"{where}: {name} must be {rule}, got {shown(value)}; nearest valid value: {near}")


def _number_of(value: Any, near: float, convert: Any) -> Any:
    """Return the number that a text or another number holds, else `near`."""
    try:
        number = float(value)
        return convert(number) if math.isfinite(number) else near
    except (TypeError, ValueError, OverflowError):
        return near
