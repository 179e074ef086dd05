"""Latencies of a decoder: names, shares, and the nearest valid one."""

from __future__ import annotations

import pytest

from autocompress.errors import TargetError
from autocompress.targets.phases import parse_phase, prompt_share


@pytest.mark.parametrize(
    ("value", "phase"),
    [
        ("decode", "decode"),
        ("prefill", "prefill"),
        ("mix:.30", "mix:0.3"),
        ("mix:9e-1", "mix:0.9"),
        ("mix:0.9999999", "mix:0.9999999"),
    ],
)
def test_a_latency_has_one_form(value: str, phase: str) -> None:
    assert parse_phase("target t", value) == phase


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        ("decoding", "decode"),
        ("mix", "mix:0.5"),
        ("mix:", "mix:0.5"),
        ("mix:nan", "mix:0.5"),
        ("mix:30%", "mix:0.3"),
        ("mix:0,3", "mix:0.3"),
        ("mix:30", "mix:0.3"),
        ("mx:0.3", "mix:0.3"),
        ("mix:0", "decode"),
        ("mix:-1", "decode"),
        ("mix:1", "prefill"),
        ("prefill:0.3", "prefill"),
        (3, "mix:0.5"),
    ],
)
def test_others_are_refused_with_the_nearest_one(value: object, nearest: str) -> None:
    with pytest.raises(TargetError) as error:
        parse_phase("target t", value)
    assert str(error.value) == (
        "target t: latency must be decode, prefill or mix:SHARE with a share between 0 and 1, got "
        f"{value!r}; nearest: {nearest}"
    )


def test_only_mixes_have_a_share() -> None:
    assert prompt_share("mix:0.3") == 0.3
    assert [prompt_share(phase) for phase in ("decode", "prefill", "")] == [None] * 3
