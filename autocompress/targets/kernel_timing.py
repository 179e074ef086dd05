"""Timing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.device.timing import interleaved_timing
from autocompress.targets.kernel_arithmetic import FLOAT_ERROR
from autocompress.targets.kernel_models import (
    CONTRIB,
    graph_model,
    packed_matmul_model,
    tensor,
    width_model,
)

FOLDED = -1


LEVELS = (4, 0)  # of MatMulNBits: 8-bit and float arithmetic


ROUNDS = 12


WIDTHS = (33, 96)


MULTIPLES = (16, 8, 4, 2)


NEARLY_FREE = 0.25


NEARLY_AS_FAST = 1.03  # the time that full 8-bit weights may take, relative to 7-bit ones


def unsigned_is_free(settings: SessionSettings, rows: int, columns: int, outputs: int) -> bool:
    """Whether the product with unsigned weights is exact and takes hardly longer than the one with signed weights."""
    generator = np.random.default_rng(0)
    weight = generator.integers(-128, 128, (columns, outputs))
    models = {}
    for name, values, zero in (
        ("unsigned", (weight + 128).astype(np.uint8), np.uint8(128)),
        ("signed", weight // 2, np.int8(0)),
    ):
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["p"]),
            helper.make_node("Cast", ["p"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["scale", "s"], ["b"]),
            helper.make_node("Mul", ["f", "b"], ["y"]),
        ]
        constants = [
            tensor("w", values.astype(zero.dtype)),
            tensor("wz", zero),
            tensor("s", np.full(outputs, 0.01, np.float32)),
        ]
        models[name] = graph_model(nodes, constants, TensorProto.FLOAT, 2)
    # All inputs at the end of their range, where 16 bits would not do.
    (found,) = open_session(models["unsigned"], settings).run(
        None, {"x": np.full((rows, columns), 1.0, np.float32)}
    )
    exact = weight.sum(0) * 0.01
    if np.abs(found - exact).max() > FLOAT_ERROR * max(1.0, float(np.abs(exact).max())):
        return False
    feed = {"x": generator.standard_normal((rows, columns), dtype=np.float32)}
    signed, unsigned = (
        partial(open_session, models[name], settings) for name in ("signed", "unsigned")
    )
    return interleaved_timing(signed, [unsigned], feed, 2 * ROUNDS).ratios[0] <= NEARLY_AS_FAST


def _fastest(
    baseline: bytes, others: dict[int, bytes], feed: dict[str, Any], settings: SessionSettings
) -> int:
    openers = [partial(open_session, model, settings) for model in (baseline, *others.values())]
    timing = interleaved_timing(openers[0], openers[1:], feed, ROUNDS)
    ratio, level = min(zip(timing.ratios, others, strict=True))
    return level if ratio <= 1 else FOLDED


def fastest_matmul(
    settings: SessionSettings, rows: int, columns: int, outputs: int, bits: int, block: int
) -> int:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((columns, outputs), dtype=np.float32)
    baseline = graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [tensor("w", weight)],
        TensorProto.FLOAT,
        2,
    )
    packed = generator.integers(
        0, 256, (outputs, -(-columns // block), block * bits // 8), dtype=np.uint8
    )
    others = {level: packed_matmul_model(packed, columns, bits, block, level) for level in LEVELS}
    return _fastest(
        baseline,
        others,
        {"x": generator.standard_normal((rows, columns), dtype=np.float32)},
        settings,
    )


def measured_multiple(settings: SessionSettings, kind: str) -> int:
    """From the times of one product or convolution at every width of a range of four times 16, in float and in 8-bit integers."""
    generator = np.random.default_rng(0)
    widths = list(range(WIDTHS[0], WIDTHS[1] + 1))
    found = []
    for integer in (False, True) if settings.runtime == "onnxruntime" else (False,):
        models = [width_model(generator, kind, width, integer) for width in widths]
        x = generator.standard_normal(
            (64, 64) if kind == "linear" else (1, 32, 14, 14), dtype=np.float32
        )
        feed = {"x": (x * 32 + 128).clip(0, 255).astype(np.uint8) if integer else x}
        openers = [partial(open_session, model, settings) for model in models]
        timing = interleaved_timing(openers[-1], openers, feed, 2 * ROUNDS)
        found.append(liked_multiple(dict(zip(widths, timing.ratios, strict=True))))
    return max(found)


def liked_multiple(times: Mapping[int, float]) -> int:
    """The largest multiple to which rounding up is nearly free: on average over the widths, it costs at most a quarter of the time that
    the added channels would cost were time proportional to them."""
    for multiple in MULTIPLES:
        rounded = [(w, -(-w // multiple) * multiple) for w in times]
        grown = [(up / w - 1, times[up] / times[w] - 1) for w, up in rounded if up in times]
        if sum(time for _, time in grown) <= NEARLY_FREE * sum(width for width, _ in grown):
            return multiple
    return 1


def fastest_gather(
    settings: SessionSettings, lookups: int, entries: int, width: int, bits: int, block: int
) -> int:
    generator = np.random.default_rng(0)
    table = tensor("w", generator.standard_normal((entries, width), dtype=np.float32))
    baseline = graph_model(
        [helper.make_node("Gather", ["w", "x"], ["y"])], [table], TensorProto.INT64, 1
    )
    packed = tensor("w", generator.integers(0, 256, (entries, width * bits // 8), dtype=np.uint8))
    scale = tensor("s", np.full((entries, -(-width // block)), 0.01, np.float32))
    attributes: dict[str, Any] = {
        "gather_axis": 0,
        "quantize_axis": 1,
        "block_size": block,
        "bits": bits,
    }
    node = helper.make_node(
        "GatherBlockQuantized", ["w", "x", "s"], ["y"], domain=CONTRIB, **attributes
    )
    feed = {"x": generator.integers(0, entries, lookups)}
    return _fastest(
        baseline, {1: graph_model([node], [packed, scale], TensorProto.INT64, 1)}, feed, settings
    )
