"""The memory of .tflite files, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from autocompress.targets.device.litert.flat_file import FlatFile, Rows
from autocompress.targets.device.litert.operators import read_flat
from autocompress.targets.memory.arena import ALIGNED, arena_bytes, flat_memory


def chain(*widths: int, skip: bool = False) -> FlatFile:
    """A chain of operators on floats of these widths; with a skip the input lives to the end."""
    file = FlatFile()
    file.inputs = [number] = [file.tensor((1, widths[0]), "float32", "x")]
    for width in widths[1:]:
        output = file.tensor((1, width), "float32")
        file.add("RELU", [number], [output])
        number = output
    if skip:
        output = file.tensor((1, widths[0]), "float32")
        file.add("ADD", [number, *file.inputs], [output], "AddOptions")
        number = output
    file.outputs = [number]
    return file


def arena(file: FlatFile) -> int:
    return arena_bytes(read_flat(file.content()))


def test_tensors_that_are_dead_make_room() -> None:
    assert arena(chain(64)) == 4 * 64
    assert arena(chain(64, 32)) == 4 * (64 + 32)
    assert arena(chain(64, 32, 16, 16)) == 4 * (64 + 32), "64 is dead when 16 is written"
    assert arena(chain(64, 32, 64, skip=True)) == 4 * 3 * 64, "the input lives as long as the sum"
    assert arena(chain(1, 1)) == 2 * ALIGNED


def test_weights_count_as_stored_and_unpacked() -> None:
    file = FlatFile()
    file.inputs = [file.tensor((1, 64), "float32", "x")]
    rows = Rows(np.full(16, 0.1, np.float32))
    stored = file.constant(np.ones((16, 64), np.int8), "", rows, "int4")
    file.outputs = [file.tensor((1, 16), "float32", "y")]
    numbers = [*file.inputs, stored, -1]
    file.add("FULLY_CONNECTED", numbers, file.outputs, "FullyConnectedOptions", keepNumDims=True)
    activations = 4 * (64 + 16)
    assert flat_memory(file.content()) == 16 * 64 // 2 + activations
    floats = file.tensor((16, 64), "float32")
    file.operators[0].inputs[1] = floats
    file.add("DEQUANTIZE", [stored], [floats])
    file.operators.reverse()
    assert flat_memory(file.content()) == 16 * 64 // 2 + 4 * 16 * 64 + activations


@pytest.mark.parametrize(("bits", "copies"), [(32, 2), (16, 2), (4, 0)])
def test_each_product_packs_its_own_copy_of_a_weight(bits: int, copies: int) -> None:
    """As measured of an LSTM whose state is multiplied once per step."""
    kind = {32: np.float32, 16: np.float16, 4: np.int8}[bits]
    sizes = []
    for readers in (1, 3):
        file = FlatFile()
        file.inputs = [number] = [file.tensor((1, 64), "float32", "x")]
        rows = Rows(np.full(64, 0.1, np.float32)) if bits == 4 else None
        values = np.ones((64, 64), kind)
        weight = stored = file.constant(values, "", rows, "int4" if bits == 4 else "")
        if bits < 32:
            weight = file.tensor((64, 64), "float32")
            file.add("DEQUANTIZE", [stored], [weight])
        for _ in range(readers):
            output = file.tensor((1, 64), "float32")
            inputs = [number, weight, -1]
            file.add("FULLY_CONNECTED", inputs, [output], "FullyConnectedOptions")
            number = output
        file.outputs = [number]
        sizes.append(flat_memory(file.content()))
    unpacked = 4 * 64 * 64 if bits < 32 else 0
    assert sizes[0] == bits * 64 * 64 // 8 + unpacked + 2 * 4 * 64
    assert sizes[1] - sizes[0] == copies * 4 * 64 * 64
