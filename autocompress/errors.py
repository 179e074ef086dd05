"""Every error that autocompress raises on purpose: one line, naming where, which rule, what came and the nearest valid value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class AutocompressError(Exception):
    """Root of all errors of this package."""


class TaskError(AutocompressError, ValueError):
    """The task cannot be loaded, or its model, data or metric do not work."""


class SpaceError(AutocompressError, ValueError):
    """The search space is wrong."""


class LimitError(AutocompressError, ValueError):
    """A limit is malformed or contradicts another."""


class OutOfTimeError(AutocompressError, TimeoutError):
    """The timeout of a search was over before anything could be searched."""


class TargetError(AutocompressError, ValueError):
    """The target is unknown, or its latency table cannot be used."""


class RunFolderError(AutocompressError, OSError):
    """The run folder or one of its files cannot be read or written."""


class DamagedFileError(RunFolderError):
    """A file of tensors is missing, torn, or not what was written."""


class ExportError(AutocompressError, RuntimeError):
    """A model or candidate cannot be written as ONNX."""


class NotComputableError(AutocompressError, RuntimeError):
    """A training or evaluation step gave NaN or infinity."""


def nearest_name(value: str, valid: Iterable[str]) -> str:
    """The valid name most like `value`, or all of them when none is alike."""
    names = sorted(valid)
    close = difflib.get_close_matches(value, names, n=1, cutoff=0.4)
    return close[0] if close else ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def nearest_number(value: float, valid: Sequence[float]) -> float:
    """The member of `valid` with the smallest distance to `value`."""
    return min(valid, key=lambda other: abs(other - value))
