"""Refuse models whose float file would be too large for the format of ONNX files."""

from __future__ import annotations

from torch import nn

from autocompress.errors import TaskError

FILE_BYTES = (1 << 31) - 1  # most bytes of an ONNX file with its weights, by its format (protobuf)
GRAPH_BYTES = 1 << 24  # left for everything but the weights


def check_size(name: str, model: nn.Module) -> None:
    """Check that a model's float file, with which all others are compared, can be written.

    Nothing is computed: the weights may be on the meta device.

    Args:
        name: of the task.
        model: the model.

    Raises:
        TaskError: its weights take too many bytes in float32; the largest part of the model that
            can be searched is named.
    """
    size, most = float_bytes(model), FILE_BYTES - GRAPH_BYTES
    if size <= most:
        return
    parts = [(float_bytes(part), path) for path, part in model.named_modules() if path]
    fitting = [part for part in parts if 0 < part[0] <= most]
    nearest = "a smaller model"
    if fitting:
        largest, path = max(fitting, key=lambda part: part[0])
        nearest = f"a part of it as a task of its own, such as {path} with {_gigabytes(largest)}"
    raise TaskError(
        f"task {name}: the weights of the model take {_gigabytes(size)} in float32, and one ONNX "
        f"file holds {_gigabytes(FILE_BYTES)} (weights lie beside files of --target "
        f"onnxruntime-genai alone); nearest: {nearest}"
    )


def float_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers in float32; shared ones count once.

    Args:
        model: the model.
    """
    size = 0
    for tensor in (*model.parameters(), *model.buffers()):
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            continue  # a check of the task names it
        size += tensor.numel() * (4 if tensor.is_floating_point() else tensor.itemsize)
    return size


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
