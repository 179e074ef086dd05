"""Run the model builder of onnxruntime-genai on a copy of a model with random weights.

All random numbers differ, so that each tensor of the builder's graph tells which parameter it
holds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import ModelProto
from safetensors.torch import save_file
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.results.files import read_json
from autocompress.task.task import Pretrained

BUILDER = "onnxruntime_genai.models.builder"
CONFIG = "genai_config.json"
# Query, key and value stay three products, so that each has bits of its own.
OPTIONS = ("fuse_qkv=false", "hf_token=false")
HEAD_SIZE = "kv_cache_dim"  # name of a dimension
MODEL_CONFIG = "config.json"
TYPES = ("dtype", "torch_dtype")  # entries of a config, by version of transformers


def noise_of(model: nn.Module) -> dict[str, Tensor]:
    """Return random numbers, all different, in place of the parameters of a model.

    Args:
        model: its shapes are read.

    Returns:
        float32 tensors by the first name of each parameter.
    """
    generator, noise = torch.Generator().manual_seed(0), {}
    for name, parameter in model.named_parameters():
        noise[name] = torch.randn(parameter.shape, generator=generator)
    return noise


def built(noise: Mapping[str, Tensor], known: Pretrained) -> tuple[ModelProto, dict[str, str]]:
    """Return the builder's float graph of an architecture, and the files that belong to it.

    Args:
        noise: its weights, under their names in the folder.
        known: the folder, which has the config and the tokenizer.

    Returns:
        (graph with its weights, content of genai_config.json by its name).

    Raises:
        ExportError: the builder does not take the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        place, out = Path(folder) / "model", Path(folder) / "out"
        place.mkdir()
        for name in known.files:
            source = Path(known.folder) / name
            if source.is_file():
                shutil.copyfile(source, place / source.name)
        config = read_json(place / MODEL_CONFIG)
        written = json.dumps({**config, **{name: "float32" for name in TYPES if name in config}})
        (place / MODEL_CONFIG).write_text(written)
        save_file(dict(noise), place / "model.safetensors", metadata={"format": "pt"})
        _run(place, out, Path(folder) / "cache")
        proto, paper = onnx.load(out / "model.onnx"), (out / CONFIG).read_text()
        _name_head_size(proto, int(json.loads(paper)["model"]["decoder"]["head_size"]))
        return proto, {CONFIG: paper}


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
