"""Run a .tflite file in LiteRT behind the calls of an ONNX Runtime session."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..sessions import SessionSettings, Value

KINDS = {"float32": "float", "float64": "double"}  # names of ONNX Runtime that differ from NumPy's


class LitertSession:
    """Run a file on the processor, with the kernels of XNNPACK where it has them.

    Inputs and outputs of integers with a scale are those of floats here: inputs are rounded, and
    outputs are unpacked.

    Attributes:
        interpreter: of LiteRT.
    """

    def __init__(self, model: bytes | str, settings: SessionSettings) -> None:
        from ai_edge_litert.interpreter import Interpreter  # an optional dependency

        source = {"model_path": model} if isinstance(model, str) else {"model_content": model}
        with quiet():
            self.interpreter = Interpreter(**source, num_threads=settings.threads)
            self.interpreter.allocate_tensors()
        self._inputs = self.interpreter.get_input_details()
        self._outputs = self.interpreter.get_output_details()

    def get_inputs(self) -> list[Value]:
        """Return inputs under their names in the file."""
        return [_value(one) for one in self._inputs]

    def get_outputs(self) -> list[Value]:
        """Return outputs under their names in the file, the primary one first."""
        return [_value(one) for one in self._outputs]

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Return outputs, as copies.

        Args:
            output_names: of the outputs, in the order in which they are returned; None for all.
            input_feed: all inputs by name. LiteRT would take those of the run before for others.

        Raises:
            ValueError: a name is missing or unknown, or an input has another shape or type.
        """
        if input_feed.keys() != {one["name"] for one in self._inputs}:
            names = [one["name"] for one in self._inputs]
            raise ValueError(f"the file has the inputs {names}, got {[*input_feed]}")
        ends = {one["name"]: one["index"] for one in self._outputs}
        unknown = [name for name in output_names or () if name not in ends]
        if unknown:
            raise ValueError(f"the file has the outputs {[*ends]}, got {unknown[0]!r}")
        for one in self._inputs:
            array = np.asarray(input_feed[one["name"]], order="C")
            if array.shape != tuple(one["shape"]):
                raise ValueError(
                    f"input {one['name']} has the shape {tuple(map(int, one['shape']))} in this "
                    f"file, got {array.shape}"
                )
            self.interpreter.set_tensor(one["index"], _rounded(one, array))
        self.interpreter.invoke()
        known = {one["name"]: one for one in self._outputs}
        return [
            _floats(known[name], self.interpreter.get_tensor(ends[name]))
            for name in output_names or ends
        ]


def _scale(details: Mapping[str, Any]) -> tuple[float, int]:
    """Return (scale, zero point) of an input or output; (0, 0) for one without a scale."""
    scale, zero = details["quantization"]
    return float(scale), int(zero)


def _rounded(details: Mapping[str, Any], array: Any) -> Any:
    scale, zero = _scale(details)
    if not scale or array.dtype != np.float32:
        return array
    ends = np.iinfo(details["dtype"])
    values = np.round(array / np.float32(scale)) + zero
    return np.clip(values, ends.min, ends.max).astype(details["dtype"])


def _floats(details: Mapping[str, Any], array: Any) -> Any:
    scale, zero = _scale(details)
    if not scale:
        return array
    return (array.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def _value(details: Mapping[str, Any]) -> Value:
    kind = "float32" if _scale(details)[0] else np.dtype(details["dtype"]).name
    shape = [int(size) for size in details["shape"]]
    return Value(details["name"], shape, f"tensor({KINDS.get(kind, kind)})")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep LiteRT from writing notes to the terminal inside the context."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
