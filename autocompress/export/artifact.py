"""The files of one point: model.onnx, recipe.yaml, model.safetensors and a README that says how to run it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from onnx import ModelProto
from safetensors.torch import save
from torch import Tensor

from autocompress.candidate import Candidate
from autocompress.compress.assemble.stitch import Stitcher, Trained
from autocompress.errors import ExportError
from autocompress.export.arithmetic import arithmetic_words, saturation_warning
from autocompress.export.build import Builder
from autocompress.model.plain.plain import form_of
from autocompress.results.files import (
    MODEL_FILE,
    NOTES_FILE,
    RECIPE_FILE,
    WEIGHTS_FILE,
    disk_error,
    write_atomic,
)
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import LATENCY_WORDS, Measurement, left_out_words
from autocompress.targets.device.sessions import SessionSettings
from autocompress.task.batches import Inputs

RECIPE_FORMAT = 4


def write_model(folder: Path, proto: ModelProto) -> int:
    """Write model.onnx; returns its size in bytes."""
    data = proto.SerializeToString(deterministic=True)
    write_atomic(folder / MODEL_FILE, data)
    return len(data)


def write_weights(
    folder: Path, stitcher: Stitcher, candidate: Candidate, trained: Trained | None
) -> None:
    """Write model.safetensors: every module's stored weights, the kept channels, and all other parameters of the model."""
    model = stitcher.apply(candidate, trained)
    others = {
        name: value.detach().cpu()
        for name, value in model.state_dict().items()
        if name in stitcher.state
    }
    made = trained.variants if trained else {}
    variants = {
        name: made.get(name) or stitcher.variant(name, owner, candidate)
        for name, owner in stitcher.owners.items()
    }
    masks = trained.masks if trained else stitcher.pruner.masks(candidate)
    write_atomic(folder / WEIGHTS_FILE, save(Trained(variants, others, {}, masks).to_tensors()))


def write_recipe(
    folder: Path,
    builder: Builder,
    stitcher: Stitcher,
    candidate: Candidate,
    trained: Trained | None,
    example: Inputs,
    origin: Mapping[str, Any],
    settings: SessionSettings,
) -> None:
    """Write recipe.yaml beside model.onnx: what was done, in order, from what, and how its sessions are opened."""
    recipe = builder.recipe(candidate, {}, trained)
    modules = {}
    for name, module in stitcher.simulated.items():
        owner = stitcher.owners[name]
        modules[name] = {
            "kind": module.kind,
            "owner": owner,
            "calls": [asdict(call) for call in builder.plan.calls.get(owner, ())],
            "block_size": module.block_size,
        }
    ranges = {
        name: {"scale": r.scale, "zero_point": r.zero_point, "low": r.low, "high": r.high}
        for name, r in recipe.ranges.items()
    }
    data = {
        "format": RECIPE_FORMAT,
        "origin": dict(origin),
        "order": ["prune", "smooth", "reconstruct", "factorise", "sparsify", "distil", "quantise"],
        "candidate": candidate.to_json(),
        "trained": trained is not None,
        "portable": recipe.portable,
        "kernels": {
            "matmul_levels": dict(recipe.levels),
            "gather_blocks": dict(recipe.blocks),
            "multiples": dict(builder.multiples),
            "integer_forms": {name: str(form) for name, form in recipe.forms.items()},
        },
        "form": form_of(builder.teacher),
        "inputs": describe_inputs(example),
        "modules": modules,
        "activation_ranges": ranges,
        "session": {**asdict(settings), "disabled_optimizers": list(settings.disabled_optimizers)},
        "weights": WEIGHTS_FILE,
        "sha256": hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest(),
    }
    write_atomic(folder / RECIPE_FILE, yaml.safe_dump(data, sort_keys=False))


def read_recipe(folder: Path) -> dict[str, Any]:
    """recipe.yaml of a folder; ExportError when there is none of this format."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise ExportError(
            f"{folder}: has no {RECIPE_FILE}; give the folder that `autocompress export` wrote"
        )
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ExportError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or data.get("format") != RECIPE_FORMAT:
        raise ExportError(f"{path}: not a recipe of format {RECIPE_FORMAT}; export the point again")
    return data


def describe_inputs(value: Any) -> Any:
    """Plain types that say what the model is called with: shapes and types of tensors, constants, and how they are nested."""
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "type": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"entries": {name: describe_inputs(part) for name, part in value.items()}}
    if isinstance(value, (tuple, list)):
        return {
            type(value).__name__ if type(value) in (tuple, list) else "tuple": [
                describe_inputs(part) for part in value
            ]
        }
    return {"constant": value}


def described_inputs(found: Mapping[str, Any]) -> Any:
    """Inputs like those that `describe_inputs` described, their tensors zeros."""
    ((kind, value), *_) = found.items()
    if kind == "shape":
        return torch.zeros(value, dtype=getattr(torch, found["type"]))
    if kind == "entries":
        return {name: described_inputs(part) for name, part in value.items()}
    if kind in ("tuple", "list"):
        parts = [described_inputs(part) for part in value]
        return tuple(parts) if kind == "tuple" else parts
    return value


def session_settings(path: Path) -> SessionSettings | None:
    """How the sessions of a model.onnx are opened, as the recipe beside it says; None when there is none."""
    session = _recipe_beside(path).get("session")
    return None if session is None else SessionSettings.from_json(session)


def session_warning(path: Path, settings: SessionSettings) -> str:
    """Return one line when this machine's integer products are not those that a file was made for; "" when all is well."""
    return saturation_warning(path, settings, _recipe_beside(path).get("portable"))


def _recipe_beside(path: Path) -> dict[str, Any]:
    """The recipe of a model.onnx; empty when there is none."""
    return (
        read_recipe(path.parent)
        if path.name == MODEL_FILE and (path.parent / RECIPE_FILE).is_file()
        else {}
    )


def _session_lines(settings: SessionSettings) -> str:
    if settings.runtime == "openvino":
        config = f'{{"INFERENCE_NUM_THREADS": {settings.threads}, "NUM_STREAMS": 1}}'
        return f'import openvino\nsession = openvino.Core().compile_model("{MODEL_FILE}", "{settings.provider}", {config})'
    lines = [
        "import onnxruntime",
        "options = onnxruntime.SessionOptions()",
        f"options.intra_op_num_threads = {settings.threads}",
    ]
    if not settings.spinning:
        lines.append('options.add_session_config_entry("session.intra_op.allow_spinning", "0")')
    disabled = (
        f", disabled_optimizers={list(settings.disabled_optimizers)}"
        if settings.disabled_optimizers
        else ""
    )
    lines.append(
        f'session = onnxruntime.InferenceSession("{MODEL_FILE}", options, providers=["{settings.provider}"]{disabled})'
    )
    return "\n".join(lines)


def write_notes(
    folder: Path,
    point: FrontPoint,
    baseline: Measurement,
    input_names: tuple[str, ...],
    target: str,
    settings: SessionSettings,
) -> None:
    """Write README.md beside the recipe: the table before/after and the lines that run the model."""
    m = point.measured
    feed = ", ".join(f'"{name}": {name}' for name in input_names)

    def percent(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.4f}"

    shown = [name for name in m.metrics if name in baseline.metrics]
    extra = "".join(
        f"| {name.replace('_', ' ')} | {baseline.metrics[name]:.4f} | {m.metrics[name]:.4f} | |\n"
        for name in shown
    )
    missing = "".join(f"\n{words}\n" for words in left_out_words([baseline, m]))
    text = f"""# {MODEL_FILE}, trial {point.trial}

| | before | after | ratio |
|---|---|---|---|
| size (bytes) | {baseline.size_bytes} | {m.size_bytes} | {baseline.size_bytes / m.size_bytes:.2f}x smaller |
| weights in a session (bytes) | {baseline.memory_bytes} | {m.memory_bytes} | |
| latency (ms, {target}) | {baseline.latency_ms:.3f} | {m.latency_ms:.3f} | {baseline.latency_ms / m.latency_ms:.2f}x faster |
| accuracy (validation) | {percent(baseline.accuracy)} | {percent(m.accuracy)} | |
| accuracy (test) | {percent(baseline.test_accuracy)} | {percent(m.test_accuracy)} | |
{extra}{missing}
Packed weights are unpacked when a session is created, to 8-bit integers for integer kernels and to float for the others.
{arithmetic_words(read_recipe(folder)["portable"])}
{LATENCY_WORDS[m.latency_source]}
Linear modules with 8-bit activations take their range from each batch, so that outputs depend slightly on the batch they are in.

```python
{_session_lines(settings)}
outputs = {"session.run(None, " if settings.runtime == "onnxruntime" else "session("}{{{feed}}})
```
"""
    write_atomic(folder / NOTES_FILE, text)


def copy_artifact(run_folder: Path, point: FrontPoint, to: Path) -> Path:
    """Copy the files of a point to a folder of the user's; returns it."""
    source = run_folder / point.artifact
    if not (source / MODEL_FILE).is_file():
        raise ExportError(
            f"{source}: has no {MODEL_FILE}; run the search again, it rebuilds what is missing"
        )
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name in (MODEL_FILE, RECIPE_FILE, WEIGHTS_FILE, NOTES_FILE):
            shutil.copyfile(source / name, to / name)
    except OSError as error:
        raise disk_error(to, error) from error
    return to
