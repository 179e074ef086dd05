"""What is packed comes back, in numpy and in the runtime, and takes the bits that it should."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hand_made import builder, lowered, run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import ModelProto, TensorProto, helper

from autocompress.export.float_graph.trace import OPSET
from autocompress.export.lowering.graph import FUNCTIONS
from autocompress.export.lowering.pack import (
    field_widths,
    pack,
    pack_rows,
    packed_integers,
    unpack_function,
)
from autocompress.targets.device.sessions import open_session

WIDTHS = [2, 3, 5, 6, 7]


def integers(bits: int, shape) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.int8, shape, elements=st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))


def unpack(packed: list[np.ndarray], weight_bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """Reverse of `pack`, written down apart from the graph that does it."""
    total = np.zeros(int(np.prod(shape)), np.uint8)
    offset = 0
    for field, width in zip(packed, field_widths(weight_bits), strict=True):
        shifts = (np.arange(8 // width) * width).astype(np.uint8)
        total |= ((field >> shifts) & np.uint8(2**width - 1)).ravel()[: total.size] << np.uint8(
            offset
        )
        offset += width
    signed: np.ndarray = (total.astype(np.int16) - 2 ** (weight_bits - 1)).astype(np.int8)
    return signed.reshape(shape)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7])
@given(st.data())
def test_unpack_undoes_pack(bits: int, data: st.DataObject) -> None:
    values = data.draw(integers(bits, hnp.array_shapes(max_dims=4, max_side=7)))
    fields = pack(values, bits)
    assert sum(field_widths(bits)) == bits
    assert sum(field.size for field in fields) <= values.size * bits / 8 + len(fields), (
        "at most a byte per field is lost"
    )
    np.testing.assert_array_equal(unpack(fields, bits, values.shape), values)


def reader(bits: int, fields: list[np.ndarray], rank: int) -> ModelProto:
    names = [f"f{width}" for width in field_widths(bits)]
    node = helper.make_node(f"Unpack{bits}", [*names, "shape"], ["y"], domain=FUNCTIONS)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("shape", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [f"d{i}" for i in range(rank)])],
        [
            onnx.numpy_helper.from_array(field, name)
            for name, field in zip(names, fields, strict=True)
        ],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUNCTIONS, 1)]
    return helper.make_model(
        graph, opset_imports=opsets, functions=[unpack_function(bits)], ir_version=10
    )


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 3, 3), (64, 9)])
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_runtime_reads_what_is_packed(bits: int, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.int8)
    model = reader(bits, pack(values, bits), len(shape))
    onnx.checker.check_model(model)
    found = open_session(model.SerializeToString()).run(None, {"shape": np.array(shape)})[0]
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("shape", [(512, 128), (8, 65, 127)])
@pytest.mark.parametrize("bits", WIDTHS)
def test_large_weights_come_back(bits: int, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.int8)
    graph = builder(lowered([helper.make_node("Identity", ["x"], ["z"])], {}, {"x": ["n"]}, ["z"]))
    output = packed_integers(graph, "w", values, None, bits)
    assert list(graph.functions) == [f"Unpack{bits}t"]
    packed = [tensor for tensor in graph.initializers.values() if tensor.data_type != 7]
    assert sum(len(tensor.raw_data) for tensor in packed) == values.size * bits / 8
    np.testing.assert_array_equal(run(graph, output, {}), values)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_start_at_whole_bytes(bits: int) -> None:
    values = np.arange(-2, 1, dtype=np.int8)[None].repeat(4, 0)
    packed = pack_rows(values, bits)
    assert packed.shape == (4, -(-3 * bits // 8))
    assert packed[0, 0] & (2**bits - 1) == int(values[0, 0]) + 2 ** (bits - 1)
