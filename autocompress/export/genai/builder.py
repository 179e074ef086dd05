"""Run the model builder of onnxruntime-genai on a copy of a model with random weights."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from torch import nn

from autocompress.errors import ExportError
from autocompress.export.genai.noise import Arrays, mapped_array, write_noise
from autocompress.results.files import read_json
from autocompress.task.task import Pretrained

BUILDER = "onnxruntime_genai.models.builder"
# Where the builder chooses by the architecture; those of texts alone end so.
CHOICE, OF_TEXTS = re.compile(r'architectures\[0\] == "(\w+)"'), "ForCausalLM"
CONFIG = "genai_config.json"
# Query, key and value stay three products, so that each has bits of its own. Caches of layers with
# a window are as long as those of the others, so that all have one shape.
OPTIONS = ("fuse_qkv=false", "hf_token=false", "windowed_kv_cache=false")
HEAD_SIZE = "kv_cache_dim"  # name of a dimension
MODEL_CONFIG = "config.json"
TYPES = ("dtype", "torch_dtype")  # entries of a config, by version of transformers


def known_architectures() -> tuple[str, ...]:
    """Return the names of the language models that the installed builder has code for.

    Returns:
        Sorted names, such as "LlamaForCausalLM"; () if its program does not show them.
    """
    spec = importlib.util.find_spec(BUILDER)
    if spec is None or spec.origin is None:
        return ()
    names = CHOICE.findall(Path(spec.origin).read_text())
    return tuple(sorted({name for name in names if name.endswith(OF_TEXTS)}))


class Built(NamedTuple):
    """Hold what the builder made, whose weights lie in files.

    Attributes:
        proto: the float graph; its initializers have external data.
        papers: content of genai_config.json by its name.
        noise: the numbers that stand for the parameters, by their names in the folder.
        folder: of the external data.
    """

    proto: ModelProto
    papers: dict[str, str]
    noise: Arrays
    folder: Path

    def array_of(self, tensor: TensorProto) -> NDArray[Any]:
        """Return the value of an initializer, mapped from its file.

        Args:
            tensor: of `proto`.
        """
        return mapped_array(tensor, self.folder)


@contextmanager
def built(
    model: nn.Module,
    known: Pretrained,
    config: Mapping[str, Any] | None = None,
    file: str = "model.onnx",
) -> Iterator[Built]:
    """Give the builder's float graph of an architecture, and the files that belong to it.

    The files of the weights are there as long as the context. They take twice the bytes of the
    model in float32.

    Args:
        model: its parameters have the names and shapes of those in the folder.
        known: the folder, which has the config and the tokenizer.
        config: of the model if it is a part of that in the folder; None takes the folder's.
        file: name of the graph among those that the builder writes.

    Yields:
        The graph, with random numbers as weights.

    Raises:
        ExportError: the builder does not take the model.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place, out = Path(folder) / "model", Path(folder) / "out"
        place.mkdir()
        for name in known.files:
            source = Path(known.folder) / name
            if source.is_file():
                shutil.copyfile(source, place / source.name)
        config = config or read_json(place / MODEL_CONFIG)
        written = json.dumps({**config, **{name: "float32" for name in TYPES if name in config}})
        (place / MODEL_CONFIG).write_text(written)
        noise = write_noise(model, place / "model.safetensors")
        _run(place, out, Path(folder) / "cache")
        proto = onnx.load(out / file, load_external_data=False)
        paper = (out / CONFIG).read_text()
        _name_head_size(proto, int(json.loads(paper)["model"]["decoder"]["head_size"]))
        yield Built(proto, {CONFIG: paper}, noise, out)


def _name_head_size(proto: ModelProto, size: int) -> None:
    """Write the width of a head where the builder leaves it open, for caches of other types."""
    for value in (*proto.graph.input, *proto.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == HEAD_SIZE:
                dimension.dim_value = size


def _run(place: Path, out: Path, cache: Path) -> None:
    """Run the builder in a process of its own, without a network."""
    command = [sys.executable, "-m", BUILDER, "-i", str(place), "-o", str(out), "-p", "fp32"]
    command += ["-e", "cpu", "-c", str(cache), "--extra_options", *OPTIONS]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (out / CONFIG).is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ExportError(
            "export: the model builder of onnxruntime-genai does not take the model: "
            f"{lines[-1] if lines else 'no message'}; nearest: --target onnxruntime-cpu"
        )
