"""Hold a graph beside the weights of its model, without a copy of them.

The large weights of a graph are the parameters of the model that was exported. They are marked as
external data, whose location is a key, while the graph is cleaned and rewritten. A copy of them is
made where a file is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir
import onnxruntime
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper
from torch import Tensor, nn

from autocompress.export.float_graph.large_files import (
    copy_fields,
    file_bytes,
    needs_other_file,
    write_apart,
    write_whole,
)
from autocompress.targets.device.sessions import open_session

LEAST_BYTES = 1 << 20  # smaller weights are part of the graph
KEY = "location"  # entry of external data that names the weight


@dataclass(frozen=True)
class SharedGraph:
    """Hold a graph whose large weights are tensors of the model.

    Attributes:
        proto: the graph; initializers with external data are in `weights`.
        weights: float32 tensors on the CPU by key, which nobody may write to.
    """

    proto: ModelProto
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def filled(self, tensor: TensorProto) -> TensorProto:
        """Return an initializer with its content.

        Args:
            tensor: an initializer of `proto`, or any other tensor, which is returned as it is.
        """
        if tensor.data_location != TensorProto.EXTERNAL:
            return tensor
        array = self.weights[key_of(tensor)].numpy()
        return numpy_helper.from_array(array, tensor.name)

    def whole(self) -> ModelProto:
        """Return the graph with a copy of all weights."""
        if not self.weights:
            return self.proto
        whole = ModelProto()
        whole.CopyFrom(self.proto)
        for tensor in whole.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor.CopyFrom(self.filled(tensor))
        return whole

    def parts(self) -> Iterator[bytes]:
        """Yield the content of the ONNX file; one weight at a time is copied.

        A message is its fields in the order of their numbers, each with a tag and, for messages, a
        length (protobuf.dev, "Encoding").
        """
        graph, number = self.proto.graph, GraphProto.INITIALIZER_FIELD_NUMBER
        before, after = _fields(graph, 0, number), _fields(graph, number + 1, None)
        yield _fields(self.proto, 0, ModelProto.GRAPH_FIELD_NUMBER)
        size = len(before) + len(after)
        for tensor in graph.initializer:
            size += 1 + _message_bytes(self.filled(tensor).ByteSize())
        yield _head(ModelProto.GRAPH_FIELD_NUMBER, size)
        yield before
        for tensor in graph.initializer:
            content = self.filled(tensor).SerializeToString()
            yield _head(number, len(content))
            yield content
        yield after
        yield _fields(self.proto, ModelProto.GRAPH_FIELD_NUMBER + 1, None)

    def content(self) -> bytes:
        """Return the content of the ONNX file."""
        return b"".join(self.parts())

    def write(self, path: Path) -> int:
        """Write the ONNX file; weights that it cannot hold lie in a file beside it.

        Args:
            path: of the file.

        Returns:
            Bytes of both files.

        Raises:
            RunFolderError: a file cannot be written.
        """
        if not needs_other_file(self.proto):
            return write_whole(path, self.parts())

        def content(tensor: TensorProto) -> Any:
            if tensor.data_location != TensorProto.EXTERNAL:
                return tensor.raw_data
            return self.weights[key_of(tensor)].numpy()

        return write_apart(path, self.proto, content)

    @cached_property
    def size_bytes(self) -> int:
        """Return the size of the ONNX file and those beside it, with one weight at a time."""
        if needs_other_file(self.proto):
            return file_bytes(self.proto)
        before: int = self.proto.graph.ByteSize()
        after = before
        for tensor in self.proto.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                after += _message_bytes(self.filled(tensor).ByteSize())
                after -= _message_bytes(tensor.ByteSize())
        return int(self.proto.ByteSize()) + _message_bytes(after) - _message_bytes(before)

    def session(self, silent: bool = False) -> Any:
        """Open a session of ONNX Runtime that reads the model's weights where they are.

        Args:
            silent: True to log nothing.
        """
        values = {}
        for tensor in self.proto.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                array = self.weights[key_of(tensor)].numpy()
                values[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        return open_session(self.proto.SerializeToString(), silent=silent, weights=values)


def _message_bytes(length: int) -> int:
    """Return the bytes of a message in its file: its length takes 7 bits per byte."""
    return length + max(1, -(-length.bit_length() // 7))


def _head(number: int, length: int) -> bytes:
    """Return what stands before a message in its file: the tag of its field, and its length."""
    head, left = [number << 3 | 2], length
    while left > 127:
        head.append(left & 127 | 128)
        left >>= 7
    return bytes([*head, left])


def _fields(message: ModelProto | GraphProto, start: int, end: int | None) -> bytes:
    """Return the serialized fields of a message whose numbers are in a range."""
    part = type(message)()
    copy_fields(message, part, lambda number: start <= number and (end is None or number < end))
    content: bytes = part.SerializeToString()
    return content


def key_of(tensor: TensorProto) -> str:
    """Return the key of an initializer with external data.

    Args:
        tensor: such an initializer.
    """
    return str(next(entry.value for entry in tensor.external_data if entry.key == KEY))


def set_aside(tensor: TensorProto, key: str) -> None:
    """Leave the content of an initializer to `SharedGraph.weights`.

    Args:
        tensor: changed in place; its shape and type stay.
        key: of the weight.
    """
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key=KEY, value=key)


def without_parameters(graph: onnx_ir.Model, model: nn.Module) -> dict[str, Tensor]:
    """Set the large float32 parameters of a model aside from its graph.

    Args:
        graph: made of the model; its initializers are changed in place.
        model: on the CPU.

    Returns:
        The parameters by key, for `SharedGraph`.
    """
    known = {}
    for parameter in model.parameters():
        if parameter.nbytes >= LEAST_BYTES and parameter.is_contiguous():
            known[parameter.data_ptr(), parameter.shape, parameter.dtype] = parameter.detach()
    weights = {}
    for name, value in graph.graph.initializers.items():
        constant = value.const_value
        raw = getattr(constant, "raw", None)
        if not isinstance(raw, Tensor) or constant is None:
            continue
        weight = known.get((raw.data_ptr(), raw.shape, raw.dtype))
        if weight is None or not raw.is_contiguous() or constant.dtype != onnx_ir.DataType.FLOAT:
            continue
        weights[name] = weight
        value.const_value = onnx_ir.ExternalTensor(
            name, 0, weight.nbytes, constant.dtype, shape=constant.shape, name=name
        )
    return weights
