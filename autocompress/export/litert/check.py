"""Make the files of a builder .tflite files, after comparing the float one with the graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from autocompress.differences import norm_difference
from autocompress.errors import ExportError
from autocompress.export.build import Builder
from autocompress.targets.device.sessions import LITERT, open_session
from autocompress.task.batches import Inputs

FLOAT_ERROR = 1e-3  # of the outputs' norm: sums of floats in another order
Array = NDArray[Any]


def with_flat_files(builder: Builder, example: Inputs) -> Builder:
    """Return a builder that writes .tflite files for inputs of the example's shapes.

    Args:
        builder: writes ONNX files.
        example: inputs of the model.

    Raises:
        ExportError: LiteRT lacks an operator, does not open the float file, or computes something
            else with it than ONNX Runtime.
    """
    feed = builder.lowered.feed(example)
    shapes = {name: tuple(int(n) for n in array.shape) for name, array in feed.items()}
    flat = replace(builder, flat_shapes=shapes)
    outputs = flat_outputs(flat, builder.float_file.whole(), example)
    expected = builder.float_file.session().run(None, feed)
    for output, wanted in zip(outputs, expected, strict=True):
        difference = norm_difference(output, np.asarray(wanted))
        if output.shape != np.shape(wanted) or not difference <= FLOAT_ERROR:
            raise ExportError(
                f"export: the float .tflite file computes something else than the model (relative "
                f"difference {difference:.2g}); nearest: --target onnxruntime-cpu"
            )
    return flat


def flat_outputs(builder: Builder, graph: ModelProto, inputs: Inputs) -> list[Array]:
    """Run the .tflite file of a graph.

    Args:
        builder: writes such files.
        graph: with its weights.
        inputs: of the shapes that files have.

    Returns:
        All outputs.

    Raises:
        ExportError: LiteRT lacks an operator, or does not run the file.
    """
    content = builder.content(graph)
    try:
        session = open_session(content, LITERT)
        outputs = session.run(None, builder.lowered.feed(inputs))
    except (RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise ExportError(
            f"export: LiteRT does not run the file: {words}; nearest: --target onnxruntime-cpu"
        ) from error
    return [np.asarray(output) for output in outputs]
