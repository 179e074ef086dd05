"""Cut the file of a model of pictures and texts into one file per tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto
from onnx.utils import Extractor

from autocompress.errors import ExportError
from autocompress.export.artifact import write_graph
from autocompress.export.float_graph.subgraphs import producers, reads
from autocompress.results.files import MODEL_FILE
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.runtime import common_shapes, example_sizes, random_feed

# Output -> file of the part that computes it, as other tools name it.
TOWERS = {"text_embeds": "text_model.onnx", "image_embeds": "vision_model.onnx"}
TOLERANCE = 1e-5  # of embeddings of length 1
NEAREST = "nearest: an export without --split-towers"


def check_towers(path: Path) -> dict[str, list[str]]:
    """Find the inputs of each tower of a model.

    Args:
        path: of model.onnx.

    Returns:
        The names of the inputs that each output of TOWERS reads.

    Raises:
        ExportError: the model has no two such outputs, or a tower reads inputs of the other one.
    """
    graph = onnx.load(path, load_external_data=False).graph
    outputs = [value.name for value in graph.output]
    if not set(TOWERS) <= set(outputs):
        raise ExportError(
            f"{path}: has the outputs {', '.join(outputs)}, so no towers that can be split; "
            f"{NEAREST}, or a model with {' and '.join(TOWERS)}"
        )
    inputs = {output: _inputs_of(graph, output) for output in TOWERS}
    shared = set.intersection(*map(set, inputs.values()))
    if shared or not all(inputs.values()):
        names = ", ".join(sorted(shared)) or "no input"
        raise ExportError(f"{path}: both towers read {names}; {NEAREST}")
    return inputs


def write_towers(folder: Path, settings: SessionSettings) -> list[Path]:
    """Write text_model.onnx and vision_model.onnx beside a model.onnx, and run all three.

    Args:
        folder: holds model.onnx.
        settings: how its sessions are opened.

    Returns:
        The files.

    Raises:
        ExportError: as `check_towers`, or a part computes something else than the whole.
        RunFolderError: a file cannot be written.
    """
    path = folder / MODEL_FILE
    inputs, model = check_towers(path), onnx.load(path)
    outputs = [value.name for value in model.graph.output]
    written = []
    for output, name in TOWERS.items():
        for node in model.graph.node:
            if _is_batch(node, model.graph):  # it may be taken from the other tower's input
                node.input[0] = inputs[output][0]
        write_graph(folder / name, Extractor(model).extract_model(inputs[output], [output]))
        written.append(folder / name)
    _compare(path, outputs, written, settings)
    return written


def _inputs_of(graph: GraphProto, output: str) -> list[str]:
    """Return the inputs whose values decide an output, in their order."""
    nodes = producers(graph)
    frontier, seen = [output], set()
    while frontier:
        value = frontier.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in nodes and not _is_batch(nodes[value], graph):
            frontier += reads(nodes[value])
    return [value.name for value in graph.input if value.name in seen]


def _is_batch(node: NodeProto, graph: GraphProto) -> bool:
    """Return True for the number of rows of an input, which all inputs share."""
    if node.op_type != "Shape" or node.input[0] not in {value.name for value in graph.input}:
        return False
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    return sizes.get("start", 0) == 0 and sizes.get("end") == 1


def _compare(
    path: Path, outputs: Sequence[str], parts: Sequence[Path], settings: SessionSettings
) -> None:
    """Raise ExportError, and remove the parts, if they compute something else than the whole."""
    whole = open_session(str(path), settings)
    shapes = common_shapes({str(path): whole.get_inputs()}, [example_sizes(str(path))])
    feed = random_feed(whole.get_inputs(), shapes)
    for value in whole.get_inputs():
        if feed[value.name].dtype.kind in "ib":
            feed[value.name] += feed[value.name].dtype.type(
                1
            )  # tokens, and masks that hide nothing
        if not isinstance(value.shape[0], int):
            feed[value.name] = np.concatenate([feed[value.name]] * 2)
    expected = dict(zip(outputs, whole.run(None, feed), strict=True))
    for output, part in zip(TOWERS, parts, strict=True):
        session = open_session(str(part), settings)
        own = {value.name: feed[value.name] for value in session.get_inputs()}
        (found,) = session.run(None, own)
        if not np.allclose(found, expected[output], atol=TOLERANCE):
            for file in parts:
                file.unlink()
            raise ExportError(f"{part}: gives another {output} than {path.name}; {NEAREST}")
