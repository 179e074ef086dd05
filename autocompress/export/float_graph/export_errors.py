"""Say in one line why an export failed, and where in the user's code."""

from __future__ import annotations

import io
import re
import traceback
from pathlib import Path

import torch

# The exporter's error where Python asks for a tensor's value.
DATA_DEPENDENT = "GuardOnDataDependentSymNode"


def cause_of(error: BaseException) -> str:
    """Return the cause behind the exporter's own words, in one line.

    Args:
        error: an exception that tracing or exporting raised; its causes are followed.

    Returns:
        the reason, the user's file and line if known, and a way out if there is one.
    """
    place = ""
    while True:
        place = _place(error) or place
        if _packs_sequences(error):
            return (
                f"it packs sequences, whose lengths no file can follow{_at(place)}; "
                "nearest: padded sequences, and a mask"
            )
        deeper = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if deeper is None or not type(error).__module__.startswith("torch.onnx"):
            break
        error = deeper
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
    if missing:
        return f"ONNX has no operator for {missing[1]}{_at(place)}"
    if type(error).__name__ == DATA_DEPENDENT:
        # The message names the user's line where the traceback ends in a library.
        places = re.findall(r'File "([^"]+)", line (\d+)', str(error))
        if not place and places:
            place = f"{Path(places[-1][0]).name}:{places[-1][1]}"
        return (
            "it decides by the values of tensors (data-dependent), which no file can follow"
            f"{_at(place)}; nearest: torch.where, or torch.cond"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}{_at(place)}"


def _at(place: str) -> str:
    return f" (at {place})" if place else ""


def _packs_sequences(error: BaseException) -> bool:
    """Return True if a recurrent layer of torch failed on packed sequences."""
    if "FakeTensor" not in str(error):
        return False
    layers = str(Path("modules/rnn.py"))
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename.endswith(layers) for frame in frames)


def _place(error: BaseException) -> str:
    """Return file and line of the last call outside of libraries and this package, or ""."""
    others = (
        str(Path(__file__).parents[2]),
        str(Path(torch.__file__).parents[1]),
        str(Path(io.__file__).parent),
        "<",
    )
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith(others):
            place = f"{Path(frame.filename).name}:{frame.lineno}"
    return place
