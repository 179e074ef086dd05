"""ONNX Runtime sessions with the target's settings, and which module each of their operators belongs to."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

OPTIMIZER_SUFFIX = re.compile(r"(_nchwc|_token_\d+|_post_dq|_q_to_dq)+$")


def open_session(model: bytes | str, threads: int = 1, options: Any = None) -> onnxruntime.InferenceSession:
    """A CPU session that logs errors only; `model` is the file's content or its path."""
    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def profile_nodes(model: bytes, feed: Mapping[str, Any], threads: int, runs: int) -> list[tuple[tuple[str, ...], float]]:
    """(names, mean microseconds over the faster half of `runs`) of each operator of the optimised graph.

    The names are those of its outputs and its own, also without the suffixes that the optimiser appends, so that one of
    them is a tensor of the graph that was given.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = open_session(model, threads, options)
        for _ in range(runs + 5):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
        optimized = onnx.load(str(Path(folder) / "optimized.onnx"))
    names = {node.name: (*node.output, node.name) for node in optimized.graph.node}
    durations: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            found = (original for made in names.get(name, (name,)) for original in (made, OPTIMIZER_SUFFIX.sub("", made)))
            durations[tuple(found)].append(event["dur"])
    # The profiler counts whole microseconds, so a mean tells more than a quantile; the slower half is other people's work.
    return [(found, float(np.mean(sorted(values[-runs:])[: max(1, runs // 2)]))) for found, values in durations.items()]


def weights_in_memory(model: bytes | str) -> int:
    """Bytes of the weights that a session holds after it has folded constants, before kernels lay them out anew."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        open_session(model, 1, options)
        graph = onnx.load(options.optimized_model_filepath).graph
    return sum(len(tensor.raw_data) or onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)


def random_feed(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """Inputs of the session's shapes, free dimensions 1: random floats, integer zeros."""
    generator = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}.get(value.type)
        feed[value.name] = np.zeros(shape, kind) if kind else generator.random(shape, dtype=np.float32)
    return feed
