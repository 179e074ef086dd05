"""Define the errors of autocompress.

Each is one line: the place, the rule, the wrong value and the nearest valid one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class AutocompressError(Exception):
    """Report an error of this package; all others derive from it."""


class ArgumentError(AutocompressError, TypeError):
    """Report an argument of a wrong type."""


class TaskError(AutocompressError, ValueError):
    """Report a task whose model, data or metric cannot be loaded or do not work."""


class SpaceError(AutocompressError, ValueError):
    """Report a wrong search space or candidate."""


class LimitError(AutocompressError, ValueError):
    """Report a malformed or contradictory limit."""


class OutOfTimeError(AutocompressError, TimeoutError):
    """Report a timeout before the first trial of a search."""


class TargetError(AutocompressError, ValueError):
    """Report an unknown target, or a useless latency table."""


class RunFolderError(AutocompressError, OSError):
    """Report a failure to read or write a run folder or file."""


class DamagedFileError(RunFolderError):
    """Report a missing, incomplete or changed file of tensors."""


class ExportError(AutocompressError, RuntimeError):
    """Report a failure to write a model or candidate as ONNX."""


class NotComputableError(AutocompressError, RuntimeError):
    """Report NaN or infinity in training or evaluation."""


def nearest_name(value: str, valid: Iterable[str]) -> str:
    """Return the valid name nearest to a value.

    Args:
        value: the wrong name.
        valid: the names to choose from.

    Returns:
        One name, or the first eight of them if none is alike.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(value, names, n=1, cutoff=0.4)
    return close[0] if close else ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def nearest_number(value: float, valid: Sequence[float]) -> float:
    """Return the valid number nearest to a value.

    Args:
        value: the wrong number.
        valid: the numbers to choose from.
    """
    return min(valid, key=lambda other: abs(other - value))
