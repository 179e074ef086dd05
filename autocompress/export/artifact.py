"""The files of one point: model.onnx, recipe.yaml, model.safetensors and a README that says how to run it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from onnx import ModelProto
from safetensors.torch import save
from torch import Tensor

from autocompress.candidate import Candidate
from autocompress.compress.library import Variant, variant_to_tensors
from autocompress.compress.quantize import ActivationRange
from autocompress.errors import ExportError
from autocompress.results import (
    MODEL_FILE,
    NOTES_FILE,
    RECIPE_FILE,
    WEIGHTS_FILE,
    FrontPoint,
    Measurement,
    disk_error,
    write_atomic,
)


def write_model(folder: Path, proto: ModelProto) -> int:
    """Write model.onnx; returns its size in bytes."""
    data = proto.SerializeToString(deterministic=True)
    write_atomic(folder / MODEL_FILE, data)
    return len(data)


def write_weights(folder: Path, variants: Mapping[str, Variant], others: Mapping[str, Tensor] | None) -> None:
    """Write model.safetensors: every module's stored weights, and the other parameters where recovery changed them."""
    tensors = {f"other|{name}": value.contiguous() for name, value in (others or {}).items()}
    for name, variant in variants.items():
        tensors.update(variant_to_tensors(variant, f"variant|{name}|"))
    write_atomic(folder / WEIGHTS_FILE, save(tensors))


def write_recipe(
    folder: Path, candidate: Candidate, trained: bool, ranges: Mapping[str, ActivationRange], origin: Mapping[str, Any]
) -> None:
    """Write recipe.yaml: what was done, in order, and from what."""
    recipe = {
        "origin": dict(origin),
        "order": ["prune", "factorise", "distil", "quantise"],
        "candidate": candidate.to_json(),
        "trained": trained,
        "activation_ranges": {name: {"scale": r.scale, "zero_point": r.zero_point} for name, r in ranges.items()},
        "weights": WEIGHTS_FILE,
    }
    write_atomic(folder / RECIPE_FILE, yaml.safe_dump(recipe, sort_keys=False))


def write_notes(folder: Path, point: FrontPoint, baseline: Measurement, input_names: tuple[str, ...], target: str) -> None:
    """Write README.md: the table before/after and the lines that run the model."""
    m = point.measured
    feed = ", ".join(f'"{name}": {name}' for name in input_names)

    def percent(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.4f}"

    text = f"""# {MODEL_FILE}, trial {point.trial}

| | before | after | ratio |
|---|---|---|---|
| size (bytes) | {baseline.size_bytes} | {m.size_bytes} | {baseline.size_bytes / m.size_bytes:.2f}x smaller |
| latency (ms, {target}) | {baseline.latency_ms:.3f} | {m.latency_ms:.3f} | {baseline.latency_ms / m.latency_ms:.2f}x faster |
| accuracy (validation) | {percent(baseline.accuracy)} | {percent(m.accuracy)} | |
| accuracy (test) | {percent(baseline.test_accuracy)} | {percent(m.test_accuracy)} | |

Latency is the ratio to the float file, run interleaved with it, times the float file's latency at the start of the search.
Linear modules with 8-bit activations take their range from each batch, so that outputs depend slightly on the batch they are in.

```python
import onnxruntime
session = onnxruntime.InferenceSession("{MODEL_FILE}", providers=["CPUExecutionProvider"])
outputs = session.run(None, {{{feed}}})
```
"""
    write_atomic(folder / NOTES_FILE, text)


def copy_artifact(run_folder: Path, point: FrontPoint, to: Path) -> Path:
    """Copy the files of a point to a folder of the user's; returns it."""
    source = run_folder / point.artifact
    if not (source / MODEL_FILE).is_file():
        raise ExportError(f"{source}: has no {MODEL_FILE}; run the search again, it rebuilds what is missing")
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name in (MODEL_FILE, RECIPE_FILE, WEIGHTS_FILE, NOTES_FILE):
            shutil.copyfile(source / name, to / name)
    except OSError as error:
        raise disk_error(to, error) from error
    return to
