"""Find out whether the integer products of a file are exact on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, TensorProto, numpy_helper

from autocompress.integer_form import IntegerForm
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.kernel_arithmetic import products_saturate

# ONNX Runtime's operators on 8-bit weights.
INTEGER_OPERATORS = {
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
}
INTEGER_OPERATORS |= {"ConvInteger", "QLinearConv", "QAttention", "DynamicQuantizeLSTM"}
PORTABLE = "Integer weights are held in a range whose products are exact on every processor."
FULL_RANGE = (
    "Integer weights take all 8 bits: exact on processors that sum 8-bit products in 32 bits (x86 "
    "with VNNI or AMX, ARM), wrong on others. `--portable` makes files that are exact everywhere."
)


def arithmetic_words(portable: bool) -> str:
    """Return the sentence about the processors on which a file is exact.

    Args:
        portable: True if integer weights are exact on every processor.
    """
    return PORTABLE if portable else FULL_RANGE


def saturation_warning(path: Path, settings: SessionSettings, portable: bool | None) -> str:
    """Return one line if integer products of a file may saturate on this machine.

    Args:
        path: the ONNX file.
        settings: how its sessions are opened.
        portable: as the recipe beside it says; None reads the weights of the file.

    Returns:
        The warning, or "" if the products are exact.
    """
    if not products_saturate(settings):
        return ""
    ours = portable is not None
    if portable is None:
        portable = settings.runtime == "openvino" or not wide_integer_weights(path)
    if portable:
        return ""
    remedy = "search with --portable" if ours else "quantize it again to 7 bits (reduce_range)"
    return (
        f"{path}: was made for exact 8-bit products, which this processor does not compute; "
        f"outputs may be wrong here; {remedy}"
    )


def wide_integer_weights(path: Path) -> list[str]:
    """Return the int8 weights of integer operators outside [-64, 63].

    Args:
        path: the ONNX file; its weights are read as a session holds them.

    Returns:
        Names of the weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = str(Path(folder) / "optimized.onnx")
        open_session(str(path), optimized=optimized)
        graph = onnx.load(optimized).graph
    graphs = list(_graphs(graph))
    read = set()
    for one in graphs:
        for node in one.node:
            if node.op_type in INTEGER_OPERATORS:
                read.update(node.input)
    tensors = [tensor for one in graphs for tensor in one.initializer if tensor.name in read]
    largest = IntegerForm.REDUCED.largest + 1
    wide = []
    for tensor in tensors:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) >= 2:
            integers = numpy_helper.to_array(tensor).astype(np.int16)
            if np.abs(integers).max(initial=0) > largest:
                wide.append(tensor.name)
    return wide


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and the bodies of its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    yield from _graphs(body)
