"""Time kernels of the runtime against each other, on models of one operator."""

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

FOLDED = -1  # answer if the float kernel on unpacked weights is fastest
LEVELS = (4, 0)  # of MatMulNBits: 8-bit and float arithmetic
ROUNDS = 12  # runs of each kernel
WIDTHS = (33, 96)  # first and last width to time
MULTIPLES = (16, 8, 4, 2)
NEARLY_FREE = 0.25  # share of the time in proportion to the added channels
NEARLY_AS_FAST = 1.03  # largest time of full 8-bit weights relative to 7-bit ones


def unsigned_is_free(settings: SessionSettings, rows: int, columns: int, outputs: int) -> bool:
    """Return True if a product with unsigned weights is exact and hardly slower.

    Args:
        settings: of the timed sessions.
        rows: vectors per product.
        columns: inputs of each vector.
        outputs: width of the product.
    """
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
    # All inputs at the end of their range, where 16 bits would overflow.
    (output,) = open_session(models["unsigned"], settings).run(
        None, {"x": np.full((rows, columns), 1.0, np.float32)}
    )
    exact = weight.sum(0) * 0.01
    if np.abs(output - exact).max() > FLOAT_ERROR * max(1.0, float(np.abs(exact).max())):
        return False
    feed = {"x": generator.standard_normal((rows, columns), dtype=np.float32)}
    signed = partial(open_session, models["signed"], settings)
    unsigned = partial(open_session, models["unsigned"], settings)
    return interleaved_timing(signed, [unsigned], feed, 2 * ROUNDS).ratios[0] <= NEARLY_AS_FAST


def _fastest(
    baseline: bytes, others: dict[int, bytes], feed: dict[str, Any], settings: SessionSettings
) -> int:
    """Return the key of the fastest model, or FOLDED if none is as fast as the baseline."""
    openers = [partial(open_session, model, settings) for model in (baseline, *others.values())]
    timing = interleaved_timing(openers[0], openers[1:], feed, ROUNDS)
    ratio, level = min(zip(timing.ratios, others, strict=True))
    return level if ratio <= 1 else FOLDED


def fastest_matmul(
    settings: SessionSettings, rows: int, columns: int, outputs: int, bits: int, block: int
) -> int:
    """Return the accuracy level of the fastest MatMulNBits; FOLDED if a float product is faster.

    Args:
        settings: of the timed sessions.
        rows: vectors per product.
        columns: inputs of each vector.
        outputs: width of the product.
        bits: width of the packed weights.
        block: inputs per scale.
    """
    baseline, others, feed = _matmul_models(rows, columns, outputs, bits, block)
    return _fastest(baseline, others, feed, settings)


def fastest_packed_matmul(
    settings: SessionSettings, rows: int, columns: int, outputs: int, bits: int, block: int
) -> int:
    """Return the accuracy level of the fastest MatMulNBits, however fast a float product is.

    Args:
        settings: of the timed sessions.
        rows: vectors per product.
        columns: inputs of each vector.
        outputs: width of the product.
        bits: width of the packed weights.
        block: inputs per scale.
    """
    _, others, feed = _matmul_models(rows, columns, outputs, bits, block)
    (first, baseline), *more = others.items()
    level = _fastest(baseline, dict(more), feed, settings)
    return first if level == FOLDED else level


def _matmul_models(
    rows: int, columns: int, outputs: int, bits: int, block: int
) -> tuple[bytes, dict[int, bytes], dict[str, Any]]:
    """Return (float product, MatMulNBits by accuracy level, their inputs)."""
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
    feed = {"x": generator.standard_normal((rows, columns), dtype=np.float32)}
    return baseline, others, feed


def measured_multiple(settings: SessionSettings, kind: str) -> int:
    """Return the largest multiple of channels to which rounding up is nearly free.

    One product or convolution is timed at every width from 33 to 96, in float and in 8-bit
    integers.

    Args:
        settings: of the timed sessions.
        kind: "linear" or "conv".

    Returns:
        1, 2, 4, 8 or 16; the larger one of float and integers.
    """
    generator = np.random.default_rng(0)
    widths = list(range(WIDTHS[0], WIDTHS[1] + 1))
    multiples = []
    for integer in (False, True) if settings.runtime == "onnxruntime" else (False,):
        models = [width_model(generator, kind, width, integer) for width in widths]
        x = generator.standard_normal(
            (64, 64) if kind == "linear" else (1, 32, 14, 14), dtype=np.float32
        )
        feed = {"x": (x * 32 + 128).clip(0, 255).astype(np.uint8) if integer else x}
        openers = [partial(open_session, model, settings) for model in models]
        timing = interleaved_timing(openers[-1], openers, feed, 2 * ROUNDS)
        multiples.append(liked_multiple(dict(zip(widths, timing.ratios, strict=True))))
    return max(multiples)


def liked_multiple(times: Mapping[int, float]) -> int:
    """Return the largest multiple to which rounding a width up is nearly free.

    On average over the widths, rounding up may cost at most NEARLY_FREE of the time that the added
    channels would cost if time were proportional to them.

    Args:
        times: time of each width, in any unit.
    """
    for multiple in MULTIPLES:
        rounded = [(w, -(-w // multiple) * multiple) for w in times]
        grown = [(up / w - 1, times[up] / times[w] - 1) for w, up in rounded if up in times]
        if sum(time for _, time in grown) <= NEARLY_FREE * sum(width for width, _ in grown):
            return multiple
    return 1


def fastest_gather(
    settings: SessionSettings, lookups: int, entries: int, width: int, bits: int, block: int
) -> int:
    """Return FOLDED if a lookup in the unpacked table is faster than GatherBlockQuantized, else 1.

    Args:
        settings: of the timed sessions.
        lookups: indices in one call.
        entries: rows of the table.
        width: columns of the table.
        bits: width of the packed weights.
        block: columns per scale.
    """
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
