"""Write the .tflite files that ai-edge-quantizer makes of a float .tflite file.

It is the quantizer of LiteRT's converter for PyTorch: minimum and maximum as ranges, one scale per
channel of a weight, rounding to the nearest integer, the same for all operators that it takes, no
training and no search. It knows tensors by their names and runs a signature, which our files do
without. So it gets a copy with both, and they are removed from what it writes: they take bytes, and
LiteRT runs without them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import sharing_builder

INT8, DYNAMIC = "int8", "dynamic"  # what is compared, and the ends of the keys
RECIPES = {INT8: "static_wi8_ai8", DYNAMIC: "dynamic_wi8_afp32"}
SIGNATURE = "serving_default"
IDENTIFIER = b"TFL3"  # of the format


def _changed(content: bytes, change: Callable[[Any, Any], None]) -> bytes:
    """Return a file after a change of its objects, which gets the schema and the model."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    change(schema, model)
    builder = sharing_builder()
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def named(content: bytes) -> bytes:
    """Return a file whose tensors all have names of their own, with a signature.

    Args:
        content: of a file with one graph, whose inputs and outputs have names.
    """

    def change(schema: Any, model: Any) -> None:
        (graph,) = model.subgraphs
        known = set()
        for i, tensor in enumerate(graph.tensors):
            name = (tensor.name or b"").decode()
            if not name or name in known:
                tensor.name = f"{name}_{i}".encode()
            known.add(tensor.name.decode())
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
        signature.inputs = [_end(schema, graph, number) for number in graph.inputs]
        signature.outputs = [_end(schema, graph, number) for number in graph.outputs]
        model.signatureDefs = [signature]

    return _changed(content, change)


def _end(schema: Any, graph: Any, number: int) -> Any:
    """Return an input or output of the signature, under the name of its tensor."""
    end = schema.TensorMapT()
    end.name, end.tensorIndex = graph.tensors[number].name, number
    return end


def bare(content: bytes) -> bytes:
    """Return a file without what LiteRT does not need to run it.

    Args:
        content: of a file.

    Returns:
        The file with the names of its inputs and outputs alone, and without signature, metadata
        and the ranges that are written beside scales. Equal zero points are written once, as in our
        files.
    """

    def change(schema: Any, model: Any) -> None:
        (graph,) = model.subgraphs
        ends = {*map(int, graph.inputs), *map(int, graph.outputs)}
        for i, tensor in enumerate(graph.tensors):
            if i not in ends:
                tensor.name = None
            if tensor.quantization is not None:
                tensor.quantization.min = tensor.quantization.max = None
        graph.name = model.signatureDefs = model.metadata = model.metadataBuffer = None
        model.description = None

    return _changed(content, change)


def write(float_file: Path, feeds: Sequence[Mapping[str, Any]], method: str, path: Path) -> Path:
    """Write a file of the quantizer.

    Args:
        float_file: the .tflite file with floats.
        feeds: calibration inputs by name, of the shapes of the file.
        method: `INT8` or `DYNAMIC`.
        path: of the new file.

    Returns:
        `path`.
    """
    from ai_edge_quantizer import quantizer, recipe

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LiteRT warns of the memory that calibration takes
        recipes = getattr(recipe, RECIPES[method])()
        maker = quantizer.Quantizer(bytearray(named(float_file.read_bytes())), recipes)
        ranges = maker.calibrate({SIGNATURE: [dict(feed) for feed in feeds]}, num_threads=1)
        result = maker.quantize(ranges)
    path.write_bytes(bare(bytes(result.quantized_model)))
    return path
