"""Name the latencies of a decoder with a cache: of a token, of a prompt, and of a mix of both."""

from __future__ import annotations

import math
from typing import Any

from autocompress.errors import TargetError, nearest_name

DECODE, PREFILL = PHASES = ("decode", "prefill")
MIX = "mix:"  # before the share of the tokens that are read as part of a prompt
VALID = f"{DECODE}, {PREFILL} or {MIX}SHARE with a share between 0 and 1"


def parse_phase(where: str, value: Any) -> str:
    """Return the latency that decides, in the form in which it is stored.

    Args:
        where: for the error, such as "target onnxruntime-genai".
        value: "decode", "prefill" or "mix:SHARE".

    Returns:
        The same, with the share as short as possible: "mix:0.3" for "mix:.30".

    Raises:
        TargetError: it is none of them; names the nearest valid one.
    """
    if value in PHASES:
        return str(value)
    share = _number(value) if isinstance(value, str) and value.startswith(MIX) else None
    if share is not None and 0 < share < 1:
        return f"{MIX}{share!r}"
    raise TargetError(
        f"{where}: latency must be {VALID}, got {value!r}; nearest: {_nearest(str(value))}"
    )


def prompt_share(phase: str) -> float | None:
    """Return the share of the tokens of a mix that are read as part of a prompt.

    Args:
        phase: from `parse_phase`, or "".

    Returns:
        A number between 0 and 1; None for all other than mixes.
    """
    return float(phase.removeprefix(MIX)) if phase.startswith(MIX) else None


def _number(value: str) -> float | None:
    try:
        return float(value.removeprefix(MIX))
    except ValueError:
        return None


def _nearest(value: str) -> str:
    """Return the valid latency nearest to a text."""
    name, colon, text = value.partition(":")
    is_percent = text.endswith("%")
    share = _number(text.removesuffix("%").replace(",", "."))
    if name in PHASES:
        return name
    if share is None or math.isnan(share):
        near = nearest_name(value if not colon else name, (*PHASES, MIX.rstrip(":")))
        return near if near in PHASES else f"{MIX}0.5"
    if is_percent or 1 < share < 100:
        share /= 100
    if share <= 0:
        return DECODE
    return PREFILL if share >= 1 else f"{MIX}{share:g}"
