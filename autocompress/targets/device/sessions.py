"""Sessions of every runtime behind the same two calls, and the settings that they are opened with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnxruntime


class Runnable(Protocol):
    """What sessions of all runtimes do."""

    def get_inputs(self) -> Sequence[Any]:
        """Inputs, each with a name, a shape (free dimensions are no integers) and a type such as tensor(float)."""

    def run(self, output_names: None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Run once."""


Opener = Callable[[], Runnable]


@dataclass(frozen=True)
class SessionSettings:
    """How sessions are opened.

    Attributes:
        runtime: "onnxruntime" or "openvino".
        provider: of ONNX Runtime; the device of OpenVINO.
        threads: inside one operator.
        disabled_optimizers: passes of ONNX Runtime's graph optimiser that do not run.
        spinning: whether idle threads of ONNX Runtime wait in a loop.
    """

    runtime: str = "onnxruntime"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    disabled_optimizers: tuple[str, ...] = ()
    spinning: bool = True

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SessionSettings:
        """From `asdict`'s content."""
        return cls(**{**data, "disabled_optimizers": tuple(data.get("disabled_optimizers", ()))})


DEFAULT = SessionSettings()


def open_session(
    model: bytes | str,
    settings: SessionSettings = DEFAULT,
    profile: str = "",
    optimized: str = "",
    level: str = "ALL",
    silent: bool = False,
) -> Any:
    """A session that logs errors only, or if `silent` nothing; `model` is the file's content or its path.

    profile, optimized: where ONNX Runtime writes its profile and the graph that it executes; level: of its graph optimiser (below "ALL"
    weights keep their shapes too, so that a profile shows them).
    """
    if settings.runtime == "openvino":
        return OpenVinoSession(model, settings, bool(profile))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.log_severity_level = 4 if silent else 3
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}"
    )
    if level != "ALL":
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not settings.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    if optimized:
        options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(
        model,
        options,
        providers=[settings.provider],
        disabled_optimizers=list(settings.disabled_optimizers) or None,
    )


class Value(NamedTuple):
    """One input of a session."""

    name: str
    shape: list[Any]
    type: str


class OpenVinoSession:
    """OpenVINO behind the calls of an ONNX Runtime session; the file is the same."""

    def __init__(
        self, model: bytes | str, settings: SessionSettings, profiling: bool = False
    ) -> None:
        import openvino  # an extra

        core = openvino.Core()
        read = (
            core.read_model(model=model, weights=b"")
            if isinstance(model, bytes)
            else core.read_model(model)
        )
        config = {
            "INFERENCE_NUM_THREADS": settings.threads,
            "NUM_STREAMS": 1,
            "PERF_COUNT": profiling,
        }
        self.compiled = core.compile_model(read, settings.provider, config)
        self.request = self.compiled.create_infer_request()
        self._inputs = list(read.inputs)

    def get_inputs(self) -> list[Value]:
        """Inputs under the names that the file gives them."""
        kinds = {"f32": "float", "i64": "int64", "i32": "int32", "boolean": "bool"}
        return [
            Value(
                node.get_any_name(),
                [d.get_length() if d.is_static else str(d) for d in node.get_partial_shape()],
                f"tensor({kinds.get(node.get_element_type().get_type_name(), 'float')})",
            )
            for node in self._inputs
        ]

    def run(self, output_names: None, input_feed: Mapping[str, Any]) -> list[Any]:
        """All outputs, as copies."""
        found = self.request.infer(dict(input_feed), share_inputs=True)
        return [np.array(found[output]) for output in self.compiled.outputs]

    def node_times(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """(operator, names of the file's tensors in it, microseconds) of the last run."""
        originals = {}
        for operation in self.compiled.get_runtime_model().get_ops():
            found = operation.get_rt_info()
            names = (
                str(found["originalLayersNames"].value) if "originalLayersNames" in found else ""
            )
            originals[operation.get_friendly_name()] = tuple(
                name for name in names.split(",") if name
            )
        for entry in self.request.get_profiling_info():
            microseconds = entry.real_time.total_seconds() * 1e6
            if microseconds > 0:
                yield (
                    entry.node_type,
                    (*originals.get(entry.node_name, ()), entry.node_name),
                    microseconds,
                )
