"""Cut the file of a model of pictures and texts into one file per tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx.utils import Extractor

from autocompress.errors import ExportError
from autocompress.export.artifact import write_graph
from autocompress.export.float_graph.subgraphs import producers, reads
from autocompress.results.files import MODEL_FILE
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.runtime import random_feed

# Output -> file of the part that computes it, as other tools name it.
TOWERS = {"text_embeds": "text_model.onnx", "image_embeds": "vision_model.onnx"}
TOLERANCE = 1e-5  # of embeddings of length 1


def write_towers(folder: Path, settings: SessionSettings) -> list[Path]:
    """Write text_model.onnx and vision_model.onnx beside a model.onnx, and run all three.

    Args:
        folder: holds model.onnx.
        settings: how its sessions are opened.

    Returns:
        The files.

    Raises:
        ExportError: the model has no two such outputs, a tower reads inputs of the other one, or a
            part computes something else than the whole.
        RunFolderError: a file cannot be written.
    """
    path = folder / MODEL_FILE
    model = onnx.load(path)
    outputs = [value.name for value in model.graph.output]
    if not set(TOWERS) <= set(outputs):
        raise ExportError(
            f"{path}: has the outputs {', '.join(outputs)}, so no towers that can be split; "
            f"nearest: a model with {' and '.join(TOWERS)}, or an export without --split-towers"
        )
    inputs = {output: _inputs_of(model, output) for output in TOWERS}
    shared = set.intersection(*map(set, inputs.values()))
    if shared:
        raise ExportError(
            f"{path}: both towers read {', '.join(sorted(shared))}; nearest: an export without "
            "--split-towers"
        )
    extractor, written = Extractor(model), []
    for output, name in TOWERS.items():
        write_graph(folder / name, extractor.extract_model(inputs[output], [output]))
        written.append(folder / name)
    _compare(path, written, settings)
    return written


def _inputs_of(model: onnx.ModelProto, output: str) -> list[str]:
    """Return the inputs of a graph on which an output depends, in their order."""
    nodes = producers(model.graph)
    frontier, seen = [output], set()
    while frontier:
        value = frontier.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in nodes:
            frontier += reads(nodes[value])
    return [value.name for value in model.graph.input if value.name in seen]


def _compare(path: Path, parts: list[Path], settings: SessionSettings) -> None:
    """Raise ExportError, and remove the parts, if they compute something else than the whole."""
    whole = open_session(str(path), settings)
    feed = random_feed(whole)
    feed |= {name: np.ones_like(a) for name, a in feed.items() if a.dtype.kind in "ib"}  # masks
    names = [value.name for value in onnx.load(path, load_external_data=False).graph.output]
    expected = dict(zip(names, whole.run(None, feed), strict=True))
    for output, part in zip(TOWERS, parts, strict=True):
        session = open_session(str(part), settings)
        own = {value.name: feed[value.name] for value in session.get_inputs()}
        (found,) = session.run(None, own)
        if not np.allclose(found, expected[output], atol=TOLERANCE):
            for file in parts:
                file.unlink()
            raise ExportError(
                f"{part}: gives another {output} than {path.name}; nearest: an export without "
                "--split-towers"
            )
