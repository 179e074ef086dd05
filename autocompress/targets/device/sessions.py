"""Open sessions of every runtime behind the same two calls, under one type of settings."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from .graph_file import external_files, without_weights
from .memory import large_blocks_freed_at_once, release_memory


class Runnable(Protocol):
    """Describe the common calls of sessions of all runtimes."""

    def get_inputs(self) -> Sequence[Any]:
        """Return inputs, each with a name, a shape (free dimensions are no integers) and a type."""

    def run(self, output_names: None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Run the model once.

        Args:
            output_names: None for all outputs.
            input_feed: inputs by name.
        """


Opener = Callable[[], Runnable]


@dataclass(frozen=True)
class SessionSettings:
    """Hold the settings of a session.

    Attributes:
        runtime: "onnxruntime", "openvino" or "litert".
        provider: execution provider of ONNX Runtime, device of OpenVINO, or kernels of LiteRT.
        threads: inside one operator.
        disabled_optimizers: disabled passes of ONNX Runtime's graph optimiser.
        spinning: True if idle threads of ONNX Runtime wait in a loop.
    """

    runtime: str = "onnxruntime"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    disabled_optimizers: tuple[str, ...] = ()
    spinning: bool = True

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SessionSettings:
        """Return settings from the content of `dataclasses.asdict`.

        Args:
            data: fields by name.
        """
        return cls(**{**data, "disabled_optimizers": tuple(data.get("disabled_optimizers", ()))})


class ProviderError(RuntimeError):
    """Report an execution provider without its libraries or its device."""


DEFAULT = SessionSettings()
LITERT = SessionSettings("litert", "XNNPACK")
SMALL_BYTES = 1 << 24  # files from this size on are opened with care for memory
LARGE_BYTES = 1 << 27  # files of which no second one is opened while memory can be saved
DATA_SUFFIX = ".data"  # of the file with the weights of a graph, behind the name of the graph
# Towers of a graph, whose files lie beside it and read the same weights.
VISION, EMBEDDING, ENCODER, DECODER = TOWERS = ("vision", "embedding", "encoder", "decoder")
EXTERNAL_BYTES = 1 << 20  # least weight that lies beside a written graph, or is mapped
# Entry of ONNX Runtime: where the external data of a graph in memory lie.
DATA_FOLDER = "session.model_external_initializers_file_folder_path"


def open_session(
    model: bytes | str,
    settings: SessionSettings = DEFAULT,
    profile: str = "",
    optimized: str = "",
    level: str = "ALL",
    silent: bool = False,
    weights: Mapping[str, Any] | None = None,
    runs: bool = True,
) -> Any:
    """Open a session that logs errors only.

    Args:
        model: content or path of an ONNX file, or of a .tflite file for LiteRT.
        settings: runtime, provider, threads and optimiser passes.
        profile: prefix of ONNX Runtime's profile; "" for none.
        optimized: path for the executed graph of ONNX Runtime, whose large weights lie in a file
            beside it; "" for none.
        level: of ONNX Runtime's graph optimiser. Below "ALL" weights keep their shapes too, so that
            a profile shows them.
        silent: True to log nothing.
        weights: values of ONNX Runtime for the initializers with external data, by name.
        runs: False only opens the file, so that no weight is laid out for a kernel.

    Returns:
        A session of ONNX Runtime, an `OpenVinoSession`, or a `LitertSession`.

    Raises:
        ProviderError: if ONNX Runtime lacks the provider, or falls back to another one; if LiteRT
            is not installed.
    """
    if settings.runtime == "openvino":
        return OpenVinoSession(model, settings, bool(profile))
    if settings.runtime == "litert":
        from .litert.session import LitertSession

        try:
            return LitertSession(model, settings)
        except ImportError as error:
            raise ProviderError(
                "LiteRT is not installed; pip install 'autocompress[litert]'"
            ) from error
    import onnxruntime  # a device may have LiteRT alone

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.log_severity_level = 4 if silent else 3
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}"
    )
    if level != "ALL" or not runs:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not settings.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    if optimized:
        options.optimized_model_filepath = optimized
        entry = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{entry}file_name", f"{Path(optimized).name}.weights")
        options.add_session_config_entry(f"{entry}min_size_in_bytes", str(EXTERNAL_BYTES))
    if weights:
        options.add_external_initializers(list(weights), list(weights.values()))
    given = sum(value.tensor_size_in_bytes() for value in (weights or {}).values())
    if size_of(model) + given < SMALL_BYTES:
        return _opened(model, options, settings)
    release_memory()
    with tempfile.TemporaryDirectory() as folder, large_blocks_freed_at_once():
        source = _on_disk(model, Path(folder))
        # Windows removes no file that is mapped.
        if isinstance(source, str) and _has_large_weights(source) and sys.platform != "win32":
            file = Path(source).resolve()  # ONNX Runtime reads no link that leaves its folder
            options.add_session_config_entry(DATA_FOLDER, str(file.parent))
            source = without_weights(str(file), EXTERNAL_BYTES)
        session = _opened(source, options, settings)
    release_memory()  # what the runtime needed while it opened the file
    return session


def _opened(source: bytes | str, options: Any, settings: SessionSettings) -> Any:
    """Open a session of ONNX Runtime; raise ProviderError where another provider would run it.

    ONNX Runtime lists the providers that it was built with. Where one cannot start, the session
    runs on the CPU without an error.
    """
    import onnxruntime

    wanted, present = settings.provider, onnxruntime.get_available_providers()
    if wanted not in present:
        raise ProviderError(f"ONNX Runtime has no {wanted} here; it has: {', '.join(present)}")
    session = onnxruntime.InferenceSession(
        source,
        options,
        providers=[wanted],
        disabled_optimizers=list(settings.disabled_optimizers) or None,
    )
    session.disable_fallback()  # which opens the session anew on the CPU if a run fails
    opened = session.get_providers()
    if not opened or opened[0] != wanted:
        raise ProviderError(
            f"ONNX Runtime cannot start {wanted} here and runs on {', '.join(opened)} instead; its "
            f"libraries or its device are missing"
        )
    return session


def _on_disk(model: bytes | str, folder: Path) -> bytes | str:
    """Return the path of a file, since a session of bytes keeps them; the bytes on a full disk."""
    if isinstance(model, str):
        return model
    path = folder / "model.onnx"
    try:
        path.write_bytes(model)
    except OSError:
        return model
    return str(path)


def _has_large_weights(path: str) -> bool:
    """Return True for a large file without external data, which ONNX Runtime maps by itself."""
    return Path(path).stat().st_size >= LARGE_BYTES and not external_files(path)


def size_of(model: bytes | str) -> int:
    """Return the bytes of a file, and of its weights and towers if these lie beside it.

    Args:
        model: content or path of an ONNX file.
    """
    if isinstance(model, bytes):
        return len(model)
    path = Path(model)
    beside = [path.with_name(f"{path.name}{DATA_SUFFIX}")]
    beside += [tower_file(path, name) for name in TOWERS]
    return path.stat().st_size + sum(file.stat().st_size for file in beside if file.is_file())


def tower_file(path: Path, name: str) -> Path:
    """Return the file of a tower, which need not be there.

    Args:
        path: of the whole graph.
        name: of the tower.
    """
    return path.with_name(f"{path.stem}.{name}{path.suffix}")


def is_large(model: bytes | str) -> bool:
    """Return True if a second file should not be opened beside a file.

    Args:
        model: content or path of an ONNX file.
    """
    return size_of(model) >= LARGE_BYTES


INTEGERS = (("i", "int"), ("u", "uint"))  # names of OpenVINO and ONNX Runtime


class Value(NamedTuple):
    """Describe one input of a session."""

    name: str
    shape: list[Any]
    type: str


class OpenVinoSession:
    """Run a file on OpenVINO behind the calls of an ONNX Runtime session."""

    def __init__(
        self, model: bytes | str, settings: SessionSettings, profiling: bool = False
    ) -> None:
        import openvino  # an optional dependency

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
        """Return inputs under their names in the file."""
        kinds = {"f64": "double", "f32": "float", "f16": "float16", "boolean": "bool"}
        kinds |= {f"{k}{bits}": f"{name}{bits}" for k, name in INTEGERS for bits in (8, 16, 32, 64)}
        values = []
        for node in self._inputs:
            shape = [d.get_length() if d.is_static else str(d) for d in node.get_partial_shape()]
            own = node.get_element_type().get_type_name()
            kind = kinds.get(own, own)
            values.append(Value(node.get_any_name(), shape, f"tensor({kind})"))
        return values

    def run(self, output_names: None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Return all outputs, as copies.

        Args:
            output_names: None for all outputs.
            input_feed: inputs by name.
        """
        outputs = self.request.infer(dict(input_feed), share_inputs=True)
        return [np.array(outputs[output]) for output in self.compiled.outputs]

    def node_times(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """Yield (operator, names of the file's tensors in it, microseconds) of the last run."""
        originals = {}
        for operation in self.compiled.get_runtime_model().get_ops():
            info = operation.get_rt_info()
            names = str(info["originalLayersNames"].value) if "originalLayersNames" in info else ""
            originals[operation.get_friendly_name()] = tuple(filter(None, names.split(",")))
        for entry in self.request.get_profiling_info():
            microseconds = entry.real_time.total_seconds() * 1e6
            if microseconds > 0:
                yield (
                    entry.node_type,
                    (*originals.get(entry.node_name, ()), entry.node_name),
                    microseconds,
                )
