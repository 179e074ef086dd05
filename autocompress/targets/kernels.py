"""Which kernel of the runtime is fastest for packed weights of one shape: measured once, remembered on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from autocompress.cache import Cache
from autocompress.integer_form import IntegerForm
from autocompress.targets.device.job import PRODUCT
from autocompress.targets.device.sessions import DEFAULT, SessionSettings, open_session
from autocompress.targets.device.timing import interleaved_timing

FOLDED = -1
LEVELS = (4, 0)  # of MatMulNBits: 8-bit and float arithmetic
ROUNDS = 12
WIDTHS = (33, 96)
MULTIPLES = (16, 8, 4, 2)
NEARLY_FREE = 0.25
FLOAT_ERROR = 1e-4  # relative; inputs rounded to 8 bits differ by some 5e-3
NEARLY_AS_FAST = 1.03  # the time that full 8-bit weights may take, relative to 7-bit ones
CONTRIB = "com.microsoft"


@dataclass
class KernelChoice:
    """Answers from memory, from file `path`, or by timing the kernels against each other, in that order.

    Without `weight_only` the target has no kernels on packed weights; where it is not `present`, nothing can be timed. `portable`
    asks for integer weights whose products are exact on every processor.
    """

    settings: SessionSettings = DEFAULT
    weight_only: bool = True
    present: bool = True
    portable: bool = True
    path: Path | None = None
    _known: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.path
        self._cache, self._file = (
            (Cache(None), "") if path is None else (Cache(path.parent), path.name)
        )
        self._known.update(self._cache.read(self._file, _read_answers) or {})

    @property
    def saturates(self) -> bool:
        """Return whether the integer kernels of this machine add two products of 8-bit numbers in 16 bits (x86 without VNNI)."""
        return (
            self._answer("integer products saturate", lambda: int(products_saturate(self.settings)))
            == 1
        )

    def integer_form(self, shape: tuple[int, int, int] | None) -> IntegerForm:
        """Return the fastest exact form of the weights of an integer kernel; the wider one where both take the same time.

        Args:
            shape: (rows, columns, outputs) of a linear product; None for convolutions, whose unsigned kernels took 1.1 to 3.6 times as
                long as the signed ones on all of AVX2, AVX-512 and VNNI (`python -m benchmarks.quantization`).
        """
        if not (self.portable or self.saturates):
            return IntegerForm.SIGNED
        if shape is None or not self.present or self.settings.runtime != "onnxruntime":
            return IntegerForm.REDUCED
        rows, columns, outputs = shape
        key = f"unsigned MatMulInteger {rows}x{columns}x{outputs}"
        free = self._answer(
            key, lambda: int(_unsigned_is_free(self.settings, rows, columns, outputs))
        )
        return IntegerForm.UNSIGNED if free else IntegerForm.REDUCED

    def matmul_level(self, rows: int, columns: int, outputs: int, bits: int, block: int) -> int:
        """Accuracy level of the fastest MatMulNBits for (rows, columns) @ (columns, outputs), or FOLDED when the float product is."""
        if not self.weight_only:
            return FOLDED
        key = f"MatMulNBits {rows}x{columns}x{outputs} {bits}b{block}"
        return self._answer(
            key, lambda: _time_matmul(self.settings, rows, columns, outputs, bits, block)
        )

    def matmul_rounds_inputs(
        self, rows: int, columns: int, outputs: int, bits: int, block: int, level: int
    ) -> bool:
        """Whether that kernel rounds its inputs to 8 bits per block: an accuracy level permits it, and each machine decides."""
        key = f"MatMulNBits {rows}x{columns}x{outputs} {bits}b{block} rounds at {level}"
        return (
            self._answer(key, lambda: int(_rounds(rows, columns, outputs, bits, block, level))) == 1
        )

    def gather_stays_packed(
        self, lookups: int, entries: int, width: int, bits: int, block: int
    ) -> bool:
        """Whether GatherBlockQuantized is at least as fast as a lookup in the unpacked table."""
        if not self.weight_only:
            return False
        key = f"GatherBlockQuantized {lookups}x{entries}x{width} {bits}b{block}"
        return (
            self._answer(
                key, lambda: _time_gather(self.settings, lookups, entries, width, bits, block)
            )
            != FOLDED
        )

    def width_multiple(self, kind: str) -> int:
        """The largest multiple to which rounding a width up costs a "linear" or "conv" kernel hardly any time: 1, 2, 4, 8 or 16."""
        if not self.present:
            return 1
        return self._answer(f"{kind} width multiple", lambda: _width_multiple(self.settings, kind))

    def _answer(self, key: str, measure: Any) -> int:
        if key not in self._known:
            self._known[key] = measure()
            self._cache.update(self._file, _read_answers, self._merged)
        return self._known[key]

    def _merged(self, on_disk: dict[str, int] | None) -> str:
        """Return the new file; answers of other processes are taken over."""
        self._known = {**(on_disk or {}), **self._known}
        return json.dumps(self._known, indent=1, sort_keys=True)


def _read_answers(path: Path) -> dict[str, int]:
    return {str(key): int(value) for key, value in json.loads(path.read_text()).items()}


@cache
def products_saturate(settings: SessionSettings) -> bool:
    """Return whether a product or a convolution of the largest 8-bit numbers comes out too small in sessions of `settings`."""
    if settings.runtime == "onnxruntime":
        node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
        weight = _tensor("w", np.full((64, 32), 127, np.int8))
        session = open_session(
            _model([node], [weight], TensorProto.UINT8, 2, TensorProto.INT32), settings
        )
        # One row runs on a kernel of its own.
        for rows in (1, 8):
            (found,) = session.run(None, {"x": np.full((rows, 64), 255, np.uint8)})
            if (found != 64 * 255 * 127).any():
                return True
    # A convolution whose exact output is 255 steps.
    step = np.float32(16 * 9 * 127)
    scales = [_tensor("one", np.float32(1)), _tensor("step", step), _tensor("zero", np.uint8(0))]
    scales += [_tensor("ones", np.ones(16, np.float32)), _tensor("zeros", np.zeros(16, np.int8))]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ones", "zeros"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "step", "zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "step", "zero"], ["y"]),
    ]
    model = _model(
        nodes, [_tensor("w", np.full((16, 16, 3, 3), 127, np.int8)), *scales], TensorProto.FLOAT, 4
    )
    (found,) = open_session(model, settings).run(
        None, {"x": np.full((1, 16, 8, 8), 255, np.float32)}
    )
    return bool((np.abs(found / step - 255) > 1).any())


def _unsigned_is_free(settings: SessionSettings, rows: int, columns: int, outputs: int) -> bool:
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
            _tensor("w", values.astype(zero.dtype)),
            _tensor("wz", zero),
            _tensor("s", np.full(outputs, 0.01, np.float32)),
        ]
        models[name] = _model(nodes, constants, TensorProto.FLOAT, 2)
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


def _model(
    nodes: list[Any],
    initializers: list[TensorProto],
    kind: int,
    rank: int,
    gives: int = TensorProto.FLOAT,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "kernel",
        [helper.make_tensor_value_info("x", kind, [f"d{i}" for i in range(rank)])],
        [helper.make_tensor_value_info("y", gives, None)],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    content: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return content


def _tensor(name: str, values: Any) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


def _packed_matmul(weight: Any, columns: int, bits: int, block: int, level: int) -> bytes:
    """A model of one product with packed weights (outputs, blocks, bytes), all scales 0.01."""
    scale = _tensor("s", np.full(weight.shape[:2], 0.01, np.float32))
    shape: dict[str, Any] = {"K": columns, "N": len(weight), "bits": bits, "block_size": block}
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain=CONTRIB, accuracy_level=level, **shape
    )
    return _model([node], [_tensor("w", weight), scale], TensorProto.FLOAT, 2)


def _rounds(rows: int, columns: int, outputs: int, bits: int, block: int, level: int) -> bool:
    generator = np.random.default_rng(0)
    weight = generator.integers(
        0, 256, (outputs, -(-columns // block), block * bits // 8), dtype=np.uint8
    )
    x = generator.standard_normal((rows, columns), dtype=np.float32)
    (found,) = open_session(_packed_matmul(weight, columns, bits, block, level)).run(None, {"x": x})
    per_byte = 8 // bits
    fields = (weight[..., None] >> (np.arange(per_byte) * bits).astype(np.uint8)) & np.uint8(
        2**bits - 1
    )
    dense = (
        fields.reshape(outputs, -1)[:, :columns].astype(np.float32) - 2 ** (bits - 1)
    ) * np.float32(0.01)
    exact = x @ dense.T
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact)) > FLOAT_ERROR


def _time_matmul(
    settings: SessionSettings, rows: int, columns: int, outputs: int, bits: int, block: int
) -> int:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((columns, outputs), dtype=np.float32)
    baseline = _model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [_tensor("w", weight)],
        TensorProto.FLOAT,
        2,
    )
    packed = generator.integers(
        0, 256, (outputs, -(-columns // block), block * bits // 8), dtype=np.uint8
    )
    others = {level: _packed_matmul(packed, columns, bits, block, level) for level in LEVELS}
    return _fastest(
        baseline,
        others,
        {"x": generator.standard_normal((rows, columns), dtype=np.float32)},
        settings,
    )


def _width_multiple(settings: SessionSettings, kind: str) -> int:
    """From the times of one product or convolution at every width of a range of four times 16, in float and in 8-bit integers."""
    generator = np.random.default_rng(0)
    widths = list(range(WIDTHS[0], WIDTHS[1] + 1))
    found = []
    for integer in (False, True) if settings.runtime == "onnxruntime" else (False,):
        models = [_product(generator, kind, width, integer) for width in widths]
        x = generator.standard_normal(
            (64, 64) if kind == "linear" else (1, 32, 14, 14), dtype=np.float32
        )
        feed = {"x": (x * 32 + 128).clip(0, 255).astype(np.uint8) if integer else x}
        openers = [partial(open_session, model, settings) for model in models]
        timing = interleaved_timing(openers[-1], openers, feed, 2 * ROUNDS)
        found.append(liked_multiple(dict(zip(widths, timing.ratios, strict=True))))
    return max(found)


def _product(generator: np.random.Generator, kind: str, width: int, integer: bool) -> bytes:
    """A model of one product with 64 inputs, or of one 3 x 3 convolution with 32, and `width` outputs."""
    shape, rank = ((64, width), 2) if kind == "linear" else ((width, 32, 3, 3), 4)
    if not integer:
        weight = _tensor("w", generator.standard_normal(shape, dtype=np.float32))
        node = helper.make_node("MatMul" if rank == 2 else "Conv", ["x", "w"], ["y"])
        return _model([node], [weight], TensorProto.FLOAT, rank)
    weight = _tensor("w", generator.integers(-127, 128, shape, dtype=np.int8))
    if rank == 2:
        return _model(
            [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
            [weight],
            TensorProto.UINT8,
            rank,
            TensorProto.INT32,
        )
    scale, zero, signed = (
        _tensor("s", np.float32(0.01)),
        _tensor("z", np.uint8(128)),
        _tensor("i", np.int8(0)),
    )
    node = helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "i", "s", "z"], ["y"])
    return _model([node], [weight, scale, zero, signed], TensorProto.UINT8, rank, TensorProto.UINT8)


def liked_multiple(times: Mapping[int, float]) -> int:
    """The largest multiple to which rounding up is nearly free: on average over the widths, it costs at most a quarter of the time that
    the added channels would cost were time proportional to them."""
    for multiple in MULTIPLES:
        rounded = [(w, -(-w // multiple) * multiple) for w in times]
        grown = [(up / w - 1, times[up] / times[w] - 1) for w, up in rounded if up in times]
        if sum(time for _, time in grown) <= NEARLY_FREE * sum(width for width, _ in grown):
            return multiple
    return 1


def product_model() -> bytes:
    """The model of one large float product, which shows what a runtime can do at best."""
    _, columns, outputs = PRODUCT
    weight = _tensor(
        "w", np.random.default_rng(0).standard_normal((columns, outputs), dtype=np.float32)
    )
    return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight], TensorProto.FLOAT, 2)


def _time_gather(
    settings: SessionSettings, lookups: int, entries: int, width: int, bits: int, block: int
) -> int:
    generator = np.random.default_rng(0)
    table = _tensor("w", generator.standard_normal((entries, width), dtype=np.float32))
    baseline = _model(
        [helper.make_node("Gather", ["w", "x"], ["y"])], [table], TensorProto.INT64, 1
    )
    packed = _tensor("w", generator.integers(0, 256, (entries, width * bits // 8), dtype=np.uint8))
    scale = _tensor("s", np.full((entries, -(-width // block)), 0.01, np.float32))
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
        baseline, {1: _model([node], [packed, scale], TensorProto.INT64, 1)}, feed, settings
    )
